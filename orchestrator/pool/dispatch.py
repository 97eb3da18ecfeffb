"""Decisions of a pool's client: what to send where, when to send again, what counts.

Pure: `advance(state, event) -> (state, commands)`. No Ray, no clock, no I/O, no randomness: events
carry `now` (seconds of any one monotonic clock), and choices are hashes of the request.

Promises, whatever the order, loss, repetition or lateness of events:
- a request is delivered at most once and consumed at most once; asked = delivered + failed in the
  end, and consumed = delivered once the caller took everything;
- what was sent and not yet consumed never exceeds the window. Requests beyond it are held back
  here, in order. One larger than the whole window goes alone, and one that the caller is already
  waiting for goes at once: held back behind answers that nobody takes, it would wait for ever;
- *any* attempt's answer may be the first one. Requests are deterministic, so an answer of an
  attempt given up as late is as good as that of its successor; every answer after the first is
  dropped and counted in `late_dropped`.

Failures are sorted. Infrastructure (lost, late): sent elsewhere, at most `losses` times a request;
a replica that is only out of reach rests and costs none of those.
Data (the model's code raised): `data_tries` tries, on different replicas where there are several.
Busy: the replica rests for the time it asked for. A request that no replica accepts for
`patience_s` fails.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from orchestrator.errors import (
    BudgetExhausted,
    StillhouseError,
    WorkerError,
    WorkerRaised,
    WorkerStalled,
)

from .records import Membership


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one client."""

    window_requests: int  # sent and not yet consumed
    window_bytes: int  # of their answers; one request alone may exceed it
    deadline_s: float = 120.0  # a send unanswered this long is late
    patience_s: float = 600.0  # a request that no replica accepts this long fails
    losses: int = 5  # lost or late sends of one request that are made good
    data_tries: int = 2  # sends that may raise before the request is at fault
    rest_s: float = 0.5  # pause for a replica that could not be reached

    def __post_init__(self) -> None:
        for name in ("window_requests", "window_bytes", "deadline_s", "patience_s", "data_tries"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.losses < 0 or self.rest_s < 0:
            raise ValueError(f"losses ({self.losses}) and rest_s ({self.rest_s}) must not be < 0")


@dataclass(frozen=True, slots=True)
class Counts:
    """What one client did since it was made. At rest asked = delivered + failed, and
    consumed = delivered."""

    asked: int = 0
    delivered: int = 0
    consumed: int = 0
    failed: int = 0
    redispatched: int = 0  # sends repeated after a loss, a late answer or an error
    refused: int = 0  # sends that a full replica refused
    late_dropped: int = 0  # answers after the first


class Phase(Enum):
    """Where a request stands."""

    HELD = "held"  # beyond the window
    WAITING = "waiting"  # admitted to the window, to be sent
    SENT = "sent"
    DELIVERED = "delivered"  # answered, not yet consumed
    FAILED = "failed"  # given up, the caller has not yet been told


DONE = (Phase.DELIVERED, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class Work:
    """One request, from asked to consumed."""

    request_id: str
    role: str
    nbytes: int  # of its answer, computed from the ask
    waiting_since: float  # since when no replica has accepted it
    phase: Phase = Phase.HELD
    urgent: bool = False  # the caller waits for it
    attempt: int = 0  # the newest send; 0: none yet
    deadline: float = 0.0  # of the newest send, while SENT
    losses: int = 0
    errors: int = 0
    avoid: tuple[str, ...] = ()  # replicas that lost, delayed or failed it


NOBODY = Membership(version=-1, replicas={})
"""Before the first membership arrives."""

Send = tuple[str, int]
"""(request_id, attempt)."""


@dataclass(frozen=True, slots=True)
class ClientState:
    """All a client knows."""

    limits: Limits
    works: Mapping[str, Work] = field(default_factory=dict)  # oldest first
    sends: Mapping[Send, str] = field(default_factory=dict)  # in flight, late ones too -> replica
    members: Membership = NOBODY
    dead: frozenset[str] = frozenset()  # seen dead, though the membership may not know yet
    resting: Mapping[str, float] = field(default_factory=dict)  # replica -> not before
    counts: Counts = Counts()


# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """The caller asks. An id may come again only once it is consumed."""

    now: float
    request_id: str
    role: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """The caller waits for the answer now."""

    now: float
    request_id: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A reply came back."""

    now: float
    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A send got no answer and never will. `gone`: its replica is dead, not just out of reach."""

    now: float
    request_id: str
    attempt: int
    gone: bool
    error: StillhouseError


@dataclass(frozen=True, slots=True)
class Refused:
    """The replica is full."""

    now: float
    request_id: str
    attempt: int
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Raised:
    """The replica's code raised. `final`: the error is the same everywhere by its kind."""

    now: float
    request_id: str
    attempt: int
    error: StillhouseError
    final: bool = False


@dataclass(frozen=True, slots=True)
class MembersSeen:
    """A membership arrived, perhaps an old one."""

    now: float
    members: Membership


@dataclass(frozen=True, slots=True)
class Consumed:
    """The caller took the answer, or was told the failure."""

    now: float
    request_id: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    now: float


Event = Submitted | Wanted | Answered | Lost | Refused | Raised | MembersSeen | Consumed | Tick


# --- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendTo:
    """Send the request to a replica."""

    request_id: str
    attempt: int
    replica: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """The answer at hand is the one that counts: keep it for the caller."""

    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Drop:
    """The answer at hand came after the first: forget it."""

    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Fail:
    """Tell the caller."""

    request_id: str
    error: StillhouseError


Command = SendTo | Deliver | Drop | Fail
Step = tuple[ClientState, list[Command]]


# --- questions -----------------------------------------------------------------------------------


def window(state: ClientState) -> tuple[int, int]:
    """(requests, bytes) admitted and not yet consumed."""
    admitted = [work.nbytes for work in state.works.values() if work.phase is not Phase.HELD]
    return len(admitted), sum(admitted)


def has_room(state: ClientState, nbytes: int = 1) -> bool:
    """Whether a request with an answer of `nbytes` would be sent at once."""
    held_back = any(work.phase is Phase.HELD for work in state.works.values())
    return not held_back and _fits(state, nbytes)


def _fits(state: ClientState, nbytes: int) -> bool:
    requests, held = window(state)
    if requests == 0:
        return True
    limits = state.limits
    return requests < limits.window_requests and held + nbytes <= limits.window_bytes


def next_wake(state: ClientState) -> float | None:
    """When a `Tick` is due if nothing else happens; None: never."""
    times: list[float] = []
    for work in state.works.values():
        if work.phase is Phase.SENT:
            times.append(work.deadline)
        elif work.phase is Phase.WAITING:
            times.append(work.waiting_since + state.limits.patience_s)
            times += [state.resting[r] for r in alive(state, work.role) if r in state.resting]
    return min(times, default=None)


def alive(state: ClientState, role: str) -> list[str]:
    """Replicas of a role that are members and not seen dead, sorted by name."""
    return sorted(r for r in state.members.replicas.get(role, ()) if r not in state.dead)


def choose(request_id: str, attempt: int, replicas: Sequence[str], load: Mapping[str, int]) -> str:
    """The less loaded of two replicas drawn by a hash of (request, attempt).

    Two random choices keep the longest queue short without anybody knowing all queues.

    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """
    digest = hashlib.blake2b(f"{request_id}/{attempt}".encode(), digest_size=8).digest()
    draw = int.from_bytes(digest, "big")
    first = draw % len(replicas)
    if len(replicas) == 1:
        return replicas[first]
    second = (first + 1 + (draw >> 32) % (len(replicas) - 1)) % len(replicas)
    return min(replicas[first], replicas[second], key=lambda replica: load.get(replica, 0))


# --- the machine ---------------------------------------------------------------------------------


def advance(state: ClientState, event: Event) -> Step:
    """Apply one event. What is stale or repeated changes nothing but a counter.

    Raises:
        ValueError: the caller used an id twice, or consumes what is not done.
    """
    state, commands = _apply(state, event)
    state, sends = _send_waiting(_admit(state, event.now), event.now)
    return state, commands + sends


def _apply(state: ClientState, event: Event) -> Step:
    match event:
        case Submitted():
            return _submit(state, event), []
        case Wanted():
            return _wanted(state, event), []
        case Answered():
            return _answer(state, event)
        case Lost():
            return _lost(state, event)
        case Refused():
            return _refused(state, event), []
        case Raised():
            return _raised(state, event)
        case MembersSeen():
            return _members(state, event)
        case Consumed():
            return _consume(state, event), []
        case Tick():
            return _late(state, event.now)


def _submit(state: ClientState, event: Submitted) -> ClientState:
    if event.request_id in state.works:
        raise ValueError(f"request {event.request_id} was asked and not consumed; use a new id")
    # Sends of an earlier life of this id may still be out: go on counting where they stopped.
    used = max((attempt for name, attempt in state.sends if name == event.request_id), default=0)
    work = Work(event.request_id, event.role, event.nbytes, event.now, attempt=used)
    counts = replace(state.counts, asked=state.counts.asked + 1)
    return replace(state, works={**state.works, work.request_id: work}, counts=counts)


def _wanted(state: ClientState, event: Wanted) -> ClientState:
    work = state.works.get(event.request_id)
    if work is None or work.phase is not Phase.HELD:
        return state
    work = replace(work, phase=Phase.WAITING, waiting_since=event.now, urgent=True)
    return _put(state, work)


def _admit(state: ClientState, now: float) -> ClientState:
    for work in list(state.works.values()):
        if work.phase is Phase.HELD:
            if not _fits(state, work.nbytes):
                break  # in order: a small one must not overtake a large one for ever
            state = _put(state, replace(work, phase=Phase.WAITING, waiting_since=now))
    return state


def _answer(state: ClientState, event: Answered) -> Step:
    state, _ = _close_send(state, event.request_id, event.attempt)
    work = state.works.get(event.request_id)
    if work is None or work.phase in DONE:
        counts = replace(state.counts, late_dropped=state.counts.late_dropped + 1)
        return replace(state, counts=counts), [Drop(event.request_id, event.attempt)]
    counts = replace(state.counts, delivered=state.counts.delivered + 1)
    state = _put(replace(state, counts=counts), replace(work, phase=Phase.DELIVERED))
    return state, [Deliver(event.request_id, event.attempt)]


def _lost(state: ClientState, event: Lost) -> Step:
    state, replica = _close_send(state, event.request_id, event.attempt)
    if replica is None:
        return state, []
    if event.gone:
        state = replace(state, dead=state.dead | {replica})
    else:
        state = _rest(state, replica, event.now + state.limits.rest_s)
    work = state.works.get(event.request_id)
    if work is None or not _is_current(work, event.attempt):
        return state, []
    if event.gone:
        return _again(state, work, replica, event.now, event.error)
    # Out of reach is no fault of the request, and may last as long as a node takes to be replaced:
    # `patience_s` bounds it, counted from when the request began to wait.
    work = replace(work, avoid=(*work.avoid, replica))
    return _requeue(state, work, work.waiting_since), []


def _refused(state: ClientState, event: Refused) -> ClientState:
    state, replica = _close_send(state, event.request_id, event.attempt)
    if replica is None:
        return state
    state = _rest(state, replica, event.now + event.retry_after_s)
    counts = replace(state.counts, refused=state.counts.refused + 1)
    state = replace(state, counts=counts)
    work = state.works.get(event.request_id)
    if work is None or not _is_current(work, event.attempt):
        return state
    # `waiting_since` stays: being refused is not being accepted.
    return _put(state, replace(work, phase=Phase.WAITING))


def _raised(state: ClientState, event: Raised) -> Step:
    state, replica = _close_send(state, event.request_id, event.attempt)
    work = state.works.get(event.request_id)
    if replica is None or work is None or work.phase in DONE:
        return state, []
    if event.final:
        return _fail(state, work, event.error)
    work = replace(work, errors=work.errors + 1, avoid=(*work.avoid, replica))
    if work.errors >= state.limits.data_tries:
        detail = event.error.detail if isinstance(event.error, WorkerError) else str(event.error)
        problem = f"raised in {work.errors} tries, so it fails everywhere; last: {detail}"
        return _fail(state, work, WorkerRaised(work.role, work.request_id, problem))
    if not _is_current(work, event.attempt):
        return _put(state, work), []
    return _requeue(state, work, event.now), []


def _members(state: ClientState, event: MembersSeen) -> Step:
    if event.members.version <= state.members.version:
        return state, []
    listed = {name for names in event.members.replicas.values() for name in names}
    state = replace(
        state,
        members=event.members,
        dead=state.dead & listed,  # an unlisted name never comes back
        resting={name: until for name, until in state.resting.items() if name in listed},
    )
    commands: list[Command] = []
    for work in list(state.works.values()):
        replica = state.sends.get((work.request_id, work.attempt))
        if work.phase is Phase.SENT and replica is not None and replica not in listed:
            error = WorkerError(work.role, work.request_id, f"{replica} left the pool")
            state, more = _again(state, work, replica, event.now, error)
            commands += more
    return state, commands


def _consume(state: ClientState, event: Consumed) -> ClientState:
    work = state.works.get(event.request_id)
    if work is None or work.phase not in DONE:
        raise ValueError(f"request {event.request_id} has no answer to consume")
    works = {name: kept for name, kept in state.works.items() if name != event.request_id}
    took = work.phase is Phase.DELIVERED
    counts = replace(state.counts, consumed=state.counts.consumed + took)
    return replace(state, works=works, counts=counts)


def _late(state: ClientState, now: float) -> Step:
    commands: list[Command] = []
    for work in list(state.works.values()):
        if work.phase is not Phase.SENT or now < work.deadline:
            continue
        # The send stays in `sends`: its replica is still burdened, and its answer still welcome.
        replica = state.sends[(work.request_id, work.attempt)]
        problem = f"no answer from {replica} in {state.limits.deadline_s:g} s"
        error = WorkerStalled(work.role, work.request_id, problem)
        state, more = _again(state, work, replica, now, error)
        commands += more
    return replace(state, resting={r: t for r, t in state.resting.items() if t > now}), commands


# --- parts ---------------------------------------------------------------------------------------


def _is_current(work: Work, attempt: int) -> bool:
    return work.phase is Phase.SENT and work.attempt == attempt


def _put(state: ClientState, work: Work) -> ClientState:
    return replace(state, works={**state.works, work.request_id: work})


def _rest(state: ClientState, replica: str, until: float) -> ClientState:
    until = max(until, state.resting.get(replica, until))
    return replace(state, resting={**state.resting, replica: until})


def _close_send(
    state: ClientState, request_id: str, attempt: int
) -> tuple[ClientState, str | None]:
    """Take a send out of flight; its replica, or None if it was not in flight (a repeat)."""
    replica = state.sends.get((request_id, attempt))
    if replica is None:
        return state, None
    sends = {send: to for send, to in state.sends.items() if send != (request_id, attempt)}
    return replace(state, sends=sends), replica


def _again(
    state: ClientState, work: Work, replica: str, now: float, error: StillhouseError
) -> Step:
    """Charge a lost or late send, and queue the request for another one."""
    work = replace(work, losses=work.losses + 1, avoid=(*work.avoid, replica))
    if work.losses > state.limits.losses:
        problem = (
            f"request {work.request_id} to {work.role} was lost or late {work.losses} times, "
            f"{state.limits.losses} are made good; look at the replicas' logs, or raise "
            f"pool.deadline_s if they are only slow; last: {error}"
        )
        return _fail(state, work, BudgetExhausted(problem))
    return _requeue(state, work, now), []


def _requeue(state: ClientState, work: Work, now: float) -> ClientState:
    counts = replace(state.counts, redispatched=state.counts.redispatched + 1)
    work = replace(work, phase=Phase.WAITING, waiting_since=now)
    return _put(replace(state, counts=counts), work)


def _fail(state: ClientState, work: Work, error: StillhouseError) -> Step:
    counts = replace(state.counts, failed=state.counts.failed + 1)
    state = _put(replace(state, counts=counts), replace(work, phase=Phase.FAILED))
    return state, [Fail(work.request_id, error)]


def _send_waiting(state: ClientState, now: float) -> Step:
    commands: list[Command] = []
    for work in list(state.works.values()):
        if work.phase is Phase.WAITING:
            state, more = _send_or_wait(state, work, now)
            commands += more
    return state, commands


def _send_or_wait(state: ClientState, work: Work, now: float) -> Step:
    living = alive(state, work.role)
    if not living and work.role in state.members.failed:
        return _fail(state, work, state.members.failed[work.role])
    rested = [replica for replica in living if state.resting.get(replica, now) <= now]
    if not rested:
        if now - work.waiting_since < state.limits.patience_s:
            return state, []
        why = "all are full" if living else "none is alive"
        problem = (
            f"request {work.request_id}: no replica of {work.role} took it for "
            f"{state.limits.patience_s:g} s ({why}); look at the pool's status, add replicas or "
            f"free the resources they wait for"
        )
        return _fail(state, work, BudgetExhausted(problem))
    candidates = [replica for replica in rested if replica not in work.avoid] or rested
    attempt = work.attempt + 1
    load = Counter(state.sends.values())
    replica = choose(work.request_id, attempt, candidates, load)
    work = replace(work, phase=Phase.SENT, attempt=attempt, deadline=now + state.limits.deadline_s)
    state = _put(state, work)
    state = replace(state, sends={**state.sends, (work.request_id, attempt): replica})
    return state, [SendTo(work.request_id, attempt, replica)]
