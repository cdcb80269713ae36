"""What every adapter does around its own records: place images, write both files, and account for everything that was
left out."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import TypeVar

from zr_ray.data.adapters.fields import ADVICE
from zr_ray.data.adapters.summary import Summary
from zr_ray.data.annotations import FILES, write_annotations
from zr_ray.data.files import is_file
from zr_ray.data.images import load_image
from zr_ray.data.pairs import aggregate_scores
from zr_ray.data.preferences import FILE, Preference, write_preferences
from zr_ray.errors import ConfigError, DataError
from zr_ray.records import AnnotatedImage

Record = TypeVar("Record")


class Conversion:
    """One run of an adapter into one folder."""

    def __init__(
        self,
        adapter: str,
        images: Path | None,
        root: Path,
        *,
        copy_images: bool = False,
        skip_broken: bool = False,
        decode_images: bool = False,
    ) -> None:
        """Args: images: folder of the published images, None if the source holds them. root: folder to write, made if
        absent. copy_images: copy instead of hard-linking (a link needs the same file system, else it is a copy anyway).
        skip_broken: count records that break the layout instead of stopping at the first. decode_images: decode every
        image once; one that does not decode breaks its record.
        Raises: DataError if the image folder is absent, or `root` already holds a data set."""
        self.images = None if images is None else Path(images).absolute()
        if self.images is not None and not self.images.is_dir():
            raise DataError(f"{images}: wanted the folder of the published images, there is none; correct the path")
        self.root = Path(root).absolute()
        there = [name for name in (*FILES.values(), FILE) if (self.root / name).exists()]
        if there:
            raise DataError(f"{self.root / there[0]} is already there; choose an empty folder, or remove it")
        self.root.mkdir(parents=True, exist_ok=True)
        self.copy_images, self.skip_broken, self.decode_images = copy_images, skip_broken, decode_images
        self.summary = Summary(adapter, self.root)
        self._placed: set[str] = set()
        self._images: set[str] = set()
        self._ids: set[str] = set()
        self._groups: dict[str, tuple[str, str]] = {}
        self._written: set[str] = set()
        self._splits_of_prompt: dict[bytes, set[str]] = defaultdict(set)
        self._scores: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._missing: Path | None = None
        self._undecodable: dict[Path, str] = {}

    def skip(self, reason: str, where: str, count: int = 1) -> None:
        """Leave a record out, visibly."""
        self.summary.skipped[reason] += count
        self.summary.first.setdefault(reason, where)

    def parsed(
        self, rows: Iterable[tuple[str, object]], parse: Callable[[str, object], Record | None]
    ) -> Iterator[Record]:
        """`parse(where, row)` of every row; None is a row that parse has skipped. A broken row stops, or is counted if
        skip_broken."""
        for where, row in rows:
            try:
                record = parse(where, row)
            except DataError as error:
                if not self.skip_broken:
                    raise
                self.skip("broken record", str(error))
                continue
            if record is not None:
                yield record

    def place(self, name: str, where: str, by_stem: bool = False) -> Path | None:
        """The published image `name` (relative to the image folder) inside `root`; None, and counted, if it was not
        downloaded.

        by_stem: the file name is unique in the whole data set, so it may lie in any of the folders of its path.
        Raises: DataError if the name leaves the image folder."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise DataError(f"{where}: wanted an image path inside the image folder, got {name!r}; {ADVICE}")
        parts = [part for part in path.parts if part != "."]
        starts = range(len(parts) if by_stem else 1)
        found = next(
            (self.images.joinpath(*parts[k:]) for k in starts if is_file(self.images.joinpath(*parts[k:]))), None
        )
        if found is None:
            self._missing = self._missing or self.images.joinpath(*parts)
            self.skip("image not in the image folder", f"{where}: {name}")
            return None
        if self.readable(found, where) is None:
            return None
        return found if found.is_relative_to(self.root) else self._linked(found, self.root.joinpath("images", *parts))

    def readable(self, path: Path, where: str) -> Path | None:
        """`path`, or None, and counted, if images are to be decoded and this one does not; published sets hold such.

        Raises: DataError instead of counting, unless skip_broken."""
        if self.decode_images and path not in self._undecodable:
            try:
                load_image(path)
                self._undecodable[path] = ""
            except DataError as error:
                self._undecodable[path] = str(error)
        reason = self._undecodable.get(path)
        if not reason:
            return path
        if not self.skip_broken:
            raise DataError(f"{where}: {reason}; or skip broken records (skip_broken)")
        return self.skip("image cannot be decoded", f"{where}: {reason}")

    def write_image(self, name: str, data: bytes) -> Path:
        """An image that the source holds as bytes, written to images/`name` inside `root`."""
        target = self.root / "images" / name
        if str(target) not in self._placed:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # left by an interrupted run, perhaps as a link to somebody's original
            target.write_bytes(data)
            self._placed.add(str(target))
        return target

    def member(self, group: str, prompt: str, split: str, where: str) -> bool:
        """Register a record's group. False, and counted, if the prompt is blank.   Raises: DataError if the group has
        another prompt."""
        if not prompt.strip():
            self.skip("blank prompt", where)
            return False
        held = self._groups.setdefault(group, (prompt, split))
        if held != (prompt, split):
            raise DataError(
                f"{where}: wanted {held[1]} prompt {held[0]!r} in group {group!r}, got {split} prompt {prompt!r};"
                f" {ADVICE}"
            )
        return True

    def annotations(self, items: Iterable[tuple[str, AnnotatedImage]]) -> None:
        """Write annotations.jsonl from ("FILE: line N", item); an image listed again is left out and counted."""
        write_annotations(self.root, self._unique(items))

    def preferences(self, preferences: Iterable[Preference]) -> None:
        """Write preferences.jsonl."""
        write_preferences(self.root, self._counted(preferences))

    def finish(self, *notes: str) -> Summary:
        """Close the account.   Raises: DataError if nothing was converted."""
        s = self.summary
        for file, records in ((self.root / FILES["jsonl"], s.items), (self.root / FILE, s.preferences)):
            if not records:
                file.unlink(missing_ok=True)
        if not s.items + s.preferences:
            reasons = "; ".join(
                f"{count} x {reason} (first: {s.first[reason]})" for reason, count in s.skipped.most_common()
            )
            looked = (
                f"; looked for {self._missing}, correct the image folder"
                if self._missing
                else "; choose another source"
            )
            got = reasons or "the source is empty"
            raise DataError(f"{self.root}: wanted at least one record from {s.adapter}, got none: {got}{looked}")
        s.images, s.groups, s.notes = len(self._images), len(self._written), list(notes)
        s.shared_prompts = sum(len(splits) > 1 for splits in self._splits_of_prompt.values())
        s.pairs = sum(a != b for scores in self._scores.values() for a, b in combinations(scores, 2))
        return s

    def _unique(self, items: Iterable[tuple[str, AnnotatedImage]]) -> Iterator[AnnotatedImage]:
        for where, item in items:
            if item.id in self._ids:
                self.skip("image listed again, first record kept", where)
                continue
            self._ids.add(item.id)
            self._count(item.group, item.split, item.prompt, item.image)
            self.summary.items += 1
            for dimension, score in item.scores.items():
                self._scores[item.group, dimension].append(aggregate_scores(score))
            yield item

    def _counted(self, preferences: Iterable[Preference]) -> Iterator[Preference]:
        for one in preferences:
            if _same_content(one.winner, one.loser):
                names = f"{one.group}: {one.winner.name}, {one.loser.name}"
                self.skip("pair of the same picture under two names", names)
                continue
            self._count(one.group, one.split, one.prompt, one.winner, one.loser)
            self.summary.preferences += 1
            yield one

    def _count(self, group: str, split: str, prompt: str, *images: Path) -> None:
        self.summary.by_split[split] += 1
        self._written.add(group)
        self._images.update(map(str, images))
        self._splits_of_prompt[hashlib.sha256(prompt.encode()).digest()[:12]].add(split)

    def _linked(self, source: Path, target: Path) -> Path:
        """`target` as a link to, or a copy of, `source`. A file left there by an interrupted run is replaced, the
        source never."""
        if str(target) in self._placed:
            return target
        self._placed.add(str(target))
        if target.exists() and target.samefile(source):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if not self.copy_images:
            try:
                os.link(source.resolve(), target)
                return target
            except OSError:  # another file system, or one without links
                pass
        shutil.copyfile(source, target)
        return target


def _same_content(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def prompt_group(split: str, prompt: str) -> str:
    """Group name of a prompt where the source has no prompt number: the split and 16 hexadecimal digits of the prompt's
    SHA-256."""
    return f"{split}-{hashlib.sha256(prompt.encode()).hexdigest()[:16]}"


def split_by_prompt(prompt: str, train_frac: float, dev_frac: float) -> str:
    """A split for sources that have none: a fixed hash of the prompt decides, so all images of a prompt go the same
    way.

    Raises: ConfigError if the fractions are not in [0, 1] or sum to more than 1."""
    if not (0 <= train_frac <= 1 and 0 <= dev_frac <= 1 and train_frac + dev_frac <= 1):
        raise ConfigError(
            f"wanted train_frac and dev_frac in [0, 1], with a sum of at most 1, got {train_frac}, {dev_frac}; correct"
            " them"
        )
    place = int.from_bytes(hashlib.sha256(b"split:" + prompt.encode()).digest()[:8]) / 2**64
    return "train" if place < train_frac else "dev" if place < train_frac + dev_frac else "test"
