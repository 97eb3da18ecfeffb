"""A mixture of several roles."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..specs.targets import MixSpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import Recipe, Share, Temperature, Weight, label_terms
from .numbers import rest_of


class MultiTeacher(Recipe):
    """Roles that know different things, averaged with fixed, moving or confidence-led weights."""

    title = "Several teachers"
    source = "Hinton et al. arXiv:1503.02531, section 1 (means); Kwon et al. ICASSP 2020 (entropy)"
    equation = (
        "p = sum_k w_k p_k / sum w; by entropy: w_k exp(-H(p_k) / log V), position by position"
    )
    kind: Literal["multi_teacher"]
    teachers: Annotated[list[str], Field(min_length=2)] = ["teacher", "second_teacher"]
    """Served roles."""
    weights: Annotated[list[Weight], Field(min_length=2)] = [1.0, 1.0]
    """One a role; made to sum to 1."""
    by: Literal["weights", "entropy"] = "weights"
    """`entropy`: who is sure of a position counts more there."""
    label_share: Share = 0.1
    """Share of the loss that is cross entropy against the data's labels."""
    temperature: Temperature = 2.0
    """Softens every side."""

    @model_validator(mode="after")
    def _teachers_differ(self) -> "MultiTeacher":
        if len(set(self.teachers)) != len(self.teachers):
            raise ValueError(f"teachers are {self.teachers}; name each once, and use weights")
        if len(self.weights) != len(self.teachers):
            raise ValueError(
                f"weights has {len(self.weights)} numbers for {len(self.teachers)} teachers; give "
                "one each"
            )
        return self

    def terms(self) -> list[TermSpec]:
        first, *others = self.teachers
        mixed = ForwardKLSpec(
            kind="forward_kl",
            role=first,
            weight=rest_of(self.label_share),
            temperature=self.temperature,
            target=[MixSpec(kind="mix", roles=others, weights=self.weights, by=self.by)],
        )
        return [*label_terms(self.label_share), mixed]
