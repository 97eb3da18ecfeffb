"""Schedules: hand-computed values, ends and flat parts; what a spec refuses."""

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from strategies.progress import Progress
from strategies.schedules import value
from strategies.specs import ForwardKLSpec, JensenShannonSpec, Number, extremes

NUMBER: TypeAdapter[Any] = TypeAdapter(Number)


def _number(kind: str, **fields: Any) -> Number:
    return NUMBER.validate_python({"kind": kind, **fields})


def _ramp(kind: str, **fields: Any) -> Number:
    """From 1 to 4 between counts 2 and 6."""
    return _number(kind, **{"start": 1.0, "end": 4.0, "begin": 2, "until": 6, **fields})


STAIRS = _number("step", start=8.0, factor=0.5, every=3, floor=1.5)
ADDED = _number("step", start=0.1, add=0.1, every=3, ceiling=1.0)
PIECEWISE = _number("piecewise", points=[(2, 1.0), (4, 5.0), (5, 0.0)])
TRIANGLE = _number("cyclic", start=1.0, peak=3.0, period=4, decay=0.5)
WAVE = _number("cyclic", start=0.0, peak=1.0, period=8, shape="cosine")


@pytest.mark.parametrize(
    ("number", "step", "expected"),
    [
        (2, 7, 2.0),
        (0.25, 0, 0.25),
        (_number("constant", value=0.5), 9, 0.5),
        (_ramp("linear"), 0, 1.0),
        (_ramp("linear"), 3, 1.75),
        (_ramp("cosine"), 3, 1 + 3 * (1 - math.sqrt(0.5)) / 2),
        (_ramp("cosine"), 4, 2.5),
        (_ramp("cosine_squared"), 3, 4 - 3 * math.cos(math.pi / 8) ** 2),
        (_ramp("polynomial"), 3, 4 - 3 * 0.75**2),
        (_ramp("polynomial", power=0.5), 5, 4 - 3 * 0.5),
        (_ramp("exponential"), 3, math.sqrt(2)),
        (_ramp("exponential"), 4, 2.0),
        (_ramp("exponential", start=4.0, end=1.0), 5, math.sqrt(2)),
        (STAIRS, 2, 8.0),
        (STAIRS, 3, 4.0),
        (STAIRS, 6, 2.0),
        (STAIRS, 9, 1.5),
        (ADDED, 2, 0.1),
        (ADDED, 3, 0.2),
        (ADDED, 26, 0.9),
        (ADDED, 27, 1.0),
        (ADDED, 30, 1.0),
        (PIECEWISE, 0, 1.0),
        (PIECEWISE, 3, 3.0),
        (PIECEWISE, 4, 5.0),
        (PIECEWISE, 5, 0.0),
        (PIECEWISE, 50, 0.0),
        (TRIANGLE, 0, 1.0),
        (TRIANGLE, 1, 2.0),
        (TRIANGLE, 2, 3.0),
        (TRIANGLE, 3, 2.0),
        (TRIANGLE, 4, 1.0),
        (TRIANGLE, 6, 2.0),
        (TRIANGLE, 10, 1.5),
        (WAVE, 1, (1 - math.sqrt(0.5)) / 2),
        (WAVE, 2, 0.5),
        (WAVE, 4, 1.0),
        (WAVE, 12, 1.0),
    ],
)
def test_a_schedule_has_the_value_computed_by_hand(
    number: Number, step: int, expected: float
) -> None:
    assert value(number, Progress(step, 10)) == pytest.approx(expected, rel=1e-12)


RAMPS = ("linear", "cosine", "cosine_squared", "polynomial", "exponential")


@pytest.mark.parametrize("kind", RAMPS)
def test_a_ramp_has_exactly_its_ends_before_at_and_after_them(kind: str) -> None:
    number = _ramp(kind, start=0.1, end=0.7)
    assert [value(number, Progress(step, 10)) for step in (0, 2)] == [0.1, 0.1]
    assert [value(number, Progress(step, 10)) for step in (6, 99)] == [0.7, 0.7]


@pytest.mark.parametrize("kind", RAMPS)
def test_a_ramp_without_until_ends_with_the_job(kind: str) -> None:
    number = _number(kind, start=1.0, end=2.0)
    assert value(number, Progress(10, 10)) == 2.0
    assert value(number, Progress(5, 20)) < value(number, Progress(5, 10)) < 2.0


@pytest.mark.parametrize("kind", RAMPS)
def test_a_ramp_that_begins_after_the_end_of_the_job_stays_at_its_start(kind: str) -> None:
    number = _number(kind, start=0.5, end=1.0, begin=50)
    assert {value(number, Progress(step, 10)) for step in (0, 9, 10)} == {0.5}


def test_cosine_squared_is_the_cosine() -> None:
    for step in range(12):
        squared, cosine = (
            value(_ramp(kind), Progress(step, 10)) for kind in ("cosine_squared", "cosine")
        )
        assert squared == cosine


def test_a_schedule_of_epochs_stays_inside_an_epoch_and_ends_with_the_last() -> None:
    number = _number("linear", start=0.0, end=1.0, per="epoch")
    at = [Progress(step, 12, step // 3, 4) for step in range(12)]
    values = [value(number, progress) for progress in at]
    assert values == [epoch / 4 for epoch in range(4) for _ in range(3)]
    assert value(number, Progress(12, 12, 4, 4)) == 1.0


def test_stairs_and_cycles_and_points_count_epochs_too() -> None:
    at = Progress(100, 1000, epoch=3, total_epochs=5)
    stairs = _number("step", start=8.0, factor=0.5, every=2, per="epoch")
    cycle = _number("cyclic", start=0.0, peak=1.0, period=4, per="epoch")
    points = _number("piecewise", points=[(0, 0.0), (4, 1.0)], per="epoch")
    assert [value(number, at) for number in (stairs, cycle, points)] == [4.0, 0.5, 0.75]


def test_epochs_cannot_be_counted_in_a_job_of_steps() -> None:
    number = _number("linear", start=0.0, end=1.0, per="epoch")
    with pytest.raises(ValueError, match=r"counts epochs .* give it in epochs"):
        value(number, Progress(3, 10))


@pytest.mark.parametrize(("epochs", "stairs"), [(30, 10), (200, 20), (7, 5), (12, 12)])
def test_the_annealing_of_continuation_kd_is_a_staircase_that_never_passes_one(
    epochs: int, stairs: int
) -> None:
    """phi = 1 - (T - 1) / Tmax, T from Tmax down to 1 every floor(n / Tmax) epochs, held at 1."""
    every = epochs // stairs
    phi = _number("step", start=1 / stairs, add=1 / stairs, every=every, ceiling=1.0, per="epoch")
    found = [value(phi, Progress(0, epochs, epoch, epochs)) for epoch in range(epochs)]
    wanted = [1 - (max(1, stairs - epoch // every) - 1) / stairs for epoch in range(epochs)]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert found == sorted(found) and max(found) <= 1.0
    assert found[0] == 1 / stairs and found[-1] == pytest.approx(1.0)


def test_stairs_without_a_limit_go_on() -> None:
    falling = _number("step", start=1.0, factor=0.1, every=1)
    assert value(falling, Progress(3, 10)) == pytest.approx(1e-3)
    rising = _number("step", start=1.0, factor=10.0, every=1, ceiling=50.0)
    assert [value(rising, Progress(step, 10)) for step in (1, 2, 10_000)] == [10.0, 50.0, 50.0]
    still = _number("step", start=0.0, factor=10.0, every=1)
    assert value(still, Progress(10_000, 10)) == 0.0


@pytest.mark.parametrize(
    ("number", "low", "high"),
    [
        (0.5, 0.5, 0.5),
        (_ramp("polynomial", start=3.0, end=-1.0), -1.0, 3.0),
        (TRIANGLE, 1.0, 3.0),
        (STAIRS, 1.5, 8.0),
        (_number("step", start=2.0, factor=0.5, every=1), 0.0, 2.0),
        (_number("step", start=-2.0, factor=0.5, every=1), -2.0, 0.0),
        (_number("step", start=2.0, factor=2.0, every=1), 2.0, math.inf),
        (_number("step", start=-2.0, factor=2.0, every=1), -math.inf, -2.0),
        (_number("step", start=2.0, factor=1.0, every=1), 2.0, 2.0),
        (_number("step", start=2.0, add=0.0, every=1), 2.0, 2.0),
        (_number("step", start=2.0, add=-0.5, every=1), -math.inf, 2.0),
        (_number("step", start=2.0, add=-0.5, every=1, floor=1.0), 1.0, 2.0),
        (_number("step", start=0.5, add=0.5, every=1, floor=1.0, ceiling=2.0), 1.0, 2.0),
        (_number("taid", start=0.25, end=0.75), 0.25, 0.75),
        (_number("follow", quantity="q", between=[0, 1], low=2.0, high=1.0), 1.0, 2.0),
        (_number("follow", quantity="q", between=[0, 1], low=2.0, high=1.0, first=3.0), 1.0, 3.0),
    ],
)
def test_a_schedule_knows_its_extremes(number: Number, low: float, high: float) -> None:
    assert extremes(number) == (low, high)


OUTSIDE: list[dict[str, Any]] = [
    {"kind": "constant", "value": 1.0},
    {"kind": "linear", "start": 0.5, "end": 1.0},
    {"kind": "cosine", "start": 0.5, "end": 1.5},
    {"kind": "cosine_squared", "start": 0.0, "end": 0.5},
    {"kind": "polynomial", "start": 0.5, "end": -0.5},
    {"kind": "exponential", "start": 0.5, "end": 1.0},
    {"kind": "step", "start": 0.5, "factor": 1.1, "every": 10},
    {"kind": "step", "start": 0.5, "factor": 0.5, "every": 10},
    {"kind": "step", "start": 0.5, "add": 0.01, "every": 1000},
    {"kind": "cyclic", "start": 0.5, "peak": 1.0, "period": 10},
    {"kind": "piecewise", "points": [[0, 0.5], [5, 1.0], [6, 0.5]]},
    {"kind": "taid", "start": 0.5},
    {"kind": "follow", "quantity": "loss", "between": [0, 1], "low": 0.1, "high": 1.0},
    {
        "kind": "follow", "quantity": "loss", "between": [0, 1], "low": 0.1, "high": 0.2,
        "first": 0.0,
    },
]  # fmt: skip


@pytest.mark.parametrize("number", OUTSIDE, ids=lambda number: number["kind"])
def test_a_schedule_that_leaves_its_fields_range_is_refused(number: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"beta takes values from .* outside \(0, 1\)"):
        JensenShannonSpec.model_validate({"kind": "jensen_shannon", "beta": number})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kind": "linear", "start": 1, "end": 2, "begin": 9, "until": 3}, "until is 3, before begin"),
    ({"kind": "exponential", "start": 0, "end": 2}, "greater than 0"),
    ({"kind": "exponential", "start": 1, "end": -2}, "greater than 0"),
    ({"kind": "polynomial", "start": 1, "end": 2, "power": 0}, "greater than 0"),
    ({"kind": "linear", "start": 1, "end": math.nan}, "finite"),
    ({"kind": "step", "start": 1, "every": 3}, "neither of factor and add"),
    ({"kind": "step", "start": 1, "every": 3, "add": 1, "factor": 2}, "both of factor and add"),
    ({"kind": "step", "start": 1, "every": 3, "factor": -2}, "greater than 0"),
    ({"kind": "step", "start": 1, "every": 0, "factor": 2}, "greater than 0"),
    (
        {"kind": "step", "start": 1, "every": 1, "add": 1, "floor": 3, "ceiling": 2},
        "floor is 3, above ceiling",
    ),
    ({"kind": "cyclic", "start": 1, "peak": 2, "period": 1}, "greater than or equal to 2"),
    ({"kind": "cyclic", "start": 1, "peak": 2, "period": 4, "decay": 1.5}, "less than or equal"),
    ({"kind": "piecewise", "points": [[3, 1], [3, 2]]}, "must rise strictly"),
    ({"kind": "taid", "start": 0.9, "end": 0.5}, "it only rises"),
    ({"kind": "taid", "start": 0.9, "end": 1.5}, "less than or equal to 1"),
    ({"kind": "follow", "between": [0, 1], "low": 0, "high": 1}, "quantity"),
    (
        {"kind": "follow", "quantity": "q", "between": [1, 1], "low": 0, "high": 1},
        "the first must be below the second",
    ),
    ({"kind": "linear", "start": 1, "end": 2, "per": "hour"}, "'step' or 'epoch'"),
]


@pytest.mark.parametrize(("number", "message"), REFUSED)
def test_a_schedule_that_makes_no_sense_is_refused(number: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ForwardKLSpec.model_validate({"kind": "forward_kl", "weight": number})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        ForwardKLSpec.model_validate({"kind": "forward_kl", "weight": bad})
