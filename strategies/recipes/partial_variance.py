"""Distillation as partial variance reduction: one weight, which may move."""

from typing import Literal

from ..specs.terms import ForwardKLSpec, TermSpec
from .base import Recipe, Share, label_terms
from .numbers import rest_of


class PartialVariance(Recipe):
    """Self-distillation seen as control of gradient noise; the weight of the role is the knob."""

    title = "Partial variance reduction"
    source = "Safaryan, Peste, Alistarh. arXiv:2305.17581, section 3"
    equation = "L = (1 - lam) CE(y, q) + lam KL(p || q), at temperature 1"
    kind: Literal["partial_variance"]
    role: str = "teacher"
    """The served role to learn from."""
    role_share: Share = 0.7
    """lam; a schedule lets it fall as the student nears the role."""

    def terms(self) -> list[TermSpec]:
        learned = ForwardKLSpec(kind="forward_kl", role=self.role, weight=self.role_share)
        return [*label_terms(rest_of(self.role_share)), learned]
