"""Read records from segment files: one plain read each, checked. Safe to use from many threads.

Promises: a read gives exactly what was put or None, never another value; no file is mapped, so one
that is cut short under a reader is a miss and not a dead process.
"""

import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from .codec import decode
from .folder import SEGMENTS
from .records import CacheRecord, Place

log = logging.getLogger(__name__)

MOST_OPEN = 32
SWEEP_EVERY = 256
"""Reads after which files of evicted segments are closed: until then they take room on disk."""


@dataclass(slots=True)
class ReadCounts:
    """What became of reads."""

    reads: int = 0
    vanished: int = 0  # the segment was evicted
    truncated: int = 0  # the segment ends before the record does
    corrupt: int = 0  # the checksum is another
    unreadable: int = 0  # the disk failed

    @property
    def records(self) -> int:
        """Reads that gave a record."""
        return self.reads - self.vanished - self.truncated - self.corrupt - self.unreadable


class Reader:
    """Reads the records of one directory.

    Args:
        path: the cache's directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.counts = ReadCounts()
        self._folder = Path(path) / SEGMENTS
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, key: bytes, place: Place) -> CacheRecord | None:
        """The record, its arrays read-only views of one buffer; None where `counts` says why."""
        try:
            payload = self._file(place.segment).read(place.offset, place.length)
        except FileNotFoundError:
            self._count("vanished")
            return None
        except OSError as error:
            log.warning("segment %s cannot be read: %s", place.segment, error)
            self._count("unreadable")
            return None
        if len(payload) < place.length:
            self._count("truncated")
            return None
        record = decode(key, place, payload)
        if record is None:
            self._count("corrupt")
        return record

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            self._files.clear()

    def _count(self, reason: str) -> None:
        with self._lock:
            setattr(self.counts, reason, getattr(self.counts, reason) + 1)

    def _file(self, segment: str) -> "_File":
        with self._lock:
            self.counts.reads += 1
            if self.counts.reads % SWEEP_EVERY == 0:
                self._sweep()
            file = self._files.get(segment)
            if file is not None:
                self._files.move_to_end(segment)
                return file
            file = self._files[segment] = _File(self._folder / segment)
            self._sweep()
            while len(self._files) > MOST_OPEN:
                self._files.popitem(last=False)
            return file

    def _sweep(self) -> None:
        for name in [name for name, each in self._files.items() if each.evicted()]:
            del self._files[name]


class _File:
    """An open file that closes when nobody uses it any more, so no read meets a closed handle."""

    def __init__(self, path: Path) -> None:
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._handle).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`; fewer where the file ends, none where it ended when opened."""
        if offset + length > self._size:
            return b""
        data = os.pread(self._handle, length, offset)
        while len(data) < length:  # Linux reads at most 2 GiB at once
            more = os.pread(self._handle, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def evicted(self) -> bool:
        return os.fstat(self._handle).st_nlink == 0

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
