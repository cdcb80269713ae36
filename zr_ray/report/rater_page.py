"""The page on which people look at images and answer by key: one static HTML file, without network, answers exported as
JSON. What its two modes share.

    gsb_page      "compare": which of two images is better, overall or per dimension
    rating_page   "rate": rubric scores per dimension, then half points by comparison

The page knows images by random names. What they are stands in a key file beside it, with the seed of names, order and
sides; raters do not get it. Answers stay in the rater's browser until exported. Left out on purpose: a server,
accounts.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import secrets
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from zr_ray.data.files import write_whole
from zr_ray.errors import DataError

ASSETS = Path(__file__).parents[1] / "assets"
EXACT_PIXELS = 512 * 512
"""Images up to this size are in the page as PNG, pixel by pixel; larger ones as WebP of quality `QUALITY`, a fifth to a
tenth of the size, so that a page of hundreds of large images still opens."""
QUALITY = 95


def draw_seed(seed: int | None) -> int:
    """The seed of names, order and sides: the one given, or 64 random bits. A small one could be guessed from the
    names in the page by whoever has this package."""
    return secrets.randbits(64) if seed is None else seed


def random_names(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different names of 16 hex digits."""
    return [rng.bytes(8).hex() for _ in range(count)]


def embedded(image: np.ndarray) -> str:
    """[H, W, 3] uint8 as a data URI. Written anew, so that no metadata of a file tells where the image comes from."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    if picture.width * picture.height <= EXACT_PIXELS:
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture.save(buffer, "WEBP", quality=QUALITY)
        kind = "webp"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def study_name(parts: Iterable[str]) -> str:
    """12 hex digits of everything the page shows: answers to another page are never taken for this one's."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()[:12]


def write_study(page: Path, title: str, study: dict, key: dict) -> tuple[Path, Path]:
    """Write the page and, beside it, its key file `<stem>_key.json`. Returns: both paths.

    Args: study: what `assets/rater_page.js` reads, for the raters' eyes. key: for the owner's."""
    script = (ASSETS / "rater_page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = (ASSETS / "rater_page.html").read_text().replace("__TITLE__", escape(title))
    text = text.replace("__SCRIPT_HASH__", f"sha256-{digest}").replace("__SCRIPT__", script)
    text = text.replace("__STUDY__", json.dumps(study).replace("<", "\\u003c"))  # a prompt cannot end the script
    page.parent.mkdir(parents=True, exist_ok=True)
    key_path = page.with_name(f"{page.stem}_key.json")
    write_whole(page, text.encode())
    write_whole(key_path, (json.dumps(key, indent=1, ensure_ascii=False) + "\n").encode())
    return page, key_path


def read_key(path: Path, format: str) -> dict:
    """The key file of a page.   Raises: DataError if it is none, or of the other mode."""
    try:
        key = json.loads(Path(path).read_text())
        found = key["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no key file of a page ({error}); name the one that was written with it") from None
    if found != format:
        raise DataError(f"{path} is the key of answers of the format {found}, wanted {format}; name the other page's")
    return key


def read_exports(key_path: Path, key: dict, paths: Sequence[Path]) -> list[dict]:
    """The exported files of a page's raters, in the order given.

    Raises: DataError naming a file that is none, belongs to another page, or is one rater's second export."""
    if not paths:
        raise DataError("no file of answers; name at least one")
    held, sessions = [], {}
    for path in paths:
        try:
            found = json.loads(Path(path).read_text())
            head = [found[name] for name in ("format", "study", "session", "rater")]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no file of answers ({error}); export it from the page") from None
        if head[:2] != [key["format"], key["study"]]:
            raise DataError(f"{path} belongs to another page than {key_path} (study {key['study']}); leave it out")
        first = sessions.setdefault(str(head[2]), path)
        if first is not path:
            raise DataError(f"{first} and {path} are exports of one rater ({head[3]}); keep the newer one")
        held.append(found)
    return held
