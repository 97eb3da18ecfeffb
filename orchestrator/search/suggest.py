"""What is tried next: Ray Tune's searcher, over one walk of the space.

Trials come in this order: those that the journal knows and that are not over, the fixed ones,
draws. What the journal knows is told to Optuna again in the journal's order, as points that it
would have chosen, so that it learns from them again; and each draw has a seed of its own, by the
number of its trial, so that a search that goes on does not draw again what it has drawn.
"""

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray.tune.search import Searcher

from orchestrator.errors import SpecError

from .past import Ended, Numbers, Tried
from .plan import Search, fixed_values, grid_points, trial_job, trials_of
from .space import Random, Recording, Settings, Space, Value, Values, drawn
from .spec import CmaEsSearcher, SearchSpec, TpeSearcher, goal_name

DRAWS = 100
"""Draws in a row that may make no valid job."""
REDRAWS = 10
"""Of a trial of the journal, until it is taken for one of another space."""


class Draws(Protocol):
    """Says values of trials, by number, and may learn from results."""

    def draw(self, number: int, attempt: int) -> tuple[Values, Settings]:
        """Of a new trial, after `attempt` draws for it that made no valid job."""
        ...

    def known(self, number: int, values: Values) -> None:
        """A trial was drawn before."""
        ...

    def fixed(self, number: int, settings: Settings) -> None:
        """A trial was not drawn."""
        ...

    def complete(self, number: int, result: Numbers | None) -> None:
        """A trial is over; None: it has no result, or the draw made no valid job."""
        ...


@dataclass(slots=True)
class RandomDraws:
    """Draws that depend on the search's seed and the trial's number alone.

    Grids are answered with the combination that came least often, the first of equals.
    """

    space: Space
    seed: int
    points: Sequence[Mapping[str, Value]]  # combinations of grids
    came: Counter[int] = field(default_factory=Counter)  # index of a combination -> trials
    point: int = 0  # of the latest draw

    def draw(self, number: int, attempt: int) -> tuple[Values, Settings]:
        if attempt == 0:
            self.point = min(range(len(self.points)), key=lambda index: self.came[index])
            self.came[self.point] += 1
        generator = random.Random(f"{self.seed}/{number}/{attempt}")
        asked = Recording(Random(generator, self.points[self.point]))
        settings = drawn(self.space, asked)
        return asked.values, settings

    def known(self, number: int, values: Values) -> None:
        for index, point in enumerate(self.points):
            if point.items() <= values.items():
                self.came[index] += 1

    def fixed(self, number: int, settings: Settings) -> None:
        pass

    def complete(self, number: int, result: Numbers | None) -> None:
        pass


@dataclass(frozen=True, slots=True)
class OptunaAsk:
    """Answers of an Optuna trial."""

    trial: Any

    def number(self, name: str, low: float, high: float, step: float | None, log: bool) -> float:
        found = self.trial.suggest_float(name, low, high, step=step, log=log)
        return min(high, max(low, found))

    def whole(self, name: str, low: int, high: int) -> int:
        return self.trial.suggest_int(name, low, high)

    def label(self, name: str, labels: Sequence[str], in_turn: bool) -> str:
        return self.trial.suggest_categorical(name, list(labels))


class OptunaDraws:
    """Optuna's, of a search whose searcher is one of them."""

    def __init__(self, search: Search) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search, self._spec = search, search.spec
        way = optuna.study.StudyDirection
        ways = {"min": way.MINIMIZE, "max": way.MAXIMIZE}
        self._study = optuna.create_study(directions=[ways[goal.mode] for goal in self._spec.goals])
        self._trials: dict[int, Any] = {}  # those that are not over

    def draw(self, number: int, attempt: int) -> tuple[Values, Settings]:
        # A sampler remembers nothing but its random state: what it learns from is in the study.
        words = f"{self._spec.seed}/{number}/{attempt}"
        self._study.sampler = _sampler(self._spec, random.Random(words).getrandbits(32))
        self._trials[number] = trial = self._study.ask()
        asked = Recording(OptunaAsk(trial))
        settings = drawn(self._spec.space, asked)
        return asked.values, settings

    def known(self, number: int, values: Values) -> None:
        # Drawn again, as it once was: CMA-ES notes beside its own draws what it learns from.
        for attempt in range(REDRAWS):
            if self.draw(number, attempt)[0] == values:
                return
            self.complete(number, None)
        self._place(number, values)

    def fixed(self, number: int, settings: Settings) -> None:
        values = fixed_values(self._search, settings)
        if values is not None:  # else it lies outside the space, where Optuna cannot place it
            self._place(number, values)

    def _place(self, number: int, values: Values) -> None:
        self._study.enqueue_trial(dict(values))
        self.draw(number, 0)

    def complete(self, number: int, result: Numbers | None) -> None:
        from optuna.trial import TrialState

        trial = self._trials.pop(number, None)
        if trial is None:
            return
        names = [goal_name(index) for index in range(len(self._spec.goals))]
        values = [math.nan if result is None else result.get(name, math.nan) for name in names]
        if all(map(math.isfinite, values)):
            self._study.tell(trial, values)
        else:
            self._study.tell(trial, state=TrialState.FAIL)


def _sampler(spec: SearchSpec, seed: int) -> Any:
    from optuna import samplers

    match spec.searcher:
        case TpeSearcher(startup_trials=startup):
            return samplers.TPESampler(n_startup_trials=startup, seed=seed)
        case CmaEsSearcher(startup_trials=startup):
            return samplers.CmaEsSampler(
                n_startup_trials=startup,
                seed=seed,
                independent_sampler=samplers.RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
    raise AssertionError("only Optuna's searchers have a sampler")


def draws_of(search: Search) -> Draws:
    """Who chooses, as the search says."""
    spec = search.spec
    if isinstance(spec.searcher, TpeSearcher | CmaEsSearcher) and spec.space:
        return OptunaDraws(search)
    return RandomDraws(spec.space, spec.seed, grid_points(spec))


class Suggestions(Searcher):
    """Trials for Ray Tune, numbered; what a number means is told to `begin`.

    Args:
        search: what is searched.
        past: trials of the journal, and which of them are over; the others come first.
        skipped: trials of the journal that no longer fit the file; their numbers stay taken.
        enough: whether no further trial may begin.
        begin: hears of each new trial before Ray Tune does.
        extra: goes into each trial's configuration.
    """

    def __init__(
        self,
        search: Search,
        past: Sequence[Tried | Ended],
        skipped: Sequence[int],
        enough: Callable[[], bool],
        begin: Callable[[Tried], None],
        extra: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self._search, self._enough, self._begin, self._extra = search, enough, begin, extra
        self._draws = draws_of(search)
        tried = [each for each in past if isinstance(each, Tried)]
        settings = [trial.settings for trial in tried]
        self._fixed = deque(each for each in search.spec.fixed if each not in settings)
        self._next = 1 + max([-1, *skipped, *(trial.number for trial in tried)])
        self._known: dict[int, Tried] = {}  # those that come again
        self._begun = 0
        self._numbers: dict[str, int] = {}  # Ray's id of a trial -> its number
        for each in past:
            self._remember(each)

    def _remember(self, each: Tried | Ended) -> None:
        if isinstance(each, Ended):
            self._draws.complete(each.number, each.result)
            del self._known[each.number]
            self._begun += 1
            return
        self._known[each.number] = each
        if each.values:
            self._draws.known(each.number, each.values)
        else:
            self._draws.fixed(each.number, each.settings)

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True  # the search says what is sought

    @property
    def left(self) -> bool:
        """Whether there is a trial to begin, known or new."""
        return self._may_begin() and (bool(self._known) or not self._enough())

    def _may_begin(self) -> bool:
        most = trials_of(self._search.spec)
        return most is None or self._begun < most

    def suggest(self, trial_id: str) -> Any:
        if not self.left:
            return Searcher.FINISHED
        trial = self._known.pop(next(iter(self._known))) if self._known else self._new()
        self._begun += 1
        self._numbers[trial_id] = trial.number
        return {"number": trial.number, **self._extra}

    def _new(self) -> Tried:
        number = self._next
        if self._fixed:
            trial = Tried(number, {}, self._fixed.popleft())
            self._draws.fixed(number, trial.settings)
        else:
            trial = Tried(number, *self._draw(number))
        self._next += 1
        self._begin(trial)
        return trial

    def _draw(self, number: int) -> tuple[Values, Settings]:
        """A draw that makes a valid job."""
        for attempt in range(DRAWS):
            values, settings = self._draws.draw(number, attempt)
            try:
                trial_job(self._search, settings, self._search.name)
                return values, settings
            except SpecError as error:
                self._draws.complete(number, None)
                if attempt == DRAWS - 1:
                    raise SpecError(
                        error.field,
                        f"{error.problem}; {DRAWS} draws in a row made no valid job",
                        error.remedy,
                    ) from None
        raise AssertionError("the last attempt raises")

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self._numbers:
            self._draws.complete(self._numbers[trial_id], None if error else result)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        pass  # no searcher learns on the way

    def save(self, checkpoint_path: str) -> None:
        open(checkpoint_path, "wb").close()  # a resume reads the search's own journal

    def restore(self, checkpoint_path: str) -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune writes a copy that nobody reads
