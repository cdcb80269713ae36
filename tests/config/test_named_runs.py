"""Every named run is what its first line says it is; the variants that its comments name load."""

import re
from pathlib import Path

import pytest

from zr_ray.config.gdso import GdsoConfig
from zr_ray.config.loader import differing_keys, load_config
from zr_ray.config.sft import SftConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


def gdso(name: str, *overrides: str) -> GdsoConfig:
    return load_config(GdsoConfig, CONFIGS / f"{name}.yaml", list(overrides))


def test_grpo_is_gdso_without_direct_losses_and_pairwise_reward():
    assert differing_keys(gdso("gdso_tiny"), gdso("grpo_tiny")) == [
        "gdso.lambda_pairwise",
        "gdso.alpha_pointwise",
        "gdso.alpha_pairwise",
    ]


@pytest.mark.parametrize("name", ["gdso", "grpo"])
def test_the_parsing_ablation_changes_one_key(name):
    assert differing_keys(gdso(f"{name}_tiny"), gdso(f"{name}_parsed_tiny")) == ["gdso.score_from"]


def test_rewarddance_is_sft_with_chains():
    sft, chains = (load_config(SftConfig, CONFIGS / f"{name}_tiny.yaml", []) for name in ("sft", "rewarddance"))
    assert differing_keys(sft, chains) == ["sft.reasoning"] and chains.sft.reasoning


def test_named_variants_load():
    text = (CONFIGS / "grpo_tiny.yaml").read_text()
    named = re.findall(r"^#   (\S.*?)  +(gdso\..*)$", text, flags=re.MULTILINE)
    variants = {name: re.findall(r"gdso\.\w+=[\w.\-]+", line) for name, line in named}
    assert {"Dr. GRPO", "DAPO", "GSPO", "KL", "soft labels"} <= set(variants)
    for name, overrides in variants.items():
        overrides += ["gdso.alpha_pointwise=1"] if name == "soft labels" else []
        assert len(overrides) >= 1 and load_config(GdsoConfig, CONFIGS / "grpo_tiny.yaml", overrides)
