"""Distilling from a teacher's bias: first from what it has right, then from what it has wrong."""

from typing import Literal

from ..specs.schedules import CosineSchedule, Number
from ..specs.targets import RectifySpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Share, Temperature
from .numbers import product, rest_of


class Btkd(RoleRecipe):
    """Knowledge where the role is right comes first, its rectified errors grow in weight."""

    title = "Bias elimination and rectification (BTKD)"
    source = "Zhang et al. arXiv:2412.09874; the formulas of the authors' code, on probabilities"
    equation = "L = a CE + (1 - a) T^2 [g KL(p || q)|right + (1 - g) KL(p' || q)|wrong], g cos^2"
    kind: Literal["btkd"]
    label_share: Share = 0.5
    """Share of the loss that is cross entropy against the data's labels."""
    temperature: Temperature = 4.0
    """Softens both sides."""
    right_share: Share = CosineSchedule(kind="cosine_squared", start=1.0, end=0.0)
    """g, of positions where the role is right; the rest is for those where it is wrong."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        mended = RectifySpec(kind="rectify")  # leaves the right ones alone, so both terms share it
        right = self.softened(product(weight, self.right_share), mended)
        wrong = self.softened(product(weight, rest_of(self.right_share)), mended)
        return [
            ForwardKLSpec(kind="forward_kl", name="right", where="role_right", **right),
            ForwardKLSpec(kind="forward_kl", name="wrong", where="role_wrong", **wrong),
        ]
