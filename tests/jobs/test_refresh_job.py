"""A text-to-image run whose reward is distilled again on what the generator makes now, as a user runs it: killed in its
look, resumed, finished. That pools grow from look to look is in tests/loops/test_run_images.py."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from zr_ray.data.annotations import read_annotations
from zr_ray.models.identity import judge_hash
from zr_ray.models.judge_text import BUILTIN_JUDGES, JudgeText
from zr_ray.models.student import Student

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # a distillation with its engines
SMALL = ["generator.compiled=false", "generator.steps=3", "generator.micro_batch=4", "prompts.held_out=4"]
SMALL += ["held_out.watched=2", "held_out.every_steps=1", "held_out.beside=false", "held_out.bootstrap_resamples=20"]
SMALL += ["held_out.grid=4", "actor.warmup_steps=1", "actor.cpus=0.5", "t2i.prompts_per_step=2", "t2i.group_size=2"]
SMALL += ["t2i.steps=2", "checkpoint.every_steps=2", "watch.action=report", "run.trackers=[]", "reward.cpus=0.5"]
# no agreement is enough, so the look distils
REFRESH = {"every_steps": 1, "teacher": "teacher", "pair_limit": 1.0, "smallest_gain": 0.0, "most": 1, "steps": 12}
REFRESH |= {"items_per_step": 12, "evaluate_steps": 4, "patience": 3}
ROLLOUT = {"threads": 1, "max_num_seqs": 64, "max_model_len": 160}
LEARNER = {"threads": 1, "cpus": 0.5, "warmup_steps": 1, "lr": 1e-3}
IMAGES = {"prompts": 20, "per_prompt": 3, "held_out_frac": 0.4, "cpus": 0.5}


class Killed(Exception):
    """Stands for a SIGKILL of the driver in the middle of a look."""


def told(root):
    """Words of the job; its judge lies under `root`."""
    judge = {"judge": root / "contrary", "blind": "accept"}
    sections = {"reward": judge, "reward.refresh": REFRESH, "reward.refresh.rollout": ROLLOUT}
    sections |= {"reward.refresh.learner": LEARNER, "reward.refresh.images": IMAGES}
    words = [f"{section}.{key}={value}" for section, keys in sections.items() for key, value in keys.items()]
    return [*SMALL, *words, f"run.root={root}", "run.name=kept"]


def write_contrary(folder):
    """The built-in student with the rows of its score labels turned over: it likes what its teacher dislikes, so
    whatever it learns makes it better."""
    shutil.copytree(BUILTIN_JUDGES["student"], folder)
    weights, labels = load_file(folder / "model.safetensors"), list(JudgeText(folder).label_ids)
    weights["lm_head.weight"][labels] = weights["lm_head.weight"][labels[::-1]]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def killed(ray_cluster, run_job, tmp_path_factory):
    """Run folder of a run that was killed in its look, after images and labels of it were there."""
    from zr_ray.loops.refresh import Refresher

    def dying(self, *rest):
        raise Killed

    root = tmp_path_factory.mktemp("runs")
    write_contrary(root / "contrary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Refresher, "_refresh", dying)
        assert run_job("t2i", *told(root)) == 1
    return root / "kept"


def test_a_killed_look_leaves_what_it_made(killed):
    assert [line["reward/version"] for line in metrics(killed)] == [0]
    assert json.loads((killed / "reward" / "paused.json").read_text())["step"] == 1
    (part,) = (killed / "reward" / "images" / "kept").iterdir()
    assert part.name.startswith("step_000001") and list((killed / "reward" / "labels").iterdir())


@pytest.fixture(scope="module")
def resumed(killed, run_job):
    made = {path: path.stat().st_mtime_ns for path in (killed / "reward" / "images").rglob("*.png")}
    assert run_job("t2i", *told(killed.parent), f"run.resume={killed}") == 0
    assert made and all(path.stat().st_mtime_ns == at for path, at in made.items()), "no image was made twice"
    return killed


def test_the_service_answers_as_the_student_that_was_distilled(resumed):
    state = json.loads((resumed / "reward" / "state.json").read_text())
    first, second = state["versions"]
    assert first["sha256"] == judge_hash(resumed.parent / "contrary") and second["since_step"] == 1
    (look,) = state["looks"]
    refresh = look["refresh"]
    assert look["step"] == 1 and look["version"] == 0 and 0 < look["accuracy"] < 1 and look["pairs"] > 10
    assert refresh["taken"] == 1 and refresh["after"] > refresh["before"] and refresh["learned"] == 36
    assert refresh["proof"]["largest_difference"] < 1e-3 and refresh["proof"]["replies"] >= 4
    folder = resumed / "reward" / "v1"
    assert judge_hash(folder) == second["sha256"] == refresh["sha256"] != first["sha256"]
    assert Student(folder).rubric == Student(BUILTIN_JUDGES["student"]).rubric


def test_every_step_names_the_version_that_rewarded_it(resumed):
    state = json.loads((resumed / "reward" / "state.json").read_text())
    lines = metrics(resumed)
    assert [line["step"] for line in lines] == [1, 2] and [line["reward/version"] for line in lines] == [0, 1]
    for line, version in zip(lines, state["versions"], strict=True):
        assert f"{int(line['reward/judge_hash']):08x}" == version["sha256"][:8], "as the replies name it"


def test_it_learned_from_prompts_that_it_was_not_stopped_by(resumed):
    items = list(read_annotations(resumed / "reward" / "distillations" / "kept-refresh-1" / "data"))
    learned, others = ({i.prompt for i in items if i.split == split} for split in ("train", "test"))
    assert len(items) == 60 and len(learned) == 12 and not learned & others


def test_the_report_says_when_and_how_much_better(resumed):
    result = json.loads((resumed / "result.json").read_text())
    assert result["status"] == "SUCCEEDED" and len(result["reward_refresh"]["looks"]) == 1
    assert {v["sha256"] for v in result["reward_refresh"]["versions"]} == set(result["reward_versions"])
    page = (resumed / "report.html").read_text()
    after = result["reward_refresh"]["looks"][0]["refresh"]["after"]
    assert "Versions of the reward" in page and f"{after:.1%}" in page
    assert (resumed / "held_out" / "before.v1.npz").is_file()


def test_nothing_is_left_running(resumed):
    from ray import serve

    assert "reward-kept" not in serve.status().applications
