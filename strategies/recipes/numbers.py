"""Arithmetic on numbers that may be schedules: what is left of a share, and products. No torch.

A recipe splits the loss into shares, and a share may move; what is left of it then moves the other
way. The result is a schedule again, so that it is recorded and checked like any other.
"""

from typing import Any

from ..specs.adaptive import FollowSchedule
from ..specs.schedules import (
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    ExponentialSchedule,
    LinearSchedule,
    Number,
    PiecewiseSchedule,
    PolynomialSchedule,
    Schedule,
    StepSchedule,
)

_ENDS: dict[type, tuple[str, ...]] = {
    ConstantSchedule: ("value",),
    LinearSchedule: ("start", "end"),
    CosineSchedule: ("start", "end"),
    PolynomialSchedule: ("start", "end"),
    CyclicSchedule: ("start", "peak"),
    FollowSchedule: ("low", "high", "first"),
}
"""Fields between which a schedule lies on straight terms: move them, and all of it moves alike."""


def rest_of(share: Number) -> Number:
    """1 - share.

    Raises:
        ValueError: the share follows a schedule for which there is none.
    """
    return _moved(share, 1.0, -1.0)


def product(left: Number, right: Number) -> Number:
    """left * right, of which one at least does not move.

    Raises:
        ValueError: both are schedules, or the one cannot be scaled.
    """
    if isinstance(left, int | float):
        return _moved(right, 0.0, left)
    if isinstance(right, int | float):
        return _moved(left, 0.0, right)
    raise ValueError(
        f"two schedules ({left.kind} and {right.kind}) would be multiplied with each other; keep "
        "one of them a plain number, or write the terms yourself"
    )


def _moved(number: Number, offset: float, factor: float) -> Number:
    """offset + factor * number."""
    if isinstance(number, int | float):
        return offset + factor * number
    if (offset, factor) == (0.0, 1.0):
        return number
    changes = _changes(number, offset, factor)
    if changes is None:
        raise ValueError(
            f"a recipe needs {offset:g} + {factor:g} * a schedule of kind {number.kind}, which is "
            "no schedule itself; use linear, cosine, polynomial, cyclic, piecewise or a step with "
            "add, or write the terms yourself"
        )
    return type(number).model_validate(number.model_dump() | changes)


def _changes(number: Schedule, offset: float, factor: float) -> dict[str, Any] | None:
    """Fields of offset + factor * schedule that are others than the schedule's; None: no such."""

    def moved(value: float | None) -> float | None:
        return None if value is None else offset + factor * value

    if isinstance(number, PiecewiseSchedule):
        return {"points": [(count, moved(value)) for count, value in number.points]}
    if isinstance(number, StepSchedule) and (number.add is not None or (offset == 0 < factor)):
        low, high = moved(number.floor), moved(number.ceiling)
        stairs = {"start": moved(number.start), "floor": low, "ceiling": high}
        if factor < 0:
            stairs |= {"floor": high, "ceiling": low}
        return stairs if number.add is None else stairs | {"add": factor * number.add}
    if isinstance(number, ExponentialSchedule):
        scaled = offset == 0 < factor
        return {"start": moved(number.start), "end": moved(number.end)} if scaled else None
    names = _ENDS.get(type(number))
    return None if names is None else {name: moved(getattr(number, name)) for name in names}
