"""Rank 0's way to the desk: events in order, sent without waiting for an answer."""

import time
from typing import Any

import ray

from orchestrator.events import Event, Phase, Warned


class Reporter:
    """Posts events from rank 0; on other ranks it does nothing but answer questions."""

    INTERVAL_S = 0.25
    STOP_S = 0.1

    def __init__(self, desk: Any, index: int, job: str, rank: int) -> None:
        self._desk, self._index, self._job, self._rank = desk, index, job, rank
        self._held: list[Event] = []
        self._step = 0
        self._posted_at = 0.0
        self._sent: Any = None
        self._stop: Any = None
        self._asked_at = 0.0

    def event(self, event: Event, step: int | None = None) -> None:
        """Queue an event; sent at most `INTERVAL_S` later, at the next call."""
        if self._rank != 0:
            return
        self._held.append(event)
        self._step = self._step if step is None else step
        if time.monotonic() - self._posted_at >= self.INTERVAL_S:
            self._post()

    def phase(self, text: str) -> None:
        """Say what is being done now."""
        self.event(Phase(self._job, text))
        self._post()

    def warn(self, text: str) -> None:
        """Say what the user should know."""
        self.event(Warned(self._job, text))

    def _post(self) -> None:
        if self._rank == 0 and self._held:
            self._sent = self._desk.post.remote(self._index, self._held, self._step)
            self._held = []
            self._posted_at = time.monotonic()

    def flush(self) -> None:
        """Wait until everything queued has reached the desk."""
        self._post()
        if self._sent is not None:
            ray.get(self._sent)

    def settle(self) -> None:
        """Wait until the driver has dealt with everything told so far: it has written it down.

        A run goes on from what comes next, so what was told before would never be told again.
        """
        self._post()
        if self._sent is not None:
            ray.get(self._desk.heard.remote(ray.get(self._sent)))

    def furthest(self) -> int:
        """Most steps this job has ever done, before any restart."""
        return ray.get(self._desk.furthest.remote(self._index))

    def stop_requested(self) -> bool:
        """Whether the user asked to stop, as of an answer of up to `STOP_S` ago; never waits."""
        now = time.monotonic()
        if self._rank != 0 or now - self._asked_at < self.STOP_S:
            return False
        self._asked_at = now
        answer = False
        if self._stop is not None:
            ready, _ = ray.wait([self._stop], timeout=0)
            if not ready:
                return False
            answer = bool(ray.get(self._stop))
        self._stop = self._desk.stop_requested.remote()
        return answer
