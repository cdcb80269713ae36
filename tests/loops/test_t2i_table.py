"""Tables of text-to-image runs: planned runs, rows pooled over seeds, what the table says."""

import json
from pathlib import Path

import pytest

from zr_ray.config.loader import load_config
from zr_ray.config.t2i import T2iConfig
from zr_ray.config.t2i_table import T2iTableConfig
from zr_ray.errors import ConfigError
from zr_ray.loops.t2i_looks import what_differs_before
from zr_ray.loops.t2i_table import t2i_rows, t2i_runs, take_over
from zr_ray.report.t2i_table import t2i_markdown

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


def load(name="t2i_table_images", *overrides):
    return load_config(T2iTableConfig, CONFIGS / f"{name}.yaml", list(overrides))


@pytest.mark.parametrize("name", ["t2i_table_images", "t2i_table_minutes"])
def test_every_run_of_the_named_tables_loads(name, tmp_path):
    runs = t2i_runs(load(name), tmp_path, CONFIGS)
    assert len(runs) == 7 * 3 and [run.name for run in runs[:2]] == ["nft-s0", "flow_grpo-s0"]
    beside = [run.name for run in runs if "held_out.beside=true" in run.overrides]
    assert beside == ["nft-s0"]  # once: the untrained generator is the same for all


def test_the_look_before_training_is_made_once(tmp_path):
    """All but the runs that start together take the first one's; two at a time here."""
    runs = t2i_runs(load(), tmp_path, CONFIGS)
    lent = [[word for word in run.overrides if word.startswith("held_out.before_of=")] for run in runs]
    assert lent[:2] == [[], []] and all(words == [f"held_out.before_of={runs[0].folder}"] for words in lent[2:])


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        ("t2i.algorithm=flowbp", []),
        ("reward.aggregation=parsed", []),
        ("run.seed=4", []),
        ("generator.steps=4", ["generator"]),
        ("prompts.held_out=64", ["prompts"]),
        ("reward.judge=student_v0", ["reward"]),
        ("held_out.seeds=3", ["held_out"]),
        ("held_out.referee=teacher", ["held_out"]),
    ],
)
def test_what_a_lent_look_depends_on(change, differ):
    own, other = (load_config(T2iConfig, CONFIGS / "t2i_tiny.yaml", words) for words in ([], [change]))
    assert what_differs_before(own, other) == what_differs_before(other, own) == differ


def test_equal_images(tmp_path):
    """The budget that the table is named after."""
    for run in t2i_runs(load(), tmp_path, CONFIGS):
        c = load_config(T2iConfig, run.config, list(run.overrides))
        images = c.t2i.steps * c.t2i.prompts_per_step * (c.t2i.group_size if c.is_policy else 1)
        assert images in (2000, 2016), run.name


def test_a_wrong_row_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"t2i\.algorithm"):
        t2i_runs(load("t2i_table_images", 'table.rows={"a": ["t2i.algorithm=ppo"]}'), tmp_path, CONFIGS)


def test_finished_runs_of_another_table_go_on_and_others_begin_anew(tmp_path):
    """A copy without its result is an interrupted run; the table it came from keeps its own."""
    theirs, ours = (t2i_runs(load(), tmp_path / name, CONFIGS) for name in ("images", "minutes"))
    write_run(theirs[0].folder, ("t2i.steps=21",), 1.0)
    write_run(theirs[1].folder, ("t2i.steps=21",), 1.0)
    (theirs[1].folder / "result.json").unlink()
    assert [take_over(run, tmp_path / "images") for run in ours[:3]] == [True, False, False]
    assert theirs[0].finished and not ours[0].finished and "--resume" in ours[0].command(CONFIGS.parent)
    assert not ours[1].folder.exists() and "--resume" not in ours[1].command(CONFIGS.parent)


def change(difference, before=1.0):
    return {
        "before": before,
        "after": before + difference,
        "difference": difference,
        "low": difference - 0.1,
        "high": difference + 0.2,
    }


def write_run(folder, overrides, verifier, alarms=()):
    folder.mkdir(parents=True)
    lines = [f"{key.split('.')[1]}: {value}" for key, value in (o.split("=") for o in overrides)]
    (folder / "config.resolved.yaml").write_text("t2i:\n" + "".join(f"  {line}\n" for line in lines))
    looks = [{"step": step, "alarm": ["up alone"] if step in alarms else []} for step in (7, 14, 21)]
    (folder / "looks.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    figures = {"verifier/sum": change(verifier), "image/seed_distance": change(-1.0, before=10.0)}
    result = {"figures": figures, "gsb": {}, "training_s": 60.0, "steps": 21, "status": "SUCCEEDED", "beside": {}}
    (folder / "result.json").write_text(json.dumps(result))


def test_rows_are_means_over_the_seeds_that_are_there(tmp_path):
    config = load(
        "t2i_table_images", "table.seeds=[0, 1]", 'table.rows={"nft": [], "flowbp": ["t2i.algorithm=flowbp"]}'
    )
    runs = t2i_runs(config, tmp_path, CONFIGS)
    write_run(tmp_path / "rows/nft-s0", ["t2i.steps=21"], 1.0)
    write_run(tmp_path / "rows/nft-s1", ["t2i.steps=21"], 2.0, alarms=(14, 21))
    write_run(tmp_path / "rows/flowbp-s0", ["t2i.steps=21", "t2i.algorithm=flowbp"], 0.5)
    nft, flowbp = t2i_rows(config, runs)
    assert nft["verifier/sum"] == {
        "difference": 1.5,
        "low": pytest.approx(1.4),
        "high": pytest.approx(1.7),
        "each": [1.0, 2.0],
    }
    assert nft["seed_distance"] == pytest.approx(0.9) and nft["first_alarm"] == [None, 14]
    assert (nft["images"], flowbp["images"]) == (21 * 8 * 12, 21 * 8)
    text = t2i_markdown([nft, flowbp])
    assert "+1.50 [1.40, 1.70] +1.00 +2.00" in text and "| - 14 |" in text and "+0.50 [0.40, 0.70] |" in text
