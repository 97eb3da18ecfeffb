"""Unbiased ranking distillation: items are compared within their popularity stratum only."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from ..specs.ranking import BprSpec, StratifiedPairsSpec, check_pairs
from ..specs.schedules import extremes
from ..specs.terms import TermSpec
from .base import Recipe, Weight


class UnKD(Recipe):
    """A recommender learns the role's order among items of like popularity, not its bias."""

    title = "Unbiased knowledge distillation for recommendation (UnKD)"
    source = "Chen, Chen, Feng, Zhou, He. arXiv:2211.14729; pairs as the authors' code draws them"
    equation = "L = b BPR + w mean -log sigmoid(s_i - s_j), i before j in p, both of one stratum"
    of_classifiers = True
    kind: Literal["unkd"]
    role: str = "teacher"
    """The served role to learn from."""
    interactions: Weight = 1.0
    """Weight b of ranking the users' own items first; 0: only the role is learned from."""
    weight: Weight = 1.0
    """Weight w of the role's pairs."""
    strata: PositiveInt = 2
    """Groups of items of about equally many interactions (paper: 2 to 4); 1: not unbiased."""
    pairs: PositiveInt = 30
    """Pairs a user, evenly over the strata."""
    decay: Annotated[float, Field(ge=0.01, le=10_000)] = 20.0
    """Ranks after which an item is drawn e times less often."""
    kept: Annotated[int, Field(ge=2)] = 1000
    """Items of a user and stratum that are looked at, the role's best."""

    @model_validator(mode="after")
    def _every_stratum_has_a_pair(self) -> "UnKD":
        check_pairs(self.pairs, self.strata)
        return self

    def terms(self) -> list[TermSpec]:
        taught = StratifiedPairsSpec(
            kind="stratified_pairs",
            role=self.role,
            weight=self.weight,
            strata=self.strata,
            pairs=self.pairs,
            decay=self.decay,
            kept=self.kept,
        )
        if extremes(self.interactions)[1] == 0:
            return [taught]
        return [BprSpec(kind="bpr", weight=self.interactions), taught]
