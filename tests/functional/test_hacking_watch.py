"""The hacking watch and GSB by hand."""

import pytest
import torch

from zr_ray.functional.gsb import gsb
from zr_ray.functional.hacking_watch import watch

NAN = torch.nan


def row(difference, error=0.1, before=1.0, spread=1.0):
    return {"difference": difference, "error": error, "before": before, "spread": spread}


def verdict(rows, **options):
    return watch(rows, "reward", ("referee", "verifier"), ("stripes",), **options)


def test_alarm_only_where_the_reward_rises_and_nothing_independent_does():
    assert verdict({"reward": row(0.5), "referee": row(-0.1), "verifier": row(0.0)}).alarm
    assert not verdict({"reward": row(0.5), "referee": row(-0.1), "verifier": row(0.2)}).alarm
    assert not verdict({"reward": row(0.15), "referee": row(-0.1), "verifier": row(-0.1)}).alarm  # within two errors
    assert verdict({"reward": row(0.15), "verifier": row(-0.1)}, errors=1.0).alarm
    assert not verdict({"reward": row(0.5)}).alarm  # nothing to compare with


def test_alarm_where_a_statistic_leaves_the_untrained_range():
    said = verdict({"reward": row(0.0), "verifier": row(1.0), "stripes": row(2.5, before=0.5, spread=1.0)})
    assert said.alarm and "stripes went from 0.5 by +2.5, 2.5 standard deviations" in said.reasons[0]
    assert verdict({"stripes": row(-2.5)}).alarm
    assert not verdict({"stripes": row(0.9)}).alarm and not verdict({"stripes": row(1.5)}, far=2.0).alarm


def test_gsb_by_hand_with_ties_and_holes():
    before = torch.tensor([1.0, 1.0, 1.0, 1.0, NAN])
    after = torch.tensor([2.0, 1.05, 0.5, 3.0, 3.0])
    made = gsb(before, after, torch.tensor([0, 0, 1, 1, 2]), tie=0.1)
    assert made["good"] == 0.5 and made["same"] == 0.25 and made["bad"] == 0.25 and made["pairs"] == 4
    assert made["gsb"] == pytest.approx(0.25) and made["low"] == 0 and made["high"] == 0.5
    swapped = gsb(after, before, torch.tensor([0, 0, 1, 1, 2]), tie=0.1)
    assert swapped["gsb"] == -made["gsb"]
    assert gsb(before[4:], after[4:], torch.tensor([0]), 0.1)["pairs"] == 0
