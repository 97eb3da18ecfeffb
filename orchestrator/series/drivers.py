"""What runs jobs one after another, and what is done when one fails.

Imports neither Ray nor torch: what runs a job is given.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.errors import CheckpointError, Interrupted, SpecError, StillhouseError
from orchestrator.events import Event, Warned
from orchestrator.spec import JobSpec

logger = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]


class Driver(Protocol):
    """Runs jobs one after another, and keeps what they can share between them."""

    def run(
        self,
        jobs: Sequence[JobSpec],
        run_ids: Sequence[str],
        *,
        resume: bool,
        pause_at: int | None = None,
    ) -> dict[str, Any]:
        """Run the last job of a list, whose others are done; its summary.

        With `pause_at`, until so many steps are done; status "paused" says that more are left.

        Raises:
            Interrupted: stopped on request, with a checkpoint.
        """
        ...

    def request_stop(self) -> None:
        """Ask the running job to stop; from any thread, as often as one likes."""
        ...


@dataclass(frozen=True, slots=True)
class Drivers:
    """How lanes come by what runs their jobs."""

    open: Callable[[Sequence[JobSpec], OnEvent], AbstractContextManager[Driver]]
    """For one lane: the list it begins with, and where events go."""
    new_run_id: Callable[[str], str]
    can_resume: Callable[[JobSpec, str], bool]
    """Whether the run of an id has a checkpoint to go on from."""


class Lane:
    """A driver that is kept from job to job while all goes well.

    A failure may leave workers in any state: the driver ends, and the next attempt opens another.

    Args:
        drivers: what runs jobs.
        tell: hears everything.
        stopping: whether nothing is to be tried again.
    """

    def __init__(self, drivers: Drivers, tell: OnEvent, stopping: Callable[[], bool]) -> None:
        self._drivers, self._tell, self._stopping = drivers, tell, stopping
        self._held = ExitStack()
        self._driver: Driver | None = None

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the driver, if there is one."""
        self._driver = None
        self._held.close()

    def request_stop(self) -> None:
        """Ask what runs to stop; from any thread, as often as one likes."""
        driver = self._driver
        if driver is not None:
            driver.request_stop()

    def run(
        self,
        jobs: Sequence[JobSpec],
        run_ids: Sequence[str],
        *,
        resume: bool,
        pause_at: int | None = None,
    ) -> dict[str, Any]:
        """Run the last job of a list as `Driver.run` says; its summary."""
        return self.opened(jobs).run(jobs, run_ids, resume=resume, pause_at=pause_at)

    def opened(self, jobs: Sequence[JobSpec]) -> Driver:
        """The driver, opened for this list unless it is open."""
        if self._driver is None:
            self._driver = self._held.enter_context(self._drivers.open(jobs, self._tell))
        return self._driver

    def tried(
        self, name: str, attempts: int, once: Callable[[], None], forget: Callable[[], None]
    ) -> str | None:
        """Do something until it works; why it did not, or None.

        Args:
            name: of the job, for messages.
            attempts: at most; one that is impossible as asked is not tried again.
            once: one attempt.
            forget: called where what an attempt left cannot be gone on with.

        Raises:
            Interrupted: stopped on request.
        """
        for attempts_left in reversed(range(attempts)):
            try:
                once()
            except Interrupted:
                raise
            except Exception as error:  # whatever it was, the other jobs' results are wanted
                ours = isinstance(error, StillhouseError)
                cause = str(error) if ours else f"{type(error).__name__}: {error}"
                logger.warning("%s failed: %s", name, cause, exc_info=not ours)
                self.close()
                if isinstance(error, CheckpointError):
                    forget()
                if isinstance(error, SpecError) or not attempts_left:
                    return cause
                if self._stopping():
                    raise Interrupted(f"{name} is not tried again") from error
                self._tell(Warned(name, f"failed ({cause}); trying once more"))
            else:
                return None
        raise AssertionError("the last attempt returns")
