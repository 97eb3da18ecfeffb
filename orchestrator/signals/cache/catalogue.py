"""The published segments of a directory and the index of what lies in them.

Keeps the two in line: when it is opened, when a segment comes or goes, and when the index is found
damaged. For the writer alone, and one thread at a time: `store.Store` holds a lock around it.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from . import folder
from . import index as index_file
from .codec import holds
from .index import Damaged, Index
from .records import Place
from .segments import Rows, Scan, new_name, scan_segment, sequence_of
from .stats import Tally

log = logging.getLogger(__name__)

KEPT_SHARE = 0.9
"""Of the limit: what eviction leaves."""

T = TypeVar("T")


class Catalogue:
    """What is on disk.

    Args:
        path: the cache's directory.
        tally: counts what is found damaged and what is evicted.

    Raises:
        OSError: the disk is full or fails. From every method that writes.
    """

    def __init__(self, path: Path, tally: Tally) -> None:
        self._path, self._tally = path, tally
        self._file = path / folder.INDEX
        self._touched: dict[str, int] = {}  # uses that the index has not got yet
        try:
            self._index = Index(self._file)
        except Damaged as error:
            self._index = self._anew(error)
        self._tick = max((entry.used for entry in self._index.segments().values()), default=0)
        self._reconcile()
        names = folder.segment_sizes(path)
        self._sequence = max((sequence_of(name) or 0 for name in names), default=0)

    def find(self, keys: Sequence[bytes]) -> list[Place | None]:
        """The place of each key's record."""
        return self._asked(lambda index: index.find(keys))

    def touch(self, segments: Iterable[str]) -> None:
        """These segments were used."""
        self._tick += 1
        self._touched.update(dict.fromkeys(segments, self._tick))

    def save_uses(self) -> None:
        """Put into the index which segments were used when."""
        used, self._touched = self._touched, {}
        if used:
            self._asked(lambda index: index.use(used))

    def new_name(self) -> str:
        """For the next segment."""
        self._sequence += 1
        return new_name(self._sequence)

    def add(self, name: str, rows: Rows) -> int:
        """Index a segment that was published; its size. If that fails the file is removed."""
        file = self._path / folder.SEGMENTS / name
        size = file.stat().st_size
        self._tick += 1
        try:
            self._asked(lambda index: index.add_segment(name, size, self._tick, rows))
        except OSError:
            file.unlink()
            raise
        return size

    def enter(self, name: str, scan: Scan) -> int:
        """Index a segment as it was found on disk; how many of its records are news."""
        if scan.unreadable is not None:
            log.warning("segment %s is unreadable: %s", name, scan.unreadable)
            self._tally.unreadable_segments += 1
        for key in scan.damaged:
            log.warning("record %s of segment %s is damaged", key.hex(), name)
        self._tally.corrupt += len(scan.damaged)
        rows = [(key, place._replace(segment=name)) for key, place in self.news(scan.rows)]
        self.add(name, rows)
        return len({key for key, _ in rows})

    def news(self, rows: Rows) -> Rows:
        """The rows that hold positions which the index, and the rows before, lack."""
        held: dict[bytes, bytes] = {}
        for (key, _), place in zip(rows, self.find([key for key, _ in rows]), strict=True):
            if place is not None:
                held[key] = place.positions
        news: list[tuple[bytes, Place]] = []
        for key, place in rows:
            if key not in held or not holds(held[key], place.positions):
                held[key] = place.positions
                news.append((key, place))
        return news

    def live(self, rows: Rows) -> list[bool]:
        """Whether each row is the one that its key leads to."""
        found = self.find([key for key, _ in rows])
        return [there == place for there, (_, place) in zip(found, rows, strict=True)]

    def drop_record(self, key: bytes) -> None:
        """Forget where a record lies."""
        self._asked(lambda index: index.drop_record(key))

    def drop_role(self, fingerprint: str) -> int:
        """Forget where the records of a role lie; how many those were."""
        return self._asked(lambda index: index.drop_role(fingerprint))

    def make_room(self, wanted: int, limit: int) -> bool:
        """Evict until `wanted` more bytes fit below the limit; whether there was need to.

        Raises:
            OSError: they never will.
        """
        if wanted > limit:
            raise OSError(f"a segment of {wanted} bytes is beyond the limit of {limit}")
        if self.nbytes() + wanted <= limit:
            return False
        self.evict_to(max(0, int(limit * KEPT_SHARE) - wanted))
        return True

    def evict_to(self, limit: int) -> None:
        """Remove the segments least recently used until the rest has at most so many bytes."""
        segments = self._asked(Index.segments)
        total = sum(entry.bytes for entry in segments.values())
        used = {name: self._touched.get(name, entry.used) for name, entry in segments.items()}
        for name in sorted(used, key=lambda name: (used[name], name)):
            if total <= limit:
                return
            size = segments[name].bytes
            total -= size
            self._tally.evicted_records += self.remove(name)
            self._tally.evicted_segments += 1
            self._tally.evicted_bytes += size

    def remove(self, name: str) -> int:
        """Remove a segment; how many live records it held."""
        # The file first: on a full disk the index needs the room to write that it is gone.
        (self._path / folder.SEGMENTS / name).unlink(missing_ok=True)
        self._touched.pop(name, None)
        return self._asked(lambda index: index.drop_segment(name))

    def nbytes(self) -> int:
        """Of all segment files."""
        return sum(entry.bytes for entry in self._asked(Index.segments).values())

    def segments(self) -> list[str]:
        """Names, oldest first."""
        return sorted(self._asked(Index.segments))

    def records(self) -> int:
        """How many can be found."""
        return self._asked(Index.records)

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def _asked(self, call: Callable[[Index], T]) -> T:
        """An answer of the index, which is made anew if it is found damaged."""
        try:
            return call(self._index)
        except Damaged as error:
            self._index.close()
            self._index = self._anew(error)
            self._reconcile()
            return call(self._index)

    def _anew(self, reason: Damaged) -> Index:
        log.warning("the index of %s is made anew: %s", self._path, reason)
        index_file.remove(self._file)
        return Index(self._file)

    def _reconcile(self) -> None:
        """Bring the index in line with the segments on disk."""
        on_disk = folder.segment_sizes(self._path)
        for name, entry in self._index.segments().items():
            if on_disk.get(name) != entry.bytes:
                log.warning("segment %s is gone or has another size", name)
                self._index.drop_segment(name)
        known = self._index.segments()
        for name in on_disk:
            if name not in known:
                self.enter(name, scan_segment(self._path / folder.SEGMENTS / name))
