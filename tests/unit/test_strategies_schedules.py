"""Schedules: hand-computed values, ends and flat parts."""

import pytest

from strategies.progress import Progress
from strategies.schedules import value
from strategies.specs import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    PiecewiseSchedule,
    StepSchedule,
)

LINEAR = LinearSchedule(kind="linear", start=1.0, end=3.0, begin=2, until=6)
COSINE = CosineSchedule(kind="cosine", start=1.0, end=3.0, begin=2, until=6)
STEP = StepSchedule(kind="step", start=8.0, factor=0.5, every=3, floor=1.5)
PIECEWISE = PiecewiseSchedule(kind="piecewise", points=[(2, 1.0), (4, 5.0), (5, 0.0)])


@pytest.mark.parametrize(
    ("number", "step", "expected"),
    [
        (2, 7, 2.0),
        (0.25, 0, 0.25),
        (ConstantSchedule(value=0.5), 9, 0.5),
        (LINEAR, 0, 1.0),
        (LINEAR, 2, 1.0),
        (LINEAR, 3, 1.5),
        (LINEAR, 6, 3.0),
        (LINEAR, 99, 3.0),
        (COSINE, 2, 1.0),
        (COSINE, 3, 2 - 2**0.5 / 2),
        (COSINE, 4, 2.0),
        (COSINE, 6, 3.0),
        (STEP, 2, 8.0),
        (STEP, 3, 4.0),
        (STEP, 6, 2.0),
        (STEP, 9, 1.5),
        (PIECEWISE, 0, 1.0),
        (PIECEWISE, 3, 3.0),
        (PIECEWISE, 4, 5.0),
        (PIECEWISE, 5, 0.0),
        (PIECEWISE, 50, 0.0),
    ],
)
def test_a_schedule_has_the_value_computed_by_hand(number, step: int, expected: float) -> None:
    assert value(number, Progress(step, 10)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_a_schedule_without_until_ends_at_the_last_step(kind) -> None:
    number = kind(kind="linear" if kind is LinearSchedule else "cosine", start=0.0, end=1.0)
    assert value(number, Progress(10, 10)) == 1.0
    assert value(number, Progress(5, 10)) == pytest.approx(0.5)
    assert value(number, Progress(5, 20)) < 0.5


def test_a_schedule_that_begins_after_the_end_of_the_job_stays_at_its_start() -> None:
    number = LinearSchedule(kind="linear", start=0.0, end=1.0, begin=50)
    assert [value(number, Progress(step, 10)) for step in (0, 9, 10)] == [0.0, 0.0, 0.0]


def test_a_step_schedule_without_a_floor_falls_on() -> None:
    number = StepSchedule(kind="step", start=1.0, factor=0.1, every=1)
    assert value(number, Progress(3, 10)) == pytest.approx(1e-3)
