"""Student, teacher and reference against one another: counts by hand, missing scores, what is said about them."""

import math
from dataclasses import replace

import torch

from zr_ray.judging.three_way import drifted, pair_order, reference_scores, three_way
from zr_ray.rubric import DIMENSIONS, PAPER

D = len(DIMENSIONS)


def in_groups(world_items, sizes):
    """Items in groups of these sizes, each with the true score 1, 2, ... of its place in all dimensions."""
    items = []
    for g, size in enumerate(sizes):
        for n in range(size):
            truth = dict.fromkeys(DIMENSIONS, 1.0 + n)
            items.append(replace(world_items[0], id=f"{g}-{n}", group=f"g{g}", scores={"realism": 3.0}, truth=truth))
    return items


def test_pairs_inside_prompts_by_hand(world_items):
    items = in_groups(world_items, [3, 2, 1])
    teacher = reference_scores(items, PAPER)
    assert teacher[:, 0].tolist() == [1, 2, 3, 1, 2, 1]
    student = teacher.clone()
    student[0, 0] = 2.5  # over the second, under the third: one pair of three turned in alignment
    student[3, 1] = 2.0  # a tie in realism is wrong
    student[2, 2] = math.nan  # no score: both its pairs are wrong
    right, pairs = pair_order(student, teacher, items)
    assert right.tolist() == [12 - 1 - 2, 4 - 1, 0] and pairs.tolist() == [12, 4, 0]
    found = three_way(student, teacher, items, PAPER, resamples=50)
    each = {name: entry["student/teacher"] for name, entry in found["dimensions"].items()}
    assert [each[d]["accuracy"] for d in DIMENSIONS] == [3 / 4, 3 / 4, 2 / 4, 1.0]
    assert math.isclose(found["pooled"]["student/teacher"]["accuracy"], 12 / 16)
    assert math.isclose(each["alignment"]["bias"], 1.5 / 6) and each["aesthetics"]["bias"] == 0
    assert found["pooled"]["teacher/reference"]["accuracy"] == 1.0
    low, high = found["pooled"]["student/teacher"]["ci"]
    assert low <= 12 / 16 <= high


def test_differences_below_the_noise_gap_are_no_pairs(world_items):
    items = in_groups(world_items, [2])
    close = torch.tensor([[3.0] * D, [3.04] * D], dtype=torch.float64)
    assert pair_order(close, close, items)[1].sum() == 0 and pair_order(close, 2 * close, items)[1].sum() == D


def test_without_truth_the_annotators_are_the_reference_and_without_both_there_is_none(world_items):
    items = [replace(item, truth={}) for item in in_groups(world_items, [2])]
    found = reference_scores(items, PAPER)
    assert found[:, DIMENSIONS.index("realism")].tolist() == [3.0, 3.0] and found[:, 0].isnan().all()
    bare = [replace(item, scores={}) for item in items]
    mu = torch.tensor([[1.0] * D, [2.0] * D])
    entry = three_way(mu, mu, bare, PAPER, resamples=50)["dimensions"]["realism"]
    assert entry["student/teacher"]["accuracy"] == 1.0
    assert entry["teacher/reference"] == {"accuracy": None, "ci": None, "pairs": 0, "bias": None}


def test_a_student_away_from_its_teacher_is_distilled_again_a_wrong_teacher_is_trained(world_items):
    items = in_groups(world_items, [4, 4])
    truth = reference_scores(items, PAPER)
    student, teacher = truth.clone(), truth.clone()
    student[:, 0] = -student[:, 0]
    teacher[:, 1], student[:, 1] = -teacher[:, 1], -student[:, 1]  # a faithful student of a teacher that is wrong
    found = three_way(student, teacher, items, PAPER, resamples=50)
    assert drifted(found, limit=0.6) == ([], [])  # a dozen pairs may be chance
    again, useless = drifted(found, limit=0.6, enough=12)
    assert again == ["alignment: the student orders 0% of 12 same-prompt pairs as its teacher does, limit 60%"]
    assert len(useless) == 1 and useless[0].startswith("realism: the teacher itself") and "jobs/gdso.py" in useless[0]
