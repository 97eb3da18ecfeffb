"""A cache owner without Ray: a limit that changes, a directory that another has, a full disk."""

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from cache_tools import LARGE, record, same, segments

from orchestrator.errors import SpecError
from orchestrator.pool import cache_owner
from orchestrator.pool.cache_owner import CacheOwner
from orchestrator.pool.cache_records import Lead, Theirs, Verdict, Want, bitmap
from orchestrator.pool.claims import Holder
from orchestrator.signals.cache import guest as guest_module
from orchestrator.signals.cache import segments as segment_files
from orchestrator.signals.cache.reader import Reader
from orchestrator.signals.cache.records import CacheRecord, Place
from orchestrator.signals.cache.store import Store

WHO = Holder("run/0", "1", "q")


@pytest.fixture(autouse=True)
def small_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_owner, "LEFT_FREE", 0)
    monkeypatch.setattr(guest_module, "LOOK_S", 0.0)


def _played(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to its end on a loop of its own, whose tasks end with it."""
    asyncio.run(asyncio.wait_for(play(), 30))


def _wants(*records: CacheRecord) -> list[Want]:
    return [Want(each.key, bitmap(each)) for each in records]


async def _claimed(
    owner: CacheOwner, put: CacheRecord, inline: bool = False, who: Holder = WHO
) -> Verdict:
    (verdict,) = await owner.claim(who, _wants(put), inline, 0.0)
    return verdict


async def _end(owner: CacheOwner) -> None:
    """As its process would: the directory is free then."""
    await owner._in_store(lambda store: store.close(), None)


# --- a later job ----------------------------------------------------------------------------------


def test_the_limit_that_came_last_holds(tmp_path: Path) -> None:
    async def play() -> None:
        owner = CacheOwner(str(tmp_path), LARGE)
        assert await owner.start(LARGE) is None
        for i in range(8):
            await owner.put([record(i, width=1000)])
            await owner.flush()
        (size,) = {file.stat().st_size for file in segments(tmp_path)}
        await owner.start(4 * size)
        held = [file.stat().st_size for file in segments(tmp_path)]
        assert 0 < sum(held) <= 4 * size
        assert isinstance(await _claimed(owner, record(7, width=1000)), Place)
        for i in range(20, 30):
            await owner.put([record(i, width=1000)])
            await owner.flush()
            assert sum(file.stat().st_size for file in segments(tmp_path)) <= 4 * size
        await owner.start(LARGE)
        before = len(segments(tmp_path))
        for i in range(40, 45):
            await owner.put([record(i, width=1000)])
            await owner.flush()
        assert len(segments(tmp_path)) == before + 5
        await _end(owner)

    _played(play)


def test_a_directory_that_was_refused_is_tried_again(tmp_path: Path) -> None:
    path, put = tmp_path / "cache", record(1)
    Store.open(path, LARGE).close()
    (path / "format").write_text("stillhouse signals 99\n")

    async def play() -> None:
        owner = CacheOwner(str(path), LARGE)
        for _ in range(2):
            with pytest.raises(SpecError, match="signals 99"):
                await owner.start(LARGE)
        assert isinstance(await _claimed(owner, put), Lead)
        path.rename(tmp_path / "old")
        assert await owner.start(LARGE) is None
        await owner.put([put])
        await owner.flush()
        assert isinstance(await _claimed(owner, put), Place)
        await _end(owner)

    _played(play)


# --- two sessions ---------------------------------------------------------------------------------


def test_a_second_session_reads_what_is_there_and_keeps_nothing(tmp_path: Path) -> None:
    known, later, own = record(1), record(2), record(3)

    async def play() -> None:
        first = CacheOwner(str(tmp_path), LARGE)
        await first.put([known])
        await first.flush()
        second = CacheOwner(str(tmp_path), LARGE)
        complaint = await second.start(LARGE)
        assert complaint is not None
        for word in (str(tmp_path), f"pid {os.getpid()}", "another folder", "no new ones are kept"):
            assert word in complaint
        place = await _claimed(second, known)
        assert isinstance(place, Place)
        there = Reader(tmp_path).read(known.key, place)
        assert there is not None and same(there, known)
        sent = await _claimed(second, known, inline=True)
        assert isinstance(sent, CacheRecord) and same(sent, known)

        await first.put([later])
        await first.flush()
        assert isinstance(await _claimed(second, later), Place), "what came later is not read"

        assert isinstance(await _claimed(second, own), Lead)
        assert await _claimed(second, own, who=Holder("run/1", "1", "q")) == Theirs()
        await second.put([own])
        await second.flush()
        assert isinstance(await _claimed(second, own), Lead)
        assert (await second.stats())["dropped"] == 1
        assert isinstance(await _claimed(first, own), Lead), "two wrote to one directory"
        assert await second.missing(_wants(known, later, own)) == [2]
        await _end(first)
        await _end(second)

    _played(play)


def test_a_second_session_writes_once_the_first_has_ended(tmp_path: Path) -> None:
    put = record(1)

    async def play() -> None:
        first, second = (CacheOwner(str(tmp_path), LARGE) for _ in range(2))
        assert await second.start(LARGE) is not None
        await second._on_thread(second._tend)
        await second.put([put])
        assert isinstance(await _claimed(second, put), Lead)
        await _end(first)
        await second._on_thread(second._tend)
        await second.put([put])
        await second.flush()
        assert isinstance(await _claimed(second, put), Place)
        assert await second.start(LARGE) is None
        await _end(second)

    _played(play)


# --- records for another node ---------------------------------------------------------------------


def test_a_client_of_another_node_is_sent_the_records_themselves(tmp_path: Path) -> None:
    published, waiting, unknown = record(1), record(2), record(3)

    async def play() -> None:
        owner = CacheOwner(str(tmp_path), LARGE)
        await owner.put([published])
        await owner.flush()
        await owner.put([waiting])
        sent = await owner.claim(WHO, _wants(published, waiting, unknown), True, 0.0)
        for verdict, put in zip(sent, (published, waiting), strict=False):
            assert isinstance(verdict, CacheRecord) and same(verdict, put)
        assert isinstance(sent[2], Lead)
        await _end(owner)

    _played(play)


def test_a_record_that_cannot_be_sent_is_a_miss_when_asked_again(tmp_path: Path) -> None:
    put = record(1)

    async def play() -> None:
        owner = CacheOwner(str(tmp_path), LARGE)
        await owner.put([put])
        await owner.flush()
        (file,) = segments(tmp_path)
        raw = file.read_bytes()
        file.write_bytes(bytes(byte ^ 1 for byte in raw))
        assert await _claimed(owner, put, inline=True) == Theirs()
        assert isinstance(await _claimed(owner, put, inline=True), Lead)
        assert (await owner.stats())["corrupt"] == 1
        await owner.put([put])
        sent = await _claimed(owner, put, inline=True)
        assert isinstance(sent, CacheRecord) and same(sent, put)
        await _end(owner)

    _played(play)


# --- a full disk ----------------------------------------------------------------------------------


def test_on_a_full_disk_who_waits_is_told_and_what_was_lost_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Full for real: tests/chaos. Here the seam at which a segment is made durable raises.
    kept, lost, other = record(1), record(2), Holder("run/1", "1", "q")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def play() -> None:
        owner = CacheOwner(str(tmp_path), LARGE)
        await owner.put([kept])
        await owner.flush()
        monkeypatch.setattr(segment_files, "publish", full)
        assert isinstance(await _claimed(owner, lost), Lead)
        waiting = asyncio.ensure_future(owner.claim(other, _wants(lost), False, 20.0))
        await asyncio.sleep(0)
        await owner.put([lost])
        (verdict,) = await waiting
        assert isinstance(verdict, CacheRecord) and same(verdict, lost)  # while it is in memory
        await owner.flush()
        stats = await owner.stats()
        assert (stats["write_failures"], stats["dropped"], stats["claims"]) == (1, 1, 0)
        assert isinstance(await _claimed(owner, lost, who=other), Lead)
        assert isinstance(await _claimed(owner, kept), Place)
        await _end(owner)

    _played(play)
