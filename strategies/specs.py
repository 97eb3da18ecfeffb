"""The part of a job file that says what to learn: schedules, terms, objectives.

Pydantic only: loads neither torch nor ray. `strategies.objective.build_objective` turns these
into callables in one visible `match`.
"""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)


class Spec(BaseModel):
    """Frozen, and unknown keys are errors: a typo must not become a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- schedules -----------------------------------------------------------------------------------


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


def _check_range(name: str, number: "Number", low: float, high: float, *, open_low: bool) -> None:
    smallest, largest = extremes(number)
    bad_low = smallest <= low if open_low else smallest < low
    if bad_low or largest > high:
        bracket = "(" if open_low else "["
        raise ValueError(
            f"{name} takes values from {smallest:g} to {largest:g}, outside "
            f"{bracket}{low:g}, {high:g}]; keep every point of the schedule inside"
        )


# --- terms ---------------------------------------------------------------------------------------


class _TermSpec(Spec):
    weight: Number = 1.0

    @field_validator("weight")
    @classmethod
    def _weight_range(cls, weight: Number) -> Number:
        _check_range("weight", weight, 0.0, float("inf"), open_low=False)
        return weight

    @property
    def served_roles(self) -> tuple[str, ...]:
        return ()


class CrossEntropySpec(_TermSpec):
    """Next-token (or class) cross entropy against the data's own labels."""

    kind: Literal["cross_entropy"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class _DivergenceSpec(_TermSpec):
    role: str = "teacher"
    temperature: Number = 1.0

    @field_validator("temperature")
    @classmethod
    def _temperature_range(cls, temperature: Number) -> Number:
        _check_range("temperature", temperature, 0.0, 1000.0, open_low=True)
        return temperature

    @property
    def served_roles(self) -> tuple[str, ...]:
        return (self.role,)


class ForwardKLSpec(_DivergenceSpec):
    """T^2 KL(teacher || student), both at temperature T. Hinton et al., arXiv:1503.02531."""

    kind: Literal["forward_kl"]


class ReverseKLSpec(_DivergenceSpec):
    """T^2 KL(student || teacher), both at temperature T. Gu et al., arXiv:2306.08543."""

    kind: Literal["reverse_kl"]


class JensenShannonSpec(_DivergenceSpec):
    """T^2 generalised JSD: beta KL(p||m) + (1-beta) KL(q||m), m = beta p + (1-beta) q.

    p is the teacher, q the student. Agarwal et al., arXiv:2306.13649, section 2.
    """

    kind: Literal["jensen_shannon"]
    beta: Number = 0.5

    @field_validator("beta")
    @classmethod
    def _beta_range(cls, beta: Number) -> Number:
        _check_range("beta", beta, 0.0, 1.0, open_low=True)
        if extremes(beta)[1] >= 1.0:
            raise ValueError(
                "beta must stay below 1; for the ends use forward_kl or reverse_kl instead"
            )
        return beta


TermSpec = Annotated[
    CrossEntropySpec | ForwardKLSpec | ReverseKLSpec | JensenShannonSpec,
    Field(discriminator="kind"),
]


class ObjectiveSpec(Spec):
    """Weighted terms. The loss of a step is the sum over terms of weight * (sum / global count)."""

    terms: Annotated[list[TermSpec], Field(min_length=1)]

    @model_validator(mode="after")
    def _something_to_learn(self) -> "ObjectiveSpec":
        if all(extremes(term.weight)[1] == 0 for term in self.terms):
            raise ValueError("every term has weight 0; give at least one a weight above 0")
        return self

    @property
    def served_roles(self) -> tuple[str, ...]:
        """Roles some term asks, in order of first use."""
        return tuple(dict.fromkeys(role for term in self.terms for role in term.served_roles))

    def temperatures(self, role: str) -> list[Number]:
        """The temperatures at which terms look at a role."""
        return [
            term.temperature
            for term in self.terms
            if isinstance(term, _DivergenceSpec) and term.role == role
        ]
