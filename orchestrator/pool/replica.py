"""The actor that serves one copy of a role. Ray room: a thin shell around `desk`.

`max_restarts=0`: the controller decides about restarts, under a new name. Pings have an event loop
of their own and answer while the model loads or runs.
"""

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle

from orchestrator.signals.records import Reply, Request

from .desk import Desk, for_attempt
from .records import NAMESPACE, Loader, ReplicaReport, RoleLoad

HEALTH = "health"


class Replica:
    """Body of the actor; `start_replica` makes one.

    Args:
        what: the role to load.
        load: makes the engine.
        orphan_s: without a ping for this long the process ends itself; None: never.
    """

    def __init__(self, what: RoleLoad, load: Loader, orphan_s: float | None) -> None:
        self._restarts: tuple[float, ...] = ()
        self._pinged_at = time.monotonic()
        self._head_ref: list[ray.ObjectRef] = []
        self._desk = Desk(what.role, lambda: load(what), what.spec.max_queue)
        if orphan_s is not None:
            threading.Thread(target=self._watch, args=(orphan_s,), daemon=True).start()

    async def submit(self, request: Request) -> Reply:
        """Answer a request. Raises WorkerBusy, SpecError or WorkerRaised."""
        reply = await asyncio.wrap_future(self._desk.submit(request))
        return for_attempt(reply, request.attempt)

    async def head(self) -> list[ray.ObjectRef]:
        """A reference to the role's `HeadRecord`, fetched once by each node; empty: no head."""
        record = await asyncio.wrap_future(self._desk.head())
        if record is not None and not self._head_ref:
            self._head_ref = [ray.put(record)]
        return self._head_ref

    @ray.method(concurrency_group=HEALTH)
    async def ping(self, restarts: tuple[float, ...]) -> ReplicaReport:
        """Health. The longest memo of restarts is kept for a controller that starts again."""
        self._pinged_at = time.monotonic()
        self._restarts = max(self._restarts, restarts, key=len)
        stats = self._desk.stats()
        return ReplicaReport(
            state="failed" if stats.error else "ready" if stats.description else "loading",
            pid=os.getpid(),
            node=ray.get_runtime_context().get_node_id(),
            served=stats.served,
            samples=stats.samples,
            busy_s=stats.busy_s,
            ready_s=stats.ready_s,
            queued=stats.queued,
            error=stats.error,
            description=stats.description,
            restarts=self._restarts,
        )

    def _watch(self, orphan_s: float) -> None:
        silent_s = 0.0
        while silent_s < orphan_s:
            time.sleep(orphan_s - silent_s)
            silent_s = time.monotonic() - self._pinged_at
        # Neither controller nor driver is left to stop this process, and nobody to report to.
        os._exit(1)


def start_replica(
    name: str, what: RoleLoad, load: Loader, orphan_s: float | None, env: Mapping[str, str]
) -> ActorHandle:
    """Make the actor, detached, so that it outlives whoever made it. Returns at once."""
    spec = what.spec
    actor: Any = ray.remote(concurrency_groups={HEALTH: 4})(Replica)  # type: ignore[call-overload]
    return actor.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=spec.max_queue + 1000,  # refusing is the desk's task, not Ray's
        num_cpus=spec.resources.cpus,
        num_gpus=spec.resources.gpus,
        resources=dict(spec.resources.custom),
        runtime_env={"env_vars": dict(env)} if env else None,
    ).remote(what, load, orphan_s)
