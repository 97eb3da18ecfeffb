"""What every term of a job file has. Pydantic only."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import Spec
from .schedules import Number, within

ImportPath = Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
"""`package.module:function` of something of one's own."""

MEMBER_NAME = r"^[a-z][a-z0-9_]{0,31}$"
PEER = "student."
"""Begins the name of a role that is no other model but a member of the student."""

LooksAt = Literal["logits", "layers", "attention", "gradients", "resident"]
"""What a term wants of a role; `resident`: the role's own weights, beside the student."""

DENSE = ("full", "hidden")
DENSE_OR_TOPK = (*DENSE, "topk")


class TermBase(Spec):
    """Base of all terms."""

    encodings: ClassVar[tuple[str, ...]] = ()
    """Encodings of its role that the term can learn from; () for a term without a role."""
    scheduled: ClassVar[tuple[str, ...]] = ("weight",)
    """Fields that may be schedules, `weight` first."""
    crosses_tokenizers: ClassVar[bool] = False
    """Whether it can learn from a role with another tokenizer, at the positions that pair."""

    looks_at: ClassVar[LooksAt] = "logits"
    """What it wants of its roles."""
    same_weights: ClassVar[bool] = False
    """Whether its role's weights must have the names and shapes of the student's."""

    weighs_samples: ClassVar[bool] = False
    """Whether samples can count more or less than others in its mean."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] | None = None
    """What metrics and schedules call the term; absent: its kind, numbered where it repeats."""
    weight: Annotated[Number, within(0.0, float("inf"))] = 1.0
    """What the term's mean counts in the loss."""
    member: Annotated[str, Field(pattern=MEMBER_NAME)] | None = None
    """The member of the student that learns; of students that have several."""

    @property
    def named_roles(self) -> tuple[str, ...]:
        """Roles that it looks at; `student.NAME` is a member of the student, of the same step."""
        return ()

    @property
    def served_roles(self) -> tuple[str, ...]:
        """Roles that it asks."""
        return tuple(role for role in self.named_roles if not role.startswith(PEER))

    @property
    def peers(self) -> tuple[str, ...]:
        """Members of the student that it learns from."""
        named = (role for role in self.named_roles if role.startswith(PEER))
        return tuple(role.removeprefix(PEER) for role in named)

    @property
    def asked(self) -> tuple[tuple[str, LooksAt], ...]:
        """(role, what it wants of it)."""
        return tuple((role, self.looks_at) for role in self.served_roles)

    @property
    def needs_labels(self) -> bool:
        """Whether the data's own labels enter."""
        return False

    @property
    def groups(self) -> tuple[int, ...]:
        """Rows that no cut may split, for whatever compares rows with each other."""
        return ()

    def numbers(self) -> dict[str, Number]:
        """All numbers that may move, by name, `weight` first."""
        return {name: getattr(self, name) for name in self.scheduled}

    def usable_encodings(self) -> tuple[str, ...]:
        """`encodings`, less what this term's other fields rule out."""
        return self.encodings
