"""What a cache's clients and its owners tell each other. Plain values; neither torch nor ray."""

from dataclasses import dataclass

import numpy as np

from orchestrator.signals.cache.keys import RANGE
from orchestrator.signals.cache.records import CacheRecord
from orchestrator.signals.cache.store import Place

LEASE_S = 15.0
"""A client that is silent this long loses its claims."""


def to_bitmap(mask: np.ndarray) -> int:
    """[n] bool -> an integer with bit i for entry i."""
    return int.from_bytes(np.packbits(mask, bitorder="little").tobytes(), "little")


def from_bitmap(bits: int) -> np.ndarray:
    """The places of an integer's bits, [n] int32, rising."""
    raw = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    mask = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    return np.flatnonzero(mask).astype(np.int32)


def bitmap(found: "Place | CacheRecord") -> int:
    """Positions a record holds, over its range."""
    if isinstance(found, Place):
        return int.from_bytes(found.positions, "little")
    mask = np.zeros(RANGE, bool)
    mask[found.positions % RANGE] = True
    return to_bitmap(mask)


@dataclass(frozen=True, slots=True)
class Want:
    """A record, and which of its positions are needed."""

    key: bytes
    positions: int  # bitmap over the record's range, bit i for position `start + i`

    def covered_by(self, found: "Place | CacheRecord") -> bool:
        """Whether the record holds every position that is needed."""
        return self.positions & ~bitmap(found) == 0

    def joined_with(self, found: "Place | CacheRecord | None") -> int:
        """Positions to compute so that the new record serves whom the old one served."""
        return self.positions if found is None else self.positions | bitmap(found)


@dataclass(frozen=True, slots=True)
class Lead:
    """The client is to compute the record, at these positions."""

    positions: int


@dataclass(frozen=True, slots=True)
class Theirs:
    """Another client computes the record: ask again."""


Verdict = Place | CacheRecord | Lead | Theirs


@dataclass(frozen=True, slots=True)
class Owner:
    """One node's owner."""

    name: str  # of the actor
    node: str  # Ray's id of the node
    address: str  # of the node: the same in the next life of the cluster, and so is what it holds


@dataclass(frozen=True, slots=True)
class CacheHandle:
    """How a process finds a cache. Small and picklable."""

    path: str  # the same on every node
    owners: tuple[Owner, ...]
