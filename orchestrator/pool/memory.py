"""Records that a client keeps in its own memory: the next epoch finds them without a call.

First come stays, until the limit is reached: epochs read everything in turn, and for such readers
dropping the least recently used would find nothing at all.
"""

import threading
from dataclasses import replace

import numpy as np

from orchestrator.signals.cache.records import CacheRecord

from .cache_records import Want, bitmap


class Memory:
    """Up to `max_bytes` of records' arrays. Safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes
        self._lock = threading.Lock()
        self._records: dict[bytes, tuple[int, CacheRecord]] = {}  # with the bitmap of positions

    def find(self, want: Want) -> CacheRecord | None:
        """The record, if it is here and holds every position that is needed."""
        held, record = self._records.get(want.key, (0, None))
        return record if want.positions & ~held == 0 else None

    def keep(self, record: CacheRecord) -> None:
        """Copy a record, if it fits; arrays of segments and replies would keep those alive."""
        with self._lock:
            _, earlier = self._records.get(record.key, (0, None))
            more = record.nbytes - (0 if earlier is None else earlier.nbytes)
            if more > self._free:
                return
            self._free -= more
            arrays = {name: np.array(array) for name, array in record.arrays.items()}
            own = replace(record, positions=np.array(record.positions), arrays=arrays)
            self._records[record.key] = bitmap(record), own
