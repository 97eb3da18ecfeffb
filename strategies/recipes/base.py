"""What a recipe is: a published method as a spec that expands to an objective. Pydantic only.

A recipe adds no mechanism. What it expands to is made of the terms, targets, measures and schedules
that a job file may also spell out itself, and is recorded beside it.
"""

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict

from ..specs.base import Spec
from ..specs.ranking import RankTermSpec
from ..specs.samples import BetweenEpochs, SelectSpec
from ..specs.schedules import Number, extremes, within
from ..specs.targets import TargetSpec
from ..specs.term import LooksAt
from ..specs.terms import CrossEntropySpec, TermSpec
from .numbers import rest_of

Share = Annotated[Number, within(0.0, 1.0)]
Weight = Annotated[Number, within(0.0, float("inf"))]
Temperature = Annotated[Number, within(0.0, 1000.0, open_low=True)]


class Recipe(Spec):
    """Base of all recipes. The docstring of each says in a sentence what it is for."""

    model_config = ConfigDict(use_attribute_docstrings=True)  # the command shows them

    title: ClassVar[str]
    source: ClassVar[str]
    """Authors, arXiv number, section or equation."""
    equation: ClassVar[str]
    """One line of plain text. p is the role, q the student, y the label, at temperature T."""
    learns_written_text: ClassVar[bool] = False
    """Whether it is about texts that a role has written (`kind: generated` in the data)."""

    of_classifiers: ClassVar[bool] = False
    """Whether it has no meaning for causal models."""

    def terms(self) -> list[TermSpec]:
        """The terms that it stands for."""
        raise NotImplementedError

    def select(self) -> SelectSpec | None:
        """Which samples roles are asked about; None: all."""
        return None

    def between_epochs(self) -> BetweenEpochs | None:
        """How the data change between epochs; None: not."""
        return None

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that it asks."""
        return tuple(dict.fromkeys(role for term in self.terms() for role in term.served_roles))

    @property
    def asks(self) -> tuple[tuple[str, LooksAt], ...]:
        """(role, what of it); each but `resident` costs one forward pass of a replica a sample."""
        return tuple(dict.fromkeys(asked for term in self.terms() for asked in term.asked))

    @property
    def ranks_items(self) -> bool:
        """Whether it is about the items of users."""
        return any(isinstance(term, RankTermSpec) for term in self.terms())

    @property
    def needs_labels(self) -> bool:
        """Whether the data's own labels enter."""
        return any(term.needs_labels for term in self.terms())

    @property
    def encodings(self) -> tuple[str, ...]:
        """Encodings from which all of its terms can be computed."""
        usable = [term.usable_encodings() for term in self.terms() if term.served_roles]
        return tuple(
            kind for kind in (usable[0] if usable else ()) if all(kind in u for u in usable)
        )


class RoleRecipe(Recipe):
    """Base of recipes that learn from one role, and from the data's labels if they are told to."""

    role: str = "teacher"
    """The served role to learn from."""
    label_share: Share = 0.0
    """Share of the loss that is cross entropy against the data's labels."""
    temperature: Temperature = 1.0
    """Softens both sides."""

    def terms(self) -> list[TermSpec]:
        return [*label_terms(self.label_share), *self.role_terms(rest_of(self.label_share))]

    def role_terms(self, weight: Number) -> list[TermSpec]:
        """What is learned from the role, with `weight` in all."""
        raise NotImplementedError

    def softened(self, weight: Number, *target: TargetSpec) -> dict[str, Any]:
        """Fields that every divergence from the role has; `target` is what becomes of it first."""
        return {
            "role": self.role,
            "weight": weight,
            "temperature": self.temperature,
            "target": list(target),
        }


def label_terms(weight: Number) -> list[TermSpec]:
    """Cross entropy against the data's labels; nothing where its weight is 0 throughout."""
    if extremes(weight)[1] == 0:
        return []
    return [CrossEntropySpec(kind="cross_entropy", weight=weight)]
