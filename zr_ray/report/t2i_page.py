"""report.html and grid.png of a text-to-image run: before and after from the same noise, the table of figures, what
competes, curves.

Pictures and tables come from the ODE sampler, which is named beside them; the noisier images of stochastic training
steps are never shown. Left out on purpose: comparing runs.
"""

from __future__ import annotations

import base64
import json
from html import escape

import numpy as np

from zr_ray.config.t2i_reward import OF_SOURCE
from zr_ray.judging.held_out_images import RISING_IS_WORSE, Look
from zr_ray.report.figures import Panel, training_curves
from zr_ray.report.image_grid import save_enlarged, tiled
from zr_ray.report.page import page
from zr_ray.rubric import DIMENSIONS
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import duration

GRID_FILE = "grid.png"
FIGURES = (
    "reward/sum",
    "referee/sum",
    "verifier/sum",
    "verifier/alignment",
    "verifier/realism",
    "verifier/aesthetics",
    "verifier/plausibility",
    "verifier/match",
    "verifier/nothing_seen",
    "verifier/clutter",
    "image/row_variance",
    "image/column_variance",
    "image/seed_distance",
    "image/moved",
    "image/blockiness",
    "image/high_frequency",
    "image/edge_density",
    "image/dark_frac",
    "image/brightness",
    "image/color_entropy",
)
"""Rows of the table, in this order; figures that a run lacks are left out."""


def _dimensions(group: str) -> tuple[str, ...]:
    return tuple(f"{group}/{name}" for name in DIMENSIONS)


PANELS = (
    Panel("Reward in training", "mean over a step's images", ("reward/total",)),
    Panel("Reward per dimension", "mean over a step's images, rubric points", _dimensions("reward")),
    Panel("Held-out: reward against what it cannot move", "change against the untrained generator, points",
          ("held_out/reward/sum", "held_out/verifier/sum", "held_out/referee/sum")),
    Panel("Held-out: verifier per dimension", "change, rubric points",
          _dimensions("held_out/verifier")),
    Panel("Held-out: object match", "change, fraction",
          ("held_out/verifier/match", "held_out/verifier/clutter", "held_out/verifier/nothing_seen")),
    Panel("Held-out: stripes", "change of row and column variance",
          ("held_out/image/row_variance", "held_out/image/column_variance")),
    Panel("Held-out: distance", "gray levels: from the untrained images, between seeds",
          ("held_out/image/moved", "held_out/image/seed_distance")),
    Panel("Distance of the velocity to the reference", "mean square over the step's probes", ("anchor/distance",)),
    Panel("Reward spread inside groups", "standard deviation", ("reward/group_std",)),
    Panel("Judge's entropy", "nats", ("reward/entropy",)),
    Panel("Loss", "mean over probes", ("loss/total",)),
    Panel("Ratio and clipping", "Flow-GRPO", ("policy/ratio_max_abs_diff", "policy/clip_frac")),
    Panel("Single samples' gradients", "largest over median", ("gradient/largest_to_median",)),
    Panel("Steepest score's share of the gradient", "before balancing", ("gradient/largest_share",)),
    Panel("Seconds per phase", "of each step, stacked", ("time/*_s",), stacked=True, without=("time/step_s",)),
    Panel("Gradient norm", "before clipping", ("actor/grad_norm",)),
)  # fmt: skip


def write_report(run: RunFolder):
    """Write report.html and grid.png into the run folder; returns the page's path. Raises CheckpointError without a
    result.json."""
    result, metrics = run.read_result(), run.read_metrics()
    environment = json.loads((run.path / "environment.json").read_text())
    before, after = (Look.load(run.path / "held_out" / f"{name}.npz") for name in ("before", "after"))
    save_enlarged(before_after(before, after, len(result["held_out_prompts"])), run.path / GRID_FILE)
    curves = "".join(
        f"<figure><h3>{escape(p.title)}</h3><figcaption>{escape(p.caption)}</figcaption>{svg}</figure>"
        for p, svg in training_curves(metrics, PANELS + source_panels(result))
    )
    sections = [
        _headline(result, environment),
        _pictures(run, result),
        _table(result),
        f'<h2>Training</h2><div class="figures">{curves}</div>',
    ]
    return run.write_text("report.html", page(f"t2i {result['run_id']}", "".join(sections)))


def before_after(before: Look, after: Look, prompts: int) -> np.ndarray:
    """Two grids side by side, untrained left, trained right: the first image of each prompt, from the same noise."""
    columns = max(1, round(prompts**0.5))
    sides = [tiled(look.images[:prompts, 0], columns) for look in (before, after)]
    line = np.full((sides[0].shape[0], 16, 3), 255, np.uint8)
    return np.concatenate([sides[0], line, sides[1]], axis=1)


def format_rows(result: dict) -> str:
    """The plain-text table at the end of the job log."""
    lines = [f"{'':<24}{'before':>10}{'after':>10}{'change':>10}  95 % interval"]
    for name in _present(result):
        row = result["figures"][name]
        lines.append(
            f"{_words(name):<24}{_number(row['before']):>10}{_number(row['after']):>10}"
            f"{_number(row['difference'], True):>10}  {_interval(row)}"
        )
    for name, row in result["gsb"].items():
        if name.endswith("/sum"):
            lines.append(f"GSB by {_words(name)}: {row['gsb']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}]")
    for name, rows in result["beside"].items():
        told = ", ".join(
            f"{_words(n)} {_number(rows[n]['difference'], True)}"
            for n in ("reward/sum", "verifier/sum", "verifier/match")
            if n in rows
        )
        lines.append(f"{name}: {told}")
    return "\n".join(lines)


def _present(result: dict) -> list[str]:
    """Figures of the run, those of several reward sources right behind their sum."""
    own = [f"reward/{name}" for name in result.get("reward_weights", {}) if OF_SOURCE in name]
    wanted = ["reward/sum", *own, *FIGURES[1:]]
    return [name for name in wanted if name in result["figures"]]


def source_panels(result: dict) -> tuple[Panel, ...]:
    """A panel for each of several reward sources: their scores have units of their own."""
    weights = result.get("reward_weights", {})
    sources = dict.fromkeys(name.partition(OF_SOURCE)[0] for name in weights if OF_SOURCE in name)
    panels = [
        Panel(f"Reward source {source}", "mean over a step's images, in its own unit; weights "
              + ", ".join(f"{weights[name]:g}" for name in weights if name.startswith(source + OF_SOURCE)),
              (f"reward/{source}{OF_SOURCE}*",))
        for source in sources
    ]  # fmt: skip
    failed = Panel("Images that a source did not score", "number in a step, all actors", ("reward/failed/*",))
    return (*panels, failed) if panels else ()


def _words(name: str) -> str:
    return name.replace("image/", "").replace("/", " ").replace("_", " ")


def _number(value: float | None, signed: bool = False) -> str:
    if value is None:
        return "-"
    digits = 4 if abs(value) < 0.01 else 3 if abs(value) < 10 else 1
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _interval(row: dict) -> str:
    return f"[{_number(row['low'])}, {_number(row['high'])}]"


def _tile(title: str, value: str, note: str) -> str:
    title, value, note = map(escape, (title, value, note))
    return f'<div class="tile"><span class="soft">{title}</span><b>{value}</b><span class="soft">{note}</span></div>'


def _headline(result: dict, environment: dict) -> str:
    rows = result["figures"]
    tiles = []
    for name, title in (
        ("reward/sum", "reward"),
        ("referee/sum", "referee"),
        ("verifier/sum", "verifier, sum of four"),
        ("verifier/match", "object match"),
    ):
        if name in rows:
            row = rows[name]
            tiles.append(
                (
                    title,
                    _number(row["difference"], True),
                    f"{_number(row['before'])} to {_number(row['after'])}, 95 % [{_number(row['low'])},"
                    f" {_number(row['high'])}]",
                )
            )
    for name, row in result["gsb"].items():
        if name.endswith("/sum"):
            tiles.append(
                (
                    f"GSB by {_words(name)}",
                    f"{row['gsb']:+.1%}",
                    f"95 % [{row['low']:+.1%}, {row['high']:+.1%}]; same {row['same']:.0%}",
                )
            )
    tiles.append(("training", duration(result["training_s"]), f"{result['steps']} steps; {result['status']}"))
    sampler, git = result["sampler"], environment["started"]["git"]
    hardware = environment["started"]["hardware"]
    stopped = f'<p class="bad">{escape(result["stopped"])}</p>' if result["stopped"] else ""
    facts = [
        f"run {result['run_id']}, {result['algorithm']}, weights: {result['weights']}",
        f"images: {sampler['kind']}, {sampler['steps']} steps, guidance {sampler['guidance_scale']:g};"
        f" {result['prompts']} held-out prompts x {result['seeds']} seeds",
        f"reward calls: {', '.join(f'{value} {name}' for name, value in result['reward_calls'].items())}",
        f"git {git['commit'][:12]}; {hardware['cores']} cores of {hardware['cpu']}; {duration(result['wall_s'])} in"
        " all",
    ]
    tile_html = "".join(_tile(*tile) for tile in tiles)
    return (
        f'<p class="eyebrow">zr_ray · text to image</p><h1>{escape(result["algorithm"])}: before and after</h1>'
        f"{stopped}"
        f'<div class="tiles">{tile_html}</div><p class="facts">{"<br>".join(map(escape, facts))}</p>'
    )


def _pictures(run: RunFolder, result: dict) -> str:
    data = base64.b64encode((run.path / GRID_FILE).read_bytes()).decode()
    listed = "; ".join(result["held_out_prompts"])
    return (
        '<h2>Before and after</h2><p class="soft">Left the untrained generator, right the trained one: the same'
        " prompts, noise, sampler,"
        f" steps and guidance. Held-out prompts, row by row: {escape(listed)}.</p>"
        '<figure><img alt="untrained left, trained right" style="width:100%;image-rendering:pixelated"'
        f' src="data:image/png;base64,{data}"></figure>'
    )


def _table(result: dict) -> str:
    beside = result["beside"]
    head = "".join(
        f"<th>{escape(t)}</th>"
        for t in ["", "untrained", "trained", "change, 95 % interval", *(f"{n} (change)" for n in beside)]
    )
    body = []
    for name in _present(result):
        row = result["figures"][name]
        sure = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
        good = (row["difference"] > 0) != (name in RISING_IS_WORSE)
        tone = "" if not sure or name in ("image/moved",) else "good" if good else "bad"
        change = f"<span class='{tone}'>{_number(row['difference'], True)}</span><small>{_interval(row)}</small>"
        cells = [_number(row["before"]), _number(row["after"]), change]
        cells += [_beside(rows.get(name)) for rows in beside.values()]
        body.append(f"<tr><td>{escape(_words(name))}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return (
        '<h2>Figures</h2><p class="soft">Paired over prompts: the same prompts and noise before and after, intervals'
        " by resampling prompts."
        " Verifier: classical image analysis of the simulated world, which no training can move. Image figures are"
        " there to notice what"
        " a reward does not see. Best of 2: of each prompt's two images the one that the reward likes better, at"
        " twice the cost.</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>'
    )


def _beside(row: dict | None) -> str:
    return (
        "-"
        if row is None
        else f"{_number(row['difference'], True)}<small>[{_number(row['low'])}, {_number(row['high'])}]</small>"
    )
