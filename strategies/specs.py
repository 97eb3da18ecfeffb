"""The part of a job file that says what to learn: schedules, terms, objectives.

Pydantic only: loads neither torch nor ray. `strategies.objective.build_objective` turns these
into callables in one visible `match`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
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


def _check_range(
    name: str,
    number: "Number",
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
    remedy: str = "keep every point of the schedule inside",
) -> None:
    smallest, largest = extremes(number)
    bad_low = smallest <= low if open_low else smallest < low
    bad_high = largest >= high if open_high else largest > high
    if bad_low or bad_high:
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(
            f"{name} takes values from {smallest:g} to {largest:g}, outside "
            f"{left}{low:g}, {high:g}{right}; {remedy}"
        )


# --- terms ---------------------------------------------------------------------------------------


DENSE_OR_TOPK = ("full", "hidden", "topk")


class _TermSpec(Spec):
    encodings: ClassVar[tuple[str, ...]] = ()
    """Encodings of its role that the term can learn from; () for a term without a role."""
    scheduled: ClassVar[tuple[str, ...]] = ("weight",)
    """Fields that may be schedules, `weight` first."""

    weight: Number = 1.0
    """What the term's mean counts in the loss."""

    @field_validator("weight")
    @classmethod
    def _weight_range(cls, weight: Number) -> Number:
        _check_range("weight", weight, 0.0, float("inf"))
        return weight

    @property
    def served_roles(self) -> tuple[str, ...]:
        return ()


class CrossEntropySpec(_TermSpec):
    """Next-token (or class) cross entropy against the data's own labels."""

    kind: Literal["cross_entropy"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a label's weight that is spread evenly over the vocabulary."""


class _DivergenceSpec(_TermSpec):
    encodings: ClassVar[tuple[str, ...]] = DENSE_OR_TOPK
    scheduled: ClassVar[tuple[str, ...]] = ("weight", "temperature")

    role: str = "teacher"
    """The served role to learn from."""
    temperature: Number = 1.0
    """Softens both sides."""

    @field_validator("temperature")
    @classmethod
    def _temperature_range(cls, temperature: Number) -> Number:
        _check_range("temperature", temperature, 0.0, 1000.0, open_low=True)
        return temperature

    @property
    def served_roles(self) -> tuple[str, ...]:
        return (self.role,)


class ForwardKLSpec(_DivergenceSpec):
    """T^2 KL(teacher || student), both at temperature T. Hinton et al., arXiv:1503.02531.

    The one divergence that can learn from encoding `sampled`, at temperature 1 only.
    """

    encodings: ClassVar[tuple[str, ...]] = (*DENSE_OR_TOPK, "sampled")
    kind: Literal["forward_kl"]


class ReverseKLSpec(_DivergenceSpec):
    """T^2 KL(student || teacher), both at temperature T. Gu et al., arXiv:2306.08543."""

    kind: Literal["reverse_kl"]


class JensenShannonSpec(_DivergenceSpec):
    """T^2 generalised JSD: beta KL(p||m) + (1-beta) KL(q||m), m = beta p + (1-beta) q.

    p is the teacher, q the student. Agarwal et al., arXiv:2306.13649, section 2.
    """

    scheduled: ClassVar[tuple[str, ...]] = ("weight", "temperature", "beta")
    kind: Literal["jensen_shannon"]
    beta: Number = 0.5
    """The teacher's share of the mixture, in (0, 1)."""

    @field_validator("beta")
    @classmethod
    def _beta_range(cls, beta: Number) -> Number:
        remedy = "for the ends use forward_kl or reverse_kl instead"
        _check_range("beta", beta, 0.0, 1.0, open_low=True, open_high=True, remedy=remedy)
        return beta


class _SkewedSpec(_DivergenceSpec):
    scheduled: ClassVar[tuple[str, ...]] = ("weight", "temperature", "skew")
    skew: Number = 0.1
    """Share of the first distribution in the mixture it is compared with, in (0, 1)."""

    @field_validator("skew")
    @classmethod
    def _skew_range(cls, skew: Number) -> Number:
        remedy = "for 0 use the term without skew; at 1 there is nothing to learn"
        _check_range("skew", skew, 0.0, 1.0, open_low=True, open_high=True, remedy=remedy)
        return skew


class SkewedForwardKLSpec(_SkewedSpec):
    """T^2 KL(p || skew p + (1-skew) q), p the teacher. Ko et al., arXiv:2402.03898."""

    kind: Literal["skewed_forward_kl"]


class SkewedReverseKLSpec(_SkewedSpec):
    """T^2 KL(q || (1-skew) p + skew q), q the student. Ko et al., arXiv:2402.03898."""

    kind: Literal["skewed_reverse_kl"]


class TotalVariationSpec(_DivergenceSpec):
    """T sum |p - q| / 2; T, not its square, keeps its gradient of one size. arXiv:2307.15190."""

    kind: Literal["total_variation"]


class AlphaBetaSpec(_DivergenceSpec):
    """T^2 alpha-beta divergence of teacher p and student q. Wang et al., arXiv:2505.04560.

    -1 / (a b) sum (p^a q^b - a / (a+b) p^(a+b) - b / (a+b) q^(a+b)), and its limits where alpha,
    beta or their sum is 0: (1, 0) is forward_kl, (0, 1) reverse_kl.
    """

    scheduled: ClassVar[tuple[str, ...]] = ("weight", "temperature", "alpha", "beta")
    kind: Literal["alpha_beta"]
    alpha: Number = 0.2
    """In [-2, 2]; larger: less weight on where teacher and student differ most."""
    beta: Number = 0.7
    """In [-2, 2]; larger: more weight on what the student is sure of."""

    @field_validator("alpha", "beta")
    @classmethod
    def _power_range(cls, power: Number, info: ValidationInfo) -> Number:
        _check_range(str(info.field_name), power, -2.0, 2.0)
        return power


TermSpec = Annotated[
    CrossEntropySpec
    | ForwardKLSpec
    | ReverseKLSpec
    | JensenShannonSpec
    | SkewedForwardKLSpec
    | SkewedReverseKLSpec
    | TotalVariationSpec
    | AlphaBetaSpec,
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
