"""The learning rate by hand: warm-up in equal steps, the floor at the end."""

import pytest

from zr_ray.functional.schedule import learning_rate


def test_learning_rate_warms_up_and_ends_at_the_floor():
    rates = [learning_rate(u, 20, 1.0, warmup_steps=4, min_frac=0.1) for u in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0 and rates[20] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))
