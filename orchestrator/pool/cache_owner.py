"""The actor that owns one node's signal cache: its only writer, and the judge of claims. Ray room.

Calls run on one event loop, so claims need no lock; the store works on one thread beside it. The
order is always claim first, then look: a key found in the store gives its claim back at once. So
between a look and a claim nothing can slip through, and no key is computed twice.

An owner outlives the job that started it. So each job says its limit anew, and a directory that was
refused, or that another session wrote to, is tried again.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import ray

from orchestrator.errors import CacheBusy, SpecError
from orchestrator.signals.cache.guest import Guest
from orchestrator.signals.cache.notes import read_note, write_note
from orchestrator.signals.cache.records import CacheRecord, RoleCard
from orchestrator.signals.cache.store import Place, Store

from .cache_records import LEASE_S, Lead, Theirs, Verdict, Want
from .claims import Claims, Holder

log = logging.getLogger(__name__)

FLUSH_S = 10.0
"""Records wait no longer than this for their segment to be published."""
LEFT_FREE = 1 << 30
"""Bytes of the disk left to checkpoints and the rest of the machine."""
IDLE_S = 600.0
"""An owner that no client has spoken to for this long ends, and with it the directory's lock."""

LIMIT_NOTE = "max-bytes"
"""Where an owner that Ray starts again finds the limit that came last."""

T = TypeVar("T")
Shelf = Store | Guest


class CacheOwner:
    """One directory on one node.

    Args:
        path: the directory.
        max_bytes: its limit, until `start` says another.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        logging.basicConfig(level=logging.INFO)
        self._path = path
        self._claims = Claims(LEASE_S)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._changed = asyncio.Condition()
        self._spoken = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._store: Shelf | None = None
        self._max_bytes = _limit_before(path, max_bytes)
        try:
            self._open()
        except SpecError as error:  # `start` tries again and tells: from here Ray would only retry
            log.warning("%s", error)

    async def start(self, max_bytes: int) -> str | None:
        """Begin to look after the store; why nothing is kept here, or None.

        Args:
            max_bytes: the limit from now on, whoever set another before.

        Raises:
            SpecError: the directory cannot be used.
        """
        self._speak()
        self._max_bytes = max_bytes
        return await self._on_thread(self._open)

    async def claim(
        self, holder: Holder, wants: Sequence[Want], inline: bool, wait_s: float
    ) -> list[Verdict]:
        """For each want: where the record is, that the holder is to compute it, or that another is.

        If others compute all that is wanted, waits up to `wait_s` for a change.

        Args:
            inline: send records themselves, for a client on another node.
        """
        give_up = time.monotonic() + wait_s
        while True:
            self._hear(holder.client, holder.life)
            verdicts = await self._judge(holder, wants)
            left = give_up - time.monotonic()
            if left <= 0 or any(not isinstance(verdict, Theirs) for verdict in verdicts):
                break
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait(), min(left, LEASE_S / 3))
                except TimeoutError:
                    log.debug("%s still waits", holder)
        return await self._inlined(verdicts, wants) if inline else verdicts

    async def put(self, records: Sequence[CacheRecord]) -> None:
        """Keep records, and tell who waits for them."""
        try:
            await self._in_store(lambda store: store.put(records), None)
        finally:  # whoever waits must not wait for a record that could not be kept
            await self._settled([record.key for record in records])

    async def give_up(self, holder: Holder, keys: Sequence[bytes]) -> None:
        """The holder could not compute these."""
        self._claims.give_up(keys, holder)
        await self._notify()

    async def forget(self, keys: Sequence[bytes]) -> None:
        """A reader found these records damaged."""
        await self._in_store(lambda store: store.forget(keys), None)

    async def missing(self, wants: Sequence[Want]) -> list[int]:
        """Places in `wants` of what the store does not hold. Claims nothing."""
        self._speak()
        found = await self._found(wants)
        return [
            index
            for index, (want, place) in enumerate(zip(wants, found, strict=True))
            if place is None or not want.covered_by(place)
        ]

    async def hear(self, client: str, life: str) -> None:
        """The client lives."""
        self._hear(client, life)

    async def put_role(self, card: RoleCard) -> None:
        """Keep what a student needs of a role besides its signals."""
        await self._in_store(lambda store: store.put_role(card), None)

    async def flush(self) -> None:
        """Publish what is in memory."""
        await self._in_store(lambda store: store.flush(), None)

    async def stats(self) -> dict[str, int]:
        """Counts of the store, and claims open."""
        nothing: dict[str, int] = {}
        stats = await self._in_store(lambda store: store.stats_dict(), nothing)
        return {**stats, "claims": len(self._claims)}

    async def pid(self) -> int:
        """This process."""
        return os.getpid()

    # --- inside ----------------------------------------------------------------------------------

    def _open(self) -> str | None:
        """Write to the directory, or else read it; why it is not written, or None.

        Raises:
            SpecError: the directory cannot be used.
        """
        if isinstance(self._store, Store):
            self._store.limit_to(self._max_bytes)
        else:
            try:
                store = Store.open(self._path, self._max_bytes, left_free=LEFT_FREE)
            except CacheBusy as error:
                # Another session on this machine writes here. Questions in flight are shared too.
                self._store = self._store or Guest(self._path)
                return f"{error}. Until then its records are read here, and no new ones are kept"
            before, self._store = self._store, store
            if before is not None:
                before.close()
        _note_limit(self._path, self._max_bytes)
        return None

    def _tend(self) -> None:
        """Publish what is in memory; write where another session did, once that has ended."""
        if isinstance(self._store, Guest):
            self._open()
        elif self._store is not None:
            self._store.flush()

    def _speak(self) -> None:
        """Somebody is there. Ray starts an owner again without telling it, so look here too."""
        self._spoken = time.monotonic()
        if not self._tasks:
            self._tasks.add(asyncio.get_running_loop().create_task(self._look_after()))

    def _hear(self, client: str, life: str) -> None:
        self._speak()
        self._claims.heard(client, life, self._spoken)

    async def _judge(self, holder: Holder, wants: Sequence[Want]) -> list[Verdict]:
        now = time.monotonic()
        taken = [self._claims.take(want.key, holder, now) for want in wants]
        found = await self._found(wants)
        verdicts: list[Verdict] = []
        needless: list[bytes] = []
        for want, mine, place in zip(wants, taken, found, strict=True):
            if place is not None and want.covered_by(place):
                verdicts.append(place)
                if mine:
                    needless.append(want.key)
            elif mine:
                verdicts.append(Lead(want.joined_with(place)))
            else:
                verdicts.append(Theirs())
        if needless:
            await self._settled(needless)
        return verdicts

    async def _found(self, wants: Sequence[Want]) -> list[Place | CacheRecord | None]:
        keys = [want.key for want in wants]
        nothing: list[Place | CacheRecord | None] = [None] * len(keys)
        return await self._in_store(lambda store: [*store.find(keys)], nothing)

    async def _inlined(self, verdicts: list[Verdict], wants: Sequence[Want]) -> list[Verdict]:
        """Places become records; one that cannot be read becomes somebody's to compute."""
        answered: list[Verdict] = []
        for verdict, want in zip(verdicts, wants, strict=True):
            if isinstance(verdict, Place):
                answered.append(await self._in_store(_reading(want.key, verdict), Theirs()))
            else:
                answered.append(verdict)
        return answered

    async def _settled(self, keys: Sequence[bytes]) -> None:
        self._claims.settle(keys)
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _in_store(self, call: Callable[[Shelf], T], otherwise: T) -> T:
        """What the store says, as it is when its thread comes to it; `otherwise` without one."""
        return await self._on_thread(
            lambda: otherwise if self._store is None else call(self._store)
        )

    async def _on_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self._on_thread(self._tend)
            except Exception:
                log.exception("%s could not be looked after; trying again", self._path)
            if time.monotonic() - self._spoken > IDLE_S:
                await self._in_store(lambda store: store.close(), None)
                # Not `exit_actor`, which takes effect at the next call only: that of a new job.
                ray.kill(ray.get_runtime_context().current_actor)


def _reading(key: bytes, place: Place) -> Callable[[Shelf], Verdict]:
    """The record at a place; asked again, one that cannot be read is a miss."""

    def read(store: Shelf) -> Verdict:
        record = store.reader.read(key, place)
        if record is None:
            store.forget([key])
        return Theirs() if record is None else record

    return read


def _limit_before(path: str, max_bytes: int) -> int:
    """The limit that came last, if Ray started this owner again; it knows the first one only."""
    if not (ray.is_initialized() and ray.get_runtime_context().was_current_actor_reconstructed):
        return max_bytes
    try:
        return int(read_note(path, LIMIT_NOTE) or max_bytes)
    except (OSError, ValueError) as error:
        log.warning(
            "the newest limit of %s cannot be told, so it is %d: %s", path, max_bytes, error
        )
        return max_bytes


def _note_limit(path: str, max_bytes: int) -> None:
    try:
        write_note(path, LIMIT_NOTE, str(max_bytes))
    except OSError as error:  # a full disk
        log.warning("should this owner start again, it will not know its limit: %s", error)
