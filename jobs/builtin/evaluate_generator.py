"""Measure a generator against its gate with the world's verifier, on held-out prompts. Images are generated or
SIMULATED, not photos.

    python jobs/builtin/evaluate_generator.py --output runs/generator_gate
    python jobs/builtin/evaluate_generator.py --generator runs/generator/generator --prompts 128 --output runs/gate_now

Prints a table, writes evaluation.json and grid.png: 16 prompts on the left, the same noise with their shuffled texts on
the right. Exits with 0 when measured, gate met or not; --require-gate makes a missed gate exit with 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from zr_ray.builtin.generator_gate import GATE, mean_with_error, passed, read_images, seed_distance
from zr_ray.builtin.generator_scenes import Defects, evaluation_prompts, sample_scene
from zr_ray.builtin.tiny_generator import ASSET, GUIDANCE_SCALE, SAMPLING_STEPS, generate, load_generator
from zr_ray.config.arguments import number, seed, whole
from zr_ray.errors import ZrRayError
from zr_ray.report.image_grid import save_enlarged, tiled
from zr_ray.world.render import render


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--generator", type=Path, default=ASSET, help="ZImagePipeline folder (default: the shipped one)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/generator_gate"),
        help="folder for table and grid (default %(default)s)",
    )
    parser.add_argument("--prompts", type=whole(2), default=512, help="held-out prompts (default %(default)s)")
    parser.add_argument("--steps", type=whole(1), default=SAMPLING_STEPS, help="sampling steps (default %(default)s)")
    parser.add_argument(
        "--guidance", type=number(0), default=GUIDANCE_SCALE, help="w of pos + w (pos - neg) (default %(default)s)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of prompts and noise (default %(default)s)")
    parser.add_argument(
        "--threads", type=whole(0), default=0, help="CPU threads; 0 leaves it to torch (default %(default)s)"
    )
    parser.add_argument("--require-gate", action="store_true", help="exit with 2 when the gate is not met")
    return parser.parse_args(argv)


@torch.no_grad()
def codec_figures(pipeline, count: int, seed: int) -> dict[str, float]:
    """What the codec alone costs: the verifier's matches on flawless rendered scenes, before and after it, and PSNR in
    dB."""
    rng = np.random.default_rng((seed, 0xC0DEC))
    drawn = [sample_scene(rng, Defects(0, 0, 0, 0, 0.5)) for _ in range(count)]
    prompts, images = [request.prompt for request, _ in drawn], np.stack([render(scene) for _, scene in drawn])
    pixels = torch.from_numpy(images).movedim(-1, 1).float() / 127.5 - 1
    rebuilt = pipeline.vae.decode(pipeline.vae.encode(pixels).latent, return_dict=False)[0].clamp(-1, 1)
    error = ((rebuilt - pixels) / 2).square().mean(dim=(1, 2, 3))
    rebuilt = ((rebuilt + 1) * 127.5).round().byte().movedim(1, -1).numpy()
    before, after = (read_images(some, prompts)["match"].mean() for some in (images, rebuilt))
    psnr_db = -10 * error.log10().mean()
    figures = {"rendered_match": before, "codec_match": after, "codec_cost": before - after, "codec_psnr_db": psnr_db}
    return {name: float(value) for name, value in figures.items()}


def measure(pipeline, args: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """(figures, standard errors of those that are means over images)."""
    prompts = evaluation_prompts(args.prompts, args.seed)
    generate(pipeline, prompts[:8], seed=0, steps=2, guidance_scale=args.guidance)  # first calls allocate
    started, used = time.perf_counter(), time.process_time()
    images = generate(pipeline, prompts, seed=args.seed, steps=args.steps, guidance_scale=args.guidance).numpy()
    image_ms = (time.perf_counter() - started) / len(prompts) * 1000
    processor_ms = (time.process_time() - used) / len(prompts) * 1000
    read = read_images(images, prompts)
    gap = read["match"] - read["shuffled_match"]
    means = {
        "object_match": read["match"],
        "shuffled_match": read["shuffled_match"],
        "prompt_gap": gap,
        "alignment": read["alignment"],
        "shuffled_alignment": read["shuffled_alignment"],
        "plausibility": read["plausibility"],
    }
    single = np.array([len(prompt.split()) == 3 for prompt in prompts])
    for name, chosen in (("one", single), ("two", ~single)):
        if chosen.any():
            means[f"object_match_{name}"] = read["match"][chosen]
    few = prompts[:16]
    options = {"steps": args.steps, "guidance_scale": args.guidance}
    seeds = np.stack([generate(pipeline, few, seed=args.seed + 1 + s, **options).numpy() for s in range(4)])
    figures = {name: mean_with_error(values)[0] for name, values in means.items()}
    errors = {name: mean_with_error(values)[1] for name, values in means.items()}
    figures |= codec_figures(pipeline, min(256, args.prompts), args.seed) | {
        "seed_distance": seed_distance(seeds),
        "image_ms": image_ms,
    }
    figures["image_processor_ms"] = (
        processor_ms  # of all threads; where other work shares the machine, image_ms says little
    )
    return figures, errors


def write_grid(pipeline, args: argparse.Namespace, path: Path) -> list[str]:
    """16 prompts, 4 x 4, and beside them the images of the shuffled texts from the same noise. Returns: the prompts."""
    prompts = evaluation_prompts(16, args.seed + 1)
    options = {"seed": args.seed + 1, "steps": args.steps, "guidance_scale": args.guidance}
    sides = []
    for texts in (prompts, prompts[1:] + prompts[:1]):
        sides.append(tiled(generate(pipeline, texts, **options).numpy(), columns=4))
    line = np.full((256, 16, 3), 255, np.uint8)
    save_enlarged(np.concatenate([sides[0], line, sides[1]], axis=1), path)
    return prompts


def table(figures: dict[str, float], errors: dict[str, float]) -> str:
    """One line per figure, the gate's first."""
    met = passed(figures)
    names = [*GATE, *(name for name in figures if name not in GATE)]
    lines = [f"{'figure':<20} {'value':>9} {'error':>7}  {'gate':<16}"]
    for name in names:
        wanted = f"{GATE[name][0]:g} .. {GATE[name][1]:g}  {'met' if met[name] else 'MISSED'}" if name in GATE else ""
        error = f"{errors[name]:.4f}" if name in errors else ""
        lines.append(f"{name:<20} {figures[name]:>9.4f} {error:>7}  {wanted}".rstrip())
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix; 2 for a missed gate under --require-gate."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        pipeline = load_generator(args.generator)
        figures, errors = measure(pipeline, args)
    except (ZrRayError, OSError) as error:
        print(f"evaluate_generator: {error}", file=sys.stderr)
        return 1
    args.output.mkdir(parents=True, exist_ok=True)
    grid_prompts = write_grid(pipeline, args, args.output / "grid.png")
    met = passed(figures)
    result = {
        "figures": figures,
        "standard_errors": errors,
        "gate": {name: list(limits) for name, limits in GATE.items()},
        "met": met,
        "prompts": args.prompts,
        "steps": args.steps,
        "guidance_scale": args.guidance,
        "seed": args.seed,
        "threads": torch.get_num_threads(),
        "grid_prompts": grid_prompts,
    }
    (args.output / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(figures, errors))
    missed = [name for name in met if not met[name]]
    print(f"gate {'missed: ' + ', '.join(missed) if missed else 'met'}; files in {args.output.absolute()}")
    return 2 if args.require_gate and missed else 0


if __name__ == "__main__":
    sys.exit(main())
