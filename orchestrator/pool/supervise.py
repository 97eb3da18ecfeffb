"""Decisions of a pool's controller: membership, health, restarts within a budget.

Pure: `advance(state, event) -> (state, commands)`. No Ray, no clock, no I/O. `now` is wall-clock
seconds, because restarts are remembered across lives of the controller.

A slot is one wanted copy of a role; each incarnation of it has a name that never repeats. A death
within the budget is made good. Beyond the budget the slot stays empty and the role goes on with
the copies it has; a role without any is failed, with the last cause. A model that cannot be loaded
is at fault itself: `SpecError` is never retried, another error once. A copy that loads other
weights than its siblings is refused: answers must not depend on who gives them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from orchestrator.errors import (
    BudgetExhausted,
    SpecError,
    StillhouseError,
    WorkerLost,
    WorkerStalled,
)

from .records import (
    Membership,
    ReplicaReport,
    RoleDescription,
    parse_replica_name,
    replica_name,
)

LOAD_TRIES = 2
"""Loads of one slot that may raise in a row."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When a replica is given up, and how often it is replaced."""

    restarts: int  # deaths made good
    restart_window_s: float | None = None  # only deaths this recent count; None: all
    missed_pings: int = 6  # in a row, of a ready replica
    start_s: float = 900.0  # to be scheduled and loaded


class Phase(Enum):
    """Where a slot stands."""

    STARTING = "starting"
    READY = "ready"
    DEAD = "dead"  # and not replaced


@dataclass(frozen=True, slots=True)
class Slot:
    """One wanted copy of a role."""

    role: str
    index: int
    name: str  # of the present incarnation
    since: float  # when this incarnation was started
    phase: Phase = Phase.STARTING
    missed: int = 0
    failed_loads: int = 0


SlotKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class PoolState:
    """All a controller decides on. `serial` numbers incarnations, `version` memberships."""

    pool: str
    policy: Policy
    version: int
    serial: int
    slots: Mapping[SlotKey, Slot] = field(default_factory=dict)
    restarts: tuple[float, ...] = ()  # when each was granted
    descriptions: Mapping[str, RoleDescription] = field(default_factory=dict)
    failed: Mapping[str, StillhouseError] = field(default_factory=dict)
    closed: bool = False


# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reported:
    """A replica answered a ping."""

    now: float
    name: str
    report: ReplicaReport


@dataclass(frozen=True, slots=True)
class Missed:
    """A ping got no answer in time."""

    now: float
    name: str


@dataclass(frozen=True, slots=True)
class Died:
    """A replica's process is gone, or could not be made."""

    now: float
    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    now: float


@dataclass(frozen=True, slots=True)
class VersionSeen:
    """Somebody holds this version. Above ours, it is from an earlier life with a faster clock."""

    now: float
    version: int


@dataclass(frozen=True, slots=True)
class Closing:
    """The pool goes down; clients get `error`."""

    now: float
    error: StillhouseError


Event = Reported | Missed | Died | Tick | VersionSeen | Closing


# --- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartReplica:
    """Make an actor of this name for a role."""

    role: str
    name: str


@dataclass(frozen=True, slots=True)
class KillReplica:
    """End the actor of this name, if it lives."""

    name: str


Command = StartReplica | KillReplica
Step = tuple[PoolState, list[Command]]


# --- the machine ---------------------------------------------------------------------------------


def begin(
    pool: str,
    copies: Mapping[str, int],
    policy: Policy,
    *,
    now: float,
    found: Iterable[str] = (),
    restarts: tuple[float, ...] = (),
) -> Step:
    """The state of a controller that starts, or starts again.

    Args:
        pool: name of the pool.
        copies: wanted replicas by role.
        policy: budgets.
        now: wall-clock seconds; versions and serials count up from its microseconds, so they
            are above those of an earlier life.
        found: names of living actors of the pool, from an earlier life: they are taken over.
        restarts: when earlier lives granted restarts.

    Returns:
        The state, and commands that fill the empty slots and end duplicates.
    """
    base = int(now * 1e6)
    state = PoolState(pool, policy, version=base, serial=base, restarts=restarts)
    owned, strays = _sort_found(pool, copies, found)
    commands: list[Command] = [KillReplica(name) for name in strays]
    for role, count in copies.items():
        for index in range(count):
            if (role, index) in owned:
                # Published at once, or clients would take it for gone; pings soon tell the truth.
                slot = Slot(role, index, owned[role, index], now, phase=Phase.READY)
                state = _put(state, slot)
            else:
                state, more = _start(state, role, index, now, failed_loads=0)
                commands += more
    return state, commands


def _sort_found(
    pool: str, copies: Mapping[str, int], found: Iterable[str]
) -> tuple[dict[SlotKey, str], list[str]]:
    """The newest living name of each wanted slot, and the names that nobody wants."""
    owned: dict[SlotKey, str] = {}
    strays: list[str] = []
    parsed = [(parse_replica_name(pool, name), name) for name in found]
    known = [(parts, name) for parts, name in parsed if parts is not None]
    for (role, index, _), name in sorted(known, key=lambda item: item[0][2], reverse=True):
        if (role, index) in owned or index >= copies.get(role, 0):
            strays.append(name)
        else:
            owned[role, index] = name
    return owned, strays


def membership(state: PoolState) -> Membership:
    """What clients are told."""
    roles = {slot.role for slot in state.slots.values()}
    return Membership(
        version=state.version,
        replicas={role: _ready(state, role) for role in sorted(roles)},
        failed=state.failed,
        descriptions=state.descriptions,
    )


def _ready(state: PoolState, role: str) -> tuple[str, ...]:
    slots = state.slots.values()
    return tuple(s.name for s in slots if s.role == role and s.phase is Phase.READY)


def used_restarts(state: PoolState, now: float) -> int:
    """Restarts that count against the budget at `now`."""
    span = state.policy.restart_window_s
    return len(state.restarts) if span is None else sum(t > now - span for t in state.restarts)


def advance(state: PoolState, event: Event) -> Step:
    """Apply one event. Events of names that are no present incarnation change nothing."""
    after, commands = _apply(state, event)
    if replace(membership(after), version=0) != replace(membership(state), version=0):
        after = replace(after, version=after.version + 1)
    return after, commands


def _apply(state: PoolState, event: Event) -> Step:
    match event:
        case VersionSeen():
            ahead = event.version > state.version
            return (replace(state, version=event.version + 1) if ahead else state), []
        case Closing():
            return _close(state, event)
        case Tick():
            return _overdue(state, event.now)
        case Reported() | Missed() | Died():
            slot = next((s for s in state.slots.values() if s.name == event.name), None)
            if slot is None or slot.phase is Phase.DEAD or state.closed:
                return state, []
            return _of_slot(state, slot, event)


def _of_slot(state: PoolState, slot: Slot, event: Reported | Missed | Died) -> Step:
    match event:
        case Died():
            return _replace_slot(state, slot, event.now, WorkerLost(slot.role, "-", event.detail))
        case Missed():
            return _missed(state, slot, event.now)
        case Reported(report=report):
            if report.error is not None:
                return _failed_load(state, slot, event.now, report.error)
            if report.description is not None:
                return _up(state, slot, report.description)
            return _put(state, replace(slot, missed=0)), []


def _up(state: PoolState, slot: Slot, description: RoleDescription) -> Step:
    known = state.descriptions.get(slot.role, description)
    if known.fingerprint != description.fingerprint:
        error = SpecError(
            f"roles.{slot.role}",
            f"a replica loaded weights {description.fingerprint} where the pool serves "
            f"{known.fingerprint}: the model changed while the pool was up",
            "Take the pool down and up again",
        )
        return _bury(state, slot, error), [KillReplica(slot.name)]
    state = _put(state, replace(slot, phase=Phase.READY, missed=0, failed_loads=0))
    return replace(state, descriptions={**state.descriptions, slot.role: known}), []


def _missed(state: PoolState, slot: Slot, now: float) -> Step:
    # A replica that starts may wait for resources or hold its interpreter: `start_s` bounds it.
    if slot.phase is not Phase.READY:
        return state, []
    slot = replace(slot, missed=slot.missed + 1)
    if slot.missed < state.policy.missed_pings:
        return _put(state, slot), []
    error = WorkerStalled(slot.role, "-", f"{slot.name} missed {slot.missed} pings")
    state, commands = _replace_slot(state, slot, now, error)
    return state, [KillReplica(slot.name), *commands]


def _overdue(state: PoolState, now: float) -> Step:
    commands: list[Command] = []
    if state.closed:
        return state, commands
    for slot in list(state.slots.values()):
        if slot.phase is Phase.STARTING and now - slot.since > state.policy.start_s:
            problem = (
                f"{slot.name} did not come up in {state.policy.start_s:g} s; does the cluster "
                f"have the resources that role {slot.role} asks for?"
            )
            commands.append(KillReplica(slot.name))
            error = WorkerStalled(slot.role, "-", problem)
            state, more = _replace_slot(state, slot, now, error)
            commands += more
    return state, commands


def _failed_load(state: PoolState, slot: Slot, now: float, error: StillhouseError) -> Step:
    slot = replace(slot, failed_loads=slot.failed_loads + 1)
    if isinstance(error, SpecError) or slot.failed_loads >= LOAD_TRIES:
        return _bury(state, slot, error), [KillReplica(slot.name)]
    state, commands = _replace_slot(state, slot, now, error)
    return state, [KillReplica(slot.name), *commands]


def _replace_slot(state: PoolState, slot: Slot, now: float, error: StillhouseError) -> Step:
    """A new incarnation if the budget allows it."""
    used = used_restarts(state, now)
    if used < state.policy.restarts:
        state = replace(state, restarts=(*state.restarts, now))
        return _start(state, slot.role, slot.index, now, slot.failed_loads)
    problem = (
        f"role {slot.role} has no replica left and the pool's {state.policy.restarts} restarts "
        f"are used; look at the replicas' logs or raise pool.restarts; last: {error}"
    )
    return _bury(state, slot, BudgetExhausted(problem)), []


def _bury(state: PoolState, slot: Slot, error: StillhouseError) -> PoolState:
    """Leave the slot empty; the role fails with `error` if no slot of it is left."""
    state = _put(state, replace(slot, phase=Phase.DEAD))
    siblings = [s for s in state.slots.values() if s.role == slot.role]
    if all(sibling.phase is Phase.DEAD for sibling in siblings):
        state = replace(state, failed={**state.failed, slot.role: error})
    return state


def _close(state: PoolState, event: Closing) -> Step:
    if state.closed:
        return state, []
    living = [slot for slot in state.slots.values() if slot.phase is not Phase.DEAD]
    slots = {key: replace(slot, phase=Phase.DEAD) for key, slot in state.slots.items()}
    failed = {**{slot.role: event.error for slot in slots.values()}, **state.failed}
    state = replace(state, slots=slots, failed=failed, closed=True)
    return state, [KillReplica(slot.name) for slot in living]


def _start(state: PoolState, role: str, index: int, now: float, failed_loads: int) -> Step:
    name = replica_name(state.pool, role, index, state.serial)
    state = replace(state, serial=state.serial + 1)
    state = _put(state, Slot(role, index, name, now, failed_loads=failed_loads))
    return state, [StartReplica(role, name)]


def _put(state: PoolState, slot: Slot) -> PoolState:
    return replace(state, slots={**state.slots, (slot.role, slot.index): slot})
