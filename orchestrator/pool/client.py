"""A rank's connection to a pool. Ray room: a thin shell around `dispatch`.

One background thread applies events: answers, memberships, the passing of time. Answers reach it
by callback, so nothing polls. Replies stay in Ray's shared memory while somebody holds their
arrays, which are read-only.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from orchestrator.errors import (
    SpecError,
    StillhouseError,
    WorkerBusy,
    WorkerLost,
    WorkerStalled,
)
from orchestrator.signals.records import HeadRecord, Reply, Request

from . import dispatch
from .answers import answer_bytes
from .dispatch import ClientState, Counts, Limits
from .records import NAMESPACE, Membership, PoolHandle, RoleDescription, controller_name
from .translate import is_dead, translated

POLL_S = 30.0
"""Length of one wait for news of the membership."""
GONE_S = 10.0
"""A controller's name that nobody has for this long is that of a pool taken down."""
RETRY_S = 1.0
"""Pause before asking a controller again that is away."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A call to a replica ended."""

    request_id: str
    attempt: int
    future: "Future[Any]"


@dataclass(frozen=True, slots=True)
class _News:
    """The controller answered a poll, or failed to."""

    future: "Future[Any]"


class PoolClient:
    """Asks a pool. Safe to use from several threads.

    Args:
        handle: which pool.
        tenant: whose requests these are; replicas share their time between tenants.
        window_bytes: bytes of answers sent for and not yet taken by `result`.
        window_requests: the same, in requests.
        deadline_s: a request unanswered this long is sent elsewhere.
        patience_s: a request that no replica takes this long fails.
    """

    def __init__(
        self,
        handle: PoolHandle,
        tenant: str,
        window_bytes: int,
        window_requests: int,
        deadline_s: float = 120.0,
        patience_s: float = 600.0,
    ) -> None:
        limits = Limits(window_requests, window_bytes, deadline_s, patience_s)
        self._pool, self.tenant, self._patience_s = handle.name, tenant, patience_s
        self._state = ClientState(limits)
        self._requests: dict[str, Request] = {}  # asked, not consumed
        self._results: dict[str, Reply | StillhouseError] = {}  # done, not consumed
        self._descriptions: dict[str, RoleDescription] = {}
        self._heads: dict[str, HeadRecord | None] = {}
        self._actors: dict[str, Any] = {}
        self._inbox: queue.SimpleQueue[_Arrived | _News | None] = queue.SimpleQueue()
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._broken: BaseException | None = None
        self._nameless_since: float | None = None
        self._poll_due: float | None = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"pool-{handle.name}", daemon=True)
        self._thread.start()

    # --- what ranks call -------------------------------------------------------------------------

    def room(self) -> bool:
        """Whether the window is open: another request would be sent, not held back."""
        with self._changed:
            return dispatch.has_room(self._state)

    def submit(self, request: Request) -> None:
        """Ask. Returns at once; beyond the window the request is held back here, in order.

        The first call for a role waits until the role is ready, to know the size of its answers.

        Args:
            request: its `request_id` may come again only after `result` gave its answer.

        Raises:
            ValueError: the id is in use.
            WorkerStalled, StillhouseError: the role is not ready in `patience_s`, or has failed.
        """
        nbytes = answer_bytes(
            request.ask,
            int(request.wanted.sum()),
            self.describe(request.role),
            int(request.lengths.max(initial=0)),
        )
        with self._changed:
            self._check_open()
            if request.request_id in self._requests:
                raise ValueError(f"request {request.request_id} is in use; use a new id")
            self._requests[request.request_id] = request
            self._apply(
                dispatch.Submitted(time.monotonic(), request.request_id, request.role, nbytes)
            )
        self._inbox.put(None)  # deadlines have changed

    def result(self, request_id: str, timeout_s: float | None = None) -> Reply:
        """Wait for an answer and take it. Its place in the window is free then.

        Args:
            request_id: of a request that was submitted and not yet taken.
            timeout_s: None: as long as the client's deadline, budgets and patience allow.

        Raises:
            WorkerStalled: not within `timeout_s`; the request goes on and can be waited for again.
            WorkerRaised: the model raised on this request, wherever it was tried.
            BudgetExhausted: retries or restarts ran out.
            SpecError: the pool serves something else than the request wants.
            ValueError: nobody asked this.
        """
        with self._changed:
            if request_id not in self._requests:
                raise ValueError(f"request {request_id} was not submitted, or was taken already")
            role = self._requests[request_id].role
            self._apply(dispatch.Wanted(time.monotonic(), request_id))
            self._inbox.put(None)
            result = self._wait(lambda: self._results.get(request_id), timeout_s)
            if result is None:
                raise WorkerStalled(role, request_id, f"no answer in {timeout_s:g} s")
            del self._results[request_id], self._requests[request_id]
            self._apply(dispatch.Consumed(time.monotonic(), request_id))
        if isinstance(result, StillhouseError):
            raise result
        return result

    def describe(self, role: str) -> RoleDescription:
        """What the pool serves as `role`. Waits until the role is ready, up to `patience_s`.

        Raises:
            WorkerStalled: it is not ready in time.
            SpecError: the pool has no such role.
            StillhouseError: the role has failed.
        """

        def look() -> RoleDescription | None:
            members = self._state.members
            if role not in self._descriptions and members.version >= 0:
                if role not in members.replicas:
                    raise SpecError(
                        f"roles.{role}",
                        f"pool {self._pool} serves {', '.join(members.replicas) or 'nothing'}",
                        "Name a role that the pool serves",
                    )
                if role in members.failed:
                    raise members.failed[role]
            return self._descriptions.get(role)

        with self._changed:
            found = self._wait(look, self._patience_s)
        if found is None:
            raise WorkerStalled(role, "describe", f"not ready in {self._patience_s:g} s")
        return found

    def head(self, role: str) -> HeadRecord | None:
        """The role's output head; None if it has none that can be told apart.

        Raises:
            WorkerStalled: no replica gave it in `patience_s`.
            StillhouseError: the role has failed.
        """
        self.describe(role)
        give_up = time.monotonic() + self._patience_s
        while role not in self._heads:
            # Ranks of a node ask the same replica, so that they share one copy in its store.
            for replica in self._alive(role, give_up):
                try:
                    self._heads[role] = self._fetch_head(replica, give_up)
                    break
                except (RayError, WorkerLost) as error:
                    cause = self._error_of(error, role, "head")
                    if not isinstance(cause, WorkerLost):
                        raise cause from error
            else:
                with self._changed:
                    self._changed.wait(RETRY_S)  # for news of other replicas
        return self._heads[role]

    def _fetch_head(self, replica: str, give_up: float) -> HeadRecord | None:
        refs = ray.get(self._actor(replica).head.remote(), timeout=_left(give_up))
        return ray.get(refs[0], timeout=_left(give_up)) if refs else None

    def counts(self) -> Counts:
        """What was asked, delivered and consumed so far."""
        with self._changed:
            return self._state.counts

    def close(self) -> None:
        """Stop. Answers still on their way are dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._inbox.put(None)
        self._thread.join(timeout=5.0)

    # --- the shell -------------------------------------------------------------------------------

    def _wait(self, look: Callable[[], T | None], timeout_s: float | None) -> T | None:
        """Holding the lock: wait until `look` finds something, or None after `timeout_s`."""
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._check_open()
            found = look()
            left = None if give_up is None else give_up - time.monotonic()
            if found is not None or (left is not None and left <= 0):
                return found
            self._changed.wait(left)

    def _check_open(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._closed:
            raise WorkerLost(self._pool, "-", "the client is closed")

    def _alive(self, role: str, give_up: float) -> list[str]:
        def look() -> list[str] | None:
            if not (living := dispatch.alive(self._state, role)) and role in (
                failed := self._state.members.failed
            ):
                raise failed[role]
            return living or None

        with self._changed:
            found = self._wait(look, _left(give_up))
        if found is None:
            raise WorkerStalled(role, "head", f"no replica in {self._patience_s:g} s")
        return found

    def _apply(self, event: dispatch.Event, reply: Reply | None = None) -> None:
        """Holding the lock: apply an event and do what follows. `reply` belongs to an Answered."""
        self._state, commands = dispatch.advance(self._state, event)
        for command in commands:
            match command:
                case dispatch.SendTo(request_id, attempt, replica):
                    self._send(request_id, attempt, replica)
                case dispatch.Deliver(request_id, _) if reply is not None:
                    self._results[request_id] = reply
                case dispatch.Fail(request_id, error):
                    self._results[request_id] = error
        self._changed.notify_all()

    def _send(self, request_id: str, attempt: int, replica: str) -> None:
        request = replace(self._requests[request_id], attempt=attempt)
        try:
            future = self._actor(replica).submit.remote(request).future()
        except (RayError, WorkerLost) as error:  # it comes back as any other loss
            future = Future()
            future.set_exception(error)
        future.add_done_callback(lambda done: self._inbox.put(_Arrived(request_id, attempt, done)))

    def _actor(self, name: str) -> Any:
        if name not in self._actors:
            try:
                self._actors[name] = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError as error:  # what Ray raises for a name that nobody has
                raise WorkerLost(name, "-", "there is no such actor any more") from error
        return self._actors[name]

    def _run(self) -> None:
        try:
            while not self._closed:
                self._poll_if_due()
                self._handle(self._next_item())
        except BaseException as error:
            with self._changed:
                self._broken = error
                self._changed.notify_all()
            raise

    def _next_item(self) -> _Arrived | _News | None:
        with self._changed:
            wake = dispatch.next_wake(self._state)
        due = min((t for t in (wake, self._poll_due) if t is not None), default=None)
        try:
            left = None if due is None else max(0.0, due - time.monotonic())
            return self._inbox.get(timeout=left)
        except queue.Empty:
            return None

    def _handle(self, item: _Arrived | _News | None) -> None:
        with self._changed:
            now = time.monotonic()
            match item:
                case _Arrived(request_id, attempt, future):
                    self._arrived(now, request_id, attempt, future)
                case _News(future):
                    self._news(now, future)
                case None:
                    self._apply(dispatch.Tick(now))

    def _arrived(self, now: float, request_id: str, attempt: int, future: "Future[Any]") -> None:
        error = future.exception()
        if error is None:
            self._apply(dispatch.Answered(now, request_id, attempt), future.result())
            return
        request = self._requests.get(request_id)
        role = request.role if request else "-"
        ours = self._error_of(error, role, request_id)
        if isinstance(ours, WorkerLost):
            gone = is_dead(error) or isinstance(error, WorkerLost)
            self._apply(dispatch.Lost(now, request_id, attempt, gone, ours))
        elif isinstance(ours, WorkerBusy):
            self._apply(dispatch.Refused(now, request_id, attempt, ours.retry_after_s))
        else:
            final = isinstance(ours, SpecError)
            self._apply(dispatch.Raised(now, request_id, attempt, ours, final))

    def _error_of(self, error: BaseException, role: str, request_id: str) -> StillhouseError:
        if isinstance(error, StillhouseError) and not isinstance(error, RayError):
            return error
        return translated(error, role, request_id)

    def _poll_if_due(self) -> None:
        now = time.monotonic()
        if self._poll_due is None or now < self._poll_due:
            return
        self._poll_due = None
        try:
            controller = self._actor(controller_name(self._pool))
            future = controller.membership.remote(self._state.members.version, POLL_S).future()
        except (RayError, WorkerLost) as error:
            future = Future()
            future.set_exception(error)
        future.add_done_callback(lambda done: self._inbox.put(_News(done)))

    def _news(self, now: float, future: "Future[Any]") -> None:
        error = future.exception()
        if error is None:
            members: Membership = future.result()
            self._descriptions.update(members.descriptions)
            listed = {name for names in members.replicas.values() for name in names}
            listed.add(controller_name(self._pool))
            self._actors = {name: actor for name, actor in self._actors.items() if name in listed}
            self._apply(dispatch.MembersSeen(now, members))
            self._nameless_since = None
            self._poll_due = now
            return
        if not isinstance(error, RayError | WorkerLost):
            raise error
        # The controller is away. Replicas are served on without it; it may come back by name.
        self._actors.pop(controller_name(self._pool), None)
        self._poll_due = now + RETRY_S
        if not isinstance(error, WorkerLost):
            self._nameless_since = None
            return
        # While Ray restarts a controller its name stays; a name that nobody has for long is a pool
        # that was taken down before this client could be told.
        self._nameless_since = self._nameless_since or now
        if now - self._nameless_since >= GONE_S:
            members = self._state.members
            why = WorkerLost("pool", "-", f"pool {self._pool!r} is not up: it was taken down")
            failed = dict.fromkeys(members.replicas, why)
            gone = replace(members, version=members.version + 1, failed=failed)
            self._apply(dispatch.MembersSeen(now, gone))


def _left(give_up: float) -> float:
    return max(0.001, give_up - time.monotonic())
