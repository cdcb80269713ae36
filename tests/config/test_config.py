"""Configuration: what is refused, and that the refusal says what to change."""

import pytest
import yaml

from zr_ray.config.gdso import GdsoConfig
from zr_ray.config.loader import differing_keys, dump_yaml, fields_of, load_config, schema_help
from zr_ray.config.weights import SyncTolerance
from zr_ray.errors import ConfigError


def load(*overrides: str) -> GdsoConfig:
    return load_config(GdsoConfig, None, list(overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load(*overrides)
    assert "\n" not in str(refused.value), "one line"
    return str(refused.value)


def test_file_then_overrides_in_order(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("gdso:\n  steps: 30\n  group_size: 6\nlearner:\n  betas: [0.8, 0.9]\n")
    config = load_config(
        GdsoConfig, path, ["gdso.steps=40", "gdso.steps=50", "learner.lr=3e-5", "run.name=a1", "judge.path=/m/x=y"]
    )
    assert (config.gdso.steps, config.gdso.group_size, config.learner.betas) == (50, 6, (0.8, 0.9))
    assert (config.learner.lr, config.run.name, config.judge.path) == (3e-5, "a1", "/m/x=y")
    assert config.weights == GdsoConfig().weights
    with pytest.raises(Exception, match="frozen"):
        config.gdso.steps = 3


def test_a_section_can_be_overridden_as_a_whole_and_null_restores_none(tmp_path):
    config = load(
        "data.world={train_groups: 5, test_groups: 2}", "data.world.test_groups=3", "run.root=/tmp", "run.root=null"
    )
    assert (config.data.world.train_groups, config.data.world.test_groups, config.data.world.candidates) == (5, 3, 4)
    assert config.run.root is None


def test_dump_and_load_are_inverse(tmp_path):
    config = load(
        "run.root=/tmp/runs",
        "run.resume=latest",
        "learner.lr=1e-7",
        "learner.freeze=[model.visual, lm]",
        "weights.tolerance=0.001",
    )
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_yaml(config))
    assert load_config(GdsoConfig, path, []) == config
    assert set(yaml.safe_load(path.read_text())) == set(GdsoConfig.model_fields)


@pytest.mark.parametrize(
    "override, message",
    [
        ("gdso.group_size=1", "gdso.group_size must be at least 2 for a group baseline, got 1"),
        ("gdso.clip_low=1", "gdso.clip_low must be below 1"),
        ("learner.lr=0", "learner.lr must be above 0"),
        ("gdso.steps=abc", "gdso.steps must be a whole number, got 'abc'"),
        ("gdso.steps=2.5", "gdso.steps must be a whole number, got 2.5"),
        ("gdso.steps=null", "gdso.steps must be a whole number, got None"),
        ("gdso.beta_kl=.nan", "gdso.beta_kl must be finite, got nan"),
        ("weights.verify=perhaps", "weights.verify must be true or false, got 'perhaps'"),
        ("gdso.kl_estimator=k4", "gdso.kl_estimator must be 'k1' or 'k2' or 'k3', got 'k4'"),
        ("run.resume=[3]", "run.resume must be 'latest' or path or null, got [3]"),
        ("run.name=../elsewhere", "run.name must be made of letters"),
        ("run.name=..", "run.name must be made of letters"),
        ("run.root=runs", "run.root must be an absolute path, got runs"),
        ("learner.betas=[0.9]", "learner.betas must be [float, float], got [0.9]"),
        ("learner.betas=[0.9, 1]", "learner.betas must both lie in [0, 1), got [0.9, 1.0]"),
        ("rollout.temperature=0.7", "rollout.temperature is no key any more: rollouts are sampled at temperature 1"),
        ("rollout.gpus=1.5", "rollout.gpus must be a whole number above 1, got 1.5"),
        ("learner.gpus=2", "learner.gpus must be at most 1, got 2"),
        ("evaluation.split=train", "evaluation.split must be 'dev' or 'test', got 'train'"),
        ("data.world.candidates=1", "data.world.candidates must be at least 2 to form same-prompt pairs, got 1"),
        (
            "learner.workers=5",
            (
                "gdso.pairs_per_step must be a multiple of learner.workers (5), so that every rank averages over the"
                " same number of pairs, got 48; write 45 or 50"
            ),
        ),
        ("learner.workers=64", "got 48; write 64"),
        ("learner.warmup_steps=60", "learner.warmup_steps must be below the run's 60 optimizer updates, got 60"),
        ("learner.max_tokens_per_microbatch=31", "rollout.max_new_tokens = 32, got 31"),
        ("weights.push_every_steps=61", "weights.push_every_steps must be at most gdso.steps (60), got 61"),
        ("gdso.collect_frac=0.5", "gdso.max_staleness must be at least 1 with gdso.collect_frac below 1, got 0"),
        ("gdso.collect_parts=2", "gdso.collect_parts must be 1 with gdso.max_staleness 0, got 2"),
        ("gdso.max_staleness=-1", "gdso.max_staleness must be at least 0, got -1"),
    ],
)
def test_wrong_values(override, message):
    assert message in refusal(override)


def test_wrong_combinations():
    assert "learner.zero_stage must be at least 1 with learner.dtype bfloat16" in refusal(
        "learner.zero_stage=0", "learner.dtype=bfloat16"
    )
    assert load("learner.zero_stage=0").learner.zero_stage == 0
    assert "must not all be 0" in refusal(
        *(f"gdso.{a}_{b}=0" for a in ("alpha", "lambda") for b in ("pointwise", "pairwise"))
    )


def test_staleness_is_counted_in_pushes_of_every_step():
    message = refusal("gdso.max_staleness=1", "weights.push_every_steps=2")
    assert "weights.push_every_steps must be 1 with gdso.max_staleness above 0, got 2" in message
    assert load("gdso.max_staleness=1", "gdso.collect_frac=0.5", "gdso.collect_parts=4").gdso.collect_parts == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["weights.transport=ipc"], "weights.transport ipc needs one engine and one learner that share a GPU"),
        (
            ["weights.transport=ipc", "learner.gpus=.5", "rollout.gpus=.25", "rollout.workers=2"],
            "rollout.workers 2; take broadcast or object_store",
        ),
        (["weights.transport=broadcast", "learner.gpus=.5", "rollout.gpus=.5"], "two processes on one GPU; take ipc"),
        (["weights.transport=broadcast", "rollout.gpus=1"], "or all on CPU, got learner.gpus 0, rollout.gpus 1"),
        (["rollout.sleep=true"], "this engine has none: rollout.gpus is 0"),
        (["rollout.sleep=true", "rollout.gpus=1"], "rollout.sleep makes room for a learner on the same GPU"),
        (
            ["rollout.sleep=true", "rollout.gpus=.5", "learner.gpus=.5", "weights.push_every_steps=2"],
            "weights.push_every_steps must be 1 with rollout.sleep",
        ),
        (
            ["rollout.sleep=true", "rollout.gpus=.5", "learner.gpus=.5", "gdso.max_staleness=1"],
            "gdso.max_staleness must be 0 with rollout.sleep",
        ),
        (["rollout.tensor_parallel=3", "rollout.gpus=2"], "rollout.tensor_parallel must be rollout.gpus (2)"),
        (["learner.offload=optimizer"], "learner.zero_stage must be 2 or 3 with learner.offload optimizer, got 1"),
        (
            ["learner.offload=parameters", "learner.zero_stage=2"],
            "learner.zero_stage must be 3 with learner.offload parameters, got 2",
        ),
    ],
)
def test_where_weights_cannot_go_and_engines_cannot_sleep(overrides, words):
    message = refusal(*overrides)
    assert words in message and "\n" not in message


def test_engines_sleep_by_default_where_they_share_a_gpu():
    shared = ("rollout.gpus=.5", "learner.gpus=.5")
    assert load(*shared).sleeps and load(*shared, "weights.transport=ipc").sleeps
    assert not load().sleeps and not load("rollout.gpus=1", "learner.gpus=1").sleeps
    assert not load(*shared, "rollout.sleep=false").sleeps and not load(*shared, "gdso.max_staleness=1").sleeps
    assert not load(*shared, "weights.push_every_steps=2").sleeps


def test_several_wrong_values_are_all_named():
    message = refusal("gdso.group_size=1", "learner.lr=-1")
    assert "gdso.group_size" in message and "learner.lr" in message


@pytest.mark.parametrize(
    "override, suggestion",
    [
        ("gdso.grop_size=4", "unknown key gdso.grop_size; did you mean gdso.group_size?"),
        ("gdsso.group_size=4", "unknown key gdsso; did you mean gdso?"),
        ("group_size=4", "unknown key group_size; did you mean gdso.group_size?"),
        ("gdso.learning.rate=4", "unknown key gdso.learning; gdso knows: steps, "),
        ("data.world.train_group=4", "did you mean data.world.train_groups?"),
        ("gdso=3", "gdso is a section with the keys steps, "),
        ("gdso.steps", "must look like section.key=value"),
        ("=3", "must look like section.key=value"),
        ("gdso.steps=[1", "the value is not valid YAML"),
        ("gdso.steps.x=3", "gdso.steps must be a whole number"),
    ],
)
def test_wrong_keys(override, suggestion):
    assert suggestion in refusal(override)


@pytest.mark.parametrize(
    "text, message",
    [
        ("gdso:\n  grop_size: 4\n", "unknown key gdso.grop_size; did you mean gdso.group_size?"),
        ("gdso:\n  group_size: 1\n", "gdso.group_size must be at least 2 for a group baseline, got 1 (in "),
        ("gdso:\n  steps: 1\n  steps: 2\n", "key 'steps' is written twice"),
        ("gdso: [", "is not valid YAML"),
        ("- 1\n", "must hold `section:` keys at top level, got a list"),
        ("gdso:\n", "gdso is a section with the keys"),
        ("gdso: !!python/object/apply:os.system [true]\n", "is not valid YAML"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    path = tmp_path / "my_run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="my_run.yaml") as refused:
        load_config(GdsoConfig, path, [])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_missing_file_and_empty_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read config .*nowhere.yaml: No such file"):
        load_config(GdsoConfig, tmp_path / "nowhere.yaml", [])
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load_config(GdsoConfig, tmp_path / "empty.yaml", []) == GdsoConfig()


def test_an_override_mends_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("gdso:\n  group_size: 1\n")
    assert load_config(GdsoConfig, path, ["gdso.group_size=2"]).gdso.group_size == 2


def test_sync_tolerance_follows_the_dtypes():
    assert load().sync_tolerance == SyncTolerance("largest", 3e-5)
    for mixed in ("rollout.dtype=bfloat16", "learner.dtype=bfloat16"):
        assert load(mixed).sync_tolerance == SyncTolerance("mean", 3e-2)
    assert load("rollout.gpus=1").sync_tolerance == SyncTolerance("mean", 5e-3)  # fp32 products round on GPUs
    assert load("weights.tolerance=0.5", "learner.dtype=bfloat16").sync_tolerance == SyncTolerance("mean", 0.5)


def test_help_names_every_key_with_its_meaning():
    text = schema_help(GdsoConfig)
    for key, field in fields_of(GdsoConfig).items():
        assert f"{key}  (" in text and field.description and field.description in text
    assert "gdso.group_size  (int, at least 2; default 4)" in text


def test_differing_keys():
    assert differing_keys(load(), load()) == []
    assert differing_keys(load(), load("learner.lr=1e-3", "data.world.seed=9")) == ["data.world.seed", "learner.lr"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_num_seqs": 512, "max_batched_tokens": 256}, "at least rollout.max_num_seqs"),
        ({"max_model_len": 64, "max_new_tokens": 64}, "must hold a question"),
        ({"max_model_len": 9000, "max_batched_tokens": 8192}, "on CPU does not split"),
    ],
)
def test_what_vllm_refuses_at_its_start_is_refused_in_the_configuration(changes, words):
    with pytest.raises(ConfigError, match=words):
        load_config(GdsoConfig, None, [f"rollout.{key}={value}" for key, value in changes.items()])
    if "on CPU" in words:
        load_config(
            GdsoConfig, None, ["rollout.max_model_len=9000", "rollout.max_batched_tokens=8192", "rollout.gpus=1"]
        )


def test_a_multiple_is_named():
    with pytest.raises(ConfigError, match="rollout.block_size must be a multiple of 16, got 40"):
        load_config(GdsoConfig, None, ["rollout.block_size=40"])
    assert load_config(GdsoConfig, None, ["rollout.block_size=32"]).rollout.block_size == 32
