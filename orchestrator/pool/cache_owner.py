"""The actor that owns one node's signal cache: its only writer, and the judge of claims. Ray room.

Calls run on one event loop, so claims need no lock; the store works on one thread beside it. The
order is always claim first, then look: a key found in the store gives its claim back at once. So
between a look and a claim nothing can slip through, and no key is computed twice.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray

from orchestrator.errors import CacheBusy, SpecError
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

T = TypeVar("T")


class CacheOwner:
    """One directory on one node.

    Args:
        path: the directory.
        max_bytes: its limit.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        logging.basicConfig(level=logging.INFO)
        self._path = path
        self._claims = Claims(LEASE_S)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._changed = asyncio.Condition()
        self._spoken = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self.busy: str | None = None
        self._store: Store | None = None
        self._error: SpecError | None = None
        try:
            self._store = Store.open(path, max_bytes, left_free=LEFT_FREE)
        except CacheBusy as error:
            # Another session on this machine writes here. Questions in flight are still shared.
            log.warning("%s", error)
            self.busy = str(error)
        except SpecError as error:  # raised by `start`: from here Ray would only retry it
            self._error = error

    async def start(self) -> str | None:
        """Begin to look after the store; why nothing is kept here, or None.

        Raises:
            SpecError: the directory cannot be used.
        """
        if self._error is not None:
            raise self._error
        self._speak()
        return self.busy

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
            if self._store is not None:
                await self._in_store(self._store.put, records)
        finally:  # whoever waits must not wait for a record that could not be kept
            await self._settled([record.key for record in records])

    async def give_up(self, holder: Holder, keys: Sequence[bytes]) -> None:
        """The holder could not compute these."""
        self._claims.give_up(keys, holder)
        await self._notify()

    async def forget(self, keys: Sequence[bytes]) -> None:
        """A reader found these records damaged."""
        if self._store is not None:
            await self._in_store(self._store.forget, keys)

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
        if self._store is not None:
            await self._in_store(self._store.put_role, card)

    async def flush(self) -> None:
        """Publish what is in memory."""
        if self._store is not None:
            await self._in_store(self._store.flush)

    async def stats(self) -> dict[str, int]:
        """Counts of the store, and claims open."""
        stats = {} if self._store is None else await self._in_store(self._store.stats_dict)
        return {**stats, "claims": len(self._claims)}

    async def pid(self) -> int:
        """This process."""
        return os.getpid()

    # --- inside ----------------------------------------------------------------------------------

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
        if self._store is None:
            return [None] * len(wants)
        return await self._in_store(self._store.find, [want.key for want in wants])

    async def _inlined(self, verdicts: list[Verdict], wants: Sequence[Want]) -> list[Verdict]:
        """Places become records; one that cannot be read becomes somebody's to compute."""
        store = self._store
        assert store is not None or not any(isinstance(v, Place) for v in verdicts)
        answered: list[Verdict] = []
        for verdict, want in zip(verdicts, wants, strict=True):
            if not isinstance(verdict, Place) or store is None:
                answered.append(verdict)
                continue
            record = await self._in_store(store.reader.read, want.key, verdict)
            if record is None:
                await self._in_store(store.forget, [want.key])
            answered.append(Theirs() if record is None else record)  # asked again, it is a miss
        return answered

    async def _settled(self, keys: Sequence[bytes]) -> None:
        self._claims.settle(keys)
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _in_store(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except Exception:
                log.exception("the records in memory could not be published; trying again")
            if time.monotonic() - self._spoken > IDLE_S:
                if self._store is not None:
                    await self._in_store(self._store.close)
                # Not `exit_actor`, which takes effect at the next call only: that of a new job.
                ray.kill(ray.get_runtime_context().current_actor)
