"""The store: what is put is found, by whom, until when; one writer; limits; role cards."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from cache_tools import ASK, LARGE, card, fetched, place, record, same, segments

from orchestrator.errors import CacheBusy, SpecError
from orchestrator.signals.cache import segments as segment_files
from orchestrator.signals.cache.keys import RANGE
from orchestrator.signals.cache.reader import Reader
from orchestrator.signals.cache.records import CacheRecord, Place
from orchestrator.signals.cache.roles import read_role, role_file
from orchestrator.signals.cache.store import Store
from orchestrator.signals.records import HeadRecord, HiddenAsk


def test_a_record_is_the_same_before_and_after_it_is_published(tmp_path: Path) -> None:
    put = record(1)
    reader = Reader(tmp_path)
    with Store.open(tmp_path, LARGE) as store:
        store.put([put])
        (waiting,) = store.find([put.key])
        assert isinstance(waiting, CacheRecord) and same(waiting, put)
        assert segments(tmp_path) == []
        store.flush()
        there = reader.read(put.key, place(store, put.key))
    assert there is not None and same(there, put)
    assert reader.counts.records == 1
    assert not any(
        array.flags.writeable for array in (*there.arrays.values(), *waiting.arrays.values())
    )


def test_what_is_put_is_a_copy(tmp_path: Path) -> None:
    put, untouched = record(1), record(1)
    with Store.open(tmp_path, LARGE) as store:
        store.put([put])
        for array in put.arrays.values():
            array[...] = 0
        store.flush()
        there = fetched(store, Reader(tmp_path), put.key)
    assert there is not None and same(there, untouched)


def test_a_record_that_somebody_took_from_memory_never_changes(tmp_path: Path) -> None:
    with Store.open(tmp_path, LARGE, segment_bytes=4160) as store:
        taken: list[tuple[CacheRecord, CacheRecord]] = []
        for i in range(12):  # buffers are used again, but for those of which views are out
            put = record(i, width=1000)
            store.put([put])
            if i % 3 == 0:
                (found,) = store.find([put.key])
                assert isinstance(found, CacheRecord)
                taken.append((put, found))
            store.flush()
        assert len(taken) == 4
        assert all(same(put, found) for put, found in taken)


def test_every_type_shape_and_order_of_numbers_is_kept(tmp_path: Path) -> None:
    plain = record(1)
    kinds = ["u1", "<u2", "<i4", "<i8", "<f2", "<f4", "<f8", "?", ">f4"]
    arrays = {f"of {kind}": np.arange(24).reshape(4, 2, 3).astype(kind) for kind in kinds}
    arrays["no width"] = np.empty((4, 0), np.float32)
    arrays["scalar"] = np.arange(4.0)
    arrays["not contiguous"] = np.arange(48.0).reshape(4, 12)[:, ::3]
    put = CacheRecord(plain.key, plain.fingerprint, ASK, 10, plain.positions, arrays)
    with Store.open(tmp_path, LARGE) as store:
        store.put([put])
        store.flush()
        there = fetched(store, Reader(tmp_path), put.key)
    assert there is not None
    for name, array in arrays.items():
        np.testing.assert_array_equal(there.arrays[name], array, strict=name != "of >f4")


def test_the_last_position_of_a_range_and_later_ranges_are_kept(tmp_path: Path) -> None:
    puts = [record(1, [RANGE - 1]), record(1, [RANGE]), record(1, [3 * RANGE, 4 * RANGE - 1])]
    with Store.open(tmp_path, LARGE) as store:
        store.put(puts)
        store.flush()
        there = [fetched(store, Reader(tmp_path), put.key) for put in puts]
    assert all(t is not None and same(t, put) for t, put in zip(there, puts, strict=True))


def test_a_fingerprint_that_differs_by_one_character_is_a_miss(tmp_path: Path) -> None:
    with Store.open(tmp_path, LARGE) as store:
        store.put([record(1, fingerprint="0123456789abcdef")])
        assert store.find([record(1, fingerprint="0123456789abcdee").key]) == [None]
        assert (store.stats().hits, store.stats().misses) == (0, 1)


@pytest.mark.parametrize("published", [False, True])
def test_a_record_gives_way_to_one_with_further_positions_only(
    tmp_path: Path, published: bool
) -> None:
    first, fewer, more = record(1, [0, 2, 3]), record(1, [0, 3]), record(1, [0, 2, 3, 9])
    other = record(1, [1, 2])
    reader = Reader(tmp_path)
    with Store.open(tmp_path, LARGE) as store:
        for put, expected in (
            (first, first),
            (fewer, first),
            (more, more),
            (first, more),
            (other, other),
        ):
            # One key although the number of tokens differs: the helper makes them 10 long.
            assert put.key == first.key
            store.put([put])
            if published:
                store.flush()
            there = fetched(store, reader, first.key)
            assert there is not None and same(there, expected)
        store.flush()
        there = fetched(store, reader, first.key)
        assert there is not None and same(there, other)
    (tmp_path / "index.sqlite").unlink()
    with Store.open(tmp_path, LARGE) as store:  # and an index made anew comes to the same
        there = fetched(store, reader, first.key)
        assert there is not None and same(there, other)


def test_segments_are_published_by_size_and_hold_what_they_can(tmp_path: Path) -> None:
    puts = [record(i, width=1000) for i in range(10)]  # 4032 + 2 * 64 bytes packed, each
    large = record(99, width=5000)
    with Store.open(tmp_path, LARGE, segment_bytes=3 * 4160) as store:
        store.put(puts)
        store.put([large])  # larger than a segment: one of its own
        store.flush()
        rows = [pa.ipc.open_file(str(file)).read_all().num_rows for file in segments(tmp_path)]
        assert rows == [3, 3, 3, 1, 1]
        assert store.stats().records == 11 == store.stats().written_records
        there = fetched(store, Reader(tmp_path), large.key)
    assert there is not None and same(there, large)


def test_a_reopened_cache_has_all_and_starts_no_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts = [record(i) for i in range(20)]
    with Store.open(tmp_path, LARGE) as store:
        store.put(puts)

    def refuse(*_: object) -> None:
        raise AssertionError("segments were read again")

    monkeypatch.setattr("orchestrator.signals.cache.catalogue.scan_segment", refuse)
    with Store.open(tmp_path, LARGE) as store:
        there = [fetched(store, Reader(tmp_path), put.key) for put in puts]
    assert all(t is not None and same(t, put) for t, put in zip(there, puts, strict=True))


def test_a_segment_opens_in_any_arrow_tool(tmp_path: Path) -> None:
    put = record(1)
    with Store.open(tmp_path, LARGE) as store:
        store.put([put])
    (row,) = pa.ipc.open_file(str(segments(tmp_path)[0])).read_all().to_pylist()
    payload = row.pop("payload")
    assert row.pop("checksum") != bytes(16)
    assert row == {
        "key": put.key,
        "fingerprint": "teacher-a",
        "ask": '{"dtype":"float16","k":4,"kind":"topk","temperatures":[1.0,2.0]}',
        "length": 10,
        "start": 0,
        "positions": bytes([0b00001101, 0b00000010]),
        "layout": '[["ids","|u1",[8]],["logprobs","<f2",[4]],["entropy","<f4",[]]]',
    }
    assert payload[:32] == put.arrays["ids"].tobytes()
    assert payload[64:96] == put.arrays["logprobs"].tobytes()
    assert payload[128:144] == put.arrays["entropy"].tobytes() and len(payload) == 192


def test_a_place_crosses_processes_and_shares_its_texts(tmp_path: Path) -> None:
    puts = [record(i) for i in range(50)]
    with Store.open(tmp_path, LARGE) as store:
        store.put(puts)
        store.flush()
        found = store.find([put.key for put in puts])
    sent = pickle.dumps(found)
    assert pickle.loads(sent) == found
    assert sent.count(b'"kind":"topk"') == 1  # what records have in common is sent once


# --- one writer -----------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    code = (
        "import sys; from orchestrator.signals.cache.store import Store\n"
        "from orchestrator.errors import CacheBusy\n"
        "try: Store.open(sys.argv[1], 1 << 30)\n"
        "except CacheBusy as error: print(error)\n"
    )
    with Store.open(tmp_path, LARGE) as store:
        store.put([record(1)])
        store.flush()
        with pytest.raises(CacheBusy, match=f"pid {os.getpid()} on"):
            Store.open(tmp_path, LARGE)
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
        )
        assert str(tmp_path) in done.stdout and f"pid {os.getpid()} on" in done.stdout
        assert fetched(store, Reader(tmp_path), record(1).key) is not None
    Store.open(tmp_path, LARGE).close()  # free again


def test_two_processes_share_a_directory_as_writer_and_reader(tmp_path: Path) -> None:
    code = (
        "import pickle, sys; from orchestrator.signals.cache.reader import Reader\n"
        "wanted = pickle.load(sys.stdin.buffer)\n"
        "reader = Reader(sys.argv[1])\n"
        "got = [reader.read(key, place) for key, place in wanted]\n"
        "pickle.dump(got, sys.stdout.buffer)\n"
    )
    puts = [record(i) for i in range(30)]
    with Store.open(tmp_path, LARGE) as store:
        store.put(puts)
        store.flush()
        wanted = [(put.key, place(store, put.key)) for put in puts]
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            input=pickle.dumps(wanted),
            capture_output=True,
            check=True,
            timeout=60,
        )
    there = pickle.loads(done.stdout)
    assert all(same(t, put) for t, put in zip(there, puts, strict=True))


def test_threads_put_and_find_at_once(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    wrong: list[object] = []

    def work(thread: int, store: Store) -> None:
        for i in range(60):
            put = record(thread * 1000 + i, width=200)
            store.put([put])
            earlier = record(thread * 1000 + i // 2, width=200)
            there = fetched(store, reader, earlier.key)
            if there is None or not same(there, earlier):
                wrong.append((thread, i, there))

    with Store.open(tmp_path, LARGE, segment_bytes=8192) as store:
        threads = [threading.Thread(target=work, args=(n, store)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.flush()
        assert wrong == []
        assert store.stats().records == 240


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    Store.open(tmp_path, LARGE).close()
    leftovers = [
        tmp_path / "segments" / f"{segment_files.TEMPORARY}000000000001-0123456789abcdef.arrow",
        tmp_path / "roles" / f"{segment_files.TEMPORARY}x.arrow",
    ]
    for file in leftovers:
        file.write_bytes(b"ARROW1 half a file")
    with Store.open(tmp_path, LARGE) as store:
        assert store.stats().segments == 0 == store.stats().unreadable_segments
    assert not any(file.exists() for file in leftovers)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path, LARGE).close()
    (tmp_path / "format").write_text("stillhouse signals 2\n")
    with pytest.raises(SpecError) as caught:
        Store.open(tmp_path, LARGE)
    text = str(caught.value)
    assert str(tmp_path) in text and "signals 2" in text and "signals 1" in text
    assert "Give another folder" in text


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SpecError, match=r"thesis\.tex"):
        Store.open(tmp_path, LARGE)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_segments_without_a_version_are_left_alone(tmp_path: Path) -> None:
    with Store.open(tmp_path, LARGE) as store:
        store.put([record(1)])
    for name in ("format", "index.sqlite", "lock"):
        (tmp_path / name).unlink()
    with pytest.raises(SpecError, match="no file `format`"):
        Store.open(tmp_path, LARGE)
    assert len(segments(tmp_path)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": b"short"}, "key has 5 bytes"),
        ({"positions": np.array([], np.int32)}, "n > 0"),
        ({"positions": np.array([0, 1], np.int64)}, "int64"),
        ({"positions": np.array([1, 1], np.int32)}, "rise"),
        ({"positions": np.array([-1, 1], np.int32)}, "leave their range"),
        ({"positions": np.array([1, 10], np.int32)}, "leave their range"),
        ({"length": 2 * RANGE, "positions": np.array([1, RANGE], np.int32)}, "one record for each"),
        ({"arrays": {"x": np.zeros((3, 2))}}, r"shape \[3, 2\] for 2"),
        ({"arrays": {"x": np.array(["a", "b"])}}, "only numbers"),
        ({"arrays": {"x": np.array([None, None])}}, "only numbers"),
    ],
)
def test_a_record_that_could_not_be_read_back_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    fields = {
        "key": bytes(16),
        "fingerprint": "a",
        "ask": ASK,
        "length": 10,
        "positions": np.array([0, 1], np.int32),
        "arrays": {"x": np.zeros((2, 2))},
    }
    broken = CacheRecord(**(fields | change))  # pyright: ignore[reportArgumentType]
    with Store.open(tmp_path, LARGE) as store, pytest.raises(ValueError, match=message):
        store.put([broken])


# --- limits ---------------------------------------------------------------------------------------


def test_the_segments_least_recently_used_go_first(tmp_path: Path) -> None:
    puts = [record(i, width=1000) for i in range(10)]
    reader = Reader(tmp_path)
    with Store.open(tmp_path, LARGE, segment_bytes=4160) as store:
        store.put(puts)
        store.flush()
        size = store.stats().bytes // 10
        used = [place(store, puts[i].key).segment for i in (0, 1)]
    with Store.open(tmp_path, LARGE, segment_bytes=4160) as store:
        store.touch([used[1]])
        store.prune_to(5 * size)
        held = [i for i, put in enumerate(puts) if fetched(store, reader, put.key) is not None]
        assert held == [0, 1, 7, 8, 9]  # 0 and 1 were looked up last before, and that was kept
        stats = store.stats()
        assert (stats.evicted_segments, stats.evicted_records) == (5, 5)
        assert stats.bytes + stats.evicted_bytes == 10 * size
        assert stats.bytes == sum(file.stat().st_size for file in segments(tmp_path))


def test_a_use_counts_at_once_when_room_is_needed(tmp_path: Path) -> None:
    puts = [record(i, width=1000) for i in range(20)]
    with Store.open(tmp_path, 100_000, segment_bytes=4160) as store:
        store.put(puts[:12])
        store.flush()
        assert store.stats().evicted_segments == 0
        store.find([puts[0].key])
        store.put(puts[12:])
        store.flush()
        assert store.stats().evicted_segments > 0
        assert fetched(store, store.reader, puts[0].key) is not None
        assert fetched(store, store.reader, puts[1].key) is None


def test_the_limit_holds_and_the_newest_segment_stays(tmp_path: Path) -> None:
    limit = 120_000
    with Store.open(tmp_path, limit, segment_bytes=4160) as store:
        for i in range(100):
            put = record(i, width=1000)
            store.put([put])
            store.flush()
            assert store.stats().bytes <= limit
            assert fetched(store, store.reader, put.key) is not None
        assert store.stats().evicted_segments > 50
        assert store.stats().write_failures == 0
        # Room is made for more than one segment at a time.
        assert store.stats().bytes < 0.95 * limit


def test_a_smaller_limit_holds_from_the_next_start(tmp_path: Path) -> None:
    with Store.open(tmp_path, LARGE, segment_bytes=4160) as store:
        store.put([record(i, width=1000) for i in range(20)])
    with Store.open(tmp_path, 30_000) as store:
        assert 0 < store.stats().bytes <= 27_000


def test_what_can_never_fit_is_counted_and_dropped_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = record(1)
    with Store.open(tmp_path, 25_000) as store:
        store.put([small])
        store.flush()
        for i in range(3):
            store.put([record(10 + i, width=10_000)])
            store.flush()
        assert (store.stats().write_failures, store.stats().dropped) == (3, 3)
        assert store.find([record(10, width=10_000).key]) == [None]
        assert fetched(store, store.reader, small.key) is not None  # nothing was evicted for it
    assert caplog.text.count("goes on without") == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_costs_the_records_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    # Full for real: tests/chaos/test_cache_store.py. Here the write seam raises.
    kept, lost, later = record(1), record(2), record(3)
    with Store.open(tmp_path, LARGE) as store:
        store.put([kept])
        store.flush()

        def fail(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patched:
            patched.setattr(segment_files, "publish", fail)
            store.put([lost])
            store.flush()
        assert [file.name for file in (tmp_path / "segments").iterdir()] == [
            file.name for file in segments(tmp_path)
        ]
        assert (store.stats().write_failures, store.stats().dropped) == (1, 1)
        assert store.find([lost.key]) == [None]
        store.put([later, lost])
        store.flush()
        for put in (kept, lost, later):
            there = fetched(store, store.reader, put.key)
            assert there is not None and same(there, put)


# --- pruning a role -------------------------------------------------------------------------------


def test_pruning_a_role_leaves_the_others_and_outlives_the_index(tmp_path: Path) -> None:
    gone = [record(i, fingerprint="gone") for i in range(6)]
    stay = [record(i, fingerprint="stay") for i in range(6)]
    with Store.open(tmp_path, LARGE) as store:
        store.put([*gone[:3], *stay[:3]])
        store.flush()
        store.put(gone[3:])
        store.flush()
        store.put(stay[3:])
        store.put_role(card("gone"))
        store.put_role(card("stay"))
        assert store.prune_role("gone") == 6
        assert len(segments(tmp_path)) == 2
    (tmp_path / "index.sqlite").unlink()
    with Store.open(tmp_path, LARGE) as store:
        assert store.find([put.key for put in gone]) == [None] * 6
        there = [fetched(store, store.reader, put.key) for put in stay]
        assert all(t is not None and same(t, put) for t, put in zip(there, stay, strict=True))
    assert read_role(tmp_path, "gone") is None and read_role(tmp_path, "stay") is not None


# --- role cards -----------------------------------------------------------------------------------


def test_a_role_card_is_read_as_it_was_put(tmp_path: Path) -> None:
    with Store.open(tmp_path, LARGE) as store:
        store.put_role(card("a"))
        store.put_role(card("b", head=False))
    put, there = card("a"), read_role(tmp_path, "a")
    assert there is not None and there.description == put.description
    assert there.head is not None and put.head is not None
    for name in HeadRecord.__dataclass_fields__:
        np.testing.assert_array_equal(
            getattr(there.head, name), getattr(put.head, name), strict=True
        )
    other = read_role(tmp_path, "b")
    assert other is not None and other.head is None
    assert read_role(tmp_path, "c") is None
    assert read_role(tmp_path / "nowhere", "a") is None


def test_a_card_gains_a_head_and_never_loses_one(tmp_path: Path) -> None:
    with Store.open(tmp_path, LARGE) as store:
        for head, expected in ((False, False), (True, True), (False, True)):
            store.put_role(card("a", head))
            there = read_role(tmp_path, "a")
            assert there is not None and (there.head is not None) == expected


def test_a_damaged_role_card_is_no_card_and_is_written_again(tmp_path: Path) -> None:
    with Store.open(tmp_path, LARGE) as store:
        store.put_role(card("a"))
        file = role_file(tmp_path, "a")
        whole = file.read_bytes()
        for cut in (0, 10, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:cut])
            assert read_role(tmp_path, "a") is None
        store.put_role(card("a"))
        assert file.read_bytes() == whole


def test_a_full_disk_costs_the_card_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with Store.open(tmp_path, LARGE) as store:
        monkeypatch.setattr("orchestrator.signals.cache.roles.publish", fail)
        store.put_role(card("a"))
        assert store.stats().write_failures == 1
    assert list((tmp_path / "roles").iterdir()) == []


def test_records_of_several_asks_live_side_by_side(tmp_path: Path) -> None:
    one, other = record(1), record(1, ask=HiddenAsk("float32"))
    assert one.key != other.key
    with Store.open(tmp_path, LARGE) as store:
        store.put([one, other])
        store.flush()
        for put in (one, other):
            there = fetched(store, store.reader, put.key)
            assert there is not None and same(there, put)
    assert isinstance(there, CacheRecord) and not isinstance(there, Place)


def test_what_the_disk_must_keep_free_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints share the disk: the cache stops before it is full."""
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with Store.open(tmp_path, LARGE, left_free=free - 100) as store:
        store.put([record(1)])
        store.flush()
        stats = store.stats()
    assert (stats.written_records, stats.write_failures, stats.dropped) == (0, 1, 1)
