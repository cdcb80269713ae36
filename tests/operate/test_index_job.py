"""The index job on Ray Data: what is new is read, once; a job that dies goes on; what is bad is listed by line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zr_ray.data.image_index import INDEX_FILE, ImageIndex, look_at
from zr_ray.errors import DataError
from zr_ray.operate.image_index import index_images, survey

JOB = Path(__file__).parents[2] / "jobs/data/index.py"


@pytest.fixture()
def folder(tmp_path):
    """Ten records: 8 is a second name of 0, 9 has the image of record 1, 3 is damaged, 5 is missing."""
    rng, lines = np.random.default_rng(0), []
    for n in range(9):
        Image.fromarray(rng.integers(0, 256, (16, 8, 3), np.uint8)).save(tmp_path / f"{n}.png")
    os.remove(tmp_path / "8.png")
    os.link(tmp_path / "0.png", tmp_path / "8.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:80])
    (tmp_path / "5.png").unlink()
    for n in range(10):
        image = "./1.png" if n == 9 else f"{n}.png"
        line = {"id": f"i{n}", "group": f"g{n}", "split": "train", "prompt": f"p{n}", "image": image}
        lines.append(line | {"scores": {"realism": 2.0}})
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def direct(folder):
    """The rows as they must be, without Ray."""
    index = ImageIndex(folder / "no index here")
    index.update(look_at(folder, f"{n}.png") for n in range(9))
    return index.rows


def test_images_are_read_once_and_bad_ones_are_listed_by_line(ray_cluster, folder):
    found = survey(folder)
    assert found.wanted == {f"{n}.png": ("8.png",) if n == 0 else () for n in range(8)}
    assert found.line() == "10 records, 9 images: 0 indexed, 9 to read (8 files, the rest are further names of them)"
    said = []
    unusable = index_images(found, said.append, batch_images=3)
    file = folder / "annotations.jsonl"
    assert [line.split(": wanted")[0] for line in unusable] == [
        f"{file}: line 4: item 'i3': 3.png",
        f"{file}: line 6: item 'i5': 5.png",
    ]
    assert said[-1] == "read 8 of 8 files, 2 images cannot be used, 0 s left"
    assert ImageIndex(folder).rows == direct(folder) and len(direct(folder)) == 8


def test_a_second_run_reads_what_is_new_or_changed_and_what_was_missing(ray_cluster, folder):
    first = index_images(survey(folder), str, batch_images=3)
    before = (folder / INDEX_FILE).read_bytes()
    found = survey(folder)
    assert list(found.wanted) == ["5.png"]
    assert index_images(found, str) == first  # what was found bad and did not change is said again, unread
    assert (folder / INDEX_FILE).read_bytes() == before
    for n in (3, 5):
        Image.fromarray(np.full((4, 4, 3), n, np.uint8)).save(folder / f"{n}.png")
    found = survey(folder)
    assert list(found.wanted) == ["3.png", "5.png"] and index_images(found, str) == []
    assert ImageIndex(folder).rows == direct(folder)
    found = survey(folder)
    assert not found.wanted and found.line() == "10 records, 9 images: 9 indexed, 0 to read"


class JobDies(Exception):
    pass


def test_a_job_that_dies_keeps_what_it_read(ray_cluster, folder, monkeypatch):
    monkeypatch.setattr("zr_ray.operate.image_index.SAY_S", 0.0)

    def dies(line):
        raise JobDies

    with pytest.raises(JobDies):
        index_images(survey(folder), dies, batch_images=2)
    assert len(ImageIndex(folder).rows) in (1, 2, 3)  # one batch: two files, one of them perhaps with its second name
    left = survey(folder)
    assert 0 < len(left.wanted) < 8
    index_images(left, str, batch_images=2)
    assert ImageIndex(folder).rows == direct(folder)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as root, a mode of 0555 refuses nothing
    with pytest.raises(DataError, match=r"wanted a folder that image_index.parquet can be written into"):
        index_images(survey(folder), str)


def run(job_environment, *arguments):
    return subprocess.run([sys.executable, JOB, *arguments], env=job_environment, capture_output=True, text=True)


def test_the_job_from_its_command_line(job_environment, folder):
    dry = run(job_environment, folder, "--dry-run")
    assert dry.returncode == 0 and dry.stdout.startswith("10 records, 9 images: 0 indexed, 9 to read")
    assert not (folder / INDEX_FILE).exists()
    done = run(job_environment, folder, "--batch", "4")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("cannot be used: ") == 2 and "line 4: item 'i3': 3.png: wanted" in done.stderr
    assert done.stdout.splitlines()[-1].endswith("image_index.parquet: 8 images, 2 records cannot be used")
    (folder / "annotations.jsonl").write_text('{"id": "a"}')
    wrong = run(job_environment, folder)
    assert wrong.returncode == 1 and wrong.stderr.startswith("index: ") and len(wrong.stderr.splitlines()) == 1
