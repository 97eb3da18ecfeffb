"""The serving desk of a replica: one bounded fair queue, one thread that loads and runs the model.

Knows nothing of Ray, so it is tested without. A request that is already waiting or running is not
run twice, its askers share the result.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.errors import SpecError, StillhouseError, WorkerBusy, WorkerRaised
from orchestrator.signals.records import PROTOCOL, HeadRecord, Reply, Request

from .answers import empty_answer, tokens_read, wanted_counts
from .fairness import FairQueue
from .records import Engine, RoleDescription

log = logging.getLogger(__name__)

SHORTEST_HINT_S, LONGEST_HINT_S = 0.02, 2.0
"""Bounds of the retry hint, which is the mean time of a forward."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A queued request and the promise of its reply."""

    key: tuple[str, str, bytes]
    request: Request
    future: "Future[Reply]"
    queued_at: float


@dataclass(frozen=True, slots=True)
class DeskStats:
    """A look at the desk. Times in seconds."""

    served: int  # requests answered
    samples: int  # run by the model
    busy_s: float
    ready_s: float
    queued: int
    description: RoleDescription | None  # None: not loaded
    error: StillhouseError | None  # why it will never be


class Desk:
    """Serves one role in this process.

    Args:
        role: name of the role.
        load: makes the engine; called once, on the serving thread.
        max_queue: requests held before more are refused.
    """

    def __init__(self, role: str, load: Callable[[], Engine], max_queue: int) -> None:
        self._role, self._load = role, load
        self._queue: FairQueue[_Job] = FairQueue(max_queue)
        self._jobs: dict[tuple[str, str, bytes], _Job] = {}  # waiting or running
        self._changed = threading.Condition()
        self._closed = False
        self._engine: Engine | None = None
        self._description: RoleDescription | None = None
        self._error: StillhouseError | None = None
        self._ready_at = 0.0
        self._served, self._samples, self._busy_s = 0, 0, 0.0
        self._head: Future[HeadRecord | None] = Future()
        threading.Thread(target=self._serve, name=f"desk-{role}", daemon=True).start()

    def submit(self, request: Request) -> "Future[Reply]":
        """Queue a request; its reply comes through the future, as may SpecError or WorkerRaised.

        Raises:
            WorkerBusy: the queue, or the tenant's share of it, is full.
            SpecError: the request is not for this role or speaks another protocol.
            StillhouseError: the model could not be loaded.
        """
        self._check(request)
        key = (request.tenant, request.request_id, _digest(request))
        with self._changed:
            if self._error is not None:
                raise self._error
            running = self._jobs.get(key)
            if running is not None:
                return running.future
            job = _Job(key, request, Future(), time.perf_counter())
            reads = "" if self._description is None else self._description.reads
            cost = float(tokens_read(reads, request.tokens, request.lengths) or 1)
            if not self._queue.offer(request.tenant, cost, job, request.weight):
                raise self._busy(request)
            self._jobs[key] = job
            self._changed.notify_all()
            return job.future

    def head(self) -> "Future[HeadRecord | None]":
        """The role's output head, once the model is loaded."""
        return self._head

    def stats(self) -> DeskStats:
        """A look at the desk; never waits for a forward."""
        with self._changed:
            ready_s = time.perf_counter() - self._ready_at if self._description else 0.0
            return DeskStats(
                self._served,
                self._samples,
                self._busy_s,
                ready_s,
                len(self._jobs),
                self._description,
                self._error,
            )

    def close(self) -> None:
        """End the serving thread after the forward it is in; what waits is not answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check(self, request: Request) -> None:
        if request.protocol != PROTOCOL:
            raise SpecError(
                "request.protocol",
                f"is {request.protocol}, this replica speaks {PROTOCOL}",
                "Run the same version of stillhouse on both sides",
            )
        if not 0 < request.weight < float("inf"):
            raise SpecError(
                "request.weight", f"is {request.weight}", "Give a number above 0 (pool.weight)"
            )
        if request.role != self._role:
            raise SpecError(
                "request.role",
                f"is {request.role!r}, this replica serves {self._role!r}",
                "Ask a replica of that role",
            )

    def _busy(self, request: Request) -> WorkerBusy:
        mean = self._busy_s / self._served if self._served else SHORTEST_HINT_S
        hint = min(max(mean, SHORTEST_HINT_S), LONGEST_HINT_S)
        return WorkerBusy(
            request.role, request.request_id, f"{len(self._queue)} requests are waiting", hint
        )

    def _serve(self) -> None:
        try:
            engine = self._load()
            description, head = engine.describe(), engine.head()
        except BaseException as error:
            log.exception("role %s could not be loaded", self._role)
            self._give_up(error)
            return
        with self._changed:
            self._engine, self._description = engine, description
            self._ready_at = time.perf_counter()
        self._head.set_result(head)
        while (job := self._next()) is not None:
            self._answer(engine, description, job)

    def _give_up(self, error: BaseException) -> None:
        if not isinstance(error, StillhouseError):
            error = WorkerRaised(self._role, "load", f"{type(error).__name__}: {error}")
        with self._changed:
            self._error = error
            jobs, self._jobs = list(self._jobs.values()), {}
        self._head.set_exception(error)
        for job in jobs:
            job.future.set_exception(error)

    def _next(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._queue) > 0)
            return None if self._closed else self._queue.pop()

    def _answer(self, engine: Engine, description: RoleDescription, job: _Job) -> None:
        request, begun = job.request, time.perf_counter()
        reply: Reply | None = None
        failure: BaseException | None = None
        try:
            arrays = _arrays(engine, description, request)
            reply = Reply(
                request.request_id,
                request.role,
                request.ask,
                arrays,
                vocabulary=description.vocabulary,
                fingerprint=description.fingerprint,
                attempt=request.attempt,
                forward_s=time.perf_counter() - begun,
                queued_s=begun - job.queued_at,
            )
        except BaseException as error:  # whatever it is, its askers wait for it
            failure = error
        with self._changed:
            del self._jobs[job.key]
            self._served += 1
            if reply is not None:
                self._samples += int(np.count_nonzero(wanted_counts(request)))
            self._busy_s += time.perf_counter() - begun
        if reply is not None:
            job.future.set_result(reply)
        else:
            job.future.set_exception(_as_ours(failure, request))


def _arrays(
    engine: Engine, description: RoleDescription, request: Request
) -> dict[str, np.ndarray]:
    if request.fingerprint not in (None, description.fingerprint):
        raise SpecError(
            f"roles.{request.role}",
            f"the job wants fingerprint {request.fingerprint}, the pool serves "
            f"{description.fingerprint}",
            "Point the role at the model that the pool serves, or take up a pool of its own",
        )
    if not request.wanted.any():
        return empty_answer(request.ask, description)
    return engine.forward(request)


def _as_ours(error: BaseException | None, request: Request) -> StillhouseError:
    if isinstance(error, StillhouseError):
        return error
    ours = WorkerRaised(request.role, request.request_id, f"{type(error).__name__}: {error}")
    ours.__cause__ = error
    return ours


def _digest(request: Request) -> bytes:
    """Of the content: two jobs under one tenant's name may use one id for different work."""
    digest = hashlib.blake2b(repr((request.ask, request.fingerprint)).encode(), digest_size=16)
    for array in (request.tokens, request.lengths, request.wanted):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(array.tobytes())
    return digest.digest()


def for_attempt(reply: Reply, attempt: int) -> Reply:
    """A shared reply as the answer to one asker's attempt."""
    return reply if reply.attempt == attempt else replace(reply, attempt=attempt)
