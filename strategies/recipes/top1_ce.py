"""Cross entropy against the role's own first choice."""

from typing import Literal

from ..specs.schedules import Number
from ..specs.targets import LikeliestSpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import Recipe


class Top1CrossEntropy(Recipe):
    """The role's first choice as the label: what sequences written by it teach, token by token."""

    title = "Top-1 cross entropy"
    source = "Kim, Rush. arXiv:1606.07947, section 3.2, at the mode of each token"
    equation = "L = CE(argmax p, q)"
    kind: Literal["top1_ce"]
    role: str = "teacher"
    """The served role to learn from."""

    def terms(self) -> list[TermSpec]:
        return [first_choice(self.role, 1.0)]


def first_choice(role: str, weight: Number) -> ForwardKLSpec:
    """Cross entropy against a role's likeliest entry: KL from all mass on it."""
    return ForwardKLSpec(
        kind="forward_kl", role=role, weight=weight, target=[LikeliestSpec(kind="likeliest")]
    )
