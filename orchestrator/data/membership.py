"""Which samples each epoch holds, for data that change between epochs. Numpy only.

Epochs are decided one after the other; how many samples one holds may be known before which.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
class ChangedStore(SampleStore):
    """A store some of whose samples are blends of two, word by word as float32, or count more or
    less than others."""

    blends: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    """Sample -> (the other, share of its own)."""
    weighed: Mapping[int, float] = field(default_factory=dict)
    """Sample -> what it counts; others count 1."""

    @classmethod
    def over(
        cls,
        store: SampleStore,
        blends: Mapping[int, tuple[int, float]],
        weights: Mapping[int, float],
    ) -> "ChangedStore":
        """The same samples, changed."""
        return cls(**_fields(store), blends=dict(blends), weighed=dict(weights))

    @property
    def weights(self) -> np.ndarray | None:
        return self._weights if self.weighed else None

    @cached_property
    def _weights(self) -> np.ndarray:
        found = np.ones(len(self), np.float32)
        found[list(self.weighed)] = list(self.weighed.values())
        return found

    def tokens(self, index: int) -> np.ndarray:
        words = super().tokens(index)
        if index not in self.blends:
            return words
        other, share = self.blends[index]
        mine, theirs = words.view(np.float32), super().tokens(other).view(np.float32)
        mixed = np.float32(share) * mine + np.float32(1 - share) * theirs
        return mixed.astype(np.float32).view(np.int32)


@dataclass(frozen=True)
class ExtendedStore(SampleStore):
    """A store and, behind its samples, some of them once more with other words and no label."""

    origins: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[m] int64: which of the store's own sample each of the further ones was."""
    words: Sequence[np.ndarray] = ()
    """m of [n] int32, n of each its own."""
    role_words: Sequence[np.ndarray] | None = None
    """The same for roles, where these read others; None: they read the same."""

    @classmethod
    def over(
        cls,
        store: SampleStore,
        origins: np.ndarray,
        words: Sequence[np.ndarray],
        role_words: Sequence[np.ndarray] | None = None,
    ) -> "ExtendedStore":
        """The same samples, and m behind them.

        Raises:
            ValueError: origins and words are not as many, or words are no int32.
        """
        for given in (words, role_words):
            if given is not None and len(given) != len(origins):
                raise ValueError(f"words of {len(given)} samples are given, and {len(origins)} are")
            if given is not None and any(each.dtype != np.int32 for each in given):
                raise ValueError("words are not all int32: features are their bits")
        return cls(**_fields(store), origins=origins, words=words, role_words=role_words)

    def __len__(self) -> int:
        return super().__len__() + len(self.origins)

    @cached_property
    def lengths(self) -> np.ndarray:
        own = np.diff(self._offsets).astype(np.int32)
        return np.concatenate([own, np.array([len(words) for words in self.words], np.int32)])

    def tokens(self, index: int) -> np.ndarray:
        further = self._further(index)
        return super().tokens(index) if further is None else self.words[further]

    def loss_mask(self, index: int) -> np.ndarray:
        further = self._further(index)
        if further is None:
            return super().loss_mask(index)
        return np.zeros(len(self.words[further]), bool)  # of a classified sample

    @property
    def as_asked(self) -> SampleStore:
        if self.role_words is None:
            return self
        return ExtendedStore.over(self, self.origins, self.role_words)

    def label(self, index: int) -> int:
        return super().label(index) if self.labelled(index) else 0

    def labelled(self, index: int) -> bool:
        return self._further(index) is None

    def id(self, index: int) -> str:
        """As of any sample; of a further one, that of its origin with `+`."""
        own = super().id(self._origin(index))
        return own if self.labelled(index) else f"{own}+"

    def _further(self, index: int) -> int | None:
        own = super().__len__()
        return index - own if index >= own else None

    def _origin(self, index: int) -> int:
        further = self._further(index)
        return index if further is None else int(self.origins[further])


def _fields(store: SampleStore) -> dict[str, Any]:
    return {name: getattr(store, name) for name in SampleStore.__dataclass_fields__}
