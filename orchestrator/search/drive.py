"""Have trials chosen, stopped and run: by Ray Tune, or by an umpire where they go in rounds.

Promises: what lanes, journal and searcher are is the same for both.
"""

import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.events import Event, Warned
from orchestrator.spec.paths import absolute_paths

from .board import Board
from .crew import Crew, Exchange, TrialJobs
from .deciders import decider_of
from .past import Numbers, Tried, past_of
from .plan import Search, key_of, trial_job
from .rounds import Decider
from .umpire import Umpire, Whistle

if TYPE_CHECKING:
    from orchestrator.series.drivers import Drivers

    from .suggest import Suggestions

LOOK_S = 0.5
"""Between looks at whether a search has ended."""


class Telling(Protocol):
    """Who hears of a search."""

    steps: Any

    def event(self, event: Event) -> None: ...

    def used_up(self) -> bool: ...

    def changed(self) -> None: ...


def drive(
    search: Search,
    board: Board,
    skipped: Sequence[int],
    jobs_of: Callable[[int], TrialJobs],
    drivers: "Drivers",
    lanes: int,
    telling: Telling,
    steps: int | None,
    storage: str,
) -> bool:
    """Have trials chosen and stopped by Ray Tune, which must be joined, or in rounds.

    Args:
        search: what is searched.
        board: what is known.
        skipped: numbers of known trials that no longer count.
        jobs_of: a trial's jobs.
        drivers: what runs them.
        lanes: trials side by side.
        telling: hears everything.
        steps: of one run; None where epochs end it.
        storage: local folder for Ray Tune's own state, which ends with the call.

    Returns:
        Whether it was interrupted.
    """
    decider = decider_of(search)
    if decider is None:
        choosing = _by_ray_tune(search, board, lanes, telling, steps, storage)
    else:
        choosing = _in_rounds(search, board, lanes, telling, decider)
    with choosing as way:
        crew = Crew(
            search.spec,
            board,
            jobs_of,
            drivers,
            way.exchange,
            lanes,
            telling.event,
            telling.changed,
        )
        suggestions = _suggestions(search, board, skipped, crew, telling, way)
        work = way.chooser(crew, suggestions)
        crew.start()
        chooser = Chooser(work, crew.stop)
        interrupted = _wait(crew, chooser, way.let_go, telling)
        interrupted = _close(crew, telling) or interrupted
    for error in (crew.broken, chooser.broken):
        if error is not None:
            raise error
    return interrupted


class Chooser:
    """What chooses and stops trials, in a thread of its own, where it takes no signals.

    Args:
        work: chooses until there is no more to choose.
        stop: called if that breaks: nothing that runs would come to anything.
    """

    def __init__(self, work: Callable[[], None], stop: Callable[[], None]) -> None:
        self._work, self._stop = work, stop
        self.broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="chooser", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # kept, not swallowed: whoever waits raises it
            self.broken = error
            self._stop()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, after at most so many seconds."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


@dataclass(frozen=True, slots=True)
class Way:
    """How trials are chosen."""

    exchange: Exchange
    chooser: Callable[[Crew, "Suggestions"], Callable[[], None]]
    """Makes what chooses them."""
    let_go: Callable[[], None] = lambda: None
    """Called once the search is to stop."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What each suggestion says besides the trial's number."""
    stops: Mapping[int, Numbers] = field(default_factory=dict)
    """Trials that are stopped, and the numbers at which that was decided, where that is known."""


@contextmanager
def _by_ray_tune(
    search: Search, board: Board, lanes: int, telling: Telling, steps: int | None, storage: str
) -> Iterator[Way]:
    import ray

    from .exchange import start_exchange
    from .stopping import stopping_of
    from .tune import RayExchange, tuner_of

    spec, scheduler = search.spec, stopping_of(search.spec, steps)
    stops = {} if scheduler is None else scheduler.retell(board.history, board.states, spec.goals)
    for number in stops:
        if not board.state(number).over:
            board.note("ended", number, status="stopped")
            telling.changed()
    name = f"exchange-{uuid.uuid4().hex[:8]}"
    actor = start_exchange(name)
    exchange = RayExchange(actor)
    extra = {"exchange": name, "goals": len(spec.goals)}

    def chooser(crew: Crew, suggestions: "Suggestions") -> Callable[[], None]:
        return tuner_of(spec, suggestions, scheduler, lambda: crew.stopping, lanes, storage)

    try:
        yield Way(exchange, chooser, exchange.close, extra, stops)
    finally:
        ray.kill(actor)
        shutil.rmtree(storage, ignore_errors=True)


@contextmanager
def _in_rounds(
    search: Search, board: Board, lanes: int, telling: Telling, decider: Decider
) -> Iterator[Way]:
    """The same without Ray Tune."""
    whistle, goals = Whistle(), search.spec.goals

    def chooser(crew: Crew, suggestions: "Suggestions") -> Callable[[], None]:
        def rounds() -> None:
            changed, stopping = telling.changed, lambda: crew.stopping
            umpire = Umpire(goals, board, decider, suggestions, whistle, lanes, changed, stopping)
            while not crew.stopping and not umpire.advance(LOOK_S):
                pass

        return rounds

    yield Way(whistle, chooser)


def _suggestions(
    search: Search,
    board: Board,
    skipped: Sequence[int],
    crew: Crew,
    telling: Telling,
    way: Way,
) -> "Suggestions":
    from .suggest import Suggestions

    telling.steps = crew.steps

    def begin(trial: Tried) -> None:
        job = absolute_paths(trial_job(search, trial.settings, search.name))
        settings = trial.settings
        board.note("trial", trial.number, key=key_of(job), values=trial.values, settings=settings)
        telling.changed()

    past = past_of(board.history, board.states, search.spec.goals, way.stops)

    def enough() -> bool:
        return crew.stopping or telling.used_up()

    return Suggestions(search, past, skipped, enough, begin, way.extra)


def _wait(crew: Crew, chooser: Chooser, close: Callable[[], None], telling: Telling) -> bool:
    """Until the choosing has ended; whether it was interrupted, by Ctrl-C or from elsewhere."""
    asked = False
    while True:
        try:
            if crew.stopping and not asked:
                asked = True
                close()
            if chooser.wait(LOOK_S):
                return (asked or crew.stopping) and crew.broken is None
        except KeyboardInterrupt:
            telling.event(Warned("search", "stopping after this step"))
            crew.stop()


def _close(crew: Crew, telling: Telling) -> bool:
    """Wait for what still runs; whether that was interrupted."""
    interrupted = False
    while True:
        try:
            crew.close()
            return interrupted
        except KeyboardInterrupt:
            interrupted = True
            telling.event(Warned("search", "stopping after this step"))
            crew.stop()
