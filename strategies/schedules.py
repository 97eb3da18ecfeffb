"""The value of a scheduled number at a step. Pure arithmetic; imports no torch."""

import itertools
import math

from .specs import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    Number,
    PiecewiseSchedule,
    StepSchedule,
)


def value(number: Number, step: int, total_steps: int) -> float:
    """What `number` is at optimiser step `step` (the first is 0) of `total_steps`.

    A schedule without `until` ends at `total_steps`; its end value is reached there, and steps
    past its end keep it.
    """
    match number:
        case int() | float():
            return float(number)
        case ConstantSchedule():
            return number.value
        case LinearSchedule():
            done = _progress(step, number.begin, number.until, total_steps)
            return _between(number.start, number.end, done)
        case CosineSchedule():
            done = _progress(step, number.begin, number.until, total_steps)
            return _between(number.start, number.end, (1 - math.cos(math.pi * done)) / 2)
        case StepSchedule():
            reached = number.start * number.factor ** (step // number.every)
            return reached if number.floor is None else max(reached, number.floor)
        case PiecewiseSchedule():
            return _piecewise(number.points, step)


def _progress(step: int, begin: int, until: int | None, total_steps: int) -> float:
    """Share of the way from `begin` to `until`, in [0, 1]; 0 at `begin` even where it is empty."""
    end = total_steps if until is None else until
    if step <= begin:
        return 0.0
    return 1.0 if step >= end else (step - begin) / (end - begin)


def _between(start: float, end: float, done: float) -> float:
    """Linear interpolation that is exact at both ends and never leaves [start, end]."""
    if done in (0.0, 1.0):
        return end if done else start
    return min(max(start + (end - start) * done, min(start, end)), max(start, end))


def _piecewise(points: list[tuple[int, float]], step: int) -> float:
    if step <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in itertools.pairwise(points):
        if step < right:
            return _between(low, high, (step - left) / (right - left))
    return points[-1][1]
