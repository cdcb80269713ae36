"""Krippendorff's alpha against the worked example of its source, and its ends."""

import pytest
import torch

from zr_ray.functional.krippendorff import krippendorff_alpha

NAN = torch.nan
TABLE = torch.tensor([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
])  # fmt: skip


def test_the_worked_example_of_four_observers():
    assert krippendorff_alpha(TABLE, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(TABLE, "interval") == pytest.approx(0.849, abs=5e-4)


def test_ends():
    assert krippendorff_alpha(torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])) == 1
    assert krippendorff_alpha(torch.tensor([[1.0, NAN], [NAN, 2.0]])) != krippendorff_alpha(
        torch.tensor([[1.0, NAN], [NAN, 2.0]])
    )
    random = torch.randint(0, 3, (2, 4000), generator=torch.Generator().manual_seed(0)).double()
    assert abs(krippendorff_alpha(random, "nominal")) < 0.05
