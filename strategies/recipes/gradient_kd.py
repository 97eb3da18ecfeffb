"""Gradient distillation: the student changes its mind where the role does."""

from typing import Literal

from ..specs.features import InputGradientsSpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import Recipe, Share, Temperature, Weight, label_terms
from .inside import Layers, pairs
from .numbers import rest_of


class GradientKD(Recipe):
    """Gradients of student and role point the same way, by their inputs. For classifiers."""

    title = "Gradient knowledge distillation (GKD)"
    source = "Wang, Li, Sun. arXiv:2211.01071, section 3, and the authors' code"
    equation = "L = (1 - a) CE + a T^2 KL(p || q) + w |g_S' - g_T'|^2, g = d log max p / d input"
    of_classifiers = True
    kind: Literal["gradient_kd"]
    role: str = "teacher"
    """The served role to learn from."""
    alpha: Share = 0.5
    """Share a of the role's logits; the labels have the rest."""
    temperature: Temperature = 5.0
    """Of the KL."""
    weight: Weight = 1.0
    """Weight w of the gradients."""
    layers: Layers | None = None
    """Layers of the student, and of the role, by whose first token gradients are compared too
    (GKD-CLS); absent: by the input alone."""

    def terms(self) -> list[TermSpec]:
        logits = ForwardKLSpec(
            kind="forward_kl", role=self.role, weight=self.alpha, temperature=self.temperature
        )
        by_input = InputGradientsSpec(
            kind="input_gradients", role=self.role, weight=self.weight, name="by_input"
        )
        return [*label_terms(rest_of(self.alpha)), logits, by_input, *self._by_layers()]

    def _by_layers(self) -> list[TermSpec]:
        if self.layers is None:
            return []
        return [
            InputGradientsSpec(
                kind="input_gradients",
                role=self.role,
                weight=self.weight,
                layers=pairs(self.layers),
                tokens="first",
                name="by_layers",
            )
        ]
