"""Delta-KD: the change that fine-tuning made in the role, carried over to the student."""

from typing import Literal

from ..specs.schedules import Number
from ..specs.targets import DeltaSpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Share


class DeltaKD(RoleRecipe):
    """The student learns how the role changed, not where it ended; three roles are asked."""

    title = "Delta knowledge distillation"
    source = "Cao et al. arXiv:2509.14526, equations 1 to 3"
    equation = "p* prop. to p (p_s0 / p_t0)^k; L = a CE(y, q) + (1 - a) T^2 KL(p* || q)"
    kind: Literal["delta_kd"]
    label_share: Share = 0.5
    """Share of the loss that is cross entropy against the data's labels."""
    alpha: Share = 0.5
    """k: 0 is ordinary distillation, 1 the whole parallelogram."""
    teacher_base: str = "teacher_base"
    """The role before its fine-tuning."""
    student_base: str = "student_base"
    """The student before its own, held fixed."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        target = DeltaSpec(
            kind="delta",
            alpha=self.alpha,
            teacher_base=self.teacher_base,
            student_base=self.student_base,
        )
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight, target))]
