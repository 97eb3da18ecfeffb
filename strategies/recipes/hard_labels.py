"""Hard-label distillation: the label and the role's first choice, half each."""

from typing import Literal

from ..specs.terms import TermSpec
from .base import Recipe, Share, label_terms
from .numbers import rest_of
from .top1_ce import first_choice


class HardLabels(Recipe):
    """The role's decision as a second label; no temperature to tune."""

    title = "Hard-label distillation"
    source = "Touvron et al. (DeiT). arXiv:2012.12877, section 4"
    equation = "L = a CE(y, q) + (1 - a) CE(argmax p, q)"
    kind: Literal["hard_labels"]
    role: str = "teacher"
    """The served role to learn from."""
    label_share: Share = 0.5
    """Share of the loss that is cross entropy against the data's labels."""

    def terms(self) -> list[TermSpec]:
        weight = rest_of(self.label_share)
        return [*label_terms(self.label_share), first_choice(self.role, weight)]
