"""Dynamic objective adjustment: doubt decides between logits and hidden states."""

from typing import Literal

from ..specs.features import HiddenStatesSpec
from ..specs.measures import WeighBySpec
from ..specs.terms import ForwardKLSpec, LogitsDistanceSpec, TermSpec
from .base import Recipe, Temperature, Weight, label_terms
from .inside import EVERY_LAYER, Layers, pairs


class ObjectiveAdjustment(Recipe):
    """Where the student is unsure it leans on the role's hidden states, elsewhere on its logits."""

    title = "Dynamic objective adjustment"
    source = "Li et al. arXiv:2109.11295, section 5"
    equation = "L = c CE + mean (1 - u) D(p, q) + w mean u |F_S' - F_T'|^2 / d, u = H(q) / log V"
    kind: Literal["objective_adjustment"]
    role: str = "teacher"
    """The served role to learn from."""
    layers: Layers = EVERY_LAYER
    """Layers of the student, and the layer of the role that each learns from."""
    projector: Literal["none", "linear", "orthogonal"] = "linear"
    """Maps the student's widths to the role's; none where they are one."""
    distance: Literal["logits", "forward_kl"] = "logits"
    """D: mean squared difference of logits, or T^2 KL."""
    weight: Weight = 1.0
    """Weight w of the hidden states."""
    labels: Weight = 1.0
    """Weight c of cross entropy against the data's labels."""
    temperature: Temperature = 5.0
    """Of forward_kl."""

    def terms(self) -> list[TermSpec]:
        hidden = HiddenStatesSpec(
            kind="hidden_states",
            role=self.role,
            weight=self.weight,
            layers=pairs(self.layers),
            projector=self.projector,
            distance="normalised_mse",
            weigh_by=WeighBySpec(measure="student_entropy"),
        )
        return [*label_terms(self.labels), self._logits(), hidden]

    def _logits(self) -> TermSpec:
        sure = WeighBySpec(measure="student_entropy", complement=True)
        if self.distance == "logits":
            return LogitsDistanceSpec(
                kind="logits_distance", role=self.role, weigh_by=sure, over="mean"
            )
        return ForwardKLSpec(
            kind="forward_kl", role=self.role, weigh_by=sure, temperature=self.temperature
        )
