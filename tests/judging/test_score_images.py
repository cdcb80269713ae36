"""A user's own images: every kind of input, bad items never scored, a killed run goes on, tables read back."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import score as job
from zr_ray.errors import DataError
from zr_ray.judging.score_images import ImageScore, read_rows, score_rows, write_table
from zr_ray.models.identity import judge_hash
from zr_ray.models.judge_text import BUILTIN_JUDGES
from zr_ray.report.gallery import gallery_page
from zr_ray.rubric import DIMENSIONS


@pytest.fixture
def folder(tmp_path):
    """Three images of two sizes with prompts beside them, and a file that is no image."""
    for i, side in enumerate((64, 64, 48)):
        Image.new("RGB", (side, side), (40 * i, 90, 160)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("small red circle\n")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "broken.txt").write_text("small red circle")
    return tmp_path


def brightness(images, prompts):
    """A judge whose score is the red of the first pixel."""
    return [ImageScore([1 + image[0, 0, 0] / 64] * 4, [0.5] * 4, [[1 / 9] * 9] * 4) for image in images]


def test_rows_of_a_folder_and_of_every_table(folder):
    rows = read_rows(folder)
    assert [row.image.name for row in rows] == ["0.png", "1.png", "2.png", "broken.png"]
    assert {row.prompt for row in rows} == {"small red circle"}
    records = [{"image": "0.png", "prompt": "a", "owner": "x"}, {"image": "1.png", "prompt": "b", "owner": "y"}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist(records), folder / "t.parquet")
    with open(folder / "t.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "prompt", "owner"])
        writer.writeheader()
        writer.writerows(records)
    for name in ("t.jsonl", "t.parquet", "t.csv"):
        read = read_rows(folder / name)
        assert [(r.image, r.prompt, r.columns["owner"]) for r in read] == [
            (folder / "0.png", "a", "x"),
            (folder / "1.png", "b", "y"),
        ]
    with pytest.raises(DataError, match="--image-column"):
        read_rows(folder / "t.csv", image_column="picture")
    (folder / "0.txt").unlink()
    with pytest.raises(DataError, match="has no prompt"):
        read_rows(folder)


def test_a_killed_run_goes_on_and_never_scores_what_it_cannot_read(folder):
    rows, part, calls = read_rows(folder), folder / "out.part", []

    def counting(images, prompts):
        calls.append(len(images))
        return brightness(images, prompts)

    begun = score_rows(rows, counting, part, origin="j", batch=2)
    next(begun)  # the first batch is on disk, then the run dies
    with open(part, "a") as file:
        file.write('{"key": "half a li')
    found = list(score_rows(rows, counting, part, origin="j", batch=2))
    assert calls == [2, 1] and [score.mu[:1] for _, score in found[:3]] == [[1.0], [1.625], [2.25]]
    assert found[3][1].mu == [] and "broken.png" in found[3][1].error
    with pytest.raises(DataError, match="begun with j, now it is other"):
        list(score_rows(rows, counting, part, origin="other"))


def test_tables_read_back_and_the_gallery_lists_bad_items(folder):
    found = list(score_rows(read_rows(folder), brightness, folder / "p", origin="j"))
    write_table(folder / "out.parquet", found)
    write_table(folder / "out.csv", found)
    read = pq.read_table(folder / "out.parquet").to_pylist()
    assert read[2]["mu_realism"] == 2.25 and len(read[0]["q_alignment"]) == 9 and read[3]["mu_realism"] is None
    with open(folder / "out.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert float(lines[2]["mu_realism"]) == 2.25 and lines[3]["mu_realism"] == "" and "broken" in lines[3]["error"]
    assert len(json.loads(lines[0]["q_alignment"])) == 9
    page = gallery_page("t", found)
    assert page.count("<img") == 3 + 2 and "Not scored" in page and "broken.png" in page
    with pytest.raises(DataError, match=r"\.csv or \.parquet"):
        write_table(folder / "out.xlsx", found)


def test_the_job_scores_in_process(folder, capsys):
    code = job.main(["--input", str(folder), "--out", str(folder / "s.csv"), "--judge", "student_v0"])
    assert code == 2 and "3 images scored" in capsys.readouterr().out
    with open(folder / "s.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    for name in DIMENSIONS:
        q = np.array(json.loads(lines[0][f"q_{name}"]))
        assert q.sum() == pytest.approx(1, abs=1e-4)
        assert float(lines[0][f"mu_{name}"]) == pytest.approx(q @ (1 + np.arange(9) / 2), abs=1e-3)
    assert {line["judge"] for line in lines if not line["error"]} == {judge_hash(BUILTIN_JUDGES["student_v0"])}
    assert not (folder / "s.csv.part").exists()
