"""What runs a lane's jobs: a session of the ordinary runner. Ray must be joined."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.pool import Pool
from orchestrator.run_folder import RunFolder
from orchestrator.runner import new_run_id, run_in
from orchestrator.session import Session
from orchestrator.spec import JobSpec
from orchestrator.students.checkpoint import Checkpoints

from .drivers import Drivers, OnEvent


@dataclass(frozen=True, slots=True)
class SessionDriver:
    """Jobs of one lane, sharing a session's workers and pool."""

    session: Session
    on_event: OnEvent

    def run(
        self,
        jobs: Sequence[JobSpec],
        run_ids: Sequence[str],
        *,
        resume: bool,
        pause_at: int | None = None,
    ) -> dict[str, Any]:
        """Run the last of a list; its summary."""
        last = len(jobs) - 1
        if not resume:
            RunFolder.at(jobs[last].storage, run_ids[last]).write(jobs, last, run_ids)
        return run_in(self.session, jobs, last, run_ids, self.on_event, resume, pause_at)

    def request_stop(self) -> None:
        """Ask the running job to stop at its next step, with a checkpoint."""
        self.session.request_stop()


def sessions(pool: Pool | None = None) -> Drivers:
    """Drivers of sessions.

    Args:
        pool: answers for the jobs of all of them; None: each brings up its own.
    """

    @contextmanager
    def opened(jobs: Sequence[JobSpec], on_event: OnEvent) -> Iterator[SessionDriver]:
        # What is not sent aside, `send_rest` sends when all jobs are over.
        with Session(jobs, on_event, pool, sends_aside=True) as session:
            yield SessionDriver(session, on_event)

    return Drivers(opened, new_run_id, can_resume)


def can_resume(job: JobSpec, run_id: str) -> bool:
    """Whether a run has a published checkpoint."""
    folder = RunFolder.at(job.storage, run_id).uri
    return bool(Checkpoints(folder, run_id, keep=1, rank=0, local_rank=0).steps())
