"""The one writer of a cache's directory. Safe to use from many threads of one process.

Records wait in memory until a segment's worth is together; a thread then publishes it, while its
records are still answered from memory. Promises: what `find` returns reads back as exactly what
was put, or as None; a writer that is killed loses what it had not published and nothing else; a
disk that is full, or a limit that is reached, costs the caching and never the training.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from orchestrator.errors import SpecError, StillhouseError

from . import folder
from . import index as index_file
from .codec import bitmap_of, holds
from .index import Damaged, Index
from .pending import Pending, packed_bytes
from .reader import Reader
from .records import CacheRecord, Place, RoleCard, check_record
from .roles import read_role, role_file, write_role
from .segments import (
    Rows,
    Scan,
    most_bytes,
    new_name,
    publish,
    scan_segment,
    sequence_of,
    write_segment,
)
from .stats import CacheStats, Tally

log = logging.getLogger(__name__)

SEGMENT_BYTES = 32 << 20
KEPT_SHARE = 0.9
"""Of the limit: what eviction leaves."""

Found = Place | CacheRecord
T = TypeVar("T")


class Store:
    """An open directory. Made by `open`; end it with `close`, or use it as a context."""

    def __init__(self, path: Path, lock: folder.Lock, max_bytes: int, segment_bytes: int) -> None:
        self.path = path
        self.reader = Reader(path)
        self._directory_lock, self._max_bytes, self._segment_bytes = lock, max_bytes, segment_bytes
        self._writing = threading.RLock()  # held by who puts or prunes; taken before `_state`
        self._state = threading.RLock()  # held for short looks and changes; never while waiting
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="cache-publisher")
        self._landing: Future[None] | None = None
        self._pending: Pending | None = None
        self._sealed: Pending | None = None  # being published
        self._touched: dict[str, int] = {}
        self._tally = Tally()
        self._complained = False
        self._index = self._opened_index()
        self._tick = max((entry.used for entry in self._index.segments().values()), default=0) + 1
        self._reconcile()
        self._sequence = max(map(_sequence, folder.segment_sizes(path)), default=0)

    @classmethod
    def open(cls, path: str | Path, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> Self:
        """Become the writer of a directory, which is made if it is not there.

        Args:
            max_bytes: limit of the segment files together; role cards and the index come on top.
            segment_bytes: of payload in a segment.

        Raises:
            CacheBusy: another process writes to it.
            SpecError: it has another format version, belongs to something else, or the disk is
                too full to open it.
        """
        place = Path(path)
        folder.make(place)
        lock = folder.Lock(place)
        try:
            folder.sweep(place)
            return cls(place, lock, max_bytes, segment_bytes)
        except OSError as error:
            lock.release()
            raise SpecError(
                str(path),
                f"cannot be opened as a signal cache: {error}",
                "Free space on its disk, or give another folder",
            ) from error
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what clients ask ------------------------------------------------------------------------

    def find(self, keys: Sequence[bytes]) -> list[Found | None]:
        """For each key the place of its record, the record itself if it is not published, or None.

        A place counts as a use of its segment.
        """
        with self._state:
            found: list[Found | None] = [self._in_memory(key) for key in keys]
            open_ = [index for index, each in enumerate(found) if each is None]
            places = self._asked(lambda index: index.find([keys[i] for i in open_]))
            for i, place in zip(open_, places, strict=True):
                found[i] = place
            self.touch({place.segment for place in places if place is not None})
            hits = sum(each is not None for each in found)
            self._tally.hits += hits
            self._tally.misses += len(found) - hits
        return found

    def touch(self, segments: Iterable[str]) -> None:
        """These segments were used: others are evicted before them."""
        with self._state:
            self._tick += 1
            self._touched.update(dict.fromkeys(segments, self._tick))

    def put(self, records: Sequence[CacheRecord]) -> None:
        """Keep records. One whose positions are all there already, under its key, is ignored;
        else it takes the place of what is there.

        Raises:
            ValueError: a record could not be read back as it is; see `records.check_record`.
        """
        for record in records:
            check_record(record)
        with self._writing:
            for record in records:
                if not self._known(record):
                    self._append(record)

    def forget(self, keys: Sequence[bytes]) -> None:
        """A reader could not read these. What this process cannot read either is dropped."""
        with self._writing, self._state:
            places = self._asked(lambda index: index.find(keys))
            for key, place in zip(keys, places, strict=True):
                if place is None or self.reader.read(key, place) is not None:
                    continue
                self._tally.corrupt += 1
                log.warning("record %s of segment %s is lost", key.hex(), place.segment)
                try:
                    self._asked(lambda index, key=key: index.drop_record(key))
                except OSError as error:
                    self._complain(error)

    def flush(self) -> None:
        """Publish what is in memory, and wait until it is."""
        with self._writing:
            self._seal()
            self._landed()
            with self._state:
                used, self._touched = self._touched, {}
                try:
                    self._asked(lambda index: index.use(used))
                except OSError as error:
                    self._complain(error)

    def close(self) -> None:
        """Publish what is in memory, and let another process write."""
        with self._writing:
            try:
                self.flush()
            finally:
                self._publisher.shutdown()
                self._index.close()
                self.reader.close()
                self._directory_lock.release()

    def stats(self) -> CacheStats:
        """Counts."""
        with self._state:
            segments = self._asked(Index.segments)
            waiting = [each for each in (self._pending, self._sealed) if each is not None]
            return CacheStats(
                records=self._asked(Index.records),
                bytes=sum(entry.bytes for entry in segments.values()),
                segments=len(segments),
                pending_records=sum(each.keys for each in waiting),
                pending_bytes=sum(len(each.payload) for each in waiting),
                **dataclasses.asdict(self._tally),
            )

    def stats_dict(self) -> dict[str, int]:
        """The same, plain."""
        return dataclasses.asdict(self.stats())

    def put_role(self, card: RoleCard) -> None:
        """Keep a role's card, unless a sound one is there already."""
        with self._writing:
            there = read_role(self.path, card.fingerprint)
            if there is not None and (there.head is not None or card.head is None):
                return
            try:
                write_role(self.path, card)
            except OSError as error:
                self._tally.write_failures += 1
                self._complain(error)

    # --- for whoever looks after the directory ---------------------------------------------------

    def adopt(self, file: Path, scan: Scan) -> int:
        """Take a file in the segments folder, under a temporary name, for a segment of this cache.

        Args:
            scan: of the file.

        Returns:
            How many of its records are new here; with none the file is removed.

        Raises:
            OSError: the disk is full; the file is removed.
        """
        with self._writing:
            self._landed()
            with self._state:
                try:
                    if not self._improving(scan.rows):
                        return 0
                    name = new_name(self._next_sequence())
                    publish(file, file.with_name(name))
                    try:
                        return self._enter(name, scan)
                    except OSError:
                        file.with_name(name).unlink()
                        raise
                finally:
                    file.unlink(missing_ok=True)

    def prune_to(self, max_bytes: int) -> None:
        """Evict the segments least recently used until the rest has at most so many bytes."""
        with self._writing:
            self.flush()
            with self._state:
                self._evict_to(max_bytes)

    def prune_all(self) -> None:
        """Remove every segment and every role card."""
        self.prune_to(0)
        for file in (self.path / folder.ROLES).glob("*.arrow"):
            file.unlink()

    def prune_role(self, fingerprint: str) -> int:
        """Remove a role's records and card; other roles' records move to new segments.

        Returns:
            Records removed.

        Raises:
            StillhouseError: there is no room to move what stays. Nothing is lost then.
        """
        removed = 0
        with self._writing:
            self.flush()
            for name in folder.segment_sizes(self.path):
                removed += self._without_role(name, fingerprint)
            role_file(self.path, fingerprint).unlink(missing_ok=True)
        return removed

    def room(self) -> int:
        """Bytes left below the limit."""
        with self._state:
            return self._max_bytes - self._bytes()

    # --- records on their way in -----------------------------------------------------------------

    def _in_memory(self, key: bytes) -> CacheRecord | None:
        for batch in (self._pending, self._sealed):
            found = batch.get(key) if batch is not None else None
            if found is not None:
                return found
        return None

    def _known(self, record: CacheRecord) -> bool:
        """Whether every position of the record is there already."""
        with self._state:
            for batch in (self._pending, self._sealed):
                positions = batch.positions(record.key) if batch is not None else None
                if positions is not None:
                    break
            else:
                (place,) = self._asked(lambda index: index.find([record.key]))
                positions = None if place is None else place.positions
        return positions is not None and holds(positions, bitmap_of(record.positions, record.start))

    def _append(self, record: CacheRecord) -> None:
        if self._pending is not None and not self._pending.takes(record):
            self._seal()
        with self._state:
            if self._pending is None:
                self._pending = Pending(max(self._segment_bytes, packed_bytes(record)))
            self._pending.add(record)

    def _seal(self) -> None:
        """Hand what is in memory to the publisher; waits for the segment before."""
        self._landed()
        with self._state:
            sealed, self._pending = self._pending, None
            self._sealed = sealed
        if sealed is not None:
            self._landing = self._publisher.submit(self._land, sealed)

    def _landed(self) -> None:
        """Wait until nothing is being published."""
        landing, self._landing = self._landing, None
        if landing is not None:
            landing.result()

    def _land(self, sealed: Pending) -> None:
        """Publish a segment. Runs on the publisher's thread."""
        try:
            self._write(sealed)
        except OSError as error:
            with self._state:
                self._tally.write_failures += 1
                self._tally.dropped += sealed.keys
                self._complain(error)
        finally:
            with self._state:
                self._sealed = None

    def _write(self, sealed: Pending) -> None:
        with self._state:
            self._make_room(most_bytes(sealed.rows, len(sealed.payload)))
            name = new_name(self._next_sequence())
        segments = self.path / folder.SEGMENTS
        begin = write_segment(segments, name, sealed.rows, sealed.payload)
        rows = [
            (key, place._replace(segment=name, offset=place.offset + begin))
            for key, place in sealed.rows
        ]
        with self._state:
            size = (segments / name).stat().st_size
            try:
                self._tick += 1
                self._asked(lambda index: index.add_segment(name, size, self._tick, rows))
            except OSError:
                (segments / name).unlink()
                raise
            self._sealed = None  # in one step with the index, so that no look finds neither
            self._tally.written_records += sealed.keys
            self._tally.written_bytes += size

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning(
                "the signal cache %s cannot be written, and goes on without: %s", self.path, error
            )

    # --- segments --------------------------------------------------------------------------------

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _bytes(self) -> int:
        return sum(entry.bytes for entry in self._asked(Index.segments).values())

    def _make_room(self, wanted: int) -> None:
        """Evict until `wanted` more bytes fit.

        Raises:
            OSError: they never will.
        """
        if wanted > self._max_bytes:
            raise OSError(f"a segment of {wanted} bytes is beyond the limit of {self._max_bytes}")
        if self._bytes() + wanted > self._max_bytes:
            self._evict_to(max(0, int(self._max_bytes * KEPT_SHARE) - wanted))

    def _evict_to(self, limit: int) -> None:
        segments = self._asked(Index.segments)
        total = sum(entry.bytes for entry in segments.values())
        by_use = sorted(
            segments, key=lambda name: max(segments[name].used, self._touched.get(name, 0))
        )
        for name in by_use:
            if total <= limit:
                return
            total -= segments[name].bytes
            self._drop_segment(name, segments[name].bytes)

    def _drop_segment(self, name: str, size: int) -> None:
        # The file first: on a full disk the index needs the room to write that it is gone.
        (self.path / folder.SEGMENTS / name).unlink(missing_ok=True)
        self._tally.evicted_records += self._asked(lambda index: index.drop_segment(name))
        self._tally.evicted_segments += 1
        self._tally.evicted_bytes += size
        self._touched.pop(name, None)

    def _without_role(self, name: str, fingerprint: str) -> int:
        """Replace a segment by one without a role's records; how many of those were live."""
        scan = scan_segment(self.path / folder.SEGMENTS / name)
        if all(place.fingerprint != fingerprint for _, place in scan.rows):
            return 0
        removed = 0
        for (key, place), live in zip(scan.rows, self._live(scan.rows), strict=True):
            if live and place.fingerprint == fingerprint:
                removed += 1
            elif live:
                record = self.reader.read(key, place)
                if record is not None:
                    self._append(record)
        failures = self._tally.write_failures
        self._seal()
        self._landed()
        if self._tally.write_failures > failures:
            raise StillhouseError(
                f"{self.path}: no room to move the records of other roles out of segment {name}; "
                "free space, or prune to a size or everything"
            )
        with self._state:
            (self.path / folder.SEGMENTS / name).unlink(missing_ok=True)
            self._asked(lambda index: index.drop_segment(name))
        return removed

    def _live(self, rows: Rows) -> list[bool]:
        """Whether each row is the one that its key leads to."""
        with self._state:
            places = self._asked(lambda index: index.find([key for key, _ in rows]))
        return [found == place for found, (_, place) in zip(places, rows, strict=True)]

    # --- the index -------------------------------------------------------------------------------

    def _asked(self, call: Callable[[Index], T]) -> T:
        """An answer of the index, made anew if it is found damaged."""
        try:
            return call(self._index)
        except Damaged as error:
            log.warning("the index of %s is damaged and made anew: %s", self.path, error)
            self._index.close()
            index_file.remove(self.path / folder.INDEX)
            self._index = Index(self.path / folder.INDEX)
            self._reconcile()
            return call(self._index)

    def _opened_index(self) -> Index:
        try:
            return Index(self.path / folder.INDEX)
        except Damaged as error:
            log.warning("the index of %s is made anew: %s", self.path, error)
            index_file.remove(self.path / folder.INDEX)
            return Index(self.path / folder.INDEX)

    def _reconcile(self) -> None:
        """Bring the index in line with the segments on disk."""
        on_disk = folder.segment_sizes(self.path)
        known = self._index.segments()
        for name, entry in known.items():
            if on_disk.get(name) != entry.bytes:
                log.warning("segment %s is gone or has another size", name)
                self._index.drop_segment(name)
        known = self._index.segments()
        for name in on_disk:
            if name not in known:
                self._enter(name, scan_segment(self.path / folder.SEGMENTS / name))

    def _enter(self, name: str, scan: Scan) -> int:
        """Index a segment's sound records; how many of them are news."""
        size = (self.path / folder.SEGMENTS / name).stat().st_size
        if scan.unreadable is not None:
            log.warning("segment %s is unreadable: %s", name, scan.unreadable)
            self._tally.unreadable_segments += 1
        for key in scan.damaged:
            log.warning("record %s of segment %s is damaged", key.hex(), name)
        self._tally.corrupt += len(scan.damaged)
        rows = [(key, place._replace(segment=name)) for key, place in self._improving(scan.rows)]
        self._tick += 1
        self._index.add_segment(name, size, self._tick, rows)
        return len({key for key, _ in rows})

    def _improving(self, rows: Rows) -> Rows:
        """The rows that hold positions which the index, and the rows before, lack."""
        held: dict[bytes, bytes] = {}
        places = self._index.find([key for key, _ in rows])
        for (key, _), place in zip(rows, places, strict=True):
            if place is not None:
                held[key] = place.positions
        news: list[Any] = []
        for key, place in rows:
            if key not in held or not holds(held[key], place.positions):
                held[key] = place.positions
                news.append((key, place))
        return news


def _sequence(name: str) -> int:
    return sequence_of(name) or 0
