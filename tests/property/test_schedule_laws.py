"""Laws of schedules: ends, range, direction, states, replay."""

import itertools
import json
import math
from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.strategies import DrawFn

from strategies.adaptive import adaptive_value, first_memory, observed
from strategies.progress import Progress
from strategies.replay import as_piecewise
from strategies.schedules import value
from strategies.specs import (
    AdaptiveSchedule,
    CosineSchedule,
    CountingSchedule,
    CyclicSchedule,
    ExponentialSchedule,
    FollowSchedule,
    LinearSchedule,
    Number,
    PiecewiseSchedule,
    PolynomialSchedule,
    StepSchedule,
    TaidSchedule,
    extremes,
)

quick = settings(deadline=None, max_examples=200)
ends = st.floats(-100, 100)
above_zero = st.floats(1e-3, 100)
shares = st.floats(0, 1)
pers = st.sampled_from(["step", "epoch"])
measured = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1e-300, -1e-300, 1e300, -1e300]))


@st.composite
def ramps(draw: DrawFn) -> CountingSchedule:
    begin = draw(st.integers(0, 50))
    until = draw(st.none() | st.integers(max(begin, 1), 100))
    shared = {"begin": begin, "until": until, "per": draw(pers)}
    kind = draw(st.sampled_from(["linear", "cosine", "polynomial", "exponential"]))
    if kind == "exponential":
        low, high = draw(above_zero), draw(above_zero)
        return ExponentialSchedule(kind=kind, start=low, end=high, **shared)
    shared |= {"start": draw(ends), "end": draw(ends)}
    if kind == "polynomial":
        return PolynomialSchedule(kind=kind, power=draw(st.floats(0.1, 8)), **shared)
    return (LinearSchedule if kind == "linear" else CosineSchedule)(kind=kind, **shared)


@st.composite
def stairs(draw: DrawFn) -> StepSchedule:
    factor = draw(st.none() | st.floats(0.01, 100))
    add = draw(ends) if factor is None else None
    low, high = sorted((draw(ends), draw(ends)))
    return StepSchedule(
        kind="step",
        start=draw(ends),
        factor=factor,
        add=add,
        every=draw(st.integers(1, 9)),
        floor=draw(st.sampled_from([None, low])),
        ceiling=draw(st.sampled_from([None, high])),
        per=draw(pers),
    )


@st.composite
def points(draw: DrawFn) -> PiecewiseSchedule:
    counts = sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=5)))
    return PiecewiseSchedule(
        kind="piecewise", points=[(count, draw(ends)) for count in counts], per=draw(pers)
    )


def cycles(decay: st.SearchStrategy[float]) -> st.SearchStrategy[CyclicSchedule]:
    return st.builds(
        CyclicSchedule,
        kind=st.just("cyclic"),
        start=ends,
        peak=ends,
        period=st.integers(2, 30),
        shape=st.sampled_from(["triangle", "cosine"]),
        decay=decay,
        per=pers,
    )


@st.composite
def taids(draw: DrawFn) -> TaidSchedule:
    start, end = sorted((draw(shares), draw(shares)))
    return TaidSchedule(
        kind="taid",
        start=start,
        end=end,
        until=draw(st.none() | st.integers(1, 60)),
        alpha=draw(shares),
        beta=draw(st.floats(0, 0.999)),
    )


@st.composite
def follows(draw: DrawFn) -> FollowSchedule:
    low = draw(ends)
    return FollowSchedule(
        kind="follow",
        quantity="q",
        between=(low, low + draw(st.floats(1e-3, 100))),
        low=draw(ends),
        high=draw(ends),
        first=draw(st.none() | ends),
        power=draw(st.floats(0.1, 8)),
        memory=draw(st.floats(0, 0.999)),
    )


adaptives = st.one_of(taids(), follows())


@st.composite
def moments(draw: DrawFn) -> Progress:
    steps, epochs = draw(st.integers(1, 150)), draw(st.integers(1, 60))
    return Progress(draw(st.integers(0, 200)), steps, draw(st.integers(0, 80)), epochs)


def _run(number: AdaptiveSchedule, means: Sequence[float]) -> list[float]:
    """The values of all steps of a job, and the one after it."""
    memory, found = first_memory(number), []
    for step, mean in enumerate(means):
        at = Progress(step, len(means))
        found.append(value(number, at, memory))
        memory = observed(number, memory, mean, at)
    return [*found, value(number, Progress(len(means), len(means)), memory)]


@quick
@given(st.one_of(ramps(), stairs(), points(), cycles(st.floats(0.01, 1))), moments())
def test_a_schedule_never_leaves_its_declared_extremes(number: Number, at: Progress) -> None:
    low, high = extremes(number)
    assert low <= value(number, at) <= high


@quick
@given(adaptives, st.lists(measured, min_size=1, max_size=30))
def test_an_adaptive_schedule_never_leaves_its_declared_extremes(
    number: AdaptiveSchedule, means: list[float]
) -> None:
    low, high = extremes(number)
    assert all(low <= reached <= high for reached in _run(number, means))


@quick
@given(ramps())
def test_a_ramp_is_exact_at_both_ends_and_goes_one_way(number: CountingSchedule) -> None:
    assert isinstance(number, LinearSchedule | CosineSchedule | PolynomialSchedule
                      | ExponentialSchedule)  # fmt: skip
    end = 100 if number.until is None else number.until
    values = [value(number, Progress(now, 100, now, 100)) for now in range(102)]
    assert set(values[: number.begin + 1]) == {number.start}
    if end > number.begin:
        assert set(values[end:]) == {number.end}
    sign = 1 if number.end >= number.start else -1
    rounding = 1e-14 * max(abs(number.start), abs(number.end))
    assert all(sign * (b - a) >= -rounding for a, b in itertools.pairwise(values))


@quick
@given(stairs())
def test_a_staircase_goes_one_way_from_its_start_and_rests_between_stairs(
    number: StepSchedule,
) -> None:
    values = [value(number, Progress(now, 100, now, 100)) for now in range(100)]
    assert values[0] == number.held(number.start)
    rising, falling = values == sorted(values), values == sorted(values, reverse=True)
    assert rising or falling
    assert all(values[now] == values[now - now % number.every] for now in range(100))


@quick
@given(cycles(st.just(1.0)), st.integers(0, 30))
def test_a_cycle_without_decay_repeats_itself(number: CyclicSchedule, now: int) -> None:
    later = now + number.period
    assert value(number, Progress(now, 9, now, 9)) == value(number, Progress(later, 9, later, 9))


@quick
@given(taids(), st.lists(measured, min_size=2, max_size=40))
def test_taid_rises_from_its_start_never_below_the_line_and_reaches_its_end(
    number: TaidSchedule, means: list[float]
) -> None:
    values = _run(number, means)
    line = LinearSchedule(kind="linear", start=number.start, end=number.end, until=number.until)
    floor = [value(line, Progress(step, len(means))) for step in range(len(means) + 1)]
    assert values[0] == number.start and values == sorted(values)
    assert all(reached >= least for reached, least in zip(values, floor, strict=True))
    if number.until is None or number.until <= len(means):
        assert values[-1] == number.end


@quick
@given(follows())
def test_what_follows_reaches_both_ends_at_the_bounds_and_beyond(number: FollowSchedule) -> None:
    at = Progress(1, 10)
    low, high = number.between
    for mean, wanted in ((low, number.low), (low - 1, number.low), (high + 1, number.high)):
        assert adaptive_value(number, observed(number, {}, mean, at), at) == wanted
    assert adaptive_value(number, {"mean": high}, at) == number.high


@quick
@given(adaptives, st.lists(measured, min_size=2, max_size=20), st.data())
def test_a_state_that_went_through_json_goes_on_as_if_nothing_had_been(
    number: AdaptiveSchedule, means: list[float], data: st.DataObject
) -> None:
    stop = data.draw(st.integers(0, len(means) - 1))
    memory, found = first_memory(number), []
    for step, mean in enumerate(means):
        if step == stop:
            memory = json.loads(json.dumps(memory))
        at = Progress(step, len(means))
        found.append(value(number, at, memory))
        memory = observed(number, memory, mean, at)
    assert found == _run(number, means)[:-1]
    assert all(math.isfinite(kept) for kept in memory.values())


@quick
@given(
    st.lists(st.one_of(ends, st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=60)
    | st.builds(lambda a, b, n: [a + b * i for i in range(n)], ends, ends, st.integers(1, 200))
)
def test_a_replayed_schedule_has_every_value_exactly(values: list[float]) -> None:
    again = as_piecewise(values)
    assert [value(again, Progress(step, len(values))) for step in range(len(values))] == values
    assert value(again, Progress(10**6, 10)) == values[-1]
