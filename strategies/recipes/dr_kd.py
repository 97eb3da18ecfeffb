"""Dynamic rectification: a self-teacher whose errors are mended on the fly."""

from typing import Literal

from ..specs.schedules import Number
from ..specs.targets import SwapSpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Share, Temperature


class DrKD(RoleRecipe):
    """The second of two jobs: the first one's student, as it was, teaches a fresh one."""

    title = "Dynamic rectification (DR-KD)"
    source = "Amik et al. arXiv:2201.11319"
    equation = "L = a CE(y, q) + (1 - a) T^2 KL(swap(p) || q), p an earlier copy of the student"
    kind: Literal["dr_kd"]
    label_share: Share = 0.05
    """Share of the loss that is cross entropy against the data's labels."""
    temperature: Temperature = 6.0
    """Softens both sides."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        target = SwapSpec(kind="swap")
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight, target))]
