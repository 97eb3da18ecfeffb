"""The modified gradient: the role's own gradient is subtracted, whatever the model."""

from typing import Literal

from ..specs.resident import RoleGradientSpec
from ..specs.terms import TermSpec
from .base import Recipe, Weight, label_terms


class ModifiedGradient(Recipe):
    """The role's gradient on the same batch is taken off the student's, for models of one shape."""

    title = "Modified gradient (and its unbiased variant)"
    source = "Safaryan, Peste, Alistarh. arXiv:2305.17581, and the authors' code"
    equation = "x <- x - rate (grad f(x) - lam grad f(theta)), theta the role's weights, f the CE"
    kind: Literal["modified_gradient"]
    role: str = "teacher"
    """The served role, of the student's architecture; its weights lie beside the student."""
    role_share: Weight = 0.7
    """lam; may follow a schedule."""
    unbiased: bool = False
    """Take lam (grad f(theta) - its mean over all training data) off, so that nothing is added
    over an epoch."""

    def terms(self) -> list[TermSpec]:
        modified = RoleGradientSpec(
            kind="role_gradient", role=self.role, weight=self.role_share, unbiased=self.unbiased
        )
        return [*label_terms(1.0), modified]
