"""What the cache holds and where it lies: plain values, picklable. Numpy only.

Shape letters: n positions that a record holds.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from orchestrator.signals.records import HeadRecord, RoleDescription, SignalAsk

from .keys import KEY_BYTES, RANGE


@dataclass(frozen=True, slots=True, eq=False)
class CacheRecord:
    """What a role said of some positions of one range of one sample."""

    key: bytes  # see `keys.record_key`
    fingerprint: str  # of the role
    ask: SignalAsk
    length: int  # tokens of the whole sample
    positions: np.ndarray  # [n] int32 rising, in the sample; all in one range
    arrays: dict[str, np.ndarray]  # [n, ...] each

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def start(self) -> int:
        """First position of the record's range."""
        return int(self.positions[0]) // RANGE * RANGE


class Place(NamedTuple):
    """Where a published record lies, with all that a reader needs to read and judge it.

    A tuple, because owners send hundreds at a time to their clients.
    """

    segment: str  # file name; never used for another content
    offset: int  # of the payload in the file, bytes
    length: int  # of the payload, bytes
    positions: bytes  # bitmap: bit i, lowest first, is position start + i; no zero bytes at its end
    start: int  # first position of the range
    tokens: int  # of the whole sample
    fingerprint: str  # of the role
    ask: str  # JSON
    layout: str  # JSON, see `codec`
    checksum: bytes  # see `codec.checksum`


@dataclass(frozen=True, slots=True)
class RoleCard:
    """What a student needs of a role besides its signals, so that it can train without the role."""

    description: RoleDescription
    head: HeadRecord | None  # None: it cannot be told apart from the model

    @property
    def fingerprint(self) -> str:
        """Of the role."""
        return self.description.fingerprint


def check_record(record: CacheRecord) -> None:
    """Refuse what could not be read back as it is.

    Raises:
        ValueError: names the field and why.
    """
    positions = record.positions
    if len(record.key) != KEY_BYTES:
        raise ValueError(f"key has {len(record.key)} bytes, {KEY_BYTES} are needed")
    if positions.dtype != np.int32 or positions.ndim != 1 or len(positions) == 0:
        raise ValueError(
            f"positions are {positions.dtype} {list(positions.shape)}; int32 [n] with n > 0 needed"
        )
    if (positions[1:] <= positions[:-1]).any():
        raise ValueError("positions do not rise strictly")
    end = min(record.start + RANGE, record.length)
    if positions[0] < 0 or positions[-1] >= end:
        raise ValueError(
            f"positions {positions[0]} to {positions[-1]} leave their range, "
            f"{record.start} to {end - 1}; make one record for each range of {RANGE}"
        )
    for name, array in record.arrays.items():
        if array.ndim == 0 or len(array) != len(positions):
            raise ValueError(
                f"array {name} has shape {list(array.shape)} for {len(positions)} positions"
            )
        if array.dtype.kind not in "biuf":
            raise ValueError(f"array {name} has dtype {array.dtype}; only numbers are kept")
