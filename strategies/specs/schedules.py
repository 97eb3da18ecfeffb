"""Numbers of an objective that move while training. Pydantic only."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from .base import Spec


class ConstantSchedule(Spec):
    """The same number at every step."""

    kind: Literal["constant"] = "constant"
    value: float

    def extremes(self) -> tuple[float, float]:
        return self.value, self.value


class LinearSchedule(Spec):
    """From `start` at step `begin` to `end` at step `until` (default: the last), flat outside."""

    kind: Literal["linear"]
    start: float
    end: float
    begin: NonNegativeInt = 0
    until: PositiveInt | None = None

    def extremes(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)


class CosineSchedule(Spec):
    """Half a cosine from `start` at step `begin` to `end` at step `until`, flat outside."""

    kind: Literal["cosine"]
    start: float
    end: float
    begin: NonNegativeInt = 0
    until: PositiveInt | None = None

    def extremes(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)


class StepSchedule(Spec):
    """`start`, multiplied by `factor` every `every` steps."""

    kind: Literal["step"]
    start: float
    factor: float
    every: PositiveInt
    floor: float | None = None

    def extremes(self) -> tuple[float, float]:
        end = self.floor if self.floor is not None else (self.start if self.factor >= 1 else 0.0)
        return min(self.start, end), (max(self.start, end) if self.factor <= 1 else float("inf"))


class PiecewiseSchedule(Spec):
    """Straight lines between `[step, value]` points, flat before the first and after the last."""

    kind: Literal["piecewise"]
    points: Annotated[list[tuple[NonNegativeInt, float]], Field(min_length=1)]

    @field_validator("points")
    @classmethod
    def _steps_rise(cls, points: list[tuple[int, float]]) -> list[tuple[int, float]]:
        steps = [step for step, _ in points]
        if steps != sorted(set(steps)):
            raise ValueError(f"steps must rise strictly, got {steps}; sort them and drop repeats")
        return points

    def extremes(self) -> tuple[float, float]:
        values = [value for _, value in self.points]
        return min(values), max(values)


Schedule = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | StepSchedule | PiecewiseSchedule,
    Field(discriminator="kind"),
]
Number = float | Schedule
"""A number in an objective: plain, or a schedule over optimiser steps."""


def extremes(number: "Number") -> tuple[float, float]:
    """Smallest and largest value a number can take."""
    return (number, number) if isinstance(number, int | float) else number.extremes()


def within(
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
    remedy: str = "keep every point of the schedule inside",
) -> Any:
    """A pydantic validator: every value that a `Number` can take lies between two limits."""

    def check(number: Number, info: ValidationInfo) -> Number:
        smallest, largest = extremes(number)
        bad_low = smallest <= low if open_low else smallest < low
        bad_high = largest >= high if open_high else largest > high
        if bad_low or bad_high:
            left, right = "(" if open_low else "[", ")" if open_high else "]"
            raise ValueError(
                f"{info.field_name} takes values from {smallest:g} to {largest:g}, outside "
                f"{left}{low:g}, {high:g}{right}; {remedy}"
            )
        return number

    return AfterValidator(check)
