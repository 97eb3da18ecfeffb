"""The one writer of a cache's directory. Safe to use from many threads of one process.

Records wait in memory until a segment's worth is together; a thread then publishes it, while its
records are still answered from memory. Promises: what `find` returns reads back as exactly what
was put, or as None; a writer that is killed loses what it had not published and nothing else; a
disk that is full, or a limit that is reached, costs the caching and never the training.
"""

import dataclasses
import errno
import logging
import shutil
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np

from orchestrator.errors import SpecError, StillhouseError

from . import folder
from .catalogue import Catalogue
from .codec import aligned, holds, place_of
from .pending import Pending
from .reader import Reader
from .records import CacheRecord, Place, RoleCard
from .roles import read_role, role_file, write_role
from .segments import Scan, most_bytes, publish, scan_segment, write_segment
from .stats import CacheStats, Tally

log = logging.getLogger(__name__)

SEGMENT_BYTES = 32 << 20

Found = Place | CacheRecord


class Store:
    """An open directory. Made by `open`; end it with `close`, or use it as a context."""

    def __init__(
        self, path: Path, lock: folder.Lock, max_bytes: int, segment_bytes: int, left_free: int
    ) -> None:
        self.path = path
        self.reader = Reader(path)
        self._directory_lock, self._max_bytes = lock, max_bytes
        self._segment_bytes = aligned(segment_bytes)
        self._left_free = left_free
        self._writing = threading.RLock()  # who puts or prunes; taken before `_state`
        self._state = threading.RLock()  # short looks and changes; never held while waiting
        self._tally = Tally()
        self._complained = False
        self._catalogue = Catalogue(path, self._tally)
        self._catalogue.make_room(0, max_bytes)
        self._pending: Pending | None = None
        self._sealed: Pending | None = None  # being published
        self._spare: np.ndarray | None = None  # a buffer that nobody uses
        self._landing: Future[None] | None = None
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="cache-publisher")

    @classmethod
    def open(
        cls,
        path: str | Path,
        max_bytes: int,
        segment_bytes: int = SEGMENT_BYTES,
        left_free: int = 0,
    ) -> Self:
        """Become the writer of a directory, which is made if it is not there.

        Args:
            max_bytes: limit of the segment files together; role cards and the index come on top.
            segment_bytes: of payload in a segment.
            left_free: bytes of the disk that segments leave to others; beyond that it is full.

        Raises:
            CacheBusy: another process writes to it.
            SpecError: it has another format version, belongs to something else, or its disk is
                too full to open it.
        """
        place = Path(path)
        folder.make(place)
        try:
            lock = folder.Lock(place)
            try:
                folder.sweep(place)
                return cls(place, lock, max_bytes, segment_bytes, left_free)
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise SpecError(
                str(path),
                f"cannot be opened as a signal cache: {error}",
                "Free space on its disk, or give another folder",
            ) from error

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
            missing = [index for index, each in enumerate(found) if each is None]
            places = self._catalogue.find([keys[index] for index in missing])
            for index, place in zip(missing, places, strict=True):
                found[index] = place
            self._catalogue.touch({place.segment for place in places if place is not None})
            hits = sum(each is not None for each in found)
            self._tally.hits += hits
            self._tally.misses += len(found) - hits
        return found

    def touch(self, segments: Iterable[str]) -> None:
        """These segments were used: others are evicted before them."""
        with self._state:
            self._catalogue.touch(segments)

    def put(self, records: Sequence[CacheRecord]) -> None:
        """Keep records. One whose positions are all there already, under its key, is ignored;
        else it takes the place of what is there.

        Raises:
            ValueError: a record could not be read back as it is; see `codec.place_of`.
        """
        places = [place_of(record) for record in records]
        with self._writing:
            held = self._positions([record.key for record in records])
            for record, place in zip(records, places, strict=True):
                there = held.get(record.key)
                if there is None or not holds(there, place.positions):
                    self._append(record, place)
                    held[record.key] = place.positions

    def forget(self, keys: Sequence[bytes]) -> None:
        """A reader could not read these. What this process cannot read either is dropped."""
        with self._writing, self._state:
            for key, place in zip(keys, self._catalogue.find(keys), strict=True):
                if place is None or self.reader.read(key, place) is not None:
                    continue
                self._tally.corrupt += 1
                log.warning("record %s of segment %s is lost", key.hex(), place.segment)
                try:
                    self._catalogue.drop_record(key)
                except OSError as error:
                    self._complain(error)

    def flush(self) -> None:
        """Publish what is in memory, and wait until it is."""
        with self._writing:
            self._seal()
            self._landed()
            with self._state:
                try:
                    self._catalogue.save_uses()
                except OSError as error:
                    self._complain(error)

    def close(self) -> None:
        """Publish what is in memory, and let another process write."""
        with self._writing:
            try:
                self.flush()
            finally:
                self._publisher.shutdown()
                self._catalogue.close()
                self.reader.close()
                self._directory_lock.release()

    def stats(self) -> CacheStats:
        """Counts."""
        with self._state:
            waiting = [each for each in (self._pending, self._sealed) if each is not None]
            return CacheStats(
                records=self._catalogue.records(),
                bytes=self._catalogue.nbytes(),
                segments=len(self._catalogue.segments()),
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
                self._failed(0, error)

    # --- for whoever looks after the directory ---------------------------------------------------

    def limit_to(self, max_bytes: int) -> None:
        """From now on the segment files together take at most so many bytes."""
        with self._writing, self._state:
            if max_bytes == self._max_bytes:
                return
            log.info(
                "the limit of %s is now %d bytes, was %d", self.path, max_bytes, self._max_bytes
            )
            self._max_bytes = max_bytes
            try:
                if self._catalogue.make_room(0, max_bytes):
                    self.reader.close()  # an open file would keep its room on disk
            except OSError as error:
                self._complain(error)

    def room(self) -> int:
        """Bytes left below the limit."""
        with self._state:
            return self._max_bytes - self._catalogue.nbytes()

    def adopt(self, file: Path, scan: Scan) -> int:
        """Take a file in the segments folder, under a temporary name, for a segment of this cache.

        Args:
            scan: of the file.

        Returns:
            How many of its records are news here; with none the file is removed.

        Raises:
            OSError: the disk is full; the file is removed.
        """
        with self._writing:
            self.flush()
            with self._state:
                try:
                    if not self._catalogue.news(scan.rows):
                        return 0
                    name = self._catalogue.new_name()
                    publish(file, file.with_name(name))
                    return self._catalogue.enter(name, scan)
                finally:
                    file.unlink(missing_ok=True)

    def prune_to(self, max_bytes: int) -> None:
        """Evict the segments least recently used until the rest has at most so many bytes."""
        with self._writing:
            self.flush()
            with self._state:
                self._catalogue.evict_to(max_bytes)
            self.reader.close()  # an open file would keep its room on disk

    def prune_all(self) -> None:
        """Remove every segment and every role card."""
        with self._writing:
            self.prune_to(-1)  # what is empty takes no room, and goes too
            for file in folder.published(self.path / folder.ROLES):
                file.unlink()

    def prune_role(self, fingerprint: str) -> int:
        """Remove a role's records and card; other roles' records move to new segments.

        Returns:
            Records removed.

        Raises:
            StillhouseError: there is no room to move what stays. Nothing of that is lost then.
        """
        with self._writing:
            self.flush()
            with self._state:
                removed = self._catalogue.drop_role(fingerprint)
                names = self._catalogue.segments()
            for name in names:
                self._rewrite_without(name, fingerprint)
            role_file(self.path, fingerprint).unlink(missing_ok=True)
        return removed

    def _rewrite_without(self, name: str, fingerprint: str) -> None:
        """Replace a segment that has records of a role by one that has the others."""
        rows = scan_segment(self.path / folder.SEGMENTS / name).rows
        if all(place.fingerprint != fingerprint for _, place in rows):
            return
        failures = self._tally.write_failures
        with self._state:
            live = self._catalogue.live(rows)
        for (key, place), stays in zip(rows, live, strict=True):
            if stays and (record := self.reader.read(key, place)) is not None:
                self._append(record, place_of(record))
        self.flush()
        if self._tally.write_failures > failures:
            raise StillhouseError(
                f"{self.path}: no room to move the records of other roles out of segment {name}; "
                "free space, or prune to a size or everything"
            )
        with self._state:
            self._catalogue.remove(name)

    # --- records on their way in -----------------------------------------------------------------

    def _in_memory(self, key: bytes) -> CacheRecord | None:
        for batch in (self._pending, self._sealed):
            if batch is not None and (found := batch.get(key)) is not None:
                return found
        return None

    def _positions(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Which positions are held under those keys that have a record."""
        with self._state:  # one look: what is being published is found here or there
            places = self._catalogue.find(keys)
            held = {key: place.positions for key, place in zip(keys, places, strict=True) if place}
            for batch in (self._sealed, self._pending):  # the later counts
                if batch is not None:
                    held |= {key: there for key in keys if (there := batch.positions(key))}
        return held

    def _append(self, record: CacheRecord, place: Place) -> None:
        if self._pending is not None and not self._pending.takes(place.length):
            self._seal()
        with self._state:
            if self._pending is None:
                self._pending = Pending(self._buffer(place.length))
            self._pending.add(record, place)

    def _buffer(self, wanted: int) -> np.ndarray:
        """Room for a segment, or for one record that is larger."""
        if wanted > self._segment_bytes:
            return np.empty(wanted, np.uint8)
        spare, self._spare = self._spare, None
        return np.empty(self._segment_bytes, np.uint8) if spare is None else spare

    def _seal(self) -> None:
        """Hand what is in memory to the publisher, once it is done with the segment before."""
        self._landed()
        with self._state:
            self._sealed, self._pending = self._pending, None
        if self._sealed is not None:
            self._landing = self._publisher.submit(self._land, self._sealed)

    def _landed(self) -> None:
        """Wait until nothing is being published."""
        landing, self._landing = self._landing, None
        if landing is not None:
            landing.result()

    def _land(self, sealed: Pending) -> None:
        """Publish a segment. Runs on the publisher's thread."""
        try:
            self._publish(sealed)
        except OSError as error:
            self._failed(sealed.keys, error)
        finally:
            with self._state:
                self._sealed = None
                if not sealed.lent and len(sealed.buffer) == self._segment_bytes:
                    self._spare = sealed.buffer  # fresh memory costs more than the copy into it

    def _publish(self, sealed: Pending) -> None:
        with self._state:
            wanted = most_bytes(sealed.rows, len(sealed.payload))
            if self._catalogue.make_room(wanted, self._max_bytes):
                self.reader.close()  # an open file would keep its room on disk
            name = self._catalogue.new_name()
        segments = self.path / folder.SEGMENTS
        free = shutil.disk_usage(segments).free
        if free - wanted < self._left_free:
            raise OSError(
                errno.ENOSPC, f"{free} bytes are free, and {self._left_free} are left to others"
            )
        begin = write_segment(segments, name, sealed.rows, sealed.payload)
        rows = [
            (key, place._replace(segment=name, offset=place.offset + begin))
            for key, place in sealed.rows
        ]
        with self._state:
            self._tally.written_bytes += self._catalogue.add(name, rows)
            self._tally.written_records += sealed.keys

    def _failed(self, dropped: int, error: OSError) -> None:
        with self._state:
            self._tally.write_failures += 1
            self._tally.dropped += dropped
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning(
                "the signal cache %s cannot be written, and goes on without: %s", self.path, error
            )
