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
        choosing = _by_ray_tune(search, lanes, steps, storage)
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
        suggestions = _suggestions(search, board, skipped, crew, telling, way.extra)
        crew.start()
        chooser = way.choose(crew, suggestions)
        interrupted = _wait(crew, chooser, way.let_go, telling)
        crew.close()
    for error in (crew.broken, chooser.broken):
        if error is not None:
            raise error
    return interrupted


class Chooser(Protocol):
    """What chooses and stops trials, in a thread of its own."""

    broken: BaseException | None

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, after at most so many seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Way:
    """How trials are chosen."""

    exchange: Exchange
    choose: Callable[[Crew, "Suggestions"], Chooser]
    """Begins to."""
    let_go: Callable[[], None] = lambda: None
    """Called once the search is to stop."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What each suggestion says besides the trial's number."""


@contextmanager
def _by_ray_tune(search: Search, lanes: int, steps: int | None, storage: str) -> Iterator[Way]:
    import ray

    from .exchange import start_exchange
    from .tune import RayExchange, Tuning

    name = f"exchange-{uuid.uuid4().hex[:8]}"
    actor = start_exchange(name)
    exchange = RayExchange(actor)
    extra = {"exchange": name, "goals": len(search.spec.goals)}

    def choose(crew: Crew, suggestions: "Suggestions") -> Tuning:
        return Tuning(search.spec, suggestions, crew, lanes, steps, storage)

    try:
        yield Way(exchange, choose, exchange.close, extra)
    finally:
        ray.kill(actor)
        shutil.rmtree(storage, ignore_errors=True)


@contextmanager
def _in_rounds(
    search: Search, board: Board, lanes: int, telling: Telling, decider: Decider
) -> Iterator[Way]:
    """The same without Ray Tune."""
    whistle, goals = Whistle(), search.spec.goals

    def choose(crew: Crew, suggestions: "Suggestions") -> Rounds:
        def umpire() -> Umpire:
            changed, stopping = telling.changed, lambda: crew.stopping
            return Umpire(goals, board, decider, suggestions, whistle, lanes, changed, stopping)

        return Rounds(umpire, crew)

    yield Way(whistle, choose)


def _suggestions(
    search: Search,
    board: Board,
    skipped: Sequence[int],
    crew: Crew,
    telling: Telling,
    extra: Mapping[str, Any],
) -> "Suggestions":
    from .suggest import Suggestions, Tried

    telling.steps = crew.steps

    def begin(trial: Tried) -> None:
        job = absolute_paths(trial_job(search, trial.settings, search.name))
        settings = trial.settings
        board.note("trial", trial.number, key=key_of(job), values=trial.values, settings=settings)
        telling.changed()

    known = [Tried(each.number, each.values, each.settings) for each in board.states]

    def enough() -> bool:
        return crew.stopping or telling.used_up()

    return Suggestions(search, known, skipped, enough, begin, extra)


class Rounds:
    """An umpire in a thread of its own, where it takes no signals."""

    def __init__(self, umpire: Callable[[], Umpire], crew: Crew) -> None:
        self._umpire, self._crew = umpire, crew
        self.broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rounds", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            umpire = self._umpire()
            while not self._crew.stopping and not umpire.advance(LOOK_S):
                pass
        except BaseException as error:  # kept, not swallowed: whoever waits raises it
            self.broken = error
            self._crew.stop()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, after at most so many seconds."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


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
