"""jobs/score.py against a running service: the judge's own scores, refused images are listed, a stopped run goes on."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import score as job
from tests.serving.conftest import TOKEN
from zr_ray.judging.score_images import read_rows, score_rows
from zr_ray.models.identity import judge_hash
from zr_ray.rubric import DIMENSIONS


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    """Five images of two sizes, one larger than the service takes, and one file that is none; their table in three
    forms."""
    monkeypatch.setenv("ZR_REWARD_TOKEN", TOKEN)
    rng = np.random.default_rng(2)
    records = []
    for i, side in enumerate((64, 48, 64, 300, 64)):
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        records.append(
            {"image": f"{i}.png", "prompt": ("small red circle", "big blue square")[i % 2], "owner": f"o{i}"}
        )
    (tmp_path / "no.png").write_bytes(b"no image")
    records.append({"image": "no.png", "prompt": "small red circle", "owner": "nobody"})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "t.parquet")
    with open(tmp_path / "t.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return tmp_path


def scored(folder, name, *arguments):
    """(exit code, rows) of a run on an input."""
    out = folder / "out" / f"{name}.parquet"
    out.parent.mkdir(exist_ok=True)
    code = job.main(["--input", str(folder / name), "--out", str(out), *map(str, arguments)])
    return code, pq.read_table(out).to_pylist() if out.is_file() else []


def test_every_kind_of_input_gets_the_judges_own_scores(reward_url, judge_path, folder, capsys):
    code, served = scored(folder, "t.csv", "--service", reward_url, "--batch", 2, "--gallery", folder / "g.html")
    assert code == 2 and [row["owner"] for row in served] == ["o0", "o1", "o2", "o3", "o4", "nobody"]
    refused = [row for row in served if row["error"]]
    assert [row["owner"] for row in refused] == ["o3", "nobody"]
    assert all(row[f"mu_{d}"] is None and row[f"q_{d}"] is None for row in refused for d in DIMENSIONS)
    said = capsys.readouterr()
    assert "4 images scored" in said.out and "3.png" in said.err and "pixels" in said.err and "no.png" in said.err
    _, own = scored(folder, "t.jsonl", "--judge", judge_path)
    good = [(a, b) for a, b in zip(served, own, strict=True) if not a["error"]]
    assert len(good) == 4
    for a, b in good:
        for d in DIMENSIONS:
            for key in (f"mu_{d}", f"deviation_{d}", f"q_{d}"):
                np.testing.assert_allclose(a[key], b[key], atol=2e-5)
        assert a["judge"] == b["judge"] == judge_hash(judge_path)
    for name in ("t.jsonl", "t.parquet"):
        code, rows = scored(folder, name, "--service", reward_url)
        realism = [[row["mu_realism"] for row in table if not row["error"]] for table in (rows, served)]
        assert code == 2 and realism[0] == pytest.approx(realism[1], abs=2e-5)
    assert (folder / "g.html").read_text().count("<img") >= 4


def test_a_folder_with_one_prompt_and_a_table_as_csv(reward_url, folder):
    (folder / "3.png").unlink()
    (folder / "no.png").unlink()
    out = folder / "s.csv"
    told = ["--input", str(folder), "--out", str(out), "--prompt", "small red circle", "--service", reward_url]
    assert job.main(told) == 0
    with open(out, newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 and {line["prompt"] for line in lines} == {"small red circle"}
    assert all(1 <= float(line[f"mu_{d}"]) <= 5 for line in lines for d in DIMENSIONS)
    assert not (folder / "s.csv.part").exists()


def test_a_stopped_run_goes_on_where_it_was(reward_url, folder, monkeypatch, capsys):
    out, part = folder / "s.csv", folder / "s.csv.part"
    judge, dimensions = job.served_judge(reward_url)
    assert dimensions == DIMENSIONS
    next(score_rows(read_rows(folder / "t.csv"), judge, part, origin=reward_url, batch=2))  # then the run dies
    told = ["--input", str(folder / "t.csv"), "--out", str(out), "--service", reward_url]
    monkeypatch.setenv("ZR_REWARD_TOKEN", "wrong")
    assert job.main(told) == 1 and "score: " in capsys.readouterr().err
    assert not out.exists() and len(part.read_text().splitlines()) == 3  # a head and two images
    monkeypatch.setenv("ZR_REWARD_TOKEN", TOKEN)
    assert job.main([*told[:-1], f"{reward_url}/"]) == 1 and "begun with" in capsys.readouterr().err
    assert job.main(told) == 2 and not part.exists()
    with open(out, newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["owner"] for line in lines if not line["error"]] == ["o0", "o1", "o2", "o4"]
