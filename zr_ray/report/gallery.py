"""gallery.html of `jobs/score.py`: every image with its scores, sortable; per prompt the best and the worst on top."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from html import escape

from PIL import Image

from zr_ray.data.images import load_image
from zr_ray.judging.score_images import ImageRow, ImageScore
from zr_ray.report.page import STYLE
from zr_ray.rubric import DIMENSIONS

SHOWN_SIDE = 128
"""Pixels of an image's longer side on the page."""
_SORT = """for (const head of document.querySelectorAll("th[data-sort]")) head.onclick = () => {
  const body = document.querySelector("#all tbody"), at = head.cellIndex;
  const up = head.dataset.up = head.dataset.up ? "" : "1";
  const value = row => parseFloat(row.cells[at].textContent) || 0;
  body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * (value(b) - value(a))));
};"""


def gallery_page(
    title: str, found: Sequence[tuple[ImageRow, ImageScore]], limit: int = 500, dimensions: Sequence[str] = DIMENSIONS
) -> str:
    """A self-contained page; its only script sorts the table. limit: images shown, the first ones. dimensions: the
    judge's, in the order of the scores."""
    scored = [(row, score) for row, score in found if not score.error]
    bad = [(row, score) for row, score in found if score.error]
    parts = [f"<h1>{escape(title)}</h1><p>{len(scored)} images scored, {len(bad)} not scored.</p>"]
    groups = defaultdict(list)
    for row, score in scored:
        groups[row.prompt].append((sum(score.mu), row, score))
    several = {prompt: sorted(group, key=lambda x: x[0]) for prompt, group in groups.items() if len(group) > 1}
    if several:
        parts.append("<h2>Best and worst of a prompt, by the sum of dimensions</h2><table>")
        for prompt, group in list(several.items())[: limit // 8]:
            cells = "".join(f"<td>{_picture(row)}<br>{total:.2f}</td>" for total, row, _ in (group[-1], group[0]))
            parts.append(f"<tr><td>{escape(prompt)}</td>{cells}</tr>")
        parts.append("</table>")
    heads = "".join(f'<th data-sort="1">{escape(name)}</th>' for name in (*dimensions, "sum"))
    parts.append("<h2>All images (a click on a dimension sorts)</h2>")
    parts.append(f'<table id="all"><thead><tr><th></th><th>prompt</th>{heads}</tr></thead><tbody>')
    for row, score in scored[:limit]:
        values = "".join(f"<td>{value:.2f}</td>" for value in (*score.mu, sum(score.mu)))
        parts.append(f"<tr><td>{_picture(row)}</td><td>{escape(row.prompt)}</td>{values}</tr>")
    parts.append("</tbody></table>")
    if bad:
        lines = "".join(f"<li>{escape(str(row.image))}: {escape(score.error)}</li>" for row, score in bad)
        parts.append(f"<h2>Not scored</h2><ul>{lines}</ul>")
    return _document(title, "".join(parts))


def _document(title: str, body: str) -> str:
    digest = base64.b64encode(hashlib.sha256(_SORT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text()}</style></head>"
        f"<body><main>{body}</main><script>{_SORT}</script></body></html>\n"
    )


def _picture(row: ImageRow) -> str:
    picture = Image.fromarray(load_image(row.image))
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
