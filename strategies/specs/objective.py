"""An objective: weighted terms. Pydantic only."""

from typing import Any

from pydantic import TypeAdapter, ValidationError, model_validator

from ..recipes import Recipe, RecipeSpec
from .adaptive import FollowSchedule
from .base import Spec
from .features import FeatureTermSpec, ImportedFeaturesSpec
from .moving import MovedSpec
from .resident import RoleGradientSpec
from .samples import BetweenEpochs, SelectSpec
from .schedules import Number, extremes
from .term import LooksAt
from .terms import DivergenceSpec, ImportedTerm, TermSpec

RESERVED = ("total", "router_balance")
"""Names that `loss/...` metrics have of their own."""


_RECIPE = TypeAdapter[Recipe](RecipeSpec)


class ObjectiveSpec(Spec):
    """Weighted terms. The loss of a step is the sum over terms of weight * (sum / global count)."""

    recipe: RecipeSpec | None = None
    """A published method by name, which expands to terms; `stillhouse recipes` lists them."""
    terms: list[TermSpec] = []
    """The terms; leave them out where a recipe is given."""

    select: SelectSpec | None = None
    """Ask roles about a part of each batch only, chosen by what the student answers first."""
    between_epochs: BetweenEpochs | None = None
    """Change the data between epochs."""

    @model_validator(mode="before")
    @classmethod
    def _recipe_expands(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("recipe") is None:
            return raw
        try:
            recipe = _RECIPE.validate_python(raw["recipe"])
        except ValidationError:
            return raw  # the field's own validation says what is wrong, and where
        expanded = {
            "terms": recipe.terms(),
            "select": recipe.select(),
            "between_epochs": recipe.between_epochs(),
        }
        return {**expanded, **{name: given for name, given in raw.items() if given is not None}}

    @model_validator(mode="after")
    def _recipe_and_terms_agree(self) -> "ObjectiveSpec":
        if self.recipe is None:
            if not self.terms:
                raise ValueError("neither terms nor a recipe is given; give one of them")
            return self
        wanted = {
            "terms": self.recipe.terms(),
            "select": self.recipe.select(),
            "between_epochs": self.recipe.between_epochs(),
        }
        for name, value in wanted.items():
            if value is not None and getattr(self, name) != value:
                raise ValueError(
                    f"{name} are given beside recipe {self.recipe.kind}, which expands to others; "
                    f"remove {name}, or remove recipe"
                )
        return self

    @model_validator(mode="after")
    def _one_way_to_choose_samples(self) -> "ObjectiveSpec":
        if self.select is not None and self.between_epochs is not None:
            raise ValueError(
                "select and between_epochs both decide which samples are learned from; remove one"
            )
        if self.select is not None and all(what == "resident" for _, what in self.asked):
            raise ValueError(
                "select chooses what roles are asked about, and no term asks one; remove it, or "
                "add a term with a role"
            )
        return self

    @model_validator(mode="after")
    def _moved_samples_teach(self) -> "ObjectiveSpec":
        between = self.between_epochs
        if not isinstance(between, MovedSpec):
            return self
        if between.role not in self.served_roles:
            asked = ", ".join(self.served_roles) or "none"
            raise ValueError(
                f"between_epochs.role is {between.role!r}, which no term asks (asked: {asked}), so "
                "nobody would learn from what it moves; name one of these, or add a term"
            )
        for index, term in enumerate(self.terms):
            if term.served_roles and term.needs_labels:
                raise ValueError(
                    f"terms.{index} ({term.kind}) asks a role and reads labels, and samples that "
                    "between_epochs moves have none; remove one of the two"
                )
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> "ObjectiveSpec":
        if all(extremes(term.weight)[1] == 0 for term in self.terms):
            raise ValueError("every term has weight 0; give at least one a weight above 0")
        return self

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "ObjectiveSpec":
        for index, name in enumerate(self.names):
            if name in RESERVED:
                raise ValueError(f"terms.{index} is called {name!r}, which metrics use; rename it")
            if name in self.names[:index]:
                raise ValueError(
                    f"terms.{self.names.index(name)} and terms.{index} are both called {name!r}; "
                    "give one of them another name"
                )
        return self

    @model_validator(mode="after")
    def _quantities_are_measured(self) -> "ObjectiveSpec":
        for own, term in zip(self.names, self.terms, strict=True):
            for field, number in term.numbers().items():
                if isinstance(number, FollowSchedule) and number.quantity not in self.names:
                    raise ValueError(
                        f"{own}.{field} follows {number.quantity!r}, and the terms are called "
                        f"{', '.join(self.names)}; name one of these, or add a term of kind "
                        f"measure with name: {number.quantity}"
                    )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Each term's name: its own, or its kind, with `_2`, `_3` where that repeats."""
        names: list[str] = []
        seen: dict[str, int] = {}
        for term in self.terms:
            if term.name is not None:
                names.append(term.name)
                continue
            own = isinstance(term, ImportedTerm | ImportedFeaturesSpec)
            kind = term.target.rpartition(":")[2] if own else term.kind
            seen[kind] = seen.get(kind, 0) + 1
            names.append(f"{kind}_{seen[kind]}" if seen[kind] > 1 else kind)
        return tuple(names)

    @property
    def served_roles(self) -> tuple[str, ...]:
        """Roles some term asks, in order of first use."""
        return tuple(dict.fromkeys(role for term in self.terms for role in term.served_roles))

    @property
    def asked(self) -> tuple[tuple[str, LooksAt], ...]:
        """(role, what some term wants of it), each once, in order of first use."""
        return tuple(dict.fromkeys(asked for term in self.terms for asked in term.asked))

    @property
    def logit_roles(self) -> tuple[str, ...]:
        """Roles that are asked for logits."""
        return tuple(role for role, what in self.asked if what == "logits")

    @property
    def resident_roles(self) -> tuple[str, ...]:
        """Roles whose own weights are wanted beside the student."""
        return tuple(role for role, what in self.asked if what == "resident")

    @property
    def twin_roles(self) -> tuple[str, ...]:
        """Those of them whose weights must have the names and shapes of the student's."""
        twins = (term for term in self.terms if term.same_weights)
        return tuple(dict.fromkeys(role for term in twins for role in term.served_roles))

    @property
    def whole_gradient_roles(self) -> tuple[str, ...]:
        """Those of them whose gradient over all training data is wanted."""
        wanting = [t for t in self.terms if isinstance(t, RoleGradientSpec) and t.unbiased]
        return tuple(dict.fromkeys(term.role for term in wanting))

    @property
    def looks_inside(self) -> bool:
        """Whether some term looks at layers of the student."""
        return any(isinstance(term, FeatureTermSpec) for term in self.terms)

    def temperatures(self, role: str) -> list[Number]:
        """The temperatures at which terms look at a role."""
        return [
            term.temperature
            for term in self.terms
            if isinstance(term, DivergenceSpec) and role in term.served_roles
        ]
