"""Annealing KD: the role's logits grow to full size, then the labels alone."""

from typing import Literal

from pydantic import PositiveInt

from ..specs.schedules import StepSchedule
from ..specs.terms import TermSpec
from .base import Recipe, label_terms
from .continuation_kd import annealed, scale
from .numbers import rest_of


class AnnealingKD(Recipe):
    """Two phases: first the role's logits from small to full, then cross entropy alone."""

    title = "Annealing KD"
    source = "Jafari et al. arXiv:2104.07163, section 3; as arXiv:2212.05998, section 3, has it"
    equation = "first L = ||z_q - phi z_p||^2, phi rising from 1 / Tmax to 1; then L = CE(y, q)"
    kind: Literal["annealing_kd"]
    role: str = "teacher"
    """The served role to learn from."""
    t_max: PositiveInt = 10
    """Temperatures of the first phase, each a stair of phi."""
    stair: PositiveInt = 10
    """Counts that a stair lasts; the first phase ends after t_max of them."""
    per: Literal["step", "epoch"] = "step"
    """What is counted."""
    over: Literal["sum", "mean"] = "sum"
    """Over the entries."""

    def terms(self) -> list[TermSpec]:
        labels = StepSchedule(
            kind="step",
            start=0.0,
            add=1.0,
            every=self.t_max * self.stair,
            ceiling=1.0,
            per=self.per,
        )
        phi = scale(self.t_max, self.stair, self.per)
        distance = annealed(self.role, rest_of(labels), phi, 0.0, self.over)
        return [*label_terms(labels), distance]
