"""Every named run loads and is what it is called; the variants by name change what they say they change."""

from pathlib import Path

import pytest
import yaml

from zr_ray.config.chain import ChainConfig
from zr_ray.config.gdso import GdsoConfig
from zr_ray.config.loader import differing_keys, load_config
from zr_ray.config.opd import OpdConfig
from zr_ray.config.risd import RisdConfig
from zr_ray.config.sft import SftConfig
from zr_ray.config.t2i import T2iConfig
from zr_ray.config.table import TableConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
MODELS = {
    "chain": ChainConfig,
    "gdso": GdsoConfig,
    "sft": SftConfig,
    "opd": OpdConfig,
    "risd": RisdConfig,
    "t2i": T2iConfig,
    "table": TableConfig,
}
"""Section that tells a job's configuration, the first one that is there; a chain has those of its stages too."""
RUNS = [
    path
    for path in sorted(CONFIGS.glob("*.yaml"))
    if MODELS.keys() & yaml.safe_load(path.read_text()).keys()
    and not path.name.startswith("t2i_table")  # another job's table: tests/loops/test_t2i_table.py
]


def gdso(name: str, *overrides: str) -> GdsoConfig:
    return load_config(GdsoConfig, CONFIGS / f"{name}.yaml", list(overrides))


def test_grpo_is_gdso_without_direct_losses_and_pairwise_reward():
    assert differing_keys(gdso("gdso_tiny"), gdso("grpo_tiny")) == [
        "gdso.lambda_pairwise",
        "gdso.alpha_pointwise",
        "gdso.alpha_pairwise",
    ]


def test_the_pathwise_row_is_grpo_with_the_gradient_of_its_reward():
    assert differing_keys(gdso("grpo_tiny"), gdso("grpo_pathwise_tiny")) == ["gdso.alpha_reward"]


@pytest.mark.parametrize("name", ["gdso", "grpo"])
def test_the_parsing_ablation_changes_one_key(name):
    assert differing_keys(gdso(f"{name}_tiny"), gdso(f"{name}_parsed_tiny")) == ["gdso.score_from"]


def test_rewarddance_is_sft_with_chains():
    sft, chains = (load_config(SftConfig, CONFIGS / f"{name}_tiny.yaml", []) for name in ("sft", "rewarddance"))
    assert differing_keys(sft, chains) == ["sft.reasoning"] and chains.sft.reasoning


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_named_run_loads_under_the_model_of_its_job(path):
    """Unknown keys are refused by the model; an override reaches what the file says nothing about."""
    written = yaml.safe_load(path.read_text())
    model = next(MODELS[section] for section in MODELS if section in written)
    loaded = load_config(model, path, [])
    assert load_config(model, path, [f"run.seed={loaded.run.seed + 1}"]).run.seed == loaded.run.seed + 1
    assert differing_keys(loaded, model()), f"{path.name} is the default configuration"


VARIANTS = {
    "Dr. GRPO": {"advantage_normalization": "none", "token_aggregation": "fixed_length"},
    "DAPO": {"clip_high": 0.28, "token_aggregation": "token_mean", "updates_per_rollout": 2},
    "GSPO": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "updates_per_rollout": 2},
    "KL k1": {"kl_estimator": "k1"},
    "KL k2": {"kl_estimator": "k2"},
    "no reference": {"beta_kl": 0},
    "two-hot labels": {"pointwise_target": "two_hot", "alpha_pointwise": 1},
    "Gaussian labels": {"pointwise_target": "gaussian", "gaussian_std": 0.7, "alpha_pointwise": 1},
}
"""Name -> keys of `gdso`, as the head of grpo_tiny.yaml offers them."""


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_by_name_changes_its_keys_and_no_other(changes):
    variant = gdso("grpo_tiny", *(f"gdso.{key}={value}" for key, value in changes.items()))
    assert differing_keys(gdso("grpo_tiny"), variant) == [
        f"gdso.{key}" for key in type(variant.gdso).model_fields if key in changes
    ]
    assert {key: getattr(variant.gdso, key) for key in changes} == changes
