"""TAID: a target that walks from the student to the role."""

from typing import Literal

from ..specs.adaptive import TaidSchedule
from ..specs.schedules import Number
from ..specs.targets import TowardsStudentSpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Share


class Taid(RoleRecipe):
    """For a role far above the student: what is to be learned is never far away."""

    title = "Temporally adaptive interpolated distillation (TAID)"
    source = "Shing et al. arXiv:2501.16937, section 3, algorithm 1"
    equation = "L = KL(softmax(t z_p + (1 - t) z_q, held fixed) || q), t rising from 0.4 to 1"
    kind: Literal["taid"]
    share: Share = TaidSchedule(kind="taid")
    """Of the role in the target; by default it rises faster while the loss falls well."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        target = TowardsStudentSpec(kind="towards_student", share=self.share)
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight, target))]
