"""The value of a number at a step. Pure arithmetic; imports no torch."""

import itertools
import math
from collections.abc import Mapping

from .adaptive import adaptive_value
from .progress import Progress, between, share_of_way
from .specs import (
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    ExponentialSchedule,
    FollowSchedule,
    LinearSchedule,
    Number,
    PiecewiseSchedule,
    PolynomialSchedule,
    StepSchedule,
    TaidSchedule,
)

Ramp = LinearSchedule | CosineSchedule | PolynomialSchedule | ExponentialSchedule


def value(number: Number, at: Progress, memory: Mapping[str, float] | None = None) -> float:
    """What `number` is at a step (the first is 0).

    A schedule without `until` ends with the job; its end value is reached there, and what comes
    after its end keeps it.

    Args:
        number: plain, or a schedule.
        at: the step; its epoch too where the schedule counts epochs.
        memory: of an adaptive schedule, which has no value without one.
    """
    match number:
        case int() | float():
            return float(number)
        case ConstantSchedule():
            return number.value
        case TaidSchedule() | FollowSchedule():
            if memory is None:
                raise ValueError(f"a schedule of kind {number.kind} needs its state; give memory")
            return adaptive_value(number, memory, at)
    now, total = at.counted(number.per)
    match number:
        case StepSchedule():
            return _stair(number, now // number.every)
        case CyclicSchedule():
            return _cycle(number, now)
        case PiecewiseSchedule():
            return _piecewise(number.points, now)
    end = total if number.until is None else number.until
    return _ramp(number, share_of_way(now, number.begin, end))


def _ramp(number: Ramp, done: float) -> float:
    start, end = number.start, number.end
    match number:
        case LinearSchedule():
            return between(start, end, done)
        case CosineSchedule():
            return between(start, end, (1 - math.cos(math.pi * done)) / 2)
        case PolynomialSchedule():
            return between(end, start, (1 - done) ** number.power)
        case ExponentialSchedule():
            if done in (0.0, 1.0):
                return between(start, end, done)
            reached = math.exp(between(math.log(start), math.log(end), done))
            return min(max(reached, min(start, end)), max(start, end))


def _stair(number: StepSchedule, stairs: int) -> float:
    if number.factor is None:
        assert number.add is not None  # one of the two is given
        return number.held(number.start + number.add * stairs)
    if number.start == 0:
        return number.held(0.0)
    try:
        return number.held(number.start * number.factor**stairs)
    except OverflowError:
        return number.held(math.copysign(math.inf, number.start))


def _cycle(number: CyclicSchedule, now: int) -> float:
    cycle, place = divmod(now, number.period)
    phase = place / number.period
    if number.shape == "triangle":
        share = 1 - abs(1 - 2 * phase)
    else:
        share = (1 - math.cos(2 * math.pi * phase)) / 2
    return between(number.start, number.peak, share * number.decay**cycle)


def _piecewise(points: list[tuple[int, float]], now: int) -> float:
    if now <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in itertools.pairwise(points):
        if now < right:
            return between(low, high, (now - left) / (right - left))
    return points[-1][1]
