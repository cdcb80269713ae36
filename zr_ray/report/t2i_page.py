"""report.html and grid.png of a text-to-image run: before and after from the same noise, the table of figures, what
competes, curves.

Pictures and tables come from the ODE sampler, which is named beside them; the noisier images of stochastic training
steps are never shown. Left out on purpose: comparing runs.
"""

from __future__ import annotations

import json
import math
from html import escape

import numpy as np

from zr_ray.config.t2i_reward import OF_SOURCE
from zr_ray.judging.held_out_images import RISING_IS_WORSE, Look
from zr_ray.report.figures import Panel, training_curves
from zr_ray.report.image_grid import save_enlarged, tiled
from zr_ray.report.page import page, picture
from zr_ray.report.refresh_page import refresh_lines, refresh_panels, refresh_section
from zr_ray.rubric import DIMENSIONS
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import duration

GRID_FILE = "grid.png"
NAMES = {
    "nft": "DiffusionNFT",
    "flow_grpo": "Flow-GRPO",
    "flowbp": "FlowBP",
    "refl": "ReFL",
    "draft": "DRaFT-K",
    "draft_lv": "DRaFT-LV",
}
GROUPS = {
    "reward": "Reward: what training asked",
    "referee": "Referee: another judge, never asked for a reward",
    "verifier": "Verifier: classical image analysis of the simulated world, which no training can move",
    "image": "Statistics of the images: there to notice what a reward does not see",
}
"""First part of a figure's name -> heading of its rows."""
JUDGED = ("reward", "referee", "verifier")
"""Groups whose figures are better when they are higher; of statistics only some have a direction."""
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
        for p, svg in training_curves(metrics, PANELS + source_panels(result) + refresh_panels(result))
    )
    sections = [
        _headline(result, environment),
        _pictures(before, after, len(result["held_out_prompts"])),
        _table(result),
        refresh_section(result),
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
    return "\n".join(lines + refresh_lines(result))


def _present(result: dict) -> list[str]:
    """Figures of a result in the table's order; the reward's own names, which a user may choose, after its sum."""
    found = [name for name in FIGURES if name in result["figures"]]
    own = [name for name in result["figures"] if name.startswith("reward/") and name not in FIGURES]
    return sorted(found + own, key=lambda name: list(GROUPS).index(name.split("/")[0]))


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
    size = abs(value)
    digits = 2 if size >= 1 or not size else 3 if size >= 0.01 else min(6, 1 - math.floor(math.log10(size)))
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _interval(row: dict) -> str:
    return f"[{_number(row['low'])},\u00a0{_number(row['high'])}]"


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
                    f"{_number(row['before'])} to {_number(row['after'])}\n{_interval(row)}",
                )
            )
    for name, row in result["gsb"].items():
        if name.endswith("/sum"):
            tiles.append(
                (
                    f"GSB by {_words(name)}",
                    f"{row['gsb']:+.1%}",
                    f"{row['good']:.0%} better, {row['bad']:.0%} worse\n[{row['low']:+.1%},\u00a0{row['high']:+.1%}]",
                )
            )
    sampler, git = result["sampler"], environment["started"]["git"]
    hardware = environment["started"]["hardware"]
    stopped = f'<p class="bad">{escape(result["stopped"])}</p>' if result["stopped"] else ""
    facts = [
        f"run {result['run_id']}, {result['status']}: {result['steps']} steps of {result['algorithm']} in"
        f" {duration(result['training_s'])}, {duration(result['wall_s'])} in all; weights: {result['weights']}",
        f"images: {sampler['kind']}, {sampler['steps']} steps, guidance {sampler['guidance_scale']:g};"
        f" {result['prompts']} held-out prompts x {result['seeds']} seeds",
        f"reward calls: {', '.join(f'{value} {name}' for name, value in result['reward_calls'].items())}",
        f"git {git['commit'][:12]}; {hardware['cores']} cores of {hardware['cpu']}",
    ]
    tile_html = "".join(_tile(*tile) for tile in tiles)
    return (
        f'<p class="eyebrow">zr_ray · text to image</p><h1>{escape(NAMES[result["algorithm"]])}: before and after</h1>'
        f"{stopped}"
        f'<div class="tiles">{tile_html}</div><p class="soft">Changes on held-out prompts, with 95 % intervals over'
        " prompts. GSB: share of pairs that got better less share that got worse.</p>"
        f'<p class="facts">{"<br>".join(map(escape, facts))}</p>'
    )


def _pictures(before: Look, after: Look, prompts: int) -> str:
    cards = "".join(
        f"<figure><div>{picture(old)}{picture(new)}</div><figcaption>{escape(prompt)}</figcaption></figure>"
        for prompt, old, new in zip(before.prompts[:prompts], before.images[:, 0], after.images[:, 0], strict=False)
    )
    return (
        '<h2>Before and after</h2><p class="soft">Left the untrained generator, right the trained one: the same'
        " held-out prompt, noise, sampler, steps and guidance. Not chosen: the first prompts of the list.</p>"
        f'<div class="pairs">{cards}</div>'
    )


def _table(result: dict) -> str:
    beside = result["beside"]
    head = "".join(f"<th>{escape(t)}</th>" for t in ("", "untrained", "trained", "change"))
    head += "".join(f"<th>{escape(name)}<small>change</small></th>" for name in beside)
    body, group = [], None
    for name in _present(result):
        if (first := name.split("/")[0]) != group:
            group = first
            body.append(f'<tr><th class="group" colspan="{4 + len(beside)}">{escape(GROUPS[group])}</th></tr>')
        row = result["figures"][name]
        change = f"<span class='{_tone(name, row)}'>{_number(row['difference'], True)}</span>"
        cells = [_number(row["before"]), _number(row["after"]), f"{change}<small>{_interval(row)}</small>"]
        cells += [_beside(rows.get(name)) for rows in beside.values()]
        words = escape(_words(name.partition("/")[2]))
        body.append(f"<tr><td>{words}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return (
        '<h2>Figures</h2><p class="soft">Paired over prompts: the same prompts and noise before and after; under each'
        " change its 95 % interval by resampling prompts, colored where it excludes 0 and a direction is better."
        " Beside training stands what else could be done, as a change against the untrained generator. Best of 2: of"
        " each prompt's two images the one that the reward likes better, at twice the cost.</p>"
        f'<div class="scroll"><table class="wide"><tr>{head}</tr>{"".join(body)}</table></div>'
    )


def _tone(name: str, row: dict) -> str:
    """Class of a change: "good" or "bad" where the interval excludes 0 and the figure has a better direction."""
    sure = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
    judged = name.split("/")[0] in JUDGED and name != "reward/entropy"
    directed = judged or name in (*RISING_IS_WORSE, "image/seed_distance")
    if not sure or not directed:
        return ""
    return "good" if (row["difference"] > 0) != (name in RISING_IS_WORSE) else "bad"


def _beside(row: dict | None) -> str:
    return "-" if row is None else f"{_number(row['difference'], True)}<small>{_interval(row)}</small>"
