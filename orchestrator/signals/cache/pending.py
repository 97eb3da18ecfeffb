"""Records that are not published yet: packed end to end in one buffer, as their segment will be.

A record is copied once, on arrival, so that what is written is what was put, whatever its sender
does to its arrays later. Numpy only.
"""

import numpy as np

from .codec import checksum, layout_of, pack, unchecked
from .records import CacheRecord, Place


class Pending:
    """The next segment.

    Args:
        buffer: [bytes] uint8, to pack records into.
    """

    def __init__(self, buffer: np.ndarray) -> None:
        self.buffer = buffer
        self.lent = False
        """Whether somebody may hold views of the buffer, so that it must not be used again."""
        self.rows: list[tuple[bytes, Place]] = []
        """In order; of rows with one key the last counts. Offsets count from the payload."""
        self._used = 0
        self._latest: dict[bytes, Place] = {}

    @property
    def payload(self) -> np.ndarray:
        """[bytes] uint8."""
        return self.buffer[: self._used]

    @property
    def keys(self) -> int:
        """Distinct ones."""
        return len(self._latest)

    def takes(self, length: int) -> bool:
        """Whether there is room for a payload of so many bytes."""
        return self._used + length <= len(self.buffer)

    def add(self, record: CacheRecord, place: Place) -> None:
        """Copy a record for which there is room.

        Args:
            place: what `codec.place_of` says of it.
        """
        payload = self.buffer[self._used : self._used + place.length]
        pack(layout_of(place.layout), record.arrays, payload)
        digest = checksum(record.key, place, payload.data)
        place = place._replace(offset=self._used, checksum=digest)
        self._used += place.length
        self.rows.append((record.key, place))
        self._latest[record.key] = place

    def get(self, key: bytes) -> CacheRecord | None:
        """The record, its arrays read-only views of the buffer."""
        place = self._latest.get(key)
        if place is None:
            return None
        self.lent = True
        payload = self.buffer[place.offset : place.offset + place.length]
        return unchecked(key, place, payload.data.toreadonly())

    def positions(self, key: bytes) -> bytes | None:
        """Bitmap of the record's positions."""
        place = self._latest.get(key)
        return None if place is None else place.positions
