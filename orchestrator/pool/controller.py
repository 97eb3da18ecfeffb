"""The actor that keeps a pool's replicas alive. Ray room: a thin shell around `supervise`.

Killing it loses nothing. Replicas are detached and clients talk to them directly; Ray restarts this
actor, which finds the living replicas by name and learns from them how many restarts were used.
An ephemeral pool lives on a lease that its driver renews: when the lease runs out the controller
ends the replicas and itself, and a replica that no controller pings ends itself.
"""

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayError
from ray.util import list_named_actors

from orchestrator.errors import StillhouseError, WorkerLost

from . import supervise
from .plan import PoolPlan
from .records import NAMESPACE, Membership, ReplicaReport, controller_name, parse_replica_name
from .replica import start_replica
from .supervise import Phase

log = logging.getLogger(__name__)

LONGEST_POLL_S = 60.0
MOST_CLIENTS = 10_000
"""Calls at a time: every client keeps one open, waiting for news."""


class Controller:
    """Body of the actor; `start_controller` makes one."""

    async def __init__(self, plan: PoolPlan) -> None:
        self._plan = plan
        self._handles: dict[str, Any] = {}
        self._reports: dict[str, ReplicaReport] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()
        self._renewed_at = time.monotonic()
        for name in living_replicas(plan.name):
            if (handle := find_actor(name)) is not None:
                self._handles[name] = handle
        found = list(self._handles)
        restarts = await self._remembered(found)
        now = time.time()
        self._state, commands = supervise.begin(
            plan.name, plan.copies, plan.policy, now=now, found=found, restarts=restarts
        )
        for name in found:
            self._watch(name)
        await self._execute(commands)
        self._spawn("tick", self._tick())

    # --- what others call ------------------------------------------------------------------------

    async def membership(self, known: int, wait_s: float) -> Membership:
        """The membership, as soon as it is newer than version `known` or `wait_s` have passed."""
        await self._apply(supervise.VersionSeen(time.time(), known))
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._state.version > known),
                    min(wait_s, LONGEST_POLL_S),
                )
            except TimeoutError:
                log.debug("membership %d is still the newest", self._state.version)
            return supervise.membership(self._state)

    async def renew(self) -> None:
        """The driver lives."""
        self._renewed_at = time.monotonic()

    async def status(self) -> dict[str, Any]:
        """Roles, replicas and restarts, in plain values."""
        state = self._state
        used = supervise.used_restarts(state, time.time())
        return {
            "name": self._plan.name,
            "standing": self._plan.standing,
            "version": state.version,
            "pid": os.getpid(),
            "restarts": used,
            "restarts_left": max(0, self._plan.restarts - used),
            "roles": {role: self._role_status(role) for role in self._plan.roles},
        }

    async def close(self, error: StillhouseError) -> None:
        """End all replicas, tell clients why, start nothing any more."""
        await self._apply(supervise.Closing(time.time(), error))

    # --- the shell -------------------------------------------------------------------------------

    def _role_status(self, role: str) -> dict[str, Any]:
        description = self._state.descriptions.get(role)
        error = self._state.failed.get(role)
        slots = [slot for slot in self._state.slots.values() if slot.role == role]
        return {
            "fingerprint": description.fingerprint if description else None,
            "parameters": description.parameters if description else None,
            "error": str(error) if error else None,
            "replicas": [self._replica_status(slot) for slot in slots],
        }

    def _replica_status(self, slot: supervise.Slot) -> dict[str, Any]:
        status: dict[str, Any] = {"name": slot.name, "state": slot.phase.value}
        report = self._reports.get(slot.name)
        if report is None or slot.phase is Phase.DEAD:
            return status
        return {
            **status,
            "pid": report.pid,
            "node": report.node,
            "served": report.served,
            "samples": report.samples,
            "queued": report.queued,
            "busy_s": report.busy_s,
            "busy_share": report.busy_s / report.ready_s if report.ready_s else 0.0,
        }

    async def _apply(self, event: supervise.Event) -> None:
        before = self._state.version
        self._state, commands = supervise.advance(self._state, event)
        await self._execute(commands)
        if self._state.version != before:
            async with self._changed:
                self._changed.notify_all()

    async def _execute(self, commands: list[supervise.Command]) -> None:
        for command in commands:
            match command:
                case supervise.StartReplica(role, name):
                    log.info("starting %s", name)
                    self._handles[name] = start_replica(
                        name,
                        self._plan.load_of(role),
                        self._plan.load,
                        None if self._plan.standing else 2 * self._plan.lease_s,
                        self._plan.env,
                    )
                    self._watch(name)
                case supervise.KillReplica(name):
                    log.info("ending %s", name)
                    self._forget(name)
                    kill_actor(name)

    async def _remembered(self, found: list[str]) -> tuple[float, ...]:
        """The longest memo of restarts that replicas of an earlier life hold."""

        async def ask(name: str) -> tuple[float, ...]:
            try:
                ping = self._handles[name].ping.remote(())
                report = await asyncio.wait_for(ping, self._plan.ping_timeout_s)
            except (RayError, TimeoutError) as error:
                log.info("%s does not answer yet: %s", name, error)
                return ()
            return report.restarts

        return max(await asyncio.gather(*(ask(name) for name in found)), key=len, default=())

    def _watch(self, name: str) -> None:
        self._spawn(name, self._ping(name))

    def _forget(self, name: str) -> None:
        self._handles.pop(name, None)
        self._reports.pop(name, None)
        # The task may be the one that runs us; it ends by itself when its handle is gone.

    async def _ping(self, name: str) -> None:
        plan = self._plan
        while (handle := self._handles.get(name)) is not None:
            now = time.time
            try:
                memo = self._state.restarts
                report = await asyncio.wait_for(handle.ping.remote(memo), plan.ping_timeout_s)
            except (ActorUnavailableError, TimeoutError):
                await self._apply(supervise.Missed(now(), name))
            except RayError as error:  # dead, or could not be made
                log.warning("%s died: %s", name, error)
                self._forget(name)
                kill_actor(name)  # should Ray be wrong about it
                await self._apply(supervise.Died(now(), name, str(error)))
            else:
                self._reports[name] = report
                await self._apply(supervise.Reported(now(), name, report))
            await asyncio.sleep(plan.ping_every_s)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._plan.ping_every_s)
            await self._apply(supervise.Tick(time.time()))
            silent_s = time.monotonic() - self._renewed_at
            if not self._plan.standing and silent_s > self._plan.lease_s:
                log.warning("the driver has been silent for %.0f s, ending the pool", silent_s)
                error = WorkerLost("pool", "-", f"its driver was silent for {silent_s:.0f} s")
                await self.close(error)
                kill_actor(controller_name(self._plan.name))

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._ended(name, done))

    def _ended(self, name: str, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A controller that no longer watches is worse than none: Ray starts a new one.
            log.critical("%s failed", name, exc_info=error)
            os._exit(1)


def living_replicas(pool: str) -> list[str]:
    """Names of a pool's replica actors that are not dead."""
    return [name for name in living_actors(pool) if parse_replica_name(pool, name) is not None]


def living_actors(pool: str) -> list[str]:
    """Names of all actors of a pool that are not dead."""
    entries: list[Any] = list_named_actors(all_namespaces=True)
    return [
        entry["name"]
        for entry in entries
        if entry["namespace"] == NAMESPACE and entry["name"].startswith(f"{pool}/")
    ]


def find_actor(name: str) -> ActorHandle | None:
    """The living actor of a name; None if there is none."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:  # what Ray raises for a name that nobody has
        return None


def kill_actor(name: str) -> None:
    """End an actor by name; one that is gone already is fine."""
    if (handle := find_actor(name)) is not None:
        ray.kill(handle, no_restart=True)


def start_controller(plan: PoolPlan) -> ActorHandle:
    """Make the actor, detached and restarted by Ray without limit.

    Raises:
        ValueError: a pool of this name is up.
    """
    actor: Any = ray.remote(Controller)
    return actor.options(
        name=controller_name(plan.name),
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=MOST_CLIENTS,
        num_cpus=0,
    ).remote(plan)
