"""Continuation KD: from an easy loss to the hard one."""

from typing import Literal

from pydantic import PositiveInt

from ..specs.schedules import LinearSchedule, Number, StepSchedule
from ..specs.terms import LogitsDistanceSpec, TermSpec
from .base import Recipe, Share, Weight, label_terms
from .numbers import rest_of


class ContinuationKD(Recipe):
    """The role's logits grow, a margin forgives its noise, and the labels take over."""

    title = "Continuation KD"
    source = "Jafari et al. arXiv:2212.05998, equations 5 to 7"
    equation = "L = psi CE(y, q) + (1 - psi) max(0, ||z_q - phi z_p||^2 - m phi)"
    kind: Literal["continuation_kd"]
    role: str = "teacher"
    """The served role to learn from."""
    label_share: Share = LinearSchedule(kind="linear", start=0.0, end=1.0)
    """psi."""
    t_max: PositiveInt = 10
    """phi rises from 1 / t_max to 1."""
    stair: PositiveInt | None = None
    """Counts that each of the t_max values of phi lasts; absent: it rises evenly to the end."""
    per: Literal["step", "epoch"] = "step"
    """What a stair counts."""
    margin: Weight = 0.0
    """m: squared distance that costs nothing; the paper does not say its own."""
    over: Literal["sum", "mean"] = "sum"
    """Over the entries; the mean makes a margin V times as large."""

    def terms(self) -> list[TermSpec]:
        phi = scale(self.t_max, self.stair, self.per)
        weight = rest_of(self.label_share)
        distance = annealed(self.role, weight, phi, self.margin, self.over)
        return [*label_terms(self.label_share), distance]


def scale(t_max: int, stair: int | None, per: Literal["step", "epoch"]) -> Number:
    """phi: 1 - (T - 1) / t_max, T falling from t_max to 1 and staying there."""
    least = 1.0 / t_max
    if stair is None:
        return LinearSchedule(kind="linear", start=least, end=1.0, per=per)
    return StepSchedule(kind="step", start=least, add=least, every=stair, ceiling=1.0, per=per)


def annealed(
    role: str, weight: Number, phi: Number, margin: Number, over: Literal["sum", "mean"]
) -> LogitsDistanceSpec:
    """The hinged distance to a role's logits times phi."""
    return LogitsDistanceSpec(
        kind="logits_distance",
        role=role,
        weight=weight,
        logit_scale=phi,
        margin=margin,
        over=over,
    )
