"""What is tried next: Ray Tune's searcher, over one walk of the space.

Trials come in this order: those that the journal knows, the fixed ones, draws. Ray's own searcher
drives Optuna; trials that the journal knows are given to it as points that it would have chosen,
so that it learns from them again.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray.tune.search import Searcher

from orchestrator.errors import SpecError

from .plan import Search, grid_points, trial_job, trials_of
from .space import Random, Recording, Settings, Space, Value, Values, drawn
from .spec import CmaEsSearcher, SearchSpec, TpeSearcher, goal_name

DRAWS = 100
"""Draws in a row that may make no valid job."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One trial to begin."""

    number: int
    values: Values  # empty for a fixed one
    settings: Settings


class Draws(Protocol):
    """Says values, and may learn from results."""

    def draw(self, draw_id: str, number: int, attempt: int) -> tuple[Values, Settings]:
        """The draw of a new id: the `number`th from 0, after `attempt` that made no valid job."""
        ...

    def known(self, draw_id: str) -> None:
        """The next of the points that were tried before."""
        ...

    def result(self, draw_id: str, result: dict[str, Any]) -> None: ...

    def complete(self, draw_id: str, result: dict[str, Any] | None, error: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class RandomDraws:
    """Draws that depend on the search's seed and their number alone."""

    space: Space
    seed: int
    points: Sequence[Mapping[str, Value]]  # combinations of grids, gone through in order

    def draw(self, draw_id: str, number: int, attempt: int) -> tuple[Values, Settings]:
        point = self.points[number % len(self.points)]
        asked = Recording(Random(random.Random(f"{self.seed}/{number}/{attempt}"), point))
        return asked.values, drawn(self.space, asked)

    def known(self, draw_id: str) -> None:
        pass

    def result(self, draw_id: str, result: dict[str, Any]) -> None:
        pass

    def complete(self, draw_id: str, result: dict[str, Any] | None, error: bool) -> None:
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


class _Asked:
    """The space as Optuna wants it: a function that asks a trial for what it needs."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self.values: Values = {}
        self.settings: Settings = {}

    def __call__(self, trial: Any) -> None:
        asked = Recording(OptunaAsk(trial))
        self.settings = drawn(self._space, asked)
        self.values = asked.values


class OptunaDraws:
    """Ray's searcher of Optuna.

    Args:
        spec: of the search; its searcher is one of Optuna's.
        points: values of the trials that are known, in the order in which they come again.
    """

    def __init__(self, spec: SearchSpec, points: Sequence[Values]) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._asked = _Asked(spec.space)
        names = [goal_name(index) for index in range(len(spec.goals))]
        modes = [goal.mode for goal in spec.goals]
        several = len(names) > 1
        self._inner: Any = OptunaSearch(
            space=self._asked,
            metric=names if several else names[0],
            mode=modes if several else modes[0],
            points_to_evaluate=[dict(each) for each in points],
            sampler=_sampler(spec),
        )

    def draw(self, draw_id: str, number: int, attempt: int) -> tuple[Values, Settings]:
        self._inner.suggest(draw_id)
        return dict(self._asked.values), self._asked.settings

    def known(self, draw_id: str) -> None:
        self._inner.suggest(draw_id)

    def result(self, draw_id: str, result: dict[str, Any]) -> None:
        self._inner.on_trial_result(draw_id, result)

    def complete(self, draw_id: str, result: dict[str, Any] | None, error: bool) -> None:
        self._inner.on_trial_complete(draw_id, result, error)


def _sampler(spec: SearchSpec) -> Any:
    from optuna import samplers

    match spec.searcher:
        case TpeSearcher(startup_trials=startup):
            return samplers.TPESampler(n_startup_trials=startup, seed=spec.seed)
        case CmaEsSearcher(startup_trials=startup):
            independent = samplers.RandomSampler(seed=spec.seed)
            return samplers.CmaEsSampler(
                n_startup_trials=startup,
                seed=spec.seed,
                independent_sampler=independent,
                warn_independent_sampling=False,
            )
    raise AssertionError("only Optuna's searchers have a sampler")


def draws_of(spec: SearchSpec, points: Sequence[Values]) -> Draws:
    """Who chooses, as the search says."""
    if isinstance(spec.searcher, TpeSearcher | CmaEsSearcher) and spec.space:
        return OptunaDraws(spec, points)
    return RandomDraws(spec.space, spec.seed, grid_points(spec))


class Suggestions(Searcher):
    """Trials for Ray Tune, numbered; what a number means is told to `begin`.

    Args:
        search: what is searched.
        known: trials of the journal, by number; they come first.
        skipped: trials of the journal that no longer fit the file; their numbers stay taken.
        enough: whether no further trial may begin.
        begin: hears of each new trial before Ray Tune does.
        extra: goes into each trial's configuration.
    """

    def __init__(
        self,
        search: Search,
        known: Sequence[Tried],
        skipped: Sequence[int],
        enough: Callable[[], bool],
        begin: Callable[[Tried], None],
        extra: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self._search, self._enough, self._begin, self._extra = search, enough, begin, extra
        self._known = deque(known)
        tried = [trial.settings for trial in known]
        self._fixed = deque(each for each in search.spec.fixed if each not in tried)
        self._draws = draws_of(search.spec, [each.values for each in known if each.values])
        self._drawn = sum(1 for trial in known if trial.values)
        self._begun = 0
        self._next = 1 + max([-1, *skipped, *(trial.number for trial in known)])
        self._ids: dict[str, str] = {}  # Ray's id of a trial -> that of its draw

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True  # the search says what is sought

    def suggest(self, trial_id: str) -> Any:
        trial = self._tried(trial_id)
        if trial is None:
            return Searcher.FINISHED
        self._begun += 1
        return {"number": trial.number, **self._extra}

    def _tried(self, trial_id: str) -> Tried | None:
        most = trials_of(self._search.spec)
        if most is not None and self._begun >= most:
            return None
        if self._known:
            trial = self._known.popleft()
            if trial.values:
                self._ids[trial_id] = trial_id
                self._draws.known(trial_id)
            return trial
        if self._enough():
            return None
        values, settings = ({}, self._fixed.popleft()) if self._fixed else self._draw(trial_id)
        trial = Tried(self._next, values, settings)
        self._next += 1
        self._begin(trial)
        return trial

    def _draw(self, trial_id: str) -> tuple[Values, Settings]:
        """A draw that makes a valid job."""
        for attempt in range(DRAWS):
            draw_id = f"{trial_id}-{attempt}"
            values, settings = self._draws.draw(draw_id, self._drawn, attempt)
            try:
                trial_job(self._search, settings, self._search.name)
            except SpecError as error:
                self._draws.complete(draw_id, None, True)
                if attempt == DRAWS - 1:
                    raise SpecError(
                        error.field,
                        f"{error.problem}; {DRAWS} draws in a row made no valid job",
                        error.remedy,
                    ) from None
            else:
                self._ids[trial_id] = draw_id
                self._drawn += 1
                return values, settings
        raise AssertionError("the last attempt raises")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self._ids and math.isfinite(result.get(goal_name(0), math.nan)):
            self._draws.result(self._ids[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self._ids:
            value = math.nan if result is None else result.get(goal_name(0), math.nan)
            failed = error or not math.isfinite(value)
            self._draws.complete(self._ids[trial_id], None if failed else result, failed)

    def save(self, checkpoint_path: str) -> None:
        open(checkpoint_path, "wb").close()  # a resume reads the search's own journal

    def restore(self, checkpoint_path: str) -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune writes a copy that nobody reads
