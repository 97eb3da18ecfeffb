"""The lanes of a study: threads that each drive one job after another.

Promises: what a lane decides is in `lanes`; what it has done is in the journal before anybody else
hears of it. A lane whose job failed goes on with a fresh driver, because a failure may leave
workers in any state. Events are passed on by one thread at a time. Imports neither Ray nor torch:
what runs a job is given.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence

import fsspec

from orchestrator.errors import Interrupted
from orchestrator.events import Event, Warned
from orchestrator.series.drivers import Drivers, Lane
from orchestrator.series.journal import Journal

from .journal import Entry, Told
from .lanes import Board, choose, left_s
from .plan import PlannedJob, StudyPlan
from .progress import OnEvent, StudyProgress

logger = logging.getLogger(__name__)

ATTEMPTS = 2
ASK_AGAIN_S = 2.0
"""Between requests to stop: a job that is only coming up has not heard the one before."""


class Crew:
    """Does what a study has left to do.

    Args:
        plan: of the study.
        drivers: what runs jobs.
        journal: open.
        done: entries of the jobs that need not run again, by key.
        lanes: jobs side by side.
        on_event: hears everything.
    """

    def __init__(
        self,
        plan: StudyPlan,
        drivers: Drivers,
        journal: Journal[Entry],
        done: Mapping[str, Entry],
        lanes: int,
        on_event: OnEvent,
    ) -> None:
        self._plan, self._drivers, self._journal = plan, drivers, journal
        self._on_event = on_event
        self._lanes = lanes
        self._known = threading.Condition()
        self._told = threading.Lock()
        self._run_ids = {key: entry.run_id for key, entry in done.items()}
        self._begun = dict(Told.by(journal.entries).begun)
        self._done = set(done)
        self._running: dict[int, PlannedJob] = {}
        self._at_work: dict[int, Lane] = {}
        self._took_s: dict[str, float] = {}
        self._stopping = False
        self._broken: BaseException | None = None
        self.causes: dict[str, str] = {}  # by key of a job that failed

    def work(self) -> bool:
        """Run until nothing is left that can run; whether it was interrupted."""
        threads = [
            threading.Thread(target=self._lane, args=(number,), name=f"lane-{number}", daemon=True)
            for number in range(self._lanes)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            self._tell(Warned("study", "stopping after this step"))
            self._stop(threads)
        if self._broken is not None:
            raise self._broken
        for key in self._board().blocked(self._plan):
            missing = [need for need in self._plan.job(key).needs if need not in self._done]
            self.causes[key] = f"needs {', '.join(self._plan.job(each).name for each in missing)}"
        return self._stopping

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        with self._known:
            self._stopping = True
            self._known.notify_all()
        for thread in threads:
            while thread.is_alive():
                for lane in list(self._at_work.values()):
                    lane.request_stop()
                thread.join(ASK_AGAIN_S)

    # --- one lane --------------------------------------------------------------------------------

    def _lane(self, number: int) -> None:
        last: PlannedJob | None = None
        try:
            with Lane(self._drivers, self._tell, lambda: self._stopping) as lane:
                self._at_work[number] = lane
                while (job := self._take(number, last)) is not None:
                    last = job if self._do(number, job, lane) else None
        except BaseException as error:  # kept, not swallowed: `work` raises it
            self._broken = self._broken or error
            self._leave(number)

    def _take(self, number: int, last: PlannedJob | None) -> PlannedJob | None:
        """The lane's next job; waits while others may make one possible. None: there is none."""
        with self._known:
            while not self._stopping:
                board = self._board()
                job = choose(self._plan, board, last, list(self._running.values()))
                if job is not None:
                    self._running[number] = job
                    return job
                if not board.waiting(self._plan) or not self._running:
                    return None
                self._known.wait()
        return None

    def _do(self, number: int, job: PlannedJob, lane: Lane) -> bool:
        """Run a job, twice if need be; whether it is done."""
        try:
            cause = lane.tried(
                job.name,
                ATTEMPTS,
                lambda: self._attempt(job, lane),
                lambda: self._forget(job),
            )
        except Interrupted:
            self._leave(number)
            return False
        self._finish(number, job, cause)
        return cause is None

    def _forget(self, job: PlannedJob) -> None:
        self._begun.pop(job.key, None)

    def _attempt(self, job: PlannedJob, lane: Lane) -> None:
        """One run of a job, from its newest checkpoint where an earlier attempt left one."""
        chain = self._plan.chain(job.key)
        specs = [each.spec for each in chain]
        began = time.monotonic()
        lane.opened(specs)
        begun = self._begun.get(job.key)
        resume = begun is not None and self._drivers.can_resume(job.spec, begun.run_id)
        run_id = begun.run_id if begun and resume else self._drivers.new_run_id(job.name)
        self._begun[job.key] = Entry("started", job.key, job.name, run_id)
        self._write(self._begun[job.key])
        self._report()
        run_ids = [*(self._run_ids[each.key] for each in chain[:-1]), run_id]
        summary = lane.run(specs, run_ids, resume=resume)
        self._write(Entry("done", job.key, job.name, run_id, summary))
        with self._known:
            self._run_ids[job.key] = run_id
            self._took_s[job.key] = time.monotonic() - began

    # --- what lanes know together ----------------------------------------------------------------

    def _finish(self, number: int, job: PlannedJob, cause: str | None) -> None:
        """A job is over; `cause` says why it failed, None that it did not."""
        if cause is not None:
            self._write(Entry("failed", job.key, job.name, "", error=cause))
        with self._known:
            if cause is None:
                self._done.add(job.key)
            else:
                self.causes[job.key] = cause
            self._running.pop(number)
            self._known.notify_all()
        self._report()

    def _leave(self, number: int) -> None:
        """No lane takes a job any more; this one's, if any, is neither done nor failed."""
        with self._known:
            self._stopping = True
            self._running.pop(number, None)
            self._known.notify_all()

    def _write(self, entry: Entry) -> None:
        with self._known:
            self._journal.append(entry)

    def _board(self) -> Board:
        running = frozenset(job.key for job in self._running.values())
        return Board(frozenset(self._done), frozenset(self.causes), running)

    def _report(self) -> None:
        with self._known:
            board = self._board()
            running = tuple(job.name for _, job in sorted(self._running.items()))
            left = left_s(self._plan, board, self._took_s, self._lanes)
        failed = len(board.failed | board.blocked(self._plan))
        self._tell(StudyProgress(len(self._plan.jobs), len(board.done), failed, running, left))

    def _tell(self, event: Event | StudyProgress) -> None:
        with self._told:
            self._on_event(event)


def still_there(plan: StudyPlan, told: Told) -> dict[str, Entry]:
    """Jobs that are done and stay so: those whose student a job to come needs must have kept it."""
    done = {job.key: told.done[job.key] for job in plan.jobs if job.key in told.done}
    for job in reversed(plan.jobs):  # a job that must run again may need others that must
        wanted = any(each.key not in done and job.key in each.needs for each in plan.jobs)
        if job.key in done and wanted:
            fs, root = fsspec.core.url_to_fs(done[job.key].summary["export"])
            if not fs.exists(root):
                logger.warning("%s: its export is gone; it runs again", job.name)
                del done[job.key]
    return done
