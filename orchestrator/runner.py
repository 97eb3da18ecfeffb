"""What the command line and other programs call: run a list of jobs, resume one, evaluate one.

`run` checks the jobs, joins or starts Ray, brings up the pools, hands each job to a resident worker
group, and passes what the group says to the tracker and to `on_event`. No tensor comes through
here.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.errors import Interrupted, SpecError, StillhouseError
from orchestrator.events import Event, JobEnded
from orchestrator.models.exported import Export
from orchestrator.run_folder import RunFolder, check_start
from orchestrator.spec import JobSpec
from orchestrator.spec.paths import absolute_paths

if TYPE_CHECKING:
    from orchestrator.session import Session

logger = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class RunResult:
    """The jobs' summaries, in order."""

    jobs: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """What `stillhouse run --json` prints last."""
        return {"jobs": self.jobs}


def run(jobs: Sequence[JobSpec], on_event: OnEvent = lambda event: None) -> RunResult:
    """Run a list of jobs in order.

    Raises:
        SpecError: a job cannot run as written; nothing was started.
        StillhouseError: a job failed; what was recorded of it is in its run folder.
        Interrupted: stopped on request, with a checkpoint.
    """
    from orchestrator.planner.checks import preflight

    jobs = [absolute_paths(job) for job in jobs]
    preflight(jobs)
    for job in jobs:
        check_start(job)
    run_ids = [new_run_id(job.name) for job in jobs]
    for index, job in enumerate(jobs):
        RunFolder.at(job.storage, run_ids[index]).write(jobs, index, run_ids)
    return _run_from(jobs, run_ids, 0, resume_first=False, on_event=on_event)


def label(jobs: Sequence[JobSpec], on_event: OnEvent = lambda event: None) -> RunResult:
    """Put all that the jobs will ask of their roles into the cache, and train nothing.

    What is there already is not computed again, so an interrupted labelling is started once more.

    Raises:
        SpecError: a job cannot be labelled as written.
        StillhouseError: a role could not answer.
    """
    from orchestrator.planner.checks import preflight
    from orchestrator.session import Session

    jobs = [absolute_paths(job) for job in jobs]
    preflight(jobs)
    later = [job for job in jobs if any(role.job is not None for role in job.roles.values())]
    for job in later:
        raise SpecError(
            f"{job.name}.roles",
            "name the student of an earlier job, which is not trained yet",
            "Give its export as path",
        )
    asking = [job for job in jobs if job.used_roles]
    if not asking:
        raise SpecError("objective.terms", "ask no role", "Only what roles say can be labelled")
    with Session(asking, on_event) as session:
        done = [session.label_job(job, f"label-{secrets.token_hex(4)}", {}) for job in asking]
    return RunResult(done)


def resume(run_folder: str, on_event: OnEvent = lambda event: None) -> RunResult:
    """Go on with a run from its newest checkpoint, then with the jobs after it in its list."""
    jobs, index, run_ids = RunFolder.read(run_folder)
    return _run_from(jobs, run_ids, index, resume_first=True, on_event=on_event)


def evaluate(run_folder: str, on_event: OnEvent = lambda event: None) -> RunResult:
    """Measure a run's exported student again on its held-out data."""
    from orchestrator.session import Session

    jobs, index, run_ids = RunFolder.read(run_folder)
    job, folder = jobs[index], RunFolder.at(jobs[index].storage, run_ids[index])
    with Session([job], on_event) as session:
        return RunResult([session.evaluate_job(job, folder, _exports(jobs, run_ids))])


def _exports(jobs: Sequence[JobSpec], run_ids: Sequence[str]) -> dict[str, Export]:
    """Where each job of a list puts its student."""
    return {
        job.name: Export(f"{RunFolder.at(job.storage, run_id).uri}/export", job.student)
        for job, run_id in zip(jobs, run_ids, strict=True)
    }


def _run_from(
    jobs: Sequence[JobSpec],
    run_ids: Sequence[str],
    first: int,
    *,
    resume_first: bool,
    on_event: OnEvent,
) -> RunResult:
    from orchestrator.session import Session

    done: list[dict[str, Any]] = []
    with Session(jobs[first:], on_event) as session:
        for index in range(first, len(jobs)):
            if session.asked_to_stop:
                last = RunFolder.at(jobs[index - 1].storage, run_ids[index - 1]).uri
                raise Interrupted(
                    f"job {jobs[index - 1].name!r} was over before it could stop; "
                    f"stillhouse resume {last} goes on with {jobs[index].name!r}"
                )
            resumed = resume_first and index == first
            done.append(run_in(session, jobs, index, run_ids, on_event, resumed))
    return RunResult(done)


def new_run_id(name: str) -> str:
    """An id for a run of a job: its name, the time, and a few random letters."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def run_in(
    session: "Session",
    jobs: Sequence[JobSpec],
    index: int,
    run_ids: Sequence[str],
    on_event: OnEvent,
    resume: bool,
    pause_at: int | None = None,
) -> dict[str, Any]:
    """Run one job of a list in a session that is open; its summary.

    Args:
        session: open.
        jobs: the list; what the job needs of earlier ones is there already.
        index: of the job.
        run_ids: of the list; the job's run folder is written.
        on_event: hears how the job ended, after what the session tells.
        resume: go on from the newest checkpoint, which must be there.
        pause_at: steps after which it ends for now, with a checkpoint and a measurement; its
            summary's status is then "paused".

    Raises:
        StillhouseError: the job failed.
        Interrupted: stopped on request, with a checkpoint.
    """
    job, folder = jobs[index], RunFolder.at(jobs[index].storage, run_ids[index])
    began = time.monotonic()
    try:
        exports = _exports(jobs, run_ids)
        summary = session.run_job(job, folder, exports, resume=resume, pause_at=pause_at, jobs=jobs)
    except StillhouseError as error:
        status = "interrupted" if isinstance(error, Interrupted) else "failed"
        summary = {"status": status, "run_id": folder.run_id, "error": str(error)}
        on_event(JobEnded(job.name, status, summary))
        raise
    summary["wall_s"] = time.monotonic() - began
    on_event(JobEnded(job.name, summary["status"], summary))
    return summary
