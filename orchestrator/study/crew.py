"""The lanes of a study: threads that each drive one job after another in a session of their own.

Promises: what a lane decides is in `lanes`, what it has done is in the journal before anybody else
hears of it. A lane whose job failed starts a fresh session, because a failure may leave workers in
any state. Events are passed on by one thread at a time.
"""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack

import fsspec

from orchestrator.errors import Interrupted, SpecError, StillhouseError
from orchestrator.events import Event, Warned
from orchestrator.run_folder import RunFolder
from orchestrator.runner import new_run_id, run_in
from orchestrator.session import Session
from orchestrator.students.checkpoint import Checkpoints

from .folder import StudyFolder
from .journal import Entry, Journal, Told
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
        folder: of the study.
        journal: open.
        done: entries of the jobs that need not run again, by key.
        lanes: jobs side by side.
        on_event: hears everything.
    """

    def __init__(
        self,
        plan: StudyPlan,
        folder: StudyFolder,
        journal: Journal,
        done: Mapping[str, Entry],
        lanes: int,
        on_event: OnEvent,
    ) -> None:
        self._plan, self._folder, self._journal = plan, folder, journal
        self._on_event = on_event
        self._lanes = lanes
        self._known = threading.Condition()
        self._told = threading.Lock()
        self._run_ids = {key: entry.run_id for key, entry in done.items()}
        self._begun = dict(Told.by(journal.entries).begun)
        self._done = set(done)
        self._running: dict[int, PlannedJob] = {}
        self._sessions: dict[int, Session] = {}
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
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            self._tell(Warned("study", "stopping after this step"))
            self._stop(threads)
        if self._broken is not None:
            raise self._broken
        for key in self._board().blocked(self._plan):
            needed = [need for need in self._plan.job(key).needs if need not in self._done]
            self.causes[key] = f"needs {', '.join(self._plan.job(each).name for each in needed)}"
        return self._stopping

    def _stop(self, threads: list[threading.Thread]) -> None:
        with self._known:
            self._stopping = True
            self._known.notify_all()
        for thread in threads:
            while thread.is_alive():
                for session in list(self._sessions.values()):
                    session.request_stop()
                thread.join(ASK_AGAIN_S)

    def _lane(self, number: int) -> None:
        last: PlannedJob | None = None
        try:
            with ExitStack() as open_now:
                while (job := self._take(number, last)) is not None:
                    last = job if self._do(number, job, open_now) else None
        except BaseException as error:  # kept, not swallowed: `work` raises it
            self._broken = self._broken or error
            self._leave(number)

    def _take(self, number: int, last: PlannedJob | None) -> PlannedJob | None:
        """The lane's next job; waits while others may make one possible. None: there is none."""
        with self._known:
            while not self._stopping:
                board = self._board()
                others = [job for lane, job in self._running.items() if lane != number]
                job = choose(self._plan, board, last, others)
                if job is not None:
                    self._running[number] = job
                    return job
                if not board.waiting(self._plan) or not self._running:
                    return None
                self._known.wait()
        return None

    def _do(self, number: int, job: PlannedJob, open_now: ExitStack) -> bool:
        """Run a job, twice if need be; whether it is done."""
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                self._attempt(number, job, open_now)
            except Interrupted:
                self._leave(number)
                return False
            except Exception as error:  # whatever it was, the other jobs' results are wanted
                ours = isinstance(error, StillhouseError)
                cause = str(error) if ours else f"{type(error).__name__}: {error}"
                logger.warning("%s failed: %s", job.name, cause, exc_info=not ours)
                self._sessions.pop(number, None)
                open_now.close()  # a failure may leave workers in any state
                if isinstance(error, SpecError) or not attempts_left:
                    self._finish(number, job, cause)
                    return False
                if self._stopping:
                    self._leave(number)
                    return False
                self._tell(Warned(job.name, f"failed ({cause}); trying once more"))
            else:
                self._finish(number, job, None)
                return True
        raise AssertionError("the last attempt returns")

    def _attempt(self, number: int, job: PlannedJob, open_now: ExitStack) -> None:
        """One run of a job, from its newest checkpoint where an earlier life left one."""
        chain = self._plan.chain(job.key)
        specs = [each.spec for each in chain]
        began = time.monotonic()
        session = self._sessions.get(number)
        if session is None:
            session = open_now.enter_context(Session(specs, self._tell))
            self._sessions[number] = session
        begun = self._begun.pop(job.key, None)
        resume = begun is not None and self._has_checkpoint(job, begun.run_id)
        run_id = begun.run_id if begun is not None and resume else new_run_id(job.name)
        run_ids = [*(self._run_ids[each.key] for each in chain[:-1]), run_id]
        if not resume:
            RunFolder.at(job.spec.storage, run_id).write(specs, len(specs) - 1, run_ids)
        with self._known:
            self._journal.append(Entry("started", job.key, job.name, run_id))
        self._report()
        summary = run_in(session, specs, len(specs) - 1, run_ids, self._tell, resume)
        with self._known:
            self._journal.append(Entry("done", job.key, job.name, run_id, summary))
            self._run_ids[job.key] = run_id
            self._took_s[job.key] = time.monotonic() - began

    def _has_checkpoint(self, job: PlannedJob, run_id: str) -> bool:
        folder = RunFolder.at(job.spec.storage, run_id)
        return bool(Checkpoints(folder.uri, run_id, 1, 0, 0).steps())

    def _finish(self, number: int, job: PlannedJob, cause: str | None) -> None:
        """A job is over; `cause` says why it failed, None that it did not."""
        with self._known:
            if cause is None:
                self._done.add(job.key)
            else:
                self.causes[job.key] = cause
                self._journal.append(Entry("failed", job.key, job.name, "", error=cause))
            self._running.pop(number)
            self._known.notify_all()
        self._report()

    def _leave(self, number: int) -> None:
        """No lane takes a job any more; this one's, if any, is neither done nor failed."""
        with self._known:
            self._stopping = True
            self._running.pop(number, None)
            self._known.notify_all()

    def _board(self) -> Board:
        running = frozenset(job.key for job in self._running.values())
        return Board(frozenset(self._done), frozenset(self.causes), running)

    def _report(self) -> None:
        with self._known:
            board = self._board()
            running = tuple(job.name for _, job in sorted(self._running.items()))
            left = left_s(self._plan, board, self._took_s, self._lanes)
            failed = len(board.failed | board.blocked(self._plan))
            now = StudyProgress(len(self._plan.jobs), len(board.done), failed, running, left)
        self._tell(now)

    def _tell(self, event: Event | StudyProgress) -> None:
        with self._told:
            self._on_event(event)


def still_there(plan: StudyPlan, told: Told) -> dict[str, Entry]:
    """Jobs that are done and stay so: those whose student a job to come needs must have kept it."""
    done = {job.key: told.done[job.key] for job in plan.jobs if job.key in told.done}
    for job in reversed(plan.jobs):  # a job that must run again may need others that must
        if job.key in done and any(
            each.key not in done and job.key in each.needs for each in plan.jobs
        ):
            fs, root = fsspec.core.url_to_fs(done[job.key].summary["export"])
            if not fs.exists(root):
                logger.warning("%s: its export is gone; it runs again", job.name)
                del done[job.key]
    return done
