"""Bring a pool up, find it, look at it, take it down. Ray room."""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from orchestrator.errors import SpecError, WorkerLost, WorkerStalled

from .controller import find_actor, kill_actor, living_actors, start_controller
from .plan import PoolPlan
from .records import Membership, PoolHandle, controller_name
from .translate import translated

log = logging.getLogger(__name__)

Progress = Callable[[Membership], None]
"""Called with each new membership while a pool comes up."""

CALL_S = 30.0
"""Deadline of one call to the controller."""
STEP_S = 5.0
"""Longest wait for news of the membership before the clock is looked at."""


class Pool:
    """A pool that is up. Make one with `Pool.up` or `Pool.attach`."""

    def __init__(self, name: str, lease: "_Lease | None" = None) -> None:
        self.name, self._lease = name, lease

    @classmethod
    def up(
        cls, plan: PoolPlan, *, wait_s: float = 900.0, progress: Progress | None = None
    ) -> "Pool":
        """Start a pool and wait until every role has a ready replica.

        Ray must be initialised. An ephemeral pool gets a random ending to its name.

        Args:
            plan: what to bring up.
            wait_s: deadline. What was started is ended again when it passes or a role fails.
            progress: called with each new membership.

        Raises:
            SpecError: the name is taken, or a model cannot be loaded as asked.
            WorkerRaised: loading a model raised.
            BudgetExhausted: replicas died more often than the plan makes good.
            WorkerStalled: not ready in `wait_s`.
        """
        if not plan.standing:
            plan = replace(plan, name=f"{plan.name}-{secrets.token_hex(4)}")
        try:
            start_controller(plan)
        except ValueError as error:  # what Ray raises for a name in use
            raise SpecError(
                "pool.name",
                f"a pool named {plan.name!r} is up",
                "Use it with Pool.attach, take it down first, or choose another name",
            ) from error
        pool = cls(plan.name, None if plan.standing else _Lease(plan.name, plan.lease_s))
        try:
            pool._wait_ready(tuple(plan.roles), wait_s, progress)
        except BaseException:
            pool.down()
            raise
        return pool

    @classmethod
    def attach(cls, name: str) -> "Pool":
        """A pool that somebody else brought up.

        Raises:
            SpecError: there is none of this name.
        """
        if find_actor(controller_name(name)) is None:
            raise SpecError(
                "pool.name",
                f"no pool named {name!r} is up on this Ray cluster",
                f"Bring it up with `stillhouse pool up`, name {name}, or use pool.kind ephemeral",
            )
        return cls(name)

    def handle(self) -> PoolHandle:
        """What a rank needs to make a `PoolClient`."""
        return PoolHandle(self.name)

    def membership(self) -> Membership:
        """Who serves what now."""
        return self._call("membership", -1, 0.0)

    def status(self, timeout_s: float = CALL_S) -> dict[str, Any]:
        """Roles, replicas (pid, node, served, busy share), restarts and fingerprints.

        A controller that is just starting again is waited for.

        Raises:
            WorkerLost: the pool is down.
            WorkerStalled: no answer in `timeout_s`.
        """
        return self._call("status", timeout_s=timeout_s)

    def down(self, wait_s: float = 60.0) -> None:
        """End every actor of the pool and wait until they are gone. Doing it twice is fine.

        Raises:
            WorkerStalled: some actor is still there after `wait_s`.
        """
        if self._lease is not None:
            self._lease.stop()
        if controller_name(self.name) in living_actors(self.name):
            self._close_gently(min(5.0, wait_s))
        give_up = time.monotonic() + wait_s
        # First the controller, or it would start anew what is ended here.
        kill_actor(controller_name(self.name))
        pause = threading.Event()
        while left := living_actors(self.name):
            if time.monotonic() > give_up:
                raise WorkerStalled("pool", "down", f"still there: {', '.join(left)}")
            for name in left:
                kill_actor(name)
            pause.wait(0.05)  # Ray tells nobody when a name is free

    def _close_gently(self, timeout_s: float) -> None:
        """Let clients know; a controller that is away or stuck is ended all the same."""
        try:
            self._call("close", WorkerLost("pool", "-", "it was taken down"), timeout_s=timeout_s)
        except (WorkerLost, WorkerStalled):
            return

    def _wait_ready(self, roles: tuple[str, ...], wait_s: float, progress: Progress | None) -> None:
        give_up = time.monotonic() + wait_s
        known = -1
        while True:
            members: Membership = self._call("membership", known, STEP_S)
            if members.version > known and progress is not None:
                progress(members)
            known = members.version
            for error in members.failed.values():
                raise error
            waiting = [role for role in roles if not members.replicas[role]]
            if not waiting:
                return
            if time.monotonic() > give_up:
                raise WorkerStalled(
                    ", ".join(waiting),
                    "up",
                    f"no replica is ready in {wait_s:g} s; does the cluster have the cpus, gpus "
                    f"and custom resources that the roles ask for?",
                )

    def _call(self, method: str, *args: Any, timeout_s: float = CALL_S) -> Any:
        """Call the controller, waiting while Ray restarts it."""
        give_up = time.monotonic() + timeout_s
        pause = threading.Event()
        cause: Exception | None = None
        while True:
            actor = find_actor(controller_name(self.name))
            if actor is None:
                raise WorkerLost("pool", method, f"{self.name!r} is not up{_because(cause)}")
            try:
                left = max(0.1, give_up - time.monotonic())
                return ray.get(getattr(actor, method).remote(*args), timeout=left)
            except (RayActorError, GetTimeoutError) as error:
                if time.monotonic() > give_up:
                    raise WorkerStalled("pool", method, f"no answer in {timeout_s:g} s") from error
                cause = error
                pause.wait(0.2)
            except RayError as error:
                raise translated(error, "pool", method) from error


def _because(cause: Exception | None) -> str:
    return "" if cause is None else f"; its controller ended: {cause}"


class _Lease:
    """Tells the controller of an ephemeral pool, now and then, that its driver lives."""

    def __init__(self, pool: str, lease_s: float) -> None:
        self._pool, self._every_s = pool, lease_s / 6
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{pool}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more renewals."""
        self._stopped.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            if not ray.is_initialized():
                return
            try:
                actor: Any = find_actor(controller_name(self._pool))
                if actor is None:
                    return  # the pool is down
                actor.renew.remote()  # not waited for: told again in time if it is away just now
            except RayError as error:  # Ray's own head is away
                log.warning("the lease of pool %s is not renewed: %s", self._pool, error)
