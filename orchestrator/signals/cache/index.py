"""Where each record lies: a SQLite file that only the writer opens. The standard library only.

It holds nothing that the segments do not say, so it is thrown away and made anew whenever it is in
doubt. Only one process uses it, so it is locked for good and needs no shared memory.
"""

import errno
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .records import Place
from .segments import Rows

VERSION = 1

_TABLES = """
CREATE TABLE segments (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL,
                       used INTEGER NOT NULL);
CREATE TABLE forms (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, ask TEXT NOT NULL,
                    layout TEXT NOT NULL, UNIQUE (fingerprint, ask, layout));
CREATE TABLE records (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, segment INTEGER NOT NULL,
                      offset INTEGER NOT NULL, length INTEGER NOT NULL, positions BLOB NOT NULL,
                      start INTEGER NOT NULL, tokens INTEGER NOT NULL, form INTEGER NOT NULL,
                      checksum BLOB NOT NULL,
                      CHECK (typeof(key) = 'blob' AND typeof(segment) = 'integer'
                             AND typeof(offset) = 'integer' AND typeof(length) = 'integer'
                             AND typeof(positions) = 'blob' AND typeof(start) = 'integer'
                             AND typeof(tokens) = 'integer' AND typeof(form) = 'integer'
                             AND typeof(checksum) = 'blob'));
CREATE INDEX records_of_segment ON records (segment);
"""
_FIND = """SELECT segment, offset, length, positions, start, tokens, form, checksum
           FROM records WHERE key = ?"""
_PUT = """INSERT OR REPLACE INTO records (key, segment, offset, length, positions, start, tokens,
                                          form, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""


class Damaged(Exception):
    """The index cannot be used; make it anew. Does not leave the package."""


class SegmentEntry(NamedTuple):
    """What the index knows of a segment."""

    bytes: int
    used: int  # rises with every use; the smallest is evicted first


class _Form(NamedTuple):
    fingerprint: str
    ask: str
    layout: str


class Index:
    """An open index.

    Raises:
        Damaged: it is not an index of this version, or not whole.
        OSError: the disk is full. From every method that writes; nothing was changed then.
    """

    def __init__(self, file: Path) -> None:
        new = not file.exists()
        try:
            self._db = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise OSError(errno.ENOSPC, f"the index cannot be opened: {error}") from error
        try:
            self._prepare(new)
            self._names: dict[int, str] = {}
            self._ids: dict[str, int] = {}
            for id_, name in self._db.execute("SELECT id, name FROM segments"):
                self._names[id_], self._ids[name] = name, id_
            self._forms = {
                id_: _Form(*texts)
                for id_, *texts in self._db.execute(
                    "SELECT id, fingerprint, ask, layout FROM forms"
                )
            }
            self._form_ids = {form: id_ for id_, form in self._forms.items()}
        except sqlite3.DatabaseError as error:
            self._db.close()
            if _is_full(error):
                raise OSError(errno.ENOSPC, f"the index cannot be opened: {error}") from error
            raise Damaged(str(error)) from error
        except Damaged:
            self._db.close()
            raise

    def _prepare(self, new: bool) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        if new:
            with self._writing():
                for statement in _TABLES.split(";")[:-1]:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise Damaged(f"version {version}, and this is version {VERSION}")
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise Damaged(verdict)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it or nothing."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if _is_full(error):
                raise OSError(errno.ENOSPC, f"the index cannot be written: {error}") from error
            raise Damaged(str(error)) from error

    def _reading(self, query: str, values: Sequence[object] = ()) -> list[tuple]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise Damaged(str(error)) from error

    def find(self, keys: Iterable[bytes]) -> list[Place | None]:
        """The place of each key."""
        places: list[Place | None] = []
        try:
            for key in keys:
                row = self._db.execute(_FIND, (key,)).fetchone()
                places.append(None if row is None else self._place(*row))
        except (sqlite3.DatabaseError, KeyError) as error:  # KeyError: a row that leads nowhere
            raise Damaged(str(error)) from error
        return places

    def _place(
        self,
        segment: int,
        offset: int,
        length: int,
        positions: bytes,
        start: int,
        tokens: int,
        form: int,
        checksum: bytes,
    ) -> Place:
        texts = self._forms[form]
        name = self._names[segment]
        return Place(name, offset, length, positions, start, tokens, *texts, checksum)

    def add_segment(self, name: str, size: int, used: int, rows: Rows) -> None:
        """Record a published segment. Of rows with one key, and over earlier segments, the last
        one counts. A segment that is known is left as it is."""
        if name in self._ids:
            return
        new_forms = {
            _Form(place.fingerprint, place.ask, place.layout): 0 for _, place in rows
        }.keys() - self._form_ids.keys()
        with self._writing():
            added = {
                self._insert(
                    "INSERT INTO forms (fingerprint, ask, layout) VALUES (?, ?, ?)", form
                ): form
                for form in new_forms
            }
            form_ids = {**self._form_ids, **{form: id_ for id_, form in added.items()}}
            segment = self._insert(
                "INSERT INTO segments (name, bytes, used) VALUES (?, ?, ?)", (name, size, used)
            )
            self._db.executemany(
                _PUT,
                (
                    (
                        key,
                        segment,
                        place.offset,
                        place.length,
                        place.positions,
                        place.start,
                        place.tokens,
                        form_ids[_Form(place.fingerprint, place.ask, place.layout)],
                        place.checksum,
                    )
                    for key, place in rows
                ),
            )
        # Only now: a transaction that failed leaves nothing behind in memory either.
        self._forms |= added
        self._form_ids = form_ids
        self._names[segment], self._ids[name] = name, segment

    def _insert(self, statement: str, values: Sequence[object]) -> int:
        id_ = self._db.execute(statement, values).lastrowid
        assert id_ is not None  # an insert has one
        return id_

    def drop_segment(self, name: str) -> int:
        """Forget a segment and the records that lie in it; how many those were."""
        id_ = self._ids.get(name)
        if id_ is None:
            return 0
        with self._writing():
            records = self._db.execute("DELETE FROM records WHERE segment = ?", (id_,)).rowcount
            self._db.execute("DELETE FROM segments WHERE id = ?", (id_,))
        del self._ids[name], self._names[id_]
        return records

    def drop_record(self, key: bytes) -> None:
        """Forget a record."""
        with self._writing():
            self._db.execute("DELETE FROM records WHERE key = ?", (key,))

    def drop_role(self, fingerprint: str) -> int:
        """Forget all records of a role; how many those were."""
        forms = [(id_,) for id_, form in self._forms.items() if form.fingerprint == fingerprint]
        with self._writing():
            return sum(
                self._db.execute("DELETE FROM records WHERE form = ?", form).rowcount
                for form in forms
            )

    def use(self, used: Mapping[str, int]) -> None:
        """Record when segments were last used; unknown ones are passed over."""
        with self._writing():
            self._db.executemany(
                "UPDATE segments SET used = ? WHERE name = ?",
                [(tick, name) for name, tick in used.items()],
            )

    def segments(self) -> dict[str, SegmentEntry]:
        """All segments by name, the least recently used first."""
        rows = self._reading("SELECT name, bytes, used FROM segments ORDER BY used, name")
        return {name: SegmentEntry(size, used) for name, size, used in rows}

    def records(self) -> int:
        """How many."""
        ((count,),) = self._reading("SELECT count(*) FROM records")
        return count

    def close(self) -> None:
        """Write everything back and close."""
        self._db.close()


def remove(file: Path) -> None:
    """Throw an index away."""
    for each in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        each.unlink(missing_ok=True)


def _is_full(error: sqlite3.DatabaseError) -> bool:
    """Whether the disk is at fault: SQLITE_FULL, SQLITE_CANTOPEN (of the log beside the index), or
    the many codes of SQLITE_IOERR, which share their low byte."""
    code = getattr(error, "sqlite_errorcode", None)
    of_disk = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    return code is not None and code & 0xFF in of_disk
