"""An objective: weighted terms. Pydantic only."""

from typing import Annotated

from pydantic import Field, model_validator

from .base import Spec
from .samples import BetweenEpochs, SelectSpec
from .schedules import Number, extremes
from .terms import DivergenceSpec, TermSpec


class ObjectiveSpec(Spec):
    """Weighted terms. The loss of a step is the sum over terms of weight * (sum / global count)."""

    terms: Annotated[list[TermSpec], Field(min_length=1)]

    select: SelectSpec | None = None
    """Ask roles about a part of each batch only, chosen by what the student answers first."""
    between_epochs: BetweenEpochs | None = None
    """Change the data between epochs."""

    @model_validator(mode="after")
    def _one_way_to_choose_samples(self) -> "ObjectiveSpec":
        if self.select is not None and self.between_epochs is not None:
            raise ValueError(
                "select and between_epochs both decide which samples are learned from; remove one"
            )
        if self.select is not None and not self.served_roles:
            raise ValueError(
                "select chooses what roles are asked about, and no term asks one; remove it, or "
                "add a term with a role"
            )
        return self

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
