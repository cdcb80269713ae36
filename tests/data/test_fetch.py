"""Parquet sets behind URLs become sets on disk: images by path and by bytes, to the bit, in bounded memory."""

import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zr_ray.data.annotations import parquet_records, read_annotations
from zr_ray.data.fetch import fetch_set
from zr_ray.data.images import load_image
from zr_ray.errors import DataError

JOB = Path(__file__).parents[2] / "jobs/data/fetch.py"


def png(n: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (6, 5, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def record(n: int, image, **changes) -> dict:
    line = {"id": f"i{n}", "group": f"g{n // 2}", "split": "train", "prompt": f"p{n // 2}", "image": image}
    return line | {"scores": {"realism": 1.0 + n % 3}} | changes


@pytest.fixture()
def store():
    """store(path, rows or bytes): a file of an object store; empty again after the test."""
    files = fsspec.filesystem("memory")

    def write(path, content):
        if isinstance(content, list):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(content), sink)
            content = sink.getvalue().to_pybytes()
        files.pipe_file(f"/{path}", content)

    yield write
    if files.exists("/set"):
        files.rm("/set", recursive=True)


def fetched(url, folder):
    count = fetch_set(url, folder, str)
    items = list(read_annotations(folder))
    assert len(items) == count
    return items


def test_images_by_path(store, tmp_path):
    names = ["a/0.png", "a/[1].png", "b c/2.png", "a/0.png"]  # brackets are no pattern
    store("set/part.parquet", [record(n, name) for n, name in enumerate(names)])
    for n, name in enumerate(names[:3]):
        store(f"set/{name}", png(n))
    items = fetched("memory://set", tmp_path / "out")
    assert [item.id for item in items] == ["i0", "i1", "i2", "i3"] and items[2].scores == {"realism": 3.0}
    assert [str(item.image.relative_to(tmp_path / "out")) for item in items] == names
    assert [item.image.read_bytes() for item in items] == [png(0), png(1), png(2), png(0)]
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.parametrize("wrapped", [False, True])
def test_images_in_a_column_are_one_file_a_content(store, tmp_path, wrapped):
    contents = [png(0), png(1), png(0), b"GIF89a"]
    rows = [record(n, {"bytes": c, "path": f"{n}"} if wrapped else c) for n, c in enumerate(contents)]
    store("set/x/data.parquet", rows)
    items = fetched("memory://set", tmp_path)
    assert [item.image.read_bytes() for item in items] == contents
    assert items[0].image == items[2].image != items[1].image and items[0].image.suffix == ".png"
    assert np.array_equal(load_image(items[0].image), np.asarray(Image.open(io.BytesIO(png(0)))))


def test_a_struct_without_bytes_is_a_path(store, tmp_path):
    rows = [record(0, {"bytes": None, "path": "0.png"}), record(1, {"bytes": png(1), "path": None})]
    store("set/data.parquet", rows)
    store("set/0.png", png(0))
    assert [item.image.read_bytes() for item in fetched("memory://set/data.parquet", tmp_path)] == [png(0), png(1)]


def test_shards_come_in_order_and_equal_names_of_two_folders_stay_apart(store, tmp_path):
    for n, folder in enumerate(("a", "b")):
        store(f"set/{folder}/part.parquet", [record(n, "0.png", group=folder)])
        store(f"set/{folder}/0.png", png(n))
    items = fetched("memory://set/", tmp_path)
    assert [item.image.read_bytes() for item in items] == [png(0), png(1)] and items[1].image.parent.name == "b"


def test_a_set_of_ours_keeps_its_rubric(store, tmp_path):
    rubric = {"dimensions": ["layout"], "bins": [0, 1, 2]}
    store("set/annotations.parquet", [record(0, "0.png", scores={"layout": [2.0]})])
    store("set/image_index.parquet", [{"image": "0.png"}])  # no records
    store("set/rubric.json", json.dumps(rubric).encode())
    store("set/0.png", png(0))
    assert fetched("memory://set", tmp_path)[0].scores == {"layout": 2.0}
    assert json.loads((tmp_path / "rubric.json").read_text())["dimensions"] == ["layout"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (record(1, "gone.png"), r"line 2: wanted an image file at 'gone.png' beside it, got FileNotFoundError"),
        (record(1, "../0.png"), r"line 2: "),
        (record(1, None), r"line 2: wanted path or bytes of an image in 'image', got 'None'"),
        (record(0, "0.png"), r"line 2: wanted unique ids, id 'i0' is already at line 1"),
        (record(1, "0.png", split="val"), r"line 2: wanted split train, dev, test"),
    ],
)
def test_a_bad_record_is_named_and_leaves_no_set(store, tmp_path, row, words):
    store("set/a.parquet", [record(0, "0.png"), row])
    store("set/0.png", png(0))
    with pytest.raises(DataError, match=rf"memory:///set/a.parquet: {words}"):
        fetch_set("memory://set", tmp_path / "out")
    assert not list((tmp_path / "out").glob("annotations*")) and not (tmp_path / "0.png").exists()
    assert not list((tmp_path / "out").rglob(".*"))


def test_sources_that_cannot_be_read_are_named(store, tmp_path):
    with pytest.raises(DataError, match=r"memory://set: wanted a Parquet file or a folder with some, got none"):
        fetch_set("memory://set", tmp_path)
    with pytest.raises(DataError, match=r"nope://x: wanted a path or a URL that fsspec reads, it says: .*nope"):
        fetch_set("nope://x", tmp_path)
    store("set/a.parquet", b"no table")
    with pytest.raises(DataError, match=r"set/a.parquet: wanted a Parquet file, pyarrow says"):
        fetch_set("memory://set", tmp_path)
    (tmp_path / "annotations.jsonl").touch()
    with pytest.raises(DataError, match=r"wanted a folder without a data set"):
        fetch_set("memory://set", tmp_path)


def test_memory_is_that_of_a_batch_and_not_of_a_row_group(tmp_path):
    """64 MiB of incompressible images in one row group, eight images a page, pass with a fraction of that held."""
    rng = np.random.default_rng(0)
    table = pa.Table.from_pylist([{"id": str(n), "image": rng.bytes(2**18)} for n in range(256)])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=256, compression="none", write_batch_size=8)
    del table
    before, held = pa.total_allocated_bytes(), []
    tracemalloc.start()  # what a Python file hands to pyarrow is Python's
    try:
        with open(tmp_path / "a.parquet", "rb") as file:
            for n, (_, row) in enumerate(parquet_records(file, "a", 16)):
                assert row["id"] == str(n)
                held.append(pa.total_allocated_bytes() - before)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(held) == 256 and max(held) + peak < 24 * 2**20


def test_the_job_from_its_command_line(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    pq.write_table(pa.Table.from_pylist([record(n, png(n)) for n in range(4)]), source / "a.parquet")
    command = [sys.executable, JOB, f"file://{source}", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("wrote 4 records to"), done.stderr
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1 and again.stderr.startswith("fetch: ") and len(again.stderr.splitlines()) == 1
