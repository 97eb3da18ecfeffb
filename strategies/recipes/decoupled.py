"""Decoupled knowledge distillation."""

from typing import Literal

from ..specs.terms import DecoupledSpec, TermSpec
from .base import Recipe, Temperature, Weight, label_terms


class Decoupled(Recipe):
    """What the role says of the wrong classes counts even where it is sure of the right one."""

    title = "Decoupled knowledge distillation (DKD)"
    source = "Zhao et al. arXiv:2203.08679, equation 7"
    equation = "L = c CE(y, q) + T^2 [a KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) + b KL(p' || q')]"
    kind: Literal["decoupled"]
    role: str = "teacher"
    """The served role to learn from."""
    labels: Weight = 1.0
    """Weight c of cross entropy against the data's labels."""
    label_weight: Weight = 1.0
    """a: of label against all others."""
    others_weight: Weight = 8.0
    """b: of the others among themselves, renormalised."""
    temperature: Temperature = 4.0
    """Softens both sides."""

    def terms(self) -> list[TermSpec]:
        decoupled = DecoupledSpec(
            kind="decoupled",
            role=self.role,
            label_weight=self.label_weight,
            others_weight=self.others_weight,
            temperature=self.temperature,
        )
        return [*label_terms(self.labels), decoupled]
