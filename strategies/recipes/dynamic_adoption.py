"""Dynamic teacher adoption: the student's doubt decides which of two roles it learns from."""

from typing import Any, Literal

from pydantic import PositiveInt

from ..specs.measures import WeighBySpec
from ..specs.terms import ForwardKLSpec, LogitsDistanceSpec, TermSpec
from .base import Recipe, Temperature, Weight, label_terms


class DynamicAdoption(Recipe):
    """Where the student is unsure it learns from the small role, elsewhere from the large one."""

    title = "Dynamic teacher adoption"
    source = "Li et al. arXiv:2109.11295, section 3"
    equation = (
        "L = c CE + u D(small, q) + (1 - u) D(large, q), u = H(q) / log V (soft), or its half"
    )
    kind: Literal["dynamic_adoption"]
    small: str = "assistant"
    """The served role for what the student is unsure of."""
    large: str = "teacher"
    """The served role for the rest."""
    choice: Literal["soft", "soft_by_position", "hard"] = "soft"
    """`soft`: u is the mean of the group; `hard`: 1 for the group's more uncertain half, else 0."""
    group: PositiveInt = 4
    """Rows that are compared with each other; divides training.micro_batch."""
    distance: Literal["logits", "forward_kl"] = "logits"
    """D: mean squared difference of logits, or T^2 KL."""
    labels: Weight = 1.0
    """Weight c of cross entropy against the data's labels."""
    temperature: Temperature = 5.0
    """Of forward_kl."""

    def terms(self) -> list[TermSpec]:
        doubt: dict[str, Any] = {"measure": "student_entropy"}
        if self.choice == "hard":
            doubt |= {"top": 0.5, "group": self.group}
        elif self.choice == "soft":
            doubt |= {"mean": True, "group": self.group}
        return [
            *label_terms(self.labels),
            self._learned("from_small", self.small, WeighBySpec(**doubt)),
            self._learned("from_large", self.large, WeighBySpec(**doubt, complement=True)),
        ]

    def _learned(self, name: str, role: str, factor: WeighBySpec) -> TermSpec:
        if self.distance == "logits":
            return LogitsDistanceSpec(
                kind="logits_distance", name=name, role=role, weigh_by=factor, over="mean"
            )
        return ForwardKLSpec(
            kind="forward_kl",
            name=name,
            role=role,
            weigh_by=factor,
            temperature=self.temperature,
        )
