"""The cache of a cluster: one owner a node, keys spread over them by rendezvous hashing. Ray room.

A key belongs to the living owner whose hash with it is largest, so an owner that is lost moves its
own keys only. A client reads records of its own node's owner from the files, and asks for others.
"""

import hashlib
import logging
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.signals.cache.reader import Reader
from orchestrator.signals.cache.records import CacheRecord, RoleCard
from orchestrator.signals.cache.store import Place

from .cache_owner import CacheOwner
from .cache_records import LEASE_S, CacheHandle, Lead, Owner, Theirs, Verdict, Want
from .claims import Holder
from .records import NAMESPACE
from .translate import translated

log = logging.getLogger(__name__)

CALL_S = 30.0
START_S = 300.0
SILENCE_S = 300.0
"""An owner that answers nothing for this long, restarts included, is lost."""
MOST_HANDED = 1000
"""Puts remembered: more than can be on their way."""
SEVERAL_WAIT_S = 1.0
"""Longest wait at one of several owners while another may have news."""


class Cache:
    """The owners of one directory, one on each node that lived when it was opened.

    They outlive their starter, because other jobs of the cluster share them, and end by themselves
    when idle.
    """

    def __init__(self, handle: CacheHandle, starts: Sequence[Any]) -> None:
        self.handle, self._starts = handle, list(starts)
        self._complaints: list[str] = []

    @classmethod
    def open(cls, path: str, max_bytes: int) -> "Cache":
        """Find or start the owners. Does not wait for them."""
        digest = hashlib.blake2b(path.encode(), digest_size=6).hexdigest()
        owners = tuple(
            Owner(f"cache/{digest}/{node['NodeID']}", node["NodeID"], node["NodeManagerAddress"])
            for node in ray.nodes()
            if node["Alive"]
        )
        starts = [_owner_actor(owner, path, max_bytes).start.remote(max_bytes) for owner in owners]
        return cls(CacheHandle(path, owners), starts)

    def complaints(self) -> list[str]:
        """Wait for the owners; why any of them cannot keep records.

        Raises:
            SpecError: the directory is of another format version, or no directory.
            WorkerStalled: an owner has not started in time.
        """
        starts, self._starts = self._starts, []
        try:
            busy = ray.get(starts, timeout=START_S)
        except RayError as error:
            raise translated(error, "cache", "open") from error
        self._complaints += [reason for reason in busy if reason is not None]
        return self._complaints

    def stats(self) -> dict[str, int]:
        """Counts of the owners' stores in their present life, summed; see `CacheStats`."""
        total: dict[str, int] = {}
        for stats in self._told("stats"):
            for name, value in stats.items():
                total[name] = total.get(name, 0) + value
        return total

    def pids(self) -> list[int]:
        """Processes of the owners."""
        return self._told("pid")

    def publish(self) -> None:
        """Have owners write what they hold in memory. They stay for others."""
        self._told("flush")

    def _told(self, method: str) -> list[Any]:
        """What each owner answers; one that is away is left out, and logged."""
        answers: list[Any] = []
        for owner in self.handle.owners:
            try:
                actor = ray.get_actor(owner.name, NAMESPACE)
                answers.append(ray.get(getattr(actor, method).remote(), timeout=CALL_S))
            except (RayError, ValueError) as error:  # ValueError: it has ended
                log.warning("%s does not answer %s: %s", owner.name, method, error)
        return answers


def _owner_actor(owner: Owner, path: str, max_bytes: int) -> Any:
    return (
        ray.remote(CacheOwner)
        .options(
            name=owner.name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=1000,  # questions that wait
            scheduling_strategy=NodeAffinitySchedulingStrategy(owner.node, soft=False),
        )
        .remote(path, max_bytes)
    )


@dataclass(slots=True)
class LinkCounts:
    """What became of one client's reads."""

    damaged: int = 0  # records that were torn, corrupt or gone, and computed anew
    lost_owners: int = 0
    read_bytes: int = 0


@dataclass(slots=True)
class _Route:
    owner: Owner
    actor: Any
    local: bool
    places: list[int] = field(default_factory=list)


class CacheLink:
    """One client's way to the owners. Safe to use from several threads.

    Args:
        handle: which cache.
        client: whose claims; a client that starts again under its name drops its earlier claims.
    """

    def __init__(self, handle: CacheHandle, client: str) -> None:
        self.client, self.life = client, secrets.token_hex(4)
        self.counts = LinkCounts()
        here = ray.get_runtime_context().get_node_id()
        self._here = here
        self._reader = Reader(handle.path)
        self._lock = threading.Lock()
        self._living = {owner.name: owner for owner in handle.owners}
        self._actors: dict[str, Any] = {}
        self._unreadable: set[bytes] = set()
        self._handed: list[Any] = []  # the newest puts, for `flush` to wait for
        self._stopped = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="cache-pulse", daemon=True)
        self._pulse.start()

    def holder(self, question: str) -> Holder:
        """Who claims for a question of this client."""
        return Holder(self.client, self.life, question)

    def claim(self, question: str, wants: Sequence[Want], wait_s: float) -> list[Verdict]:
        """A verdict for each want; records in reach are read. See `CacheOwner.claim`.

        Returns:
            Records, `Lead` or `Theirs`; never a `Place`. Without a living owner all is `Lead`.
        """
        verdicts: list[Verdict] = [Lead(want.positions) for want in wants]
        routes = self._routes([want.key for want in wants])
        patience = wait_s if len(routes) < 2 else min(wait_s, SEVERAL_WAIT_S)
        asked = [
            (route, route.actor.claim.remote(
                self.holder(question), [wants[i] for i in route.places], not route.local, patience
            ))
            for route in routes
        ]  # fmt: skip
        for route, ref in asked:
            try:
                answers: list[Verdict] = ray.get(ref, timeout=patience + SILENCE_S)
            except RayTaskError:
                self.give_up(question, [want.key for want in wants])
                raise
            except RayError as error:  # the actor or its node
                self._lose(route.owner, error)
                answers = [Theirs() for _ in route.places]  # asked again, of another owner
            for place, answer in zip(route.places, answers, strict=True):
                verdicts[place] = self._read(wants[place], answer)
        return verdicts

    def put(self, records: Sequence[CacheRecord]) -> None:
        """Hand over records. Not waited for: a lost record is a miss later."""
        for route in self._routes([record.key for record in records]):
            handed = route.actor.put.remote([records[i] for i in route.places])
            with self._lock:
                self._handed = [*self._handed[-MOST_HANDED:], handed]

    def give_up(self, question: str, keys: Sequence[bytes]) -> None:
        """The question could not compute these."""
        for route in self._routes(keys):
            route.actor.give_up.remote(self.holder(question), [keys[i] for i in route.places])

    def missing(self, wants: Sequence[Want]) -> list[int]:
        """Places in `wants` of what no owner holds."""
        missing = set(range(len(wants)))  # also what has no living owner
        for route in self._routes([want.key for want in wants]):
            try:
                asked = route.actor.missing.remote([wants[i] for i in route.places])
                answer = ray.get(asked, timeout=SILENCE_S)
            except RayTaskError:
                raise
            except RayError as error:
                self._lose(route.owner, error)
                continue
            missing -= set(route.places) - {route.places[i] for i in answer}
        return sorted(missing)

    def put_role(self, card: RoleCard) -> None:
        """Keep a role's card on every node."""
        for actor in self._every():
            actor.put_role.remote(card)

    def flush(self) -> None:
        """Publish what was put."""
        with self._lock:
            handed, self._handed = self._handed, []
        _wait_for(handed)  # first: an owner's calls may overtake each other
        _wait_for([actor.flush.remote() for actor in self._every()])

    def close(self) -> None:
        """Stop. Claims still held lapse."""
        self._stopped.set()

    # --- inside ----------------------------------------------------------------------------------

    def _read(self, want: Want, answer: Verdict) -> Verdict:
        key = want.key
        if isinstance(answer, CacheRecord):
            self.counts.read_bytes += answer.nbytes
            return answer
        if not isinstance(answer, Place):
            return answer
        record = self._reader.read(key, answer)
        if record is None:
            self.counts.damaged += 1
            if key in self._unreadable:
                return Lead(want.positions)  # the owner reads what this process cannot
            self._unreadable.add(key)
            for route in self._routes([key]):
                ray.wait([route.actor.forget.remote([key])], timeout=CALL_S)
            return Theirs()  # asked again, it is a miss
        self.counts.read_bytes += record.nbytes
        return record

    def _routes(self, keys: Sequence[bytes]) -> list[_Route]:
        """Keys by owner; nothing if no owner lives."""
        with self._lock:
            living = list(self._living.values())
        routes: dict[str, _Route] = {}
        for place, key in enumerate(keys):
            owner = living[0] if len(living) == 1 else _owner_of(key, living)
            if owner is None:
                continue
            if owner.name not in routes:
                actor = self._actor(owner)
                if actor is None:
                    return self._routes(keys)
                routes[owner.name] = _Route(owner, actor, owner.node == self._here)
            routes[owner.name].places.append(place)
        return list(routes.values())

    def _actor(self, owner: Owner) -> Any | None:
        if owner.name not in self._actors:
            try:
                self._actors[owner.name] = ray.get_actor(owner.name, NAMESPACE)
            except ValueError as error:  # what Ray raises for a name that nobody has
                self._lose(owner, error)
                return None
        return self._actors[owner.name]

    def _every(self) -> list[Any]:
        with self._lock:
            living = list(self._living.values())
        return [actor for actor in map(self._actor, living) if actor is not None]

    def _lose(self, owner: Owner, error: Exception) -> None:
        with self._lock:
            if self._living.pop(owner.name, None) is not None:
                self.counts.lost_owners += 1
                log.warning("the cache on node %s is lost: %s", owner.node, error)

    def _beat(self) -> None:
        while not self._stopped.wait(LEASE_S / 3):
            for actor in self._every():
                actor.hear.remote(self.client, self.life)


def _wait_for(calls: Sequence[Any]) -> None:
    """Until owners have done what they were told; one that is lost is met by the next question."""
    for call in calls:
        try:
            ray.get(call, timeout=SILENCE_S)
        except RayTaskError:
            raise
        except RayError as error:  # the actor or its node
            log.warning("an owner has not said what became of records: %s", error)


def _owner_of(key: bytes, living: Sequence[Owner]) -> Owner | None:
    def score(owner: Owner) -> bytes:
        return hashlib.blake2b(key + owner.address.encode(), digest_size=8).digest()

    return max(living, key=score, default=None)
