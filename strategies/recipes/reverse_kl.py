"""Reverse KL: the student settles on what the role is sure of."""

from typing import Literal

from ..specs.schedules import Number
from ..specs.terms import ReverseKLSpec, TermSpec
from .base import RoleRecipe


class ReverseKL(RoleRecipe):
    """The student keeps to the role's modes and leaves out what it cannot hold."""

    title = "Reverse KL"
    source = "Gu, Dong, Wei, Huang (MiniLLM). arXiv:2306.08543, section 2; per token, off policy"
    equation = "L = a CE(y, q) + (1 - a) T^2 KL(q^T || p^T)"
    kind: Literal["reverse_kl"]

    def role_terms(self, weight: Number) -> list[TermSpec]:
        return [ReverseKLSpec(kind="reverse_kl", **self.softened(weight))]
