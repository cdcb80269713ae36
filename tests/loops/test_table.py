"""Tables from made runs: which runs are planned, pooled seeds, claims and their verdicts, curves; command lines that
load."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zr_ray.config.loader import differing_keys, load_config
from zr_ray.config.table import TableConfig
from zr_ray.data.anchors import write_anchor_labels
from zr_ray.data.load import load_split
from zr_ray.errors import ConfigError
from zr_ray.loops.table import (
    CONFIG_CLASSES,
    anchors_folder,
    chains_folder,
    row_runs,
    training_data,
    write_changed_data,
)
from zr_ray.report.comparison_curves import curves, write_curves
from zr_ray.report.comparison_page import near, table_of, write_table
from zr_ray.rubric import DIMENSIONS
from zr_ray.run.folder import RunFolder
from zr_ray.run.result import TEACHER_ROW, sampled_row
from zr_ray.run.table_rows import RowRun
from zr_ray.world.build import write_world

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


def load(name, *overrides):
    return load_config(TableConfig, CONFIGS / f"{name}.yaml", ["table.bootstrap_resamples=100", *overrides])


def planned(config, root, teacher=Path("/teacher")):
    judges = {name: Path("/judges") / name for name in config.table.judges}
    return row_runs(config, root, root / "data", judges, teacher, CONFIGS)


def test_the_students_table_is_planned_seed_after_seed(tmp_path):
    runs = planned(load("distill_table"), tmp_path)
    names = [run.name for run in runs]
    assert (
        names[:5] == [f"{name}-student-s0" for name in ("risd", "gdso", "sft", "opd")] + ["risd-student-s1"]
        and len(runs) == 12
    )
    assert all(("teacher.path=/teacher" in run.overrides) == (run.job in ("opd", "risd")) for run in runs)
    command = runs[0].command(Path("/jobs"))
    assert command[1] == "/jobs/risd.py" and "--resume" not in command and "run.seed=0" in command
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "config.resolved.yaml").write_text("")
    assert command[1:4] + ["--resume", str(runs[0].folder)] == runs[0].command(Path("/jobs"))[1:6]


def test_the_papers_table_gives_every_row_the_same_pairs(tmp_path):
    config = load("reproduce_tiny", "table.judges={small: small}")
    runs = planned(config, tmp_path, None)
    training = [run for run in runs if run.job != "evaluate"]
    assert len({(run.row, run.judge, run.seed) for run in training}) == len(training) == 2 * 3 * 11
    for run in training:
        assert {
            f"{run.job}.steps=40",
            f"{run.job}.pairs_per_step=24",
            f"run.seed={run.seed}",
            "evaluation.before=false",
        } <= set(run.overrides)
        assert (f"data.path={anchors_folder(tmp_path)}" in run.overrides) == (run.row == "gdso-5")
        fallible = run.row == "rewarddance-fallible"
        assert (f"data.path={chains_folder(tmp_path, 0.2)}" in run.overrides) == fallible
    swaps = [run for run in runs if run.row == "swap"]
    assert [run.overrides[3] for run in swaps] == [
        f"judge.path={tmp_path}/rows/gdso-{size}-s0/judge" for size in ("base", "small")
    ]
    seeds = [(run.judge, run.seed) for run in runs]  # a judge is finished before the next one begins
    assert seeds == sorted(seeds) and {seed for _, seed in seeds} == {0, 1, 2}
    assert [run.name for run in runs if run.row == "zero-shot"] == ["zero-shot-base-s0", "zero-shot-small-s0"]


def test_rows_of_policy_gradient_differ_by_what_their_names_say(tmp_path):
    """Each row against the one that its claim compares it with, as the configurations load."""
    runs = {
        run.row: run for run in planned(load("reproduce_tiny"), tmp_path, None) if run.judge == "base" and not run.seed
    }

    def changed(one, other):
        own = [load_config(CONFIG_CLASSES[runs[r].job], runs[r].config, list(runs[r].overrides)) for r in (one, other)]
        return set(differing_keys(*own)) - {"run.name", "evaluation.sampled"}

    assert changed("rewarddance-fallible", "rewarddance") == {"data.path"}
    assert changed("grpo-pathwise", "grpo") == {"gdso.alpha_reward"}
    assert changed("pathwise", "grpo-pathwise") == changed("gdso-direct", "gdso") == {"gdso.alpha_policy"}
    assert changed("grpo-parsed", "grpo") == changed("gdso-parsed", "gdso") == {"gdso.score_from"}


def test_changed_training_data_is_made_once_for_the_rows_that_want_it(tmp_path):
    data = tmp_path / "data"
    write_world(data, train_groups=4, test_groups=1, seed=3)
    rows = load("reproduce_tiny").table.rows
    told = write_changed_data(rows.values(), tmp_path, data)
    assert len(told) == 2 and "anchors" in told[0] and "fallible" in told[1]
    assert write_changed_data([rows["gdso"]], tmp_path / "other", data) == [] and not (tmp_path / "other").exists()
    for name in ("rewarddance-fallible", "gdso-5", "gdso"):
        folder = training_data(rows[name], tmp_path, data)
        assert len(load_split(folder, "train")) == len(load_split(data, "train")) and (folder == data) == (
            name == "gdso"
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("table.claims=[[risd, magic]]", "must name rows"),
        ("table.rows={x: {job: gdso, of: y}}", "must name rows"),
        ("table.rows={x: {job: gdso, judges: [y]}}", "must name judges"),
        ("table.rows={a/b: {job: gdso}}", "names become folders"),
        ("table.seeds=[1, 1]", "must be different numbers"),
        ("table.rows={x: {job: gdso, anchors: true, chain_errors: 0.1}}", "change the same training data"),
    ],
)
def test_unknown_names_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(TableConfig, None, [override])


def test_a_rows_own_configuration_is_checked_before_anything_runs(tmp_path):
    config = load_config(
        TableConfig, None, ["table.rows={x: {job: opd, config: opd_tiny.yaml, overrides: [opd.stepz=2]}}"]
    )
    with pytest.raises(ConfigError, match="opd.stepz"):
        planned(config, tmp_path)


def made_items(world_items):
    """Test items with distinct human scores inside every group, so that HPA is known by construction."""
    ranks: dict[str, int] = {}
    items = []
    for item in world_items:
        ranks[item.group] = ranks.get(item.group, 0) + 1
        items.append(replace(item, scores=dict.fromkeys(DIMENSIONS, 1.0 + 0.5 * ranks[item.group])))
    return items


def write_run(folder, rows, hpa_curve=(), **result):
    folder.mkdir(parents=True)
    found = {"wall_s": 90.0, "rows": [{"pooled": {"hpa": 0.9}}], **result}
    (folder / "result.json").write_text(json.dumps(found))
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "config.resolved.yaml").write_text(f"evaluation: {{items: {len(rows[-1]['mu']) // 2}}}")
    lines = [{"step": step, "eval/hpa": hpa, "time/step_s": 30.0} for step, hpa in enumerate(hpa_curve, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def row(method, mu, tokens):
    return {"method": method, "mu": mu.tolist(), "tokens_per_score": tokens}


@pytest.fixture()
def answers(world_items):
    """(items, right, wrong, half): mu whose HPA is 1, 0 and one half."""
    items = made_items(world_items)
    right = torch.tensor([[i.scores[d] for d in DIMENSIONS] for i in items])
    return (
        items,
        right,
        -right,
        torch.where(torch.arange(len(items))[:, None] < len(items) // 2, right, -right),
    )  # groups are contiguous


def test_rows_pool_seeds_and_claims_are_paired(answers, tmp_path):
    items, right, wrong, half = answers
    config, runs = load("distill_table"), []
    for job, made in {"risd": (right, half), "gdso": (half, half), "sft": (wrong, wrong)}.items():
        for seed, mu in enumerate(made):
            folder = tmp_path / f"{job}-s{seed}"
            teacher = [row(TEACHER_ROW, right, 12.0)] if job == "risd" else []
            curve = [0.5] * (seed + 1) if job == "risd" else ()
            write_run(folder, [row("zero-shot", wrong, 1.0), *teacher, row(job, mu, 1.0)], curve)
            runs.append(RowRun(job, "student", seed, job, folder, None, ()))
    runs.append(RowRun("opd", "student", 0, "opd", tmp_path / "not run", None, ()))
    table = table_of(runs, items, config, {"risd": {"images_per_s": 50.0}})
    rows = {r["row"]: r for r in table["rows"]}
    assert list(rows) == ["teacher", "risd", "gdso", "sft"]  # what was not run is no row
    assert [round(rows[n]["pooled"]["hpa"], 3) for n in rows] == [1.0, 0.75, 0.5, 0.0]
    assert rows["risd"]["hpa_per_seed"] == {0: 1.0, 1: 0.5} and rows["risd"]["seconds_per_score"] == pytest.approx(
        1 / 200
    )
    assert rows["teacher"]["tokens_per_score"] == 12.0 and rows["risd"]["minutes"] == 1.5
    assert rows["risd"]["step_minutes"] == 0.75 and rows["teacher"]["step_minutes"] is None  # one step, and two
    claims = {(c["better"], c["worse"]): c for c in table["claims"]}
    assert claims["risd", "sft"]["verdict"] == "holds" and claims["risd", "sft"]["difference"] == pytest.approx(0.75)
    assert claims["risd", "gdso"]["verdict"] == "cannot tell"  # one seed of two is not better
    assert claims["risd", "opd"]["verdict"] == "cannot tell (not run)"
    assert claims["risd", "teacher"]["verdict"] in ("cannot tell (within 2 points)", "does not hold (within 2 points)")
    folder = RunFolder(tmp_path / "table")
    folder.path.mkdir()
    text = write_table(folder, table)
    assert "| risd | 75.0" in text and "100.0 50.0" in text and "5.00" in text
    assert json.loads((folder.path / "table.json").read_text())["rows"]


def test_untrained_rows_stand_for_every_seed_and_judges_stay_apart(answers, tmp_path):
    items, right, wrong, half = answers
    overrides = ["table.rows={base: {job: evaluate, seeds: [0]}, gdso: {job: gdso}, swap: {job: evaluate, of: gdso}}"]
    config = load_config(
        TableConfig,
        None,
        [
            *overrides,
            "table.judges={s: small, b: builtin}",
            "table.claims=[[gdso, base]]",
            "table.bootstrap_resamples=100",
        ],
    )
    runs = [
        RowRun("base", "s", 0, "evaluate", tmp_path / "b", None, ()),
        RowRun("gdso", "s", 0, "gdso", tmp_path / "g0", None, ()),
        RowRun("gdso", "s", 1, "gdso", tmp_path / "g1", None, ()),
        RowRun("base", "b", 0, "evaluate", tmp_path / "bb", None, ()),
        RowRun("swap", "s", 0, "evaluate", tmp_path / "w", None, ()),
    ]
    write_run(tmp_path / "b", [row("reasoning, greedy", half, 9.0)])
    write_run(tmp_path / "g0", [row("gdso", right, 9.0)], [0.6, None, 0.8])
    write_run(tmp_path / "g1", [row("gdso", right, 9.0)], [0.5, None, 0.9])
    write_run(tmp_path / "bb", [row("reasoning, greedy", wrong, 9.0)])
    write_run(
        tmp_path / "w",
        [row("reasoning, greedy", right, 9.0)],
        swap={"pooled": {"follow": 0.25, "order_follows": 0.5, "pairs": 7}},
    )
    table = table_of(runs, items, config, {})
    assert [(r["judge"], r["row"], round(r["pooled"]["hpa"], 3)) for r in table["rows"]] == [
        ("s", "base", 0.5),
        ("s", "gdso", 1.0),
        ("b", "base", 0.0),
    ]
    claims = {c["judge"]: c for c in table["claims"]}
    assert (
        claims["s"]["per_seed"] == {0: 0.5, 1: 0.5}
        and claims["s"]["verdict"] == "holds"
        and claims["b"]["verdict"] == "cannot tell (not run)"
    )
    assert table["swaps"] == [
        {"judge": "s", "row": "gdso", "seed": 0, "follow": 0.25, "order_follows": 0.5, "pairs": 7}
    ]
    folder = RunFolder(tmp_path / "table")
    folder.path.mkdir()
    assert "| s | gdso | 0 | 0.250 | 50.0 | 7 |" in write_table(folder, table)
    # step 0 is the base row, the last point the final evaluation; both on the first half of the items, where `half` is
    # right
    assert curves(runs, items, config) == {"s": {"gdso": {0: [1.0, 1.0], 1: [0.6, 0.5], 3: [1.0, 1.0]}}}
    write_curves(folder, runs, items, config)
    assert (folder.path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_sampled_traces_stand_beside_the_greedy_row(answers, tmp_path):
    items, right, wrong, half = answers
    rows = "table.rows={sft: {job: sft}, gdso: {job: gdso}}"
    config = load_config(TableConfig, None, [rows, "table.bootstrap_resamples=100"])
    runs = [RowRun(name, "base", 0, name, tmp_path / name, None, ()) for name in ("sft", "gdso")]
    write_run(tmp_path / "sft", [row("sft", half, 1.0)])
    write_run(tmp_path / "gdso", [row(sampled_row("gdso"), half, 9.0), row("gdso", right, 8.0)])
    table = table_of(runs, items, config, {})
    greedy, sampled = table["rows"][1], table["rows"][1]["sampled"]
    assert greedy["pooled"]["hpa"] == 1.0 and greedy["tokens_per_score"] == 8.0
    assert round(sampled["hpa"], 3) == 0.5 and "sampled" not in table["rows"][0]
    folder = RunFolder(tmp_path / "table")
    folder.path.mkdir()
    text = write_table(folder, table)
    assert "sampled traces %" in text and "| gdso | 100.0 [100.0, 100.0] | 50.0 [" in text


@pytest.mark.parametrize(
    ("ci", "verdict"), [([-0.019, 0.03], "holds"), ([-0.05, -0.03], "does not hold"), ([-0.05, 0.0], "cannot tell")]
)
def test_near(ci, verdict):
    assert near({"ci": ci}, 0.02) == f"{verdict} (within 2 points)"


def test_anchor_labels_have_five_levels_and_leave_the_test_split_alone(tmp_path):
    write_world(tmp_path / "data", train_groups=6, test_groups=2, seed=3)
    changed = write_anchor_labels(tmp_path / "data", tmp_path / "five")
    before, after = (
        {split: load_split(tmp_path / name, split) for split in ("train", "test")} for name in ("data", "five")
    )
    assert [i.scores for i in before["test"]] == [i.scores for i in after["test"]]
    pairs = [(b.scores[d], a.scores[d]) for b, a in zip(before["train"], after["train"], strict=True) for d in b.scores]
    assert changed == sum(b != a for b, a in pairs) > 0 and all(a == int(b) for b, a in pairs)
    assert write_anchor_labels(tmp_path / "data", tmp_path / "five") == changed


def test_runs_start_in_order_and_a_failure_is_told(ray_cluster, answers, tmp_path):
    """Stand-in jobs: scripts that leave a result, or fail. What starts from another row's judge waits for it; finished
    runs stay."""
    from zr_ray.loops.table import _run_missing

    jobs = tmp_path / "jobs"
    jobs.mkdir()
    script = (
        "import json, pathlib, sys, time\nkeys = dict(word.split('=', 1) for word in sys.argv[1:])\nif keys['run.seed']"
        " == '1': sys.exit('no such luck')\nassert 'rows' not in keys['judge.path'] or"
        " (pathlib.Path(keys['judge.path']).parent / 'result.json').is_file()\nfolder = pathlib.Path(keys['run.root'])"
        " / keys['run.name']\nfolder.mkdir(parents=True)\n(folder / 'result.json').write_text(json.dumps({'wall_s': 1,"
        " 'rows': [{'pooled': {'hpa': 0.5}}]}))\n"
    )
    for name in ("gdso", "evaluate"):
        (jobs / f"{name}.py").write_text(script)
    rows = "table.rows={swap: {job: evaluate, of: gdso, seeds: [0]}, gdso: {job: gdso}}"
    config = load_config(TableConfig, None, [rows, "table.seeds=[0, 1]", "table.at_once=2"])
    runs, folder = planned(config, tmp_path), RunFolder(tmp_path)
    assert _run_missing(runs, config, folder, tmp_path / "data", jobs, 0.0) == ["gdso-base-s1"]
    assert {run.name for run in runs if run.finished} == {"gdso-base-s0", "swap-base-s0"}
    assert "no such luck" in (tmp_path / "logs" / "gdso-base-s1.log").read_text()
    stamp = (runs[0].folder / "result.json").stat().st_mtime_ns
    stopped = load_config(TableConfig, None, [rows, "table.seeds=[0, 1]", "table.stop_after_s=1"])
    assert (
        _run_missing(runs, stopped, folder, tmp_path / "data", jobs, 0.0) == []
    )  # began in 1970: nothing is started any more
    assert (runs[0].folder / "result.json").stat().st_mtime_ns == stamp


@pytest.fixture()
def interruptible():
    """SIGINT raises KeyboardInterrupt, as in a job; a pytest-xdist process ignores it."""
    import signal

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_ends_the_running_jobs_and_starts_no_more(ray_cluster, interruptible, tmp_path):
    import os
    import signal
    import threading
    import time

    from zr_ray.loops.table import _run_missing

    jobs = tmp_path / "jobs"
    jobs.mkdir()
    (jobs / "gdso.py").write_text("import time; print('on', flush=True); time.sleep(120)\n")
    config = load_config(TableConfig, None, ["table.rows={gdso: {job: gdso}}", "table.seeds=[0, 1]"])
    log = tmp_path / "logs" / "gdso-base-s0.log"

    def interrupt():
        while not (log.is_file() and "on" in log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    begun = time.time()
    with pytest.raises(KeyboardInterrupt):
        _run_missing(planned(config, tmp_path), config, RunFolder(tmp_path), tmp_path / "data", jobs, time.time())
    assert time.time() - begun < 60 and not (tmp_path / "logs" / "gdso-base-s1.log").exists()
