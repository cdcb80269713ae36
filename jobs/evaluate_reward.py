"""Is this reward fit for this generator? Orders images of one prompt by judge and by reference, and says fit, weak or
blind.

    python jobs/evaluate_reward.py --judge student                                      # the shipped generator's images
    python jobs/evaluate_reward.py --judge student --data ANNOTATED --split test        # images of your generator with
    human scores

With --generator the prompts are two-object prompts that nothing was trained on, the reference is the world's verifier,
and pictures that fool rewards (noise, blobs, stripes, ...) are judged too. Writes fitness.json and fitness.html. One
forward an image, no Ray; with --traces the judge reasons first, on vLLM in this process: what a teacher would be worth
as a reward.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import zr_ray  # noqa: F401  (torchvision shim before transformers)
from zr_ray.builtin.named_pools import named_pool
from zr_ray.builtin.packed_sampler import PackedSampler
from zr_ray.builtin.tiny_generator import ASSET, load_generator
from zr_ray.config.arguments import whole
from zr_ray.data.annotations import load_image, read_annotations
from zr_ray.errors import DataError, ZrRayError
from zr_ray.functional.scores import expected_score
from zr_ray.judging.evaluate import human_scores
from zr_ray.judging.fitness import Fitness, fitness_table, reward_fitness
from zr_ray.judging.in_process import Judge, OneForward, Reasoning
from zr_ray.models.judge_text import judge_folder
from zr_ray.report.fitness_page import fitness_page
from zr_ray.rubric import DIMENSIONS, Rubric
from zr_ray.world.image_pool import SamplingShare, load_pool, make_shard
from zr_ray.world.probes import PROBES, probe_images
from zr_ray.world.verifier.scores import verify

GOOD = "good scene"


def probe_scores(judge: Judge, count: int, seed: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Probe -> dimension -> (judge, verifier), mean scores; the good scene is left out."""
    prompts, pictures = probe_images(count, seed)
    found = {}
    for name in (probe for probe in PROBES if probe != GOOD):
        measured = [verify(image, prompt) for image, prompt in zip(pictures[name], prompts, strict=True)]
        mu = mean_scores(judge(pictures[name], prompts), judge.rubric).nanmean(0)
        found[name] = {d: (float(mu[i]), float(np.mean([m[d] for m in measured]))) for i, d in enumerate(DIMENSIONS)}
    return found


def generated(folder: Path, guidance: float, steps: int, prompts: int, images: int):
    """(images [P, S, ...], prompts, verifier scores [P, S, D], recognized [P, S]) of a generator on held-out prompts;
    cached."""
    recipe = named_pool("test", folder)
    recipe = replace(
        recipe,
        shares=(SamplingShare(steps, guidance, 1.0),),
        prompts=recipe.prompts[:prompts],
        images_per_prompt=images,
    )
    missing = [i for i in range(recipe.shards) if not (recipe.folder / f"shard-{i:04d}.npz").is_file()]
    if missing:
        sampler = PackedSampler(load_generator(folder), compiled=False)
        for index in missing:
            make_shard(
                recipe,
                index,
                lambda texts, seeds, how: sampler(texts, seeds, steps=how.steps, guidance_scale=how.guidance_scale),
            )
    pool = load_pool(recipe)
    order = np.argsort(pool.prompt, kind="stable")
    shape = (len(recipe.prompts), images)
    seen = (pool.objects[order][:, 0, 0] >= 0).reshape(shape)
    return (
        pool.images[order].reshape(*shape, 64, 64, 3),
        list(recipe.prompts),
        pool.scores[order].reshape(*shape, -1),
        seen,
    )


def annotated(folder: Path, split: str, rubric: Rubric):
    """The same of an annotated set: groups of the most common size; recognized is None. Raises: DataError without two
    images of a prompt."""
    groups = defaultdict(list)
    for item in read_annotations(folder, split=split):
        groups[item.group].append(item)
    size = Counter(map(len, groups.values())).most_common(1)[0][0]
    kept = [group for group in groups.values() if len(group) == size]
    if size < 2:
        raise DataError(
            f"{folder} has one image per prompt in split {split}; a reward is judged by how it orders images of one"
            " prompt"
        )
    images = np.stack([[load_image(item.image) for item in group] for group in kept])
    scores = np.stack([human_scores(group, rubric).numpy() for group in kept])
    return images, [group[0].prompt for group in kept], scores, None


def mean_scores(log_q: torch.Tensor, rubric: Rubric) -> torch.Tensor:
    """[..., D] mu of [..., D, K] log q, rubric points."""
    return expected_score(log_q, torch.tensor(rubric.bins, dtype=log_q.dtype))


def say(line: str) -> None:
    """Progress, apart from the figures."""
    print(line, file=sys.stderr, flush=True)


def evaluate(judge: Judge, images, prompts, reference, recognized, args) -> tuple[Fitness, np.ndarray]:
    """(figures, the judge's mu [P, S, D])."""
    count, size = images.shape[:2]
    flat = [prompt for prompt in prompts for _ in range(size)]
    log_q = judge(images.reshape(-1, *images.shape[2:]), flat).view(count, size, len(judge.rubric.dimensions), -1)
    probes = probe_scores(judge, args.probes, args.seed) if recognized is not None and args.probes else None
    seen = None if recognized is None else torch.from_numpy(recognized)
    fitness = reward_fitness(
        torch.from_numpy(reference),
        log_q,
        rubric=judge.rubric,
        recognized=seen,
        resamples=args.resamples,
        seed=args.seed,
        probes=probes,
    )
    return fitness, mean_scores(log_q, judge.rubric).numpy()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="student", help="judge folder, or a built-in name (default %(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--generator", type=Path, help="ZImagePipeline folder of the built-in world (default: the shipped one)"
    )
    source.add_argument("--data", type=Path, help="annotated set of generated images")
    parser.add_argument("--split", default="test", help="of --data (default %(default)s)")
    parser.add_argument(
        "--guidance", type=float, nargs="+", default=[0.0, 1.5], help="of --generator, each measured (default 0 1.5)"
    )
    parser.add_argument(
        "--traces",
        type=whole(0),
        default=0,
        help="reasoning traces of an image and dimension, whose distributions are averaged; 0: the judge scores without"
        " reasoning (default %(default)s)",
    )
    parser.add_argument("--steps", type=whole(1), default=8, help="sampling steps (default %(default)s)")
    parser.add_argument(
        "--prompts", type=whole(1), default=128, help="held-out prompts (default %(default)s, which is all there are)"
    )
    parser.add_argument("--images", type=whole(2), default=8, help="images per prompt (default %(default)s)")
    parser.add_argument(
        "--probes",
        type=whole(0),
        default=64,
        help="pictures of each kind that fools rewards; 0 leaves them out (default %(default)s)",
    )
    parser.add_argument(
        "--resamples", type=whole(20), default=2000, help="of the bootstrap over prompts (default %(default)s)"
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="of bootstrap and probes (default %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/reward_fitness"), help="folder for the files (default %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.data is None and args.generator is None:
        args.generator = ASSET
    return args


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix; 2 where a dimension is blind."""
    args, blind = parse(argv), False
    try:
        folder = judge_folder(args.judge)
        judge = Reasoning(folder, args.traces, args.seed, say) if args.traces else OneForward(folder)
        args.output.mkdir(parents=True, exist_ok=True)
        for guidance in args.guidance if args.generator else [None]:
            if args.generator:
                found = generated(args.generator, guidance, args.steps, args.prompts, args.images)
                name = f"guidance-{guidance:g}"
            else:
                found, name = annotated(args.data, args.split, judge.rubric), args.split
            fitness, mu = evaluate(judge, *found, args)
            how = f", {args.traces} traces," if args.traces else ""
            title = f"{args.judge}{how} as reward for {args.generator or args.data}, {name}"
            facts = {
                "judge": args.judge,
                "traces": args.traces,
                "source": str(args.generator or args.data),
                "steps": args.steps,
                "guidance": guidance,
            }
            (args.output / f"fitness-{name}.json").write_text(json.dumps(facts | fitness.as_dict(), indent=1) + "\n")
            (args.output / f"fitness-{name}.html").write_text(
                fitness_page(title, fitness, found[0], found[1], mu, found[2])
            )
            print(f"{title}: {fitness.prompts} prompts x {fitness.images} images\n{fitness_table(fitness)}", flush=True)
            blind |= any(d.verdict == "blind" for d in fitness.dimensions.values())
    except (ZrRayError, OSError) as error:
        print(f"evaluate_reward: {error}", file=sys.stderr)
        return 1
    print(f"files in {args.output.absolute()}")
    return 2 if blind else 0


if __name__ == "__main__":
    sys.exit(main())
