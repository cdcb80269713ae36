"""fitness.html: the figures of `jobs/evaluate_reward.py`, and what the judge likes best and least beside what the
reference does."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from zr_ray.judging.fitness import Fitness, fitness_table
from zr_ray.report.page import page


def fitness_page(
    title: str,
    fitness: Fitness,
    images: np.ndarray,
    prompts: Sequence[str],
    mu: np.ndarray,
    reference: np.ndarray,
    shown: int = 12,
) -> str:
    """A self-contained page. images: [P, S, H, W, 3] uint8; prompts: P; mu, reference: [P, S, D], nan = no score. Shows
    prompts whose images have all scores."""
    parts = [f"<h1>{escape(title)}</h1>", f"<pre>{escape(fitness_table(fitness))}</pre>"]
    if fitness.probes:
        rows = "".join(
            f"<tr><td>{escape(name)}</td>"
            + "".join(f"<td>{judge:.2f} ({wanted:.2f})</td>" for judge, wanted in values.values())
            + "</tr>"
            for name, values in fitness.probes.items()
        )
        head = "".join(f"<th>{escape(d)}</th>" for d in next(iter(fitness.probes.values())))
        parts.append(
            "<h2>Pictures that should not score high: judge (reference)</h2>"
            f"<table><tr><th></th>{head}</tr>{rows}</table>"
        )
    parts.append(
        "<h2>Best and worst of a prompt, by judge and by reference (sum of dimensions: judge, reference)</h2><table>"
    )
    parts.append("<tr><th></th><th>judge, best</th><th>worst</th><th>reference, best</th><th>worst</th></tr>")
    whole = np.isfinite(mu).all((1, 2)) & np.isfinite(reference).all((1, 2))
    for p in np.flatnonzero(whole)[:shown]:
        by_judge, by_reference = mu[p].sum(-1), reference[p].sum(-1)
        chosen = (by_judge.argmax(), by_judge.argmin(), by_reference.argmax(), by_reference.argmin())
        cells = "".join(
            f"<td>{_picture(images[p, i])}<br>{by_judge[i]:.1f}, {by_reference[i]:.1f}</td>" for i in chosen
        )
        parts.append(f"<tr><td>{escape(prompts[p])}</td>{cells}</tr>")
    return page(title, "".join([*parts, "</table>"]))


def _picture(image: np.ndarray) -> str:
    """An <img> with its pixels inside, small pictures enlarged without smoothing."""
    side = max(1, 96 // image.shape[0])
    buffer = io.BytesIO()
    Image.fromarray(np.kron(image, np.ones((side, side, 1), np.uint8))).save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
