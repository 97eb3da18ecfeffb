"""Knowledge distillation as it began: softened probabilities beside the labels."""

from typing import Literal

from ..specs.schedules import Number
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Share, Temperature


class ForwardKL(RoleRecipe):
    """The role's softened distribution beside the labels: the method all others vary."""

    title = "Knowledge distillation (forward KL)"
    source = "Hinton, Vinyals, Dean. arXiv:1503.02531, section 2"
    equation = "L = a CE(y, q) + (1 - a) T^2 KL(p^T || q^T)"
    kind: Literal["forward_kl"]
    label_share: Share = 0.1
    """Share of the loss that is cross entropy against the data's labels."""
    temperature: Temperature = 2.0
    """Softens both sides."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight))]
