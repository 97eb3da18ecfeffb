"""Terms on a ranker's scores: pairs of items of which one should come before the other. Pydantic.

`strategies.rankers` has the arithmetic. They need data of format `interactions`, where a position
is a user and an entry an item.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from .term import TermBase


class RankTermSpec(TermBase):
    """Base of terms that draw pairs of items for each user: -log sigmoid(better - worse) a pair."""

    seed: NonNegativeInt = 0
    """Of the pairs, which are drawn anew in every epoch."""


class BprSpec(RankTermSpec):
    """Items a user is trained on before items the user has not: Bayesian personalised ranking.

    Rendle, Freudenthaler, Gantner, Schmidt-Thieme, arXiv:1205.2618, section 4.
    """

    kind: Literal["bpr"]
    negatives: PositiveInt = 1
    """Items that each item of a user is compared with, drawn uniformly from those the user has
    not."""


class StratifiedPairsSpec(RankTermSpec):
    """Pairs of items that the user has not, both of one popularity stratum, in the role's order.

    A pair's two ranks within user and stratum are drawn with probability in proportion to
    exp(-rank / decay) each, anew while they are one. Chen et al., arXiv:2211.14729; the sampling is
    that of the authors' code. With one stratum it is ordinary distillation of a ranking.
    """

    encodings: ClassVar[tuple[str, ...]] = ("full",)

    kind: Literal["stratified_pairs"]
    role: str = "teacher"
    """The served role whose ranking is learned."""
    strata: PositiveInt = 2
    """Groups of items: sorted by how many users are trained on them, most first, and cut into so
    many of about equally many interactions."""
    pairs: PositiveInt = 30
    """Pairs a user, evenly over the strata; a stratum in which a user lacks fewer than two items
    gives none."""
    decay: Annotated[float, Field(ge=0.01, le=10_000)] = 20.0
    """Ranks after which an item is drawn e times less often."""
    kept: Annotated[int, Field(ge=2)] = 1000
    """Items of a user and stratum that are looked at, the role's best."""

    @property
    def named_roles(self) -> tuple[str, ...]:
        return (self.role,)

    @model_validator(mode="after")
    def _every_stratum_has_a_pair(self) -> "StratifiedPairsSpec":
        check_pairs(self.pairs, self.strata)
        return self


def check_pairs(pairs: int, strata: int) -> None:
    """Every stratum has a pair, or ValueError."""
    if pairs < strata:
        raise ValueError(
            f"pairs is {pairs}, and strata is {strata}, so that some would have none; set pairs to "
            f"{strata} or more"
        )
