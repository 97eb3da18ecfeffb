"""What transforms and measures see of a few positions. Plain torch.

b positions, V the student's vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class View:
    """Logits and labels of b positions; read only. Nothing of it carries a gradient.

    A role's logits are those of its answer, -inf where it lacks an entry of the student's.
    """

    labels: Tensor  # [b] int64
    student: Tensor  # [b, V]
    roles: Mapping[str, Tensor]  # by role [b, V]
    directions: Mapping[str, Tensor]  # by role [V', d]: its head's rows at length 1, where wanted
    temperature: float | Tensor  # of the term: a number, or [b, 1]
    places: Tensor  # [b] int64: equal for the same position of the same sample, whenever it comes

    def role(self, name: str) -> Tensor:
        """[b, V] logits of a role."""
        return self.roles[name]

    def directions_of(self, name: str) -> Tensor:
        """[V', d] rows of a role's head, of length 1.

        Raises:
            ValueError: its signal came without a head.
        """
        if name not in self.directions:
            raise ValueError(
                f"similarity compares rows of the head of role {name!r}, whose signal came without "
                "one; serve it in encoding hidden"
            )
        return self.directions[name]


def log_softmax(logits: Tensor) -> Tensor:
    """[b, V] log-probabilities at temperature 1; -inf stays -inf."""
    return torch.log_softmax(logits, 1)


def share_of(count: int, share: float) -> int:
    """ceil(share * count), not misled by the last bit of the product: 0.07 of 100 are 7."""
    return math.ceil(share * count - 1e-9)


def likeliest(logits: Tensor) -> Tensor:
    """[b] int64."""
    return logits.argmax(1)
