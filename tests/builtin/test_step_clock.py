"""The clock of pre-training by hand."""

from zr_ray.builtin.step_clock import StepClock


def counted(*durations):
    """Seconds that count, of steps after the first."""
    clock = StepClock()
    clock.counted(1.0)
    return [clock.counted(duration) for duration in durations]


def test_a_halt_counts_as_five_ordinary_steps_and_leaves_no_trace():
    assert counted(1.0, 1.0, 1.2, 600.0, 1.0) == [1.0, 1.0, 1.2, 5.0, 1.0]


def test_slow_steps_count_in_full_and_a_slower_machine_becomes_the_rule():
    assert counted(1.0, 1.0, 1.0, 4.9) == [1.0, 1.0, 1.0, 4.9]
    assert sum(counted(*[1.0] * 10, *[8.0] * 60)[-40:]) == 40 * 8.0


def test_the_first_step_compiles_and_neither_counts_nor_raises_the_limit():
    clock = StepClock()
    assert [clock.counted(duration) for duration in (300.0, 0.5, 9.0)] == [0.0, 0.5, 2.5]
