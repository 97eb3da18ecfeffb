"""Damage of every kind ends in a miss: a read gives what was put, or None, never another value."""

import logging
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from cache_tools import LARGE, card, fetched, flip, place, record, same, segments

from orchestrator.signals.cache.inspection import verify
from orchestrator.signals.cache.reader import Reader
from orchestrator.signals.cache.records import CacheRecord, Place
from orchestrator.signals.cache.roles import read_role, role_file
from orchestrator.signals.cache.segments import scan_segment
from orchestrator.signals.cache.store import Store

Published = tuple[CacheRecord, Place]


@pytest.fixture
def published(tmp_path: Path) -> list[Published]:
    """Three records in one segment, and the store closed."""
    puts = [record(i) for i in range(3)]
    with Store.open(tmp_path, LARGE) as store:
        store.put(puts)
        store.flush()
        return [(put, place(store, put.key)) for put in puts]


def test_a_flipped_byte_anywhere_is_seen_by_readers_and_scans(
    tmp_path: Path, published: list[Published]
) -> None:
    (file,) = segments(tmp_path)
    reader = Reader(tmp_path)
    read, scanned = 0, 0
    for offset in range(file.stat().st_size):
        flip(file, offset, 1 << offset % 8)
        for put, where in published:
            there = reader.read(put.key, where)
            inside = where.offset <= offset < where.offset + where.length
            assert (there is None) == inside
            assert there is None or same(there, put)
            read += there is not None
        scan = scan_segment(file)
        for key, where in scan.rows:  # what an index made anew would lead to
            there = reader.read(key, where)
            (put,) = (put for put, _ in published if put.key == key)
            assert there is not None and same(there, put)
            scanned += 1
        flip(file, offset, 1 << offset % 8)
    size = file.stat().st_size
    assert read > size and scanned > size  # most flips leave most records whole
    assert len(scan_segment(file).rows) == 3


def test_a_changed_place_is_a_miss(tmp_path: Path, published: list[Published]) -> None:
    reader = Reader(tmp_path)
    (put, where), (other, elsewhere), _ = published
    changed = [
        where._replace(offset=where.offset + 64),
        where._replace(offset=elsewhere.offset),
        where._replace(offset=1 << 60),
        where._replace(offset=-64),
        where._replace(length=where.length - 64),
        where._replace(length=1 << 60),
        where._replace(positions=bytes([0b00001110, 0b00000010])),
        where._replace(start=4096),
        where._replace(tokens=11),
        where._replace(fingerprint="teacher-b"),
        where._replace(ask=where.ask.replace("4", "5")),
        where._replace(layout=where.layout.replace("f2", "u2")),
        where._replace(checksum=elsewhere.checksum),
        elsewhere,
    ]
    assert [reader.read(put.key, each) for each in changed] == [None] * len(changed)
    assert reader.read(other.key, where) is None
    assert reader.read(put.key, where) is not None


def test_a_segment_cut_short_under_an_open_reader_is_a_miss(
    tmp_path: Path, published: list[Published]
) -> None:
    (file,) = segments(tmp_path)
    reader = Reader(tmp_path)
    for size in range(file.stat().st_size - 1, -1, -37):
        os.truncate(file, size)
        late = Reader(tmp_path)
        for put, where in published:
            whole = where.offset + where.length <= size
            for each in (reader, late):
                there = each.read(put.key, where)
                assert (there is not None) == whole
                assert there is None or same(there, put)
    assert reader.counts.truncated > 0
    assert reader.counts.corrupt == reader.counts.unreadable == reader.counts.vanished == 0


def test_a_segment_that_grew_back_with_zeros_is_a_miss(
    tmp_path: Path, published: list[Published]
) -> None:
    (file,) = segments(tmp_path)
    reader = Reader(tmp_path)
    size = file.stat().st_size
    os.truncate(file, 1000)
    os.truncate(file, size)
    assert [reader.read(put.key, where) for put, where in published] == [None] * 3
    assert reader.counts.corrupt == 3
    with Store.open(tmp_path, LARGE) as store:  # the size is right, so the index believes it
        assert [fetched(store, reader, put.key) for put, _ in published] == [None] * 3
        store.forget([put.key for put, _ in published])
        assert store.stats().corrupt == 3
        store.put([put for put, _ in published])
        for put, _ in published:
            there = fetched(store, reader, put.key)
            assert there is not None and same(there, put)


@pytest.mark.parametrize("size", [0, 7, 900, -1])
def test_a_segment_cut_short_while_nobody_looked_is_left_out(
    tmp_path: Path, published: list[Published], caplog: pytest.LogCaptureFixture, size: int
) -> None:
    (file,) = segments(tmp_path)
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    for expected in (1, 0):  # the second start knows it already
        with Store.open(tmp_path, LARGE) as store:
            assert store.find([put.key for put, _ in published]) == [None] * 3
            assert store.stats().unreadable_segments == expected
            assert store.stats().segments == 1
    assert file.name in caplog.text
    with Store.open(tmp_path, LARGE) as store:  # it goes like any other
        store.prune_all()
    assert segments(tmp_path) == []


def test_an_evicted_segment_is_a_miss_and_its_name_is_never_used_again(tmp_path: Path) -> None:
    reader, names = Reader(tmp_path), []
    for _ in range(3):
        with Store.open(tmp_path, LARGE) as store:
            put = record(1)
            store.put([put])
            store.flush()
            where = place(store, put.key)
            names.append(where.segment)
            assert reader.read(put.key, where) is not None
            store.prune_all()
            assert Reader(tmp_path).read(put.key, where) is None
        (tmp_path / "index.sqlite").unlink()
    assert len(set(names)) == 3
    late = Reader(tmp_path)
    assert late.read(put.key, where) is None
    assert late.counts.vanished == 1


def test_a_reader_gives_back_the_disk_of_evicted_segments(tmp_path: Path) -> None:
    reader = Reader(tmp_path)

    def held() -> set[str]:
        handles = Path("/proc/self/fd")
        found = {os.readlink(handle) for handle in handles.iterdir() if handle.exists()}
        return {name for name in found if name.startswith(str(tmp_path / "segments"))}

    with Store.open(tmp_path, LARGE) as store:
        for i in range(40):
            store.put([record(i)])
            store.flush()
            assert reader.read(record(i).key, place(store, record(i).key)) is not None
        assert len(held()) == 32  # no more are kept open
        store.prune_to(0)
        store.put([record(99)])
        store.flush()
        assert reader.read(record(99).key, place(store, record(99).key)) is not None
        (left,) = segments(tmp_path)
        assert held() == {str(left)}


def test_only_what_is_damaged_is_forgotten(tmp_path: Path, published: list[Published]) -> None:
    (file,) = segments(tmp_path)
    (bad, where), (good, _), _ = published
    flip(file, where.offset + 5)
    with Store.open(tmp_path, LARGE) as store:
        store.forget([bad.key, good.key, record(77).key])
        assert store.find([bad.key]) == [None]
        there = fetched(store, store.reader, good.key)
        assert there is not None and same(there, good)
        assert (store.stats().corrupt, store.stats().records) == (1, 2)
    (tmp_path / "index.sqlite").unlink()
    with Store.open(tmp_path, LARGE) as store:
        assert store.find([bad.key]) == [None]
        assert (store.stats().corrupt, store.stats().records) == (1, 2)


# --- the index ------------------------------------------------------------------------------------


def all_there(path: Path, published: list[Published]) -> None:
    with Store.open(path, LARGE) as store:
        for put, _ in published:
            there = fetched(store, store.reader, put.key)
            assert there is not None and same(there, put)
        assert store.stats().records == len(published)


def test_a_deleted_index_is_made_anew(tmp_path: Path, published: list[Published]) -> None:
    (tmp_path / "index.sqlite").unlink()
    all_there(tmp_path, published)


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + bytes(4080)])
def test_a_file_that_is_no_index_is_made_anew(
    tmp_path: Path, published: list[Published], content: bytes
) -> None:
    (tmp_path / "index.sqlite").write_bytes(content)
    all_there(tmp_path, published)


def test_an_index_of_another_version_is_made_anew(
    tmp_path: Path, published: list[Published], caplog: pytest.LogCaptureFixture
) -> None:
    database = sqlite3.connect(tmp_path / "index.sqlite")
    database.execute("PRAGMA user_version = 9")
    database.close()
    all_there(tmp_path, published)
    assert "version 9" in caplog.text


@pytest.mark.parametrize("column", ["offset", "length", "start", "segment"])
def test_an_index_with_values_of_another_kind_is_made_anew(
    tmp_path: Path, published: list[Published], caplog: pytest.LogCaptureFixture, column: str
) -> None:
    database = sqlite3.connect(tmp_path / "index.sqlite")
    database.execute("PRAGMA ignore_check_constraints = ON")
    database.execute(f"UPDATE records SET {column} = 'text'")
    database.commit()
    database.close()
    all_there(tmp_path, published)
    assert "made anew" in caplog.text


def test_an_index_that_is_behind_or_ahead_of_the_segments_is_brought_in_line(
    tmp_path: Path, published: list[Published]
) -> None:
    index = tmp_path / "index.sqlite"
    behind = index.read_bytes()
    more = record(50)
    with Store.open(tmp_path, LARGE) as store:
        store.put([more])
        store.flush()
        where = place(store, more.key)
    ahead = index.read_bytes()
    index.write_bytes(behind)
    all_there(tmp_path, [*published, (more, where)])
    index.write_bytes(ahead)
    segments(tmp_path)[-1].unlink()
    all_there(tmp_path, published)


def test_a_flipped_byte_in_the_index_never_gives_another_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    puts = [record(i, width=4) for i in range(60)]
    with Store.open(tmp_path, LARGE) as store:
        store.put(puts)
    index = tmp_path / "index.sqlite"
    whole = index.read_bytes()
    found = 0
    rng = np.random.default_rng(7)
    for offset in rng.integers(0, len(whole), 60).tolist():
        index.write_bytes(whole)
        flip(index, offset, 1 << offset % 8)
        with Store.open(tmp_path, LARGE) as store:
            for put in puts:
                there = fetched(store, store.reader, put.key)
                assert there is None or same(there, put), f"offset {offset}"
                found += there is not None
            store.forget([put.key for put in puts])
            store.put(puts)  # and whatever it was, the store goes on
            store.flush()
            for put in puts:
                there = fetched(store, store.reader, put.key)
                assert there is not None and same(there, put), f"offset {offset}"
    assert found > 50 * len(puts)


def test_an_index_damaged_while_open_is_made_anew(
    tmp_path: Path, published: list[Published], caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open(tmp_path, LARGE) as store:
        index = store._catalogue._index
        index._names.clear()  # what a damaged page does: a record that leads nowhere
        for put, _ in published:
            there = fetched(store, store.reader, put.key)
            assert there is not None and same(there, put)
        store.put([record(9)])
        store.flush()
        assert store.stats().records == 4
    assert "made anew" in caplog.text


# --- naming the damage ----------------------------------------------------------------------------


def test_verify_names_segment_record_and_card(tmp_path: Path, published: list[Published]) -> None:
    with Store.open(tmp_path, LARGE) as store:
        store.put([record(50)])
        store.put_role(card("a"))
    assert [damage for _, found in verify(tmp_path) for damage in found] == []
    first, second = segments(tmp_path)
    put, where = published[1]
    flip(first, where.offset)
    os.truncate(second, 100)
    file = role_file(tmp_path, "a")
    flip(file, file.read_bytes().index(np.arange(12, dtype=np.uint16).tobytes()) + 4)
    assert read_role(tmp_path, "a") is None
    texts = [str(damage) for _, found in verify(tmp_path) for damage in found]
    assert len(texts) == 3
    assert texts[0] == f"{first.name}: record {put.key.hex()} has another checksum"
    assert texts[1].startswith(f"{second.name}: unreadable")
    assert texts[2].startswith(f"{file.name}: role card")
