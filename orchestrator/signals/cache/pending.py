"""Records that are not published yet: packed end to end in one buffer, as their segment will be.

A record is copied once, on arrival, so that what is written is what was put, whatever its sender
does to its arrays later. Numpy only.
"""

import numpy as np

from .ask_json import ask_json
from .codec import (
    aligned,
    bitmap_of,
    checksum,
    layout_of,
    layout_text,
    pack,
    payload_bytes,
    unchecked,
)
from .records import CacheRecord, Place


class Pending:
    """The next segment.

    Args:
        capacity: bytes of payload that it takes.
    """

    def __init__(self, capacity: int) -> None:
        self._buffer = np.empty(aligned(capacity), np.uint8)
        self._used = 0
        self._latest: dict[bytes, tuple[Place, CacheRecord]] = {}
        self.rows: list[tuple[bytes, Place]] = []
        """In order; of rows with one key the last counts. Offsets count from the payload."""

    @property
    def payload(self) -> np.ndarray:
        """[bytes] uint8."""
        return self._buffer[: self._used]

    @property
    def keys(self) -> int:
        """Distinct ones."""
        return len(self._latest)

    def takes(self, record: CacheRecord) -> bool:
        """Whether there is room for it."""
        return self._used + packed_bytes(record) <= len(self._buffer)

    def get(self, key: bytes) -> CacheRecord | None:
        """The record, its arrays read-only views of the buffer."""
        found = self._latest.get(key)
        return None if found is None else found[1]

    def positions(self, key: bytes) -> bytes | None:
        """Bitmap of the record's positions."""
        found = self._latest.get(key)
        return None if found is None else found[0].positions

    def add(self, record: CacheRecord) -> None:
        """Copy a record for which there is room."""
        layout = layout_text(record.arrays)
        columns = layout_of(layout)
        begin = self._used
        self._used = begin + payload_bytes(columns, len(record.positions))
        payload = self._buffer[begin : self._used]
        pack(columns, record.arrays, payload)
        start = record.start
        place = Place(
            "",
            begin,
            len(payload),
            bitmap_of(record.positions, start),
            start,
            record.length,
            record.fingerprint,
            ask_json(record.ask),
            layout,
            b"",
        )
        place = place._replace(checksum=checksum(record.key, place, payload.data))
        self.rows.append((record.key, place))
        view = unchecked(record.key, place, payload.data.toreadonly())
        self._latest[record.key] = (place, view)


def packed_bytes(record: CacheRecord) -> int:
    """Bytes of a record's payload."""
    return sum(aligned(array.nbytes) for array in record.arrays.values())
