"""Universal logit distillation: a role with another vocabulary."""

from typing import Literal

from ..specs.terms import TermSpec, UniversalSpec
from .base import Recipe, Temperature, Weight, label_terms


class Universal(Recipe):
    """For a role with another tokenizer: only how its probabilities are shaped is compared."""

    title = "Universal logit distillation (ULD)"
    source = "Boizard et al. arXiv:2402.12030, section 3"
    equation = "L = CE(y, q) + w T sum_r |p_(r) - q_(r)|, both sorted"
    kind: Literal["universal"]
    role: str = "teacher"
    """The served role to learn from."""
    labels: Weight = 1.0
    """Weight of cross entropy against the data's labels."""
    weight: Weight = 1.5
    """w."""
    temperature: Temperature = 1.0
    """Softens both sides."""

    def terms(self) -> list[TermSpec]:
        sorted_apart = UniversalSpec(
            kind="universal", role=self.role, weight=self.weight, temperature=self.temperature
        )
        return [*label_terms(self.labels), sorted_apart]
