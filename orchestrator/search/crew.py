"""The lanes of a search: threads that each run the jobs of one trial after another.

A trial begins when Ray Tune has started its driver, which says so at the exchange. What a lane
measures is in the journal before Ray Tune hears of it. A trial that is stopped gives its lane back
with a checkpoint.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.errors import Interrupted
from orchestrator.events import CheckpointWritten, Evaluated, Event, JobStarted, StepDone
from orchestrator.series.drivers import Drivers, Lane
from orchestrator.spec import JobSpec

from .board import Board, value_at
from .journal import Kind, State
from .past import last_numbers
from .spec import STEP, SearchSpec, goal_name

LISTEN_S = 1.0
"""Between requests to stop: a job that is only coming up has not heard the one before."""
SHOWN_S = 0.5
"""Between two looks at what a trial has used; its steps may be shorter."""


class Exchange(Protocol):
    """The crew's end of what it hears from trials, and tells them."""

    def messages(self, timeout_s: float) -> Sequence[tuple[str, int]]:
        """What trials have said since the last call: ("begin" or "leave", number)."""
        ...

    def post(self, trial: int, numbers: Mapping[str, float], *, last: bool = False) -> None:
        """Numbers of a trial: a measurement of a training, or the last ones of it or of its leg."""
        ...

    def fail(self, trial: int, error: str) -> None:
        """There will be no further numbers."""
        ...


@dataclass(frozen=True, slots=True)
class TrialJobs:
    """What a trial runs: one job for each seed."""

    number: int
    jobs: tuple[JobSpec, ...]
    pause_at: int | None = None  # steps at which its leg ends; None: with the job


class Crew:
    """Runs what Ray Tune begins.

    Args:
        spec: of the search.
        board: what is known.
        jobs_of: a trial's jobs.
        drivers: what runs jobs.
        exchange: where trials begin.
        lanes: trials side by side.
        on_event: hears the jobs' events; called from several threads.
        changed: called after each change on the board.
    """

    def __init__(
        self,
        spec: SearchSpec,
        board: Board,
        jobs_of: Callable[[int], TrialJobs],
        drivers: Drivers,
        exchange: Exchange,
        lanes: int,
        on_event: Callable[[Event], None],
        changed: Callable[[], None],
    ) -> None:
        self._spec, self._board, self._jobs_of = spec, board, jobs_of
        self._drivers, self._exchange, self._on_event = drivers, exchange, on_event
        self._changed = changed
        self._known = threading.Condition()
        self._queue: deque[int] = deque()
        self._unwanted: set[int] = set()
        self._taken: set[int] = set()  # trials that are queued, run, or failed in this life
        self._current: dict[int, int] = {}  # lane -> trial
        self._lanes: dict[int, Lane] = {}
        self._stopping = self._closed = False
        self._running: dict[int, str] = {}  # trial -> its run
        self._shown_at = 0.0
        self.steps: dict[int, int] = {}  # of each trial's run, once it is known
        self.broken: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._lane, args=(number,), name=f"lane-{number}", daemon=True)
            for number in range(lanes)
        ]
        self._listener = threading.Thread(target=self._listen, name="trials", daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether no trial is to begin any more."""
        return self._stopping

    def start(self) -> None:
        """Begin to listen and to work."""
        for thread in (*self._threads, self._listener):
            thread.start()

    def stop(self) -> None:
        """Have what runs end with a checkpoint, and begin nothing more."""
        with self._known:
            self._stopping = True
            self._known.notify_all()

    def close(self) -> None:
        """Wait until the lanes have nothing left to do; then they end."""
        with self._known:
            self._closed = True
            self._known.notify_all()
        for thread in self._threads:
            thread.join()
        self._listener.join()

    # --- trials ----------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            while not self._closed or any(thread.is_alive() for thread in self._threads):
                for kind, number in self._exchange.messages(LISTEN_S):
                    if kind == "begin":
                        self._begins(number)
                    else:
                        with self._known:
                            self._unwanted.add(number)
                self._ask_to_stop()
        except BaseException as error:
            self._break(error)

    def _begins(self, number: int) -> None:
        state = self._board.state(number)
        if not state.over:
            with self._known:
                self._unwanted.discard(number)
                if number not in self._taken:  # else its driver died, and begins again
                    self._taken.add(number)
                    self._queue.append(number)
                    self._known.notify_all()
            return
        self._exchange.post(number, last_numbers(state, self._spec.goals) or {}, last=True)

    def _ask_to_stop(self) -> None:
        """Lanes whose trial nobody wants are asked, until they have let go of it."""
        with self._known:  # so that a lane cannot have begun with another meanwhile
            for lane, number in self._current.items():
                if self._stopping or number in self._unwanted:
                    self._lanes[lane].request_stop()

    # --- one lane --------------------------------------------------------------------------------

    def _lane(self, number: int) -> None:
        try:
            with Lane(self._drivers, lambda event: self._hear(number, event), self._ends) as lane:
                self._lanes[number] = lane
                while (trial := self._take(number)) is not None:
                    self._do(number, trial, lane)
        except BaseException as error:  # kept, not swallowed: whoever runs the search raises it
            self._break(error)

    def _ends(self) -> bool:
        return self._stopping

    def _break(self, error: BaseException) -> None:
        self.broken = self.broken or error
        self.stop()

    def _take(self, lane: int) -> int | None:
        with self._known:
            while not self._stopping:
                while self._queue and self._queue[0] in self._unwanted:
                    self._queue.popleft()
                if self._queue:
                    self._current[lane] = self._queue.popleft()
                    return self._current[lane]
                if self._closed:
                    return None
                self._known.wait()
        return None

    def _do(self, lane: int, number: int, held: Lane) -> None:
        """Run a trial to its end, or until it is stopped."""
        trial, state = self._jobs_of(number), self._board.state(number)
        cause = None
        try:
            for place, job in enumerate(trial.jobs):
                if place in state.summaries or cause is not None:
                    continue
                cause = held.tried(
                    job.name,
                    1 + self._spec.retries,
                    lambda place=place, job=job: self._attempt(trial, place, job, held),
                    lambda place=place: self._forget(number, place),
                )
        except Interrupted:
            self._let_go(lane, number)
            return
        with self._known:
            self._current.pop(lane, None)
        if cause is None and trial.pause_at is not None:
            self._pause(number)
        else:
            self._conclude(number, cause)

    def _attempt(self, trial: TrialJobs, place: int, job: JobSpec, lane: Lane) -> None:
        """One run of a job, from its newest checkpoint where an earlier attempt left one."""
        lane.opened([job])
        number = trial.number
        run_id = self._board.state(number).runs.get(place, "")
        resume = bool(run_id) and self._drivers.can_resume(job, run_id)
        run_id = run_id if resume else self._drivers.new_run_id(job.name)
        self._board.note("run", number, place=place, run_id=run_id)
        self._changed()
        try:
            summary = lane.run([job], [run_id], resume=resume, pause_at=trial.pause_at)
        finally:
            self._board.settle(number)
        kind: Kind = "paused" if summary["status"] == "paused" else "ran"
        self._board.note(kind, number, place=place, run_id=run_id, summary=summary)

    def _forget(self, number: int, place: int) -> None:
        self._board.note("run", number, place=place, run_id="")

    def _pause(self, number: int) -> None:
        """The leg has ended. Its next one may be on the board already."""
        with self._known:
            self._taken.discard(number)
        self._exchange.post(number, {STEP: self._board.state(number).step}, last=True)
        self._changed()

    def _conclude(self, number: int, cause: str | None) -> None:
        state = self._board.state(number)
        if cause is None:
            missing = [goal.metric for goal in self._spec.goals if self._lacks(state, goal.metric)]
            cause = f"measured no {missing[0]}" if missing else None
        if cause is None:
            state = self._board.note("ended", number, status="done")
            self._exchange.post(number, last_numbers(state, self._spec.goals) or {}, last=True)
        else:
            self._board.note("ended", number, status="failed", error=cause)
            self._exchange.fail(number, cause)
        self._changed()

    @staticmethod
    def _lacks(state: State, metric: str) -> bool:
        return any(value_at(each, metric) is None for each in state.summaries.values())

    def _let_go(self, lane: int, number: int) -> None:
        """The run was stopped: by the scheduler, or with the whole search."""
        with self._known:
            self._current.pop(lane, None)
            unwanted = number in self._unwanted
        if unwanted and not self._stopping:
            self._board.note("ended", number, status="stopped")
        else:
            self.stop()
        self._changed()

    # --- events ----------------------------------------------------------------------------------

    def _hear(self, lane: int, event: Event) -> None:
        number = self._current.get(lane)
        if number is not None:
            self._told(number, event)
        self._on_event(event)

    def _told(self, number: int, event: Event) -> None:
        """What a trial's run says of itself."""
        match event:
            case JobStarted(run_id=run_id, steps=steps, used=used):
                self.steps[number], self._running[number] = steps, run_id
                self._board.began(number, run_id, used)
                self._changed()
            case StepDone(used=used) | CheckpointWritten(used=used):
                self._board.uses(number, self._running[number], used)
                if time.monotonic() - self._shown_at >= SHOWN_S:
                    self._shown_at = time.monotonic()
                    self._changed()
            case Evaluated():
                self._measured(number, event)
            case _:
                pass

    def _measured(self, number: int, event: Evaluated) -> None:
        """A measurement on the way: the one at the end comes with the trial's end."""
        if len(self._spec.seeds or [0]) > 1 or not 0 < event.step < self.steps.get(number, 0):
            return
        value = value_at({"evaluation": event.evaluation}, self._spec.metric)
        if value is None or event.step <= self._board.state(number).step:
            return
        self._board.settle(number)
        self._board.note("result", number, step=event.step, value=value)
        self._exchange.post(number, {STEP: event.step, goal_name(0): value})
        self._changed()
