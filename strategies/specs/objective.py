"""An objective: weighted terms. Pydantic only."""

from typing import Annotated

from pydantic import Field, model_validator

from .base import Spec
from .schedules import Number, extremes
from .terms import DivergenceSpec, TermSpec


class ObjectiveSpec(Spec):
    """Weighted terms. The loss of a step is the sum over terms of weight * (sum / global count)."""

    terms: Annotated[list[TermSpec], Field(min_length=1)]

    @model_validator(mode="after")
    def _something_to_learn(self) -> "ObjectiveSpec":
        if all(extremes(term.weight)[1] == 0 for term in self.terms):
            raise ValueError("every term has weight 0; give at least one a weight above 0")
        return self

    @property
    def served_roles(self) -> tuple[str, ...]:
        """Roles some term asks, in order of first use."""
        return tuple(dict.fromkeys(role for term in self.terms for role in term.served_roles))

    def temperatures(self, role: str) -> list[Number]:
        """The temperatures at which terms look at a role."""
        return [
            term.temperature
            for term in self.terms
            if isinstance(term, DivergenceSpec) and role in term.served_roles
        ]
