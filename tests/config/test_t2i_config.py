"""Configuration of the text-to-image job: the named run loads, what cannot work is refused with what to do."""

from pathlib import Path

import pytest

from zr_ray.config.loader import load_config
from zr_ray.config.t2i import T2iConfig
from zr_ray.errors import ConfigError, DataError
from zr_ray.loops.launch_t2i import check_algorithm, check_service, own_service, task_prompts
from zr_ray.loops.t2i_watch import unweighted
from zr_ray.rubric import DIMENSIONS
from zr_ray.serving.deployments import bundles_of

NAMED = Path(__file__).parents[2] / "jobs" / "configs" / "t2i_tiny.yaml"
REFRESHED = NAMED.with_name("t2i_refresh_tiny.yaml")


def test_the_named_run_has_the_cut_and_the_anchor_on():
    config = load_config(T2iConfig, NAMED, [])
    assert config.t2i.reward_sigma_min == 0.5 and config.t2i.anchor.enabled and config.watch.action == "stop"
    refreshed = load_config(T2iConfig, REFRESHED, [])
    assert refreshed.reward.refresh.enabled and not config.reward.refresh.enabled


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["t2i.algorithm=ppo"], "t2i.algorithm"),
        (["t2i.anchors.below=1"], "anchors"),
        (["t2i.algorithm=flowbp", "reward.function=a:b"], "needs the reward's gradient"),
        (["t2i.algorithm=refl", "reward.aggregation=gdpo"], "needs reward.aggregation sum"),
        (["actor.workers=3"], "multiple of actor.workers"),
        (["t2i.steps=5"], "warmup_steps must be below t2i.steps"),
        (["reward.function=a:b", "reward.target=app"], "exclude one another"),
        (["prompts.path=list.txt"], "absolute path"),
        (["reward.sources=[{nme: a, clip: b}]"], r"unknown key reward.sources\[0\].nme; did you mean"),
        (["reward.sources=[{name: a, clip: b, gpus: -1}]"], r"reward.sources\[0\].gpus must be at least 0"),
        (["reward.sources=[{name: a, clip: b, judge: c}]"], "source a must be one thing, got judge and clip"),
        (["reward.sources=[{name: a, clip: b, differentiable: true}]"], "differentiable belongs to a function"),
        (["reward.sources=[{name: a, clip: b, weights: {score: 1}}]"], "says logit and cosine, weights has"),
        (["reward.sources=[{name: a, function: 'b:c'}]"], "weights must name the scores it says"),
        (["reward.sources=[{name: a, clip: b}, {name: a, clip: c}]"], "must have different names, a is there twice"),
        (["reward.sources=[{name: a, weights: {b: 1}}]"], "source a must have judge, clip or function, got none"),
        (["reward.sources=[{name: a, clip: b}]", "reward.target=app"], "a name and weights alone"),
        (["reward.sources=[{name: a, clip: b}]", "reward.judge=builtin"], "reward.judge is for one source"),
        (
            ["t2i.algorithm=draft", "reward.sources=[{name: a, function: 'b:c', weights: {d: 1}}]"],
            "needs the reward's gradient, source a gives scores only",
        ),
        (["reward.balance=true"], "nft uses scores only"),
        (["reward.refresh.every_steps=80"], "reward.refresh.every_steps must be below t2i.steps"),
        (["reward.refresh.every_steps=4", "reward.target=app"], "the one judge of the job's own service"),
        (["reward.refresh.every_steps=4", "reward.function=a:b"], "got reward.function"),
        (["reward.refresh.every_steps=4", "reward.sources=[{name: a, clip: b}]"], "got reward.sources"),
        (["reward.refresh.images.of=latest"], "reward.refresh.images.of is this run itself"),
        (["reward.refresh.label.path=labels"], "label.path must be an absolute path"),
        (["reward.refresh.steps=5"], "learner.warmup_steps must be below reward.refresh.steps"),
        (["reward.refresh.learner.workers=64"], "at least reward.refresh.learner.workers"),
    ],
)
def test_refusals(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(T2iConfig, None, overrides)


def test_what_depends_on_the_family_and_on_the_reward():
    with pytest.raises(ConfigError, match="must name dimensions"):
        check_algorithm(load_config(T2iConfig, None, ["reward.weights={beauty: 1}"]), "ZImagePipeline")
    guided = load_config(T2iConfig, None, ["t2i.algorithm=flow_grpo", "generator.guidance_scale=1.0"])
    check_algorithm(guided, "FluxPipeline")  # 1 is no guidance there
    with pytest.raises(ConfigError, match="without guidance"):
        check_algorithm(guided, "ZImagePipeline")
    check_algorithm(load_config(T2iConfig, None, ["generator.guidance_scale=1.5"]), "ZImagePipeline")


def test_the_jobs_own_service_has_no_port_and_others_start_none():
    assert own_service(load_config(T2iConfig, None, [])).http.enabled is False
    assert own_service(load_config(T2iConfig, None, ["reward.target=app"])) is None
    assert own_service(load_config(T2iConfig, None, ["reward.function=a:b"])) is None


def test_several_sources_become_deployments_and_columns():
    """A judge weighs its dimensions by default, a CLIP scorer its logit; a function says what it returns."""
    sources = (
        "[{name: student, judge: student, cpus: .5}, {name: pick, clip: /models/pick, replicas: 2, gpus: 1},"
        " {name: light, function: 'a:b', weights: {mean: 0.0}}]"
    )
    config = load_config(T2iConfig, None, [f"reward.sources={sources}"])
    named = {f"student.{d}": 1.0 for d in DIMENSIONS} | {"pick.logit": 1.0, "light.mean": 0.0}
    assert config.reward.score_weights == named
    service = own_service(config)
    assert service.judge.path is None and not service.http.enabled
    assert bundles_of(service, "reward-") == {
        "reward-student": [{"CPU": 0.5}],
        "reward-pick": [{"CPU": 1.0, "GPU": 1.0}] * 2,
        "reward-light": [{"CPU": 1.0}],
    }
    assert [source.scores for source in service.sources] == [(), (), ("mean",)], "what a function must return"
    assert unweighted(config) == ("reward/light.mean",), "asked and watched, never trained on"
    named = load_config(
        T2iConfig, None, ["reward.target=app", "reward.sources=[{name: student, weights: {realism: 1}}]"]
    )
    assert own_service(named) is None and named.reward.score_weights == {"student.realism": 1.0}
    assert T2iConfig.model_validate(config.model_dump(mode="json")) == config, "as a resumed run reads it"


def test_weights_that_a_judge_does_not_score_are_refused():
    config = load_config(T2iConfig, None, ["reward.sources=[{name: own, judge: builtin, weights: {beauty: 1}}]"])
    with pytest.raises(ConfigError, match=r"source own scores alignment.*its weights name \['beauty'\]"):
        check_service(config, own_service(config))


def test_held_out_prompts_are_never_trained_on(tmp_path):
    training, held_out = task_prompts(load_config(T2iConfig, None, ["prompts.held_out=64", "held_out.watched=8"]))
    pairs = {prompt for prompt in held_out if len(prompt.split()) > 3}
    assert len(held_out) == 64 and pairs and not pairs & set(training)
    path = tmp_path / "list.txt"
    path.write_text("\n".join(f"a photo of {i} cats" for i in range(20)))
    training, held_out = task_prompts(
        load_config(T2iConfig, None, [f"prompts.path={path}", "prompts.held_out=4", "held_out.watched=2"])
    )
    assert len(training) == 16 and not set(training) & set(held_out)
    with pytest.raises(DataError, match="at least 40"):
        task_prompts(
            load_config(T2iConfig, None, [f"prompts.path={path}", "prompts.held_out=20", "held_out.watched=2"])
        )
