"""Drivers that outlive the lanes they served: workers of one series take up the next one's jobs."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestrator.spec import JobSpec

from .drivers import Driver, Drivers, OnEvent


@dataclass(eq=False, slots=True)
class _Held:
    """A driver that is open, and who listens to it for now."""

    listener: OnEvent
    stack: ExitStack = field(default_factory=ExitStack)  # closes the driver

    def tell(self, event: Any) -> None:
        self.listener(event)


@dataclass(eq=False)
class Kept:
    """Drivers of which a lane leaves its own to the next lane, unless it failed.

    Args:
        inner: opens what is not there to be taken up.
    """

    inner: Drivers
    _idle: list[tuple[_Held, Driver]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Drivers:
        return Drivers(self._opened, self.inner.new_run_id, self.inner.can_resume)

    def __exit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop()[0].stack.close()

    @contextmanager
    def _opened(self, jobs: Sequence[JobSpec], on_event: OnEvent) -> Iterator[Driver]:
        held, driver = self._taken(on_event) or self._new(jobs, on_event)
        watched = _Watched(driver)
        try:
            yield watched
        finally:
            if watched.sound:
                with self._lock:
                    self._idle.append((held, driver))
            else:
                held.stack.close()

    def _taken(self, on_event: OnEvent) -> tuple[_Held, Driver] | None:
        with self._lock:
            if not self._idle:
                return None
            held, driver = self._idle.pop()
        held.listener = on_event
        return held, driver

    def _new(self, jobs: Sequence[JobSpec], on_event: OnEvent) -> tuple[_Held, Driver]:
        held = _Held(on_event)
        return held, held.stack.enter_context(self.inner.open(jobs, held.tell))


@dataclass(eq=False, slots=True)
class _Watched:
    """A driver of which one knows whether all its jobs ended well."""

    driver: Driver
    sound: bool = True

    def run(
        self,
        jobs: Sequence[JobSpec],
        run_ids: Sequence[str],
        *,
        resume: bool,
        pause_at: int | None = None,
    ) -> dict[str, Any]:
        self.sound = False
        summary = self.driver.run(jobs, run_ids, resume=resume, pause_at=pause_at)
        self.sound = True
        return summary

    def request_stop(self) -> None:
        self.driver.request_stop()
