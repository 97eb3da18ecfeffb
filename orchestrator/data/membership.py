"""Which samples each epoch holds, for data that change between epochs. Numpy only.

Epochs are decided one after the other; how many samples one holds may be known before which.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .store import SampleStore


class Undecided(Exception):
    """An epoch was asked for before it was decided what it holds."""


class Membership:
    """The members of each epoch.

    Args:
        samples: of the whole data; epoch 0 holds all.
        sizes: epoch -> members, where that is known before the epoch is decided.
        stable: epochs that are decided at the start, at least one; None: all of them.
    """

    def __init__(
        self,
        samples: int,
        sizes: Callable[[int], int] | None = None,
        stable: int | None = None,
    ) -> None:
        self._changes: list[tuple[int, np.ndarray]] = [(0, np.arange(samples))]
        self._sizes, self.decided = sizes, stable

    def members(self, epoch: int) -> np.ndarray:
        """[m] int64, rising.

        Raises:
            Undecided: the epoch is not decided yet.
        """
        self._check(epoch)
        return next(members for first, members in reversed(self._changes) if first <= epoch)

    def size(self, epoch: int) -> int:
        """How many members an epoch has, or will have."""
        if self.decided is not None and epoch >= self.decided and self._sizes is not None:
            return self._sizes(epoch)
        return len(self.members(epoch))

    def decide(self, first: int, until: int, members: np.ndarray) -> None:
        """Epochs from `first` on hold `members`; those below `until` are decided."""
        self._changes.append((first, members))
        self.decided = until

    def _check(self, epoch: int) -> None:
        if self.decided is not None and epoch >= self.decided:
            raise Undecided(f"epoch {epoch} is not decided; {self.decided} epochs are")


@dataclass(frozen=True)
class BlendedStore(SampleStore):
    """A store some of whose samples are blends of two, word by word as float32."""

    blends: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    """Sample -> (the other, share of its own)."""

    @classmethod
    def over(cls, store: SampleStore, blends: Mapping[int, tuple[int, float]]) -> "BlendedStore":
        """The same samples, blended."""
        own: dict[str, Any] = {
            name: getattr(store, name) for name in SampleStore.__dataclass_fields__
        }
        return cls(**own, blends=dict(blends))

    def tokens(self, index: int) -> np.ndarray:
        words = super().tokens(index)
        if index not in self.blends:
            return words
        other, share = self.blends[index]
        mine, theirs = words.view(np.float32), super().tokens(other).view(np.float32)
        mixed = np.float32(share) * mine + np.float32(1 - share) * theirs
        return mixed.astype(np.float32).view(np.int32)
