"""Ray Tune's schedulers, which know trials by their number and hear each measurement once.

Promises: what the journal knows is told in its order, before Ray Tune begins, and what is decided
depends on that order and on the search's seed alone. What a scheduler decided and a killed search
had not written down is decided again.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from .journal import Entry, State
from .past import Numbers, last_numbers
from .spec import STEP, AshaScheduler, GoalSpec, MedianScheduler, SearchSpec, goal_name

MANY = 10**6


@dataclass(frozen=True, slots=True)
class Named:
    """All that a scheduler may know of a trial."""

    trial_id: str


class Stopping(FIFOScheduler):
    """One of Ray Tune's schedulers that stop trials, between it and Ray Tune.

    Args:
        inner: decides; it has its metric and mode.
        seed: of whatever it draws.
    """

    def __init__(self, inner: Any, seed: int) -> None:
        super().__init__()
        self._inner, self._seed = inner, seed
        self._metric = goal_name(0)
        self._heard: dict[int, float] = {}  # number of a trial -> step of its latest measurement
        self._added: set[int] = set()

    # --- what the journal knows ------------------------------------------------------------------

    def retell(
        self, entries: Sequence[Entry], states: Sequence[State], goals: Sequence[GoalSpec]
    ) -> dict[int, Numbers]:
        """Hear the past. Trials that went to their end are only remembered.

        Args:
            entries: of the journal.
            states: of the trials that count.
            goals: of the search.

        Returns:
            Trials that are to stop, or were, with the numbers at which that was decided.
        """
        by_number = {state.number: state for state in states}
        stops: dict[int, Numbers] = {}
        for entry in entries:
            state = by_number.get(entry.trial)
            if state is None or entry.trial in stops:
                continue  # Ray Tune listens no longer to a trial that it has stopped
            if entry.kind == "trial":
                self._add(entry.trial)
            elif entry.kind == "result":
                numbers = {STEP: entry.step, goal_name(0): entry.value}
                if state.status == "done":
                    self._complete(entry.trial, numbers)
                elif self._hear(entry.trial, numbers) == TrialScheduler.STOP:
                    stops[entry.trial] = numbers
            elif entry.kind == "ended" and entry.status == "done":
                self._complete(entry.trial, last_numbers(state, goals) or {})
        return stops

    # --- what Ray Tune tells ---------------------------------------------------------------------

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # the search says what is sought

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._add(_number(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._hear(_number(trial), result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._complete(_number(trial), result)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune writes a copy that nobody reads

    # --- once each -------------------------------------------------------------------------------

    def _add(self, number: int) -> None:
        if number in self._added:
            return  # known from the journal, or its driver has died
        self._added.add(number)
        self._enter(number)

    def _enter(self, number: int) -> None:
        with _seeded(f"{self._seed}/{number}"):  # ASHA draws a trial's bracket
            self._inner.on_trial_add(None, Named(str(number)))

    def _hear(self, number: int, result: Mapping[str, Any]) -> str:
        if not self._is_new(number, result):
            return TrialScheduler.CONTINUE
        return self._inner.on_trial_result(None, Named(str(number)), dict(result))

    def _complete(self, number: int, result: Mapping[str, Any]) -> None:
        if self._is_new(number, result):
            self._inner.on_trial_complete(None, Named(str(number)), dict(result))
            self._enter(number)  # there may be more to remember: ASHA forgets whose bracket it was

    def _is_new(self, number: int, result: Mapping[str, Any]) -> bool:
        step, value = result.get(STEP, 0), result.get(goal_name(0), math.nan)
        if step <= self._heard.get(number, 0) or not math.isfinite(value):
            return False
        self._heard[number] = step
        return True


def _number(trial: Any) -> int:
    return int(trial.config["number"])


@contextmanager
def _seeded(words: str) -> Iterator[None]:
    """NumPy's global generator, which Ray Tune draws from, begun anew and put back afterwards."""
    before = np.random.get_state()
    np.random.seed(random.Random(words).getrandbits(32))
    try:
        yield
    finally:
        np.random.set_state(before)


def stopping_of(spec: SearchSpec, steps: int | None) -> Stopping | None:
    """The scheduler that a search has, if it has one of Ray Tune's.

    Args:
        spec: of the search.
        steps: of the longest run; None where epochs end it.
    """
    inner: Any = None
    match spec.scheduler:
        case AshaScheduler(grace_steps=grace, reduction=reduction, brackets=brackets):
            inner = ASHAScheduler(
                time_attr=STEP,
                metric=goal_name(0),
                mode=spec.mode,
                max_t=steps or MANY,
                grace_period=grace,
                reduction_factor=reduction,
                brackets=brackets,
            )
        case MedianScheduler(grace_steps=grace, min_trials=least):
            inner = MedianStoppingRule(
                time_attr=STEP,
                metric=goal_name(0),
                mode=spec.mode,
                grace_period=grace,
                min_samples_required=least,
                min_time_slice=math.inf,  # type: ignore[arg-type]  # it pauses nothing
            )
    return None if inner is None else Stopping(inner, spec.seed)
