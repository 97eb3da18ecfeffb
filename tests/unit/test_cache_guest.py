"""A guest reads what another process keeps: all of it, nothing else, and touches no file."""

import os
from pathlib import Path

import pytest
from cache_tools import LARGE, flip, place, record, same, segments

from orchestrator.errors import SpecError
from orchestrator.signals.cache import guest as guest_module
from orchestrator.signals.cache.guest import Guest
from orchestrator.signals.cache.keys import RANGE
from orchestrator.signals.cache.records import CacheRecord
from orchestrator.signals.cache.segments import brief_rows, scan_segment
from orchestrator.signals.cache.store import Store


def _read(guest: Guest, put: CacheRecord) -> CacheRecord | None:
    (found,) = guest.find([put.key])
    return None if found is None else guest.reader.read(put.key, found)


def _is_read(guest: Guest, put: CacheRecord) -> bool:
    there = _read(guest, put)
    assert there is None or same(there, put)
    return there is not None


def test_rows_are_found_without_their_payloads_where_a_whole_scan_finds_them(
    tmp_path: Path,
) -> None:
    with Store.open(tmp_path, LARGE, segment_bytes=40_000) as store:
        store.put([record(i, width=1 + 37 * i) for i in range(30)])
        store.put([record(99, [RANGE, RANGE + 3]), record(98, [2 * RANGE - 1], width=60_000)])
    files = segments(tmp_path)
    assert len(files) > 2
    for file in files:
        assert list(brief_rows(file)) == list(scan_segment(file).rows)


def test_a_guest_finds_what_the_writer_finds(tmp_path: Path) -> None:
    first, more, other = record(1, [0, 2]), record(1, [0, 2, 3]), record(2)
    with Store.open(tmp_path, LARGE, segment_bytes=512) as store:
        for put in (first, more, other, first):
            store.put([put])
            store.flush()
        guest = Guest(tmp_path)
        assert guest.find([more.key, other.key, record(3).key]) == [
            place(store, more.key),
            place(store, other.key),
            None,
        ]
        assert _is_read(guest, more) and _is_read(guest, other)
        stats = guest.stats_dict()
        assert (stats["records"], stats["segments"]) == (2, len(segments(tmp_path)))
        assert (stats["hits"], stats["misses"]) == (4, 1)
    guest.close()


def test_a_guest_learns_of_new_segments_and_of_evicted_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = record(1, width=3000), record(2, width=3000)
    with Store.open(tmp_path, LARGE) as store:
        store.put([old])
        store.flush()
        guest = Guest(tmp_path)
        store.put([new])
        assert not _is_read(guest, new)
        store.flush()
        assert not _is_read(guest, new), "the directory was looked through at every miss"
        monkeypatch.setattr(guest_module, "LOOK_S", 0.0)
        assert _is_read(guest, new)
        store.prune_to(20_000)
        assert _is_read(guest, new)
        assert guest.find([record(3).key]) == [None]  # a miss makes it look
        assert guest.stats_dict()["segments"] == 1
        assert guest.find([old.key]) == [None]
    guest.close()


def test_a_guest_keeps_nothing_and_touches_no_file(tmp_path: Path) -> None:
    with Store.open(tmp_path, LARGE) as store:
        store.put([record(1)])
        store.flush()

        def files() -> dict[str, tuple[int, int]]:
            return {
                str(file): (file.stat().st_mtime_ns, file.stat().st_size)
                for file in sorted(tmp_path.rglob("*"))
            }

        before = files()
        guest = Guest(tmp_path)
        guest.find([record(1).key])
        guest.put([record(2), record(3)])
        guest.forget([record(1).key])
        guest.limit_to(1)
        guest.flush()
        assert guest.find([record(2).key]) == [None]
        assert _is_read(guest, record(1)), "what can be read was forgotten"
        assert guest.stats_dict()["dropped"] == 2
        guest.close()
        assert files() == before


@pytest.mark.parametrize("looked_first", [False, True])
def test_a_flipped_bit_anywhere_is_a_miss_and_no_other_record(
    tmp_path: Path, looked_first: bool
) -> None:
    puts = [record(i) for i in range(3)]
    with Store.open(tmp_path, LARGE) as store:
        store.put(puts)
    (file,) = segments(tmp_path)
    read = missed = 0
    for offset in range(0, file.stat().st_size, 3):
        guest = Guest(tmp_path) if looked_first else None
        flip(file, offset, 1 << offset % 8)
        guest = guest or Guest(tmp_path)
        for put in puts:
            if _is_read(guest, put):
                read += 1
            else:
                missed += 1
                guest.forget([put.key])
                assert guest.find([put.key]) == [None]
        guest.close()
        flip(file, offset, 1 << offset % 8)
    assert read > 100 and missed > 100


def test_a_segment_cut_short_is_counted_and_the_others_are_read(tmp_path: Path) -> None:
    with Store.open(tmp_path, LARGE) as store:
        for i in range(3):
            store.put([record(i)])
            store.flush()
    os.truncate(segments(tmp_path)[1], 100)
    guest = Guest(tmp_path)
    assert [_is_read(guest, record(i)) for i in range(3)] == [True, False, True]
    assert guest.stats_dict()["unreadable_segments"] == 1
    guest.close()


def test_a_record_that_was_damaged_and_put_again_is_found_where_it_is_whole(
    tmp_path: Path,
) -> None:
    put = record(1)
    with Store.open(tmp_path, LARGE) as store:
        store.put([put])
        store.flush()
        flip(segments(tmp_path)[0], place(store, put.key).offset)
        store.forget([put.key])
        store.put([put])
        store.flush()
        guest = Guest(tmp_path)
        assert _is_read(guest, put)
        guest.close()


def test_a_directory_taken_away_is_all_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_module, "LOOK_S", 0.0)
    path = tmp_path / "cache"
    with Store.open(path, LARGE) as store:
        store.put([record(1)])
    guest = Guest(path)
    path.rename(tmp_path / "elsewhere")
    assert guest.find([record(2).key]) == [None]
    assert not _is_read(guest, record(1))
    guest.close()


def test_another_format_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path, LARGE).close()
    (tmp_path / "format").write_text("stillhouse signals 2\n")
    with pytest.raises(SpecError, match="signals 2"):
        Guest(tmp_path)
