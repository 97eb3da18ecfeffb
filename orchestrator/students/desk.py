"""The desk: a small actor through which the driver hands jobs to the group and hears of them.

Workers of one group ask for job `index` until it is there; after a restart they begin at the first
job without a result. Only small records pass; no tensor ever does.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import ray

from orchestrator.errors import StillhouseError
from orchestrator.events import Event

from .records import StudentJob


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: a summary, or the error that ended it on every rank alike."""

    summary: dict[str, Any]
    error: StillhouseError | None = None


@ray.remote(num_cpus=0, max_restarts=0, max_concurrency=1000)  # type: ignore[call-overload]
class DeskActor:
    """State of one group's queue. All methods run on one event loop."""

    def __init__(self) -> None:
        self._jobs: list[StudentJob] = []
        self._outcomes: dict[int, Outcome] = {}
        self._events: list[Event] = []
        self._heard = 0  # events that the driver has dealt with
        self._closed = False
        self._stop = False
        self._furthest: dict[int, int] = {}
        self._crashes: dict[int, tuple[int, str]] = {}
        self._changed = asyncio.Condition()

    async def submit(self, job: StudentJob) -> int:
        """Queue a job; its index."""
        async with self._changed:
            self._jobs.append(job)
            self._stop = False
            self._changed.notify_all()
            return len(self._jobs) - 1

    async def close(self) -> None:
        """No more jobs: workers return from their function."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def first_open(self) -> int:
        """Index of the first job without an outcome."""
        return next((i for i in range(len(self._jobs)) if i not in self._outcomes), len(self._jobs))

    async def job(self, index: int) -> StudentJob | None:
        """Job `index` once it is queued; None when the desk closes first."""
        async with self._changed:
            await self._changed.wait_for(lambda: index < len(self._jobs) or self._closed)
            return self._jobs[index] if index < len(self._jobs) else None

    async def request_stop(self) -> None:
        """Ask the running job to stop at the next step, with a checkpoint."""
        self._stop = True

    async def stop_requested(self) -> bool:
        return self._stop

    async def post(self, index: int, events: list[Event], step: int) -> int:
        """Rank 0 tells what happened, in order; `step` is the number of steps done.

        Returns:
            Events that were ever told.
        """
        async with self._changed:
            self._events.extend(events)
            self._furthest[index] = max(step, self._furthest.get(index, 0))
            self._changed.notify_all()
            return len(self._events)

    async def heard(self, events: int) -> None:
        """Return once the driver has dealt with so many events, or wants no more jobs."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._heard >= events or self._closed)

    async def furthest(self, index: int) -> int:
        """Most steps a job has ever done, lost work included."""
        return self._furthest.get(index, 0)

    async def crashed(self, index: int, cause: str) -> bool:
        """A worker's code raised. Whether it did so before, for the same cause and no further on:
        then going on from the checkpoint again would only end here again."""
        now = (self._furthest.get(index, 0), cause)
        again = self._crashes.get(index) == now
        self._crashes[index] = now
        return again

    async def finish(self, index: int, outcome: Outcome) -> None:
        """Rank 0 reports the end of a job. A repeat after a restart changes nothing."""
        async with self._changed:
            self._outcomes.setdefault(index, outcome)
            self._changed.notify_all()

    async def watch(
        self, index: int, seen: int, timeout_s: float
    ) -> tuple[list[Event], Outcome | None]:
        """Events after the first `seen`, and the outcome; waits up to `timeout_s` for news.

        Whoever asks has dealt with those first ones.
        """
        async with self._changed:
            self._heard = max(self._heard, seen)
            self._changed.notify_all()
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(
                        lambda: len(self._events) > seen or index in self._outcomes
                    ),
                    timeout_s,
                )
            except TimeoutError:
                return [], None
            return self._events[seen:], self._outcomes.get(index)
