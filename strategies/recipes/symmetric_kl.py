"""Both directions of KL, in a fixed or moving proportion."""

from typing import Literal

from ..specs.schedules import Number
from ..specs.terms import ForwardKLSpec, ReverseKLSpec, TermSpec
from .base import RoleRecipe, Share
from .numbers import product, rest_of


class SymmetricKL(RoleRecipe):
    """Forward KL keeps the student from missing what the role does, reverse KL from inventing."""

    title = "Symmetric KL (Jeffreys divergence)"
    source = "Jeffreys 1946; as a loss for sequences in Wen et al. arXiv:2307.15190, section 3"
    equation = "L = a CE(y, q) + (1 - a) T^2 [s KL(p^T || q^T) + (1 - s) KL(q^T || p^T)]"
    kind: Literal["symmetric_kl"]
    forward_share: Share = 0.5
    """Of forward KL; the rest is reverse KL."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        forward = product(weight, self.forward_share)
        reverse = product(weight, rest_of(self.forward_share))
        return [
            ForwardKLSpec(kind="forward_kl", **self.softened(forward)),
            ReverseKLSpec(kind="reverse_kl", **self.softened(reverse)),
        ]
