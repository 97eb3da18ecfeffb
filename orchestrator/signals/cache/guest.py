"""A directory that another process writes to, read and never written: `Store`'s port for a guest.

The writer's index is its own alone, so a guest makes one in memory, from the columns beside the
payloads, and looks for new segments when something is not found. Nothing is checked here but by
the reader, record by record. Promises: as the store, what `find` returns reads back as exactly what
was put, or as None; and no file of the directory is touched.
"""

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from . import folder
from .index import Index
from .reader import Reader
from .records import CacheRecord, Place, RoleCard
from .segments import brief_rows
from .stats import CacheStats, Tally

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""The directory is not looked through for new segments more often than this."""


class Guest:
    """A look at a directory. For one thread at a time.

    Raises:
        SpecError: the directory is not a cache of this version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        folder.check(self.path)
        self.reader = Reader(self.path)
        self._index = Index(Path(":memory:"))
        self._tally = Tally()
        self.look()

    def look(self) -> None:
        """Learn of segments that have come, and of those that were evicted."""
        self._looked = time.monotonic()
        try:
            on_disk = folder.segment_sizes(self.path)
        except OSError as error:  # the directory was taken away: reads tell, record by record
            log.warning("%s cannot be looked through: %s", self.path, error)
            return
        known = self._index.segments()
        for name in known.keys() - on_disk.keys():
            self._index.drop_segment(name)
        for name in [name for name in on_disk if name not in known]:  # oldest first
            self._enter(name, on_disk[name])

    def _enter(self, name: str, size: int) -> None:
        try:
            rows = brief_rows(self.path / folder.SEGMENTS / name)
        except FileNotFoundError:
            return  # evicted meanwhile
        except ValueError as error:
            log.warning("segment %s is unreadable: %s", name, error)
            self._tally.unreadable_segments += 1
            rows = ()  # known all the same, so that it is not read again
        # The last record of a key counts. Its writer put it because it had no other of as many
        # positions, or had found that one damaged.
        self._index.add_segment(name, size, 0, rows)

    def find(self, keys: Sequence[bytes]) -> list[Place | None]:
        """The place of each key's published record, or None."""
        found = self._index.find(keys)
        if None in found and time.monotonic() - self._looked >= LOOK_S:
            self.look()
            found = self._index.find(keys)
        hits = sum(place is not None for place in found)
        self._tally.hits += hits
        self._tally.misses += len(found) - hits
        return found

    def put(self, records: Sequence[CacheRecord]) -> None:
        """Keep nothing, and count that."""
        self._tally.dropped += len(records)

    def put_role(self, card: RoleCard) -> None:
        """Keep nothing: whoever has a card to put has the role too."""

    def forget(self, keys: Sequence[bytes]) -> None:
        """A reader could not read these. What this process cannot read either is dropped."""
        for key, place in zip(keys, self._index.find(keys), strict=True):
            if place is not None and self.reader.read(key, place) is None:
                self._tally.corrupt += 1
                self._index.drop_record(key)

    def limit_to(self, max_bytes: int) -> None:
        """The writer's limit holds."""

    def flush(self) -> None:
        """There is nothing to publish."""

    def close(self) -> None:
        """Close the index and all files."""
        self._index.close()
        self.reader.close()

    def stats_dict(self) -> dict[str, int]:
        """`CacheStats`, plain. `dropped` are the records that were not kept."""
        segments = self._index.segments()
        stats = CacheStats(
            records=self._index.records(),
            bytes=sum(entry.bytes for entry in segments.values()),
            segments=len(segments),
            pending_records=0,
            pending_bytes=0,
            **dataclasses.asdict(self._tally),
        )
        return dataclasses.asdict(stats)
