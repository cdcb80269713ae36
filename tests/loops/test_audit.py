"""The audit's sampling and verdicts by hand; the whole of it, with a real teacher, in tests/jobs/test_risd_job.py."""

import math

import numpy as np
import pytest
import torch

from zr_ray.config.audit import AuditSection
from zr_ray.data.images import load_image
from zr_ray.judging.pool import StudentScorer
from zr_ray.loops.audit import beyond, draw, sample, worst_items
from zr_ray.models.student import Student
from zr_ray.report.audit_page import markdown
from zr_ray.rubric import DIMENSIONS, PAPER, SCORE_BINS

D, K = len(DIMENSIONS), len(SCORE_BINS)


def certain(bins):
    """[I, D, K] log q with nearly all mass on the bins [I, D]."""
    return torch.nn.functional.one_hot(torch.tensor(bins), K).double().add(1e-12).log().log_softmax(-1)


def test_samples_are_disjoint_and_the_highest_are_the_highest():
    mu = torch.linspace(1, 5, 200)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    chosen = sample(mu, AuditSection(items=30, highest_frac=0.5), seed=3)
    assert len(chosen["highest"]) == len(chosen["random"]) == 15 and not set(chosen["highest"]) & set(chosen["random"])
    assert float(mu[chosen["highest"]].min()) >= float(mu.sort().values[-20])
    assert float(mu[chosen["random"]].mean()) < 3.7  # they come from everywhere
    assert (
        chosen
        == sample(mu, AuditSection(items=30, highest_frac=0.5), seed=3)
        != sample(mu, AuditSection(items=30, highest_frac=0.5), seed=4)
    )
    alone = sample(mu, AuditSection(items=30, highest_frac=0.0), seed=3)
    assert alone["highest"] == [] and len(set(alone["random"])) == 30
    few = sample(mu[:5], AuditSection(items=30), seed=3)
    assert len(few["highest"]) == 1 and len(few["random"]) == 4  # a tenth of five is one


def test_random_items_come_prompt_by_prompt():
    mu = torch.linspace(1, 5, 80)[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    groups = [f"g{i // 4}" for i in range(80)]
    chosen = sample(mu, AuditSection(items=24, highest_frac=0.25), 3, groups)
    highest, random = set(chosen["highest"]), chosen["random"]
    assert len(highest) == 6 and len(random) == 18 and not highest & set(random)
    drawn = {groups[i] for i in random}
    known = [i for i in (*highest, *random) if groups[i] in drawn]
    whole = [g for g in drawn if sum(groups[i] == g for i in known) == 4]
    assert len(whole) >= len(drawn) - 1  # the last one may be cut; favorites of a drawn prompt count as known
    assert len(drawn) < 7 < len({groups[i] for i in sample(mu, AuditSection(items=24, highest_frac=0.25), 3)["random"]})


def test_pool_is_drawn_without_repetition(world_items):
    assert [i.id for i in draw(world_items, 1000, 0)] == [i.id for i in world_items]
    some = draw(world_items, 7, 0)
    assert len({i.id for i in some}) == 7 and [i.id for i in some] != [i.id for i in draw(world_items, 7, 1)]


def test_worst_items_by_hand(world_items):
    items = world_items[:3]
    teacher = certain([[0, 0, 0, 0], [4, 4, 4, 4], [8, 8, 8, 8]])
    student = certain([[0, 1, 0, 0], [4, 4, 8, 4], [8, 8, 8, 5]])
    teacher[0, 0] = math.nan
    found = worst_items(teacher, student, items, PAPER, 3)
    assert [(w["id"], w["dimension"]) for w in found] == [
        (items[1].id, DIMENSIONS[2]),
        (items[2].id, DIMENSIONS[3]),
        (items[0].id, DIMENSIONS[1]),
    ]
    assert (found[0]["teacher"], found[0]["student"]) == (3.0, 5.0)
    assert len(worst_items(teacher, student, items, PAPER, 100)) == 11  # the item without an answer is not a difference


def test_limits():
    def entry(gap, bias):
        return {
            "mu_gap": gap,
            "mu_gap_ci": None,
            "mu_bias": bias,
            "kl": 0.1,
            "plcc": None,
            "flips": None,
            "flips_ci": None,
            "items": 5,
        }

    c = AuditSection(mu_gap_limit=0.4, bias_limit=0.3)
    good = {
        "random": {"pooled": entry(0.3, 0.9), "dimensions": {"realism": entry(0.4, 0)}},
        "highest": {"pooled": entry(2.0, 0.2), "dimensions": {}},
    }
    assert beyond(good, c) == []
    bad = good | {
        "highest": {
            "pooled": entry(0.1, 0.2),
            "dimensions": {"realism": entry(0.1, 0.31), "aesthetics": entry(0.9, -2.0)},
        }
    }
    assert beyond(bad, c) == ["mean (mu student - mu teacher) of its favorites, realism: 0.31 points, limit 0.3"]
    assert "random items, all dimensions" in beyond({"random": {"pooled": entry(0.5, 0), "dimensions": {}}}, c)[0]
    report = {
        "student": {"folder": "s"},
        "teacher": {"folder": "t"},
        "pool": 9,
        "samples": good,
        "worst": [],
        "problems": [],
    }
    assert "| pooled | 5 | 0.300 | 0.900 |" in markdown(report) and "within the limits" in markdown(report)


def test_scores_are_the_students(judge_path, world_items):
    items = world_items[:3]
    got = StudentScorer(str(judge_path), "float32", "cpu", 1).log_q(items)
    pixels = (
        torch.stack([torch.from_numpy(np.array(load_image(i.image))).permute(2, 0, 1) for i in items]).float() / 255
    )
    with torch.no_grad():
        expected = Student(judge_path)(pixels, [i.prompt for i in items]).log_q
    assert got.shape == (3, D, K)
    np.testing.assert_allclose(got, expected.numpy(), atol=2e-5)


def test_configuration_is_refused_early():
    with pytest.raises(ValueError, match="highest_frac"):
        AuditSection(highest_frac=1.5)
