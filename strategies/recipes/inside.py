"""What recipes that look inside a role share. Pydantic only."""

from typing import Annotated

from pydantic import Field

from ..specs.features import LayerPair
from ..specs.schedules import extremes
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import Recipe, Temperature, Weight, label_terms

Layers = Annotated[dict[str, str], Field(min_length=1)]
"""Layers of the student, and of the role that each learns from: module paths, `*` for any part."""

EVERY_LAYER = {"model.layers.*": "model.layers.*"}
"""The decoder layers of most causal models: each with the one as deep in the role."""


class InsideRecipe(Recipe):
    """Base of recipes that learn from layers of one role, beside its logits and the data's labels.

    Without weight the logits are not asked for.
    """

    role: str = "teacher"
    """The served role to learn from."""
    labels: Weight = 1.0
    """Weight of cross entropy against the data's labels."""
    logits: Weight = 0.0
    """Weight of T^2 KL from the role's logits; 0: they are not asked for."""
    temperature: Temperature = 4.0
    """Of that KL."""

    def terms(self) -> list[TermSpec]:
        return [*label_terms(self.labels), *self.logit_terms(), *self.inside_terms()]

    def logit_terms(self) -> list[TermSpec]:
        """What is learned from the role's logits; nothing without weight."""
        if extremes(self.logits)[1] == 0:
            return []
        divergence = ForwardKLSpec(
            kind="forward_kl", role=self.role, weight=self.logits, temperature=self.temperature
        )
        return [divergence]

    def inside_terms(self) -> list[TermSpec]:
        """What is learned from the role's layers."""
        raise NotImplementedError


def pairs(layers: dict[str, str]) -> list[LayerPair]:
    """As terms have them."""
    return [LayerPair(student=student, role=role) for student, role in layers.items()]
