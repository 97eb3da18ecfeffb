"""The signal cache under kills and on a full disk, with real processes and a real file system."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cache_tools import LARGE, card, fetched, place, record, same, segments

from orchestrator.errors import SpecError
from orchestrator.signals.cache.inspection import verify
from orchestrator.signals.cache.reader import Reader
from orchestrator.signals.cache.store import Store

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

WRITER = """
import itertools, sys
from cache_tools import card, record
from orchestrator.signals.cache.store import Store
store = Store.open(sys.argv[1], 400_000, segment_bytes=12_000)
print("open", flush=True)
for i in itertools.count(int(sys.argv[2])):
    store.put([record(i, width=300)])
    if i % 13 == 0:
        store.put_role(card(f"role {i}"))
    if i % 7 == 0:
        store.find([record(i // 2, width=300).key])
    if i % 11 == 0:
        store.forget([record(i // 3, width=300).key])
    if i % 5 == 0:
        store.flush()
        print(i, flush=True)  # everything up to here is published
"""


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests" / "support")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def test_a_writer_killed_at_any_moment_leaves_a_sound_cache(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    begin, reader, kept = 0, Reader(tmp_path), 0
    for _ in range(12):
        writer = python(WRITER, str(tmp_path), str(begin))
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        lines = [writer.stdout.readline() for _ in range(rng.integers(1, 12))]
        time.sleep(rng.uniform(0.0, 0.1))  # the moment of the kill, not a hope for order
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.read().split()
        published = [int(line) for line in lines]
        writer.wait(timeout=30)
        assert [str(each) for _, found in verify(tmp_path) for each in found] == []
        last = max(published)
        with Store.open(tmp_path, 400_000) as store:
            stats = store.stats()
            assert stats.corrupt == stats.unreadable_segments == 0
            for i in range(last + 40):
                put = record(i, width=300)
                there = fetched(store, reader, put.key)
                assert there is None or same(there, put)
                kept += there is not None
                # The newest that were flushed are there: eviction takes the oldest.
                assert there is not None or not last - 20 < i <= last or i < begin
            held = sum(file.stat().st_size for file in segments(tmp_path))
            assert stats.bytes == held <= 400_000
        leftovers = [file for file in tmp_path.rglob(".writing-*")]
        assert leftovers == []
        begin = last + 40
    assert kept > 100


def test_a_reader_goes_on_when_the_writer_is_killed_and_another_comes(tmp_path: Path) -> None:
    code = (
        "import pickle, sys, time; from cache_tools import place, record\n"
        "from orchestrator.signals.cache.store import Store\n"
        "store = Store.open(sys.argv[1], 1 << 40)\n"
        "store.put([record(i) for i in range(20)]); store.flush()\n"
        "places = [(record(i).key, place(store, record(i).key)) for i in range(20)]\n"
        "print(pickle.dumps(places).hex(), flush=True); store.put([record(99)]); sys.stdin.read()\n"
    )
    writer = python(code, str(tmp_path))
    assert writer.stdout is not None
    places = pickle.loads(bytes.fromhex(writer.stdout.readline()))
    reader = Reader(tmp_path)
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=30)
    with Store.open(tmp_path, LARGE) as store:  # the lock died with its holder
        assert store.find([record(99).key]) == [None]  # was not published
        for i, (key, where) in enumerate(places):
            there = reader.read(key, where)
            assert there is not None and same(there, record(i))
            assert place(store, key) == where


@contextmanager
def disk_of(folder: Path, limit: str) -> Iterator[Path]:
    """A small file system of its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount; tests/unit/test_cache_store.py fakes the full disk")
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, timeout=30).returncode != 0:
        pytest.skip("this container may not mount; the unit tests fake the full disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=30)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    with disk_of(tmp_path, "size=2m") as disk:
        yield disk


def test_a_full_disk_costs_records_and_nothing_else(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_disk / "cache"
    puts = [record(i, width=20_000) for i in range(60)]  # 80 KB each, 4.8 MB together
    with Store.open(path, LARGE, segment_bytes=400_000) as store:
        store.put(puts)
        store.put_role(card("a"))
        store.flush()
        stats = store.stats()
        assert stats.write_failures > 0 and stats.dropped > 0
        assert stats.records + stats.dropped == 60
        assert stats.records > 0
        for put in puts:
            there = fetched(store, store.reader, put.key)
            assert there is None or same(there, put)
        (small_disk / "filler").write_bytes(bytes(_free(small_disk)))  # not a page is left
        store.put([put for put in puts if store.find([put.key]) == [None]])
        store.forget([puts[0].key])
        store.flush()
        assert store.stats().write_failures > stats.write_failures
        (small_disk / "filler").unlink()
        store.prune_to(600_000)
        store.put(puts[:5])
        store.flush()
        for put in puts[:5]:
            there = fetched(store, store.reader, put.key)
            assert there is not None and same(there, put)
    assert caplog.text.count("goes on without") == 1
    assert [str(each) for _, found in verify(path) for each in found] == []


@pytest.mark.parametrize("files", range(2, 13))
def test_a_disk_without_room_for_another_file_is_refused_or_costs_records(
    tmp_path: Path, files: int
) -> None:
    """Bytes are free, and the file system refuses new files, at whatever file of the cache."""
    kept, put = record(1), record(2)
    with disk_of(tmp_path, f"size=2m,nr_inodes={files}") as disk:
        try:
            store = Store.open(disk, LARGE, left_free=1 << 20)
        except SpecError as error:
            assert files < 7, error
            assert "Free space on its disk" in str(error) or "Give another folder" in str(error)
            return
        with store:
            for each in (kept, put):
                store.put([each])
                store.flush()
                there = fetched(store, store.reader, each.key)
                assert there is None or same(there, each)
            stats = store.stats()
            assert stats.records + stats.dropped == 2
            assert stats.write_failures == stats.dropped
            assert (stats.dropped == 0) == (files >= 9)


def _free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize
