"""A search that goes on: what it draws next, and what its scheduler knows."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import searches

from orchestrator.search.board import best_of
from orchestrator.search.importance import importance
from orchestrator.search.journal import Entry, State, states_of
from orchestrator.search.past import Ended, Tried, last_numbers, past_of
from orchestrator.search.plan import Search, fixed_values
from orchestrator.search.spec import GoalSpec
from orchestrator.search.stopping import Stopping, stopping_of
from orchestrator.search.suggest import Suggestions

pytestmark = pytest.mark.timeout(120)

LR, WEIGHT = searches.LR, searches.SMOOTHING
DECAY = "training.optimizer.weight_decay"
LOSS = GoalSpec(metric="student.loss", mode="min")


def _search(**changes: Any) -> Search:
    return searches.search(**{"space": {LR: {"loguniform": [1e-3, 1e-1]}}, **changes})


def _distance(settings: Any) -> float:
    return abs(math.log(settings[LR] / 0.02)) + 0.1 * settings.get(DECAY, 0.0)


@dataclass
class Alone:
    """A search with one lane whose trials train nothing: its journal in memory."""

    search: Search
    loss: Callable[[Any], float] = _distance
    entries: list[Entry] = field(default_factory=list)
    skipped: Sequence[int] = ()

    @property
    def states(self) -> list[State]:
        found = states_of(self.entries)
        return [found[number] for number in sorted(found) if number not in self.skipped]

    @property
    def settings(self) -> list[Any]:
        return [state.settings for state in self.states]

    def life(self, ends: int = 10**6, *, torn: bool = False) -> "Alone":
        """Go on until so many trials are over; `torn`: in the middle of the one after them."""
        goals = self.search.spec.goals
        past = past_of(self.entries, self.states, goals, {})
        suggestions = Suggestions(self.search, past, self.skipped, lambda: False, self._begin, {})
        while True:
            over = sum(state.over for state in self.states)
            if over == ends and not torn:
                return self
            found = suggestions.suggest(trial_id := f"ray-{over}")
            if not isinstance(found, dict) or over == ends:
                return self
            number = found["number"]
            (state,) = [each for each in self.states if each.number == number]
            value = self.loss(state.settings)
            summary = {"evaluation": {"student": {"loss": value}}, "parameters": 7, "steps": 20}
            self.entries.append(Entry("ran", number, 0.0, summary=summary))
            self.entries.append(Entry("ended", number, 0.0, status="done"))
            (state,) = [each for each in self.states if each.number == number]
            suggestions.on_trial_complete(trial_id, last_numbers(state, goals))

    def _begin(self, trial: Tried) -> None:
        facts = {"values": trial.values, "settings": trial.settings}
        self.entries.append(Entry("trial", trial.number, 0.0, **facts))  # type: ignore[arg-type]


SEARCHERS: list[dict[str, Any]] = [
    {"searcher": "random"},
    {"searcher": {"kind": "tpe", "startup_trials": 3}},
    {"searcher": {"kind": "tpe", "startup_trials": 10}},
    {
        "searcher": {"kind": "tpe", "startup_trials": 3},
        "tradeoffs": [{"metric": "summary.parameters", "mode": "min"}],
    },
    {"searcher": "cmaes"},
]
SPACE = {LR: {"loguniform": [1e-3, 1e-1]}, DECAY: {"uniform": [0.0, 1.0]}}


@pytest.mark.parametrize("torn", [False, True], ids=["between", "within"])
@pytest.mark.parametrize("cut", [1, 3, 6])
@pytest.mark.parametrize("changes", SEARCHERS, ids=["random", "tpe", "startup", "goals", "cmaes"])
def test_a_search_that_goes_on_draws_what_it_would_have(
    changes: dict[str, Any], cut: int, torn: bool
) -> None:
    if changes["searcher"] == "cmaes":
        pytest.importorskip("cmaes")
    fixed = [{LR: 0.05, DECAY: 0.5}, {LR: 0.03}]
    search = _search(space=SPACE, fixed=fixed, budget={"trials": 12}, **changes)
    whole = Alone(search).life()
    again = Alone(search).life(cut, torn=torn).life()
    assert again.settings == whole.settings
    drawn = [(each[LR], each.get(DECAY)) for each in again.settings]
    assert len(set(drawn)) == 12, "nothing comes twice"


def test_numbers_of_trials_that_are_not_kept_are_not_drawn_again() -> None:
    search = _search(budget={"trials": 6})
    first = Alone(search).life(4)
    again = Alone(search, entries=first.entries, skipped=[0, 2]).life()
    assert [state.number for state in again.states] == [1, 3, 4, 5, 6, 7]
    rates = [each[LR] for each in again.settings]
    assert len(set(rates)) == 6 and not {first.settings[k][LR] for k in (0, 2)} & set(rates)


def test_optuna_learns_from_what_it_is_told_again() -> None:
    searcher = {"kind": "tpe", "startup_trials": 8}
    search = _search(searcher=searcher, budget={"trials": 40})
    again = Alone(search).life(16).life()
    losses = [_distance(each) for each in again.settings]
    assert sum(losses[20:]) / 20 < sum(losses[:8]) / 8 / 1.5


def test_a_grid_that_grew_is_gone_through_to_its_end() -> None:
    space = {"seed": {"grid": [1, 2, 3]}}
    first = Alone(_search(space=space, budget={}), loss=lambda each: 1.0).life()
    assert [each["seed"] for each in first.settings] == [1, 2, 3]
    longer = _search(space={"seed": {"grid": [0, 1, 2, 3]}}, budget={})
    again = Alone(longer, first.loss, first.entries).life()
    assert [each["seed"] for each in again.settings] == [1, 2, 3, 0]


def test_a_grid_comes_as_often_with_each_draw_beside_it() -> None:
    space = {LR: {"uniform": [0.1, 0.2]}, "seed": {"grid": [1, 2]}}
    found = Alone(_search(space=space, budget={"trials": 5})).life(3, torn=True).life().settings
    assert [each["seed"] for each in found] == [1, 2, 1, 2, 1]
    assert len({each[LR] for each in found}) == 5


def test_searcher_grid_goes_through_choices_too_each_once() -> None:
    space = {"seed": {"grid": [1, 2]}, WEIGHT: {"choice": [0.5, 1.0, 2.0]}}
    search = _search(space=space, searcher="grid", budget={})
    found = Alone(search, loss=lambda each: 1.0).life(2).life(4, torn=True).life().settings
    pairs = [(each["seed"], each[WEIGHT]) for each in found]
    assert pairs == [(seed, weight) for seed in (1, 2) for weight in (0.5, 1.0, 2.0)]


# --- fixed trials --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "settings", "values"),
    [
        (SPACE, {LR: 0.01, DECAY: 0.5}, {LR: 0.01, DECAY: 0.5}),
        ({LR: {"uniform": [0.1, 0.2]}}, {LR: 0.5}, None),
        ({DECAY: {"quniform": [0.0, 1.0, 0.25]}}, {DECAY: 0.5}, {DECAY: 0.5}),
        ({DECAY: {"quniform": [0.0, 1.0, 0.25]}}, {DECAY: 0.6}, None),
        ({"seed": {"integer": [0, 9]}}, {"seed": 3}, {"seed": 3}),
        ({WEIGHT: {"choice": [1.0, 2.0]}}, {LR: 0.5}, {WEIGHT: "1.0"}),  # the field's default
        (
            {
                WEIGHT: {
                    "choice": [
                        {"kind": "linear", "start": {"uniform": [3.0, 4.0]}, "end": 1.0},
                        {"kind": "linear", "start": {"uniform": [0.5, 2.0]}, "end": 1.0},
                    ]
                }
            },
            {WEIGHT: {"kind": "linear", "start": 0.7, "end": 1.0}},
            {WEIGHT: "linear#2", f"{WEIGHT}[linear#2].start": 0.7},
        ),
        ({WEIGHT: {"choice": [1.0]}}, {WEIGHT: {"kind": "linear", "start": 1, "end": 2}}, None),
    ],
)
def test_a_fixed_trial_has_its_place_in_the_space(space: Any, settings: Any, values: Any) -> None:
    assert fixed_values(_search(space=space), settings) == values


@pytest.mark.parametrize("fixed", [[{LR: 0.02}], [{LR: 0.5}]], ids=["inside", "outside"])
def test_tpe_is_told_of_fixed_trials_that_lie_in_the_space(fixed: list[Any]) -> None:
    search = _search(fixed=fixed, searcher="tpe", budget={"trials": 3})
    begun: list[Tried] = []
    suggestions = Suggestions(search, [], [], lambda: False, begun.append, {})
    for number in range(2):
        suggestions.suggest(f"ray-{number}")
        suggestions.on_trial_complete(f"ray-{number}", {"goal_0": 1.0 + number, "step": 20})
    trials = suggestions._draws._study.trials  # type: ignore[attr-defined]
    told = [(trial.params[LR], trial.value) for trial in trials]
    drawn = (begun[1].values[LR], 2.0)
    assert told == ([(0.02, 1.0), drawn] if fixed == [{LR: 0.02}] else [drawn])


# --- what matters --------------------------------------------------------------------------------


def test_a_field_that_no_longer_varies_does_not_break_the_end() -> None:
    """As after --accept-changes, with the field fixed in the job at what these trials had."""
    search = _search(space=SPACE, budget={"trials": 8})
    states = Alone(search).life().states
    narrower = _search(budget={"trials": 8})
    assert set(importance(narrower, states)) == {LR}


# --- schedulers ----------------------------------------------------------------------------------


class RayTrial:
    """As Ray Tune knows a trial."""

    def __init__(self, number: int) -> None:
        self.config, self.trial_id = {"number": number}, f"ray-{number}"


class Told:
    """A scheduler that hears measurements, and the journal that they are in."""

    def __init__(self, search: Search, entries: Sequence[Entry] = ()) -> None:
        self.search, self.entries = search, list(entries)
        scheduler = stopping_of(search.spec, 400)
        assert scheduler is not None
        self.scheduler: Stopping = scheduler
        states = list(states_of(self.entries).values())
        self.stops = scheduler.retell(self.entries, states, search.spec.goals)

    def begin(self, *numbers: int) -> None:
        for number in numbers:
            if not any(each.trial == number for each in self.entries):
                self.entries.append(Entry("trial", number, 0.0))
            self.scheduler.on_trial_add(None, RayTrial(number))

    def measure(self, number: int, step: int, value: float) -> str:
        self.entries.append(Entry("result", number, 0.0, step=step, value=value))
        numbers = {"step": step, "goal_0": value}
        return self.scheduler.on_trial_result(None, RayTrial(number), numbers)

    def end(self, number: int, value: float) -> None:
        summary = {"evaluation": {"student": {"loss": value}}, "steps": 400}
        self.entries.append(Entry("ran", number, 0.0, summary=summary))
        self.entries.append(Entry("ended", number, 0.0, status="done"))
        numbers = {"step": 400, "goal_0": value, "done": True}
        self.scheduler.on_trial_complete(None, RayTrial(number), numbers)


def _asha(brackets: int = 1, seed: int = 0) -> Search:
    kind = {"kind": "asha", "grace_steps": 100, "reduction": 2, "brackets": brackets}
    return _search(scheduler=kind, seed=seed)


def test_asha_hears_a_past_in_the_order_in_which_it_was() -> None:
    """Trial 1 passes the rung before better ones come to it; by number it would be cut there."""
    first = Told(_asha())
    first.begin(0, 1)
    assert first.measure(1, 100, 3.0) == "CONTINUE"
    assert first.measure(0, 100, 1.0) == "CONTINUE"
    first.begin(2)
    assert first.measure(2, 100, 2.5) == "STOP"
    again = Told(first.search, first.entries)
    assert again.stops == {2: {"step": 100, "goal_0": 2.5}}, "as it was decided"
    again.begin(0, 1)
    for told in (first, again):
        assert told.measure(1, 200, 2.0) == "CONTINUE"
        assert told.measure(0, 200, 2.5) == "STOP"
    by_number = sorted(first.entries, key=lambda entry: entry.trial)
    assert 1 in Told(first.search, by_number).stops, "as it must not be heard"


def test_a_trial_that_is_done_is_not_cut_by_its_past() -> None:
    for kind in ("asha", "median"):
        scheduler = {"kind": kind, "grace_steps": 100}
        scheduler |= {"reduction": 2} if kind == "asha" else {"min_trials": 1}
        first = Told(_search(scheduler=scheduler))
        first.begin(0, 1, 2)
        first.measure(0, 100, 1.0)
        first.measure(1, 100, 9.0)  # decided to stop it: yet it went on, as results crossed
        first.measure(0, 200, 1.0)
        first.entries.append(Entry("result", 1, 0.0, step=200, value=9.0))
        first.end(1, 9.0)
        again = Told(first.search, first.entries)
        assert again.stops == {} and 1 in again.scheduler._heard
        again.begin(2)
        assert again.measure(2, 100, 6.0) == "STOP", "both are remembered"
        alone = [each for each in first.entries if each.trial != 0]
        assert Told(first.search, alone).measure(2, 100, 6.0) == "CONTINUE"


def test_what_is_heard_twice_counts_once() -> None:
    """A driver of Ray Tune's that dies is started anew, and tells all again."""
    told = Told(_search(scheduler={"kind": "median", "grace_steps": 100, "min_trials": 1}))
    told.begin(0, 1)
    told.measure(0, 100, 1.0)
    told.measure(0, 200, 2.0)
    told.scheduler.on_trial_add(None, RayTrial(0))
    for _ in range(9):
        assert told.measure(0, 100, 1.0) == "CONTINUE"
    assert told.measure(1, 200, 1.4) == "CONTINUE"  # the mean of 1 and 2 is 1.5
    assert told.measure(1, 300, 1.4) == "CONTINUE"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_median_stops_whose_best_is_worse_than_the_others_means(mode: str) -> None:
    sign = 1.0 if mode == "min" else -1.0
    scheduler = {"kind": "median", "grace_steps": 10, "min_trials": 2}
    told = Told(_search(scheduler=scheduler, mode=mode))
    told.begin(0, 1, 2, 3)
    assert {told.measure(number, 5, sign * 9.0) for number in range(3)} == {"CONTINUE"}
    decided = [told.measure(number, 10, sign * value) for number, value in enumerate((1, 2, 8))]
    assert decided == ["CONTINUE", "CONTINUE", "STOP"]  # the others' median is 1.5
    told.entries.append(Entry("ended", 2, 0.0, status="stopped"))
    # The others' means to step 20 are 2 and 2: whoever was ever better goes on.
    assert told.measure(0, 20, sign * 3.0) == "CONTINUE"
    assert told.measure(1, 20, sign * 2.0) == "CONTINUE"
    assert told.measure(3, 20, sign * 2.1) == "STOP"
    again = Told(told.search, told.entries)
    assert set(again.stops) == {2, 3}


def _early(search: Search, order: Iterable[int]) -> list[int]:
    """Trials whose bracket begins at step 100: one that is worse there than all is stopped."""
    found = []
    for number in order:
        told = Told(search)
        told.begin(*range(100, 120), number)
        for better in range(100, 120):
            told.measure(better, 100, 1.0)
        if told.measure(number, 100, 2.0) == "STOP":
            found.append(number)
    return sorted(found)


def test_brackets_depend_on_the_searchs_seed_and_the_trials_number_alone() -> None:
    spread = _asha(brackets=2)
    first = _early(spread, range(20))
    np.random.seed(12345)
    expected = np.random.random()
    np.random.seed(12345)
    assert _early(spread, reversed(range(20))) == first
    assert np.random.random() == expected, "NumPy's generator is as it was"
    assert 0 < len(first) < 20, "spread over both"
    assert _early(_asha(brackets=2, seed=1), range(20)) != first


def test_a_bracket_begins_its_rungs_later() -> None:
    early = _early(_asha(brackets=2), range(20))
    late = [number for number in range(20) if number not in early]
    told = Told(_asha(brackets=2))
    told.begin(*range(20))
    assert told.measure(early[0], 100, 1.0) == "CONTINUE"
    assert told.measure(early[1], 100, 2.0) == "STOP"
    assert told.measure(late[0], 100, 1.0) == "CONTINUE"
    assert told.measure(late[1], 100, 2.0) == "CONTINUE", "its first rung is at 200"
    assert told.measure(late[0], 200, 1.0) == "CONTINUE"
    assert told.measure(late[1], 200, 2.0) == "STOP"


def test_past_holds_the_last_end_of_a_trial_alone() -> None:
    entries = [
        Entry("trial", 0, 0.0, settings={LR: 0.1}),
        Entry("trial", 1, 0.0, settings={LR: 0.2}),
        Entry("ended", 0, 0.0, status="failed", error="x"),
        Entry("result", 1, 0.0, step=5, value=2.0),
        Entry("result", 1, 0.0, step=10, value=1.0),
        Entry("ended", 1, 0.0, status="stopped"),
    ]
    tried = [Tried(0, {}, {LR: 0.1}), Tried(1, {}, {LR: 0.2})]
    states = list(states_of(entries).values())
    ended = Ended(1, {"step": 10, "goal_0": 1.0})
    assert past_of(entries, states, [LOSS], {}) == [*tried, ended]
    heard = {1: {"step": 5, "goal_0": 2.0}}
    assert past_of(entries, states, [LOSS], heard) == [*tried, Ended(1, heard[1])]
    summary = {"evaluation": {"student": {"loss": 3.0}}, "steps": 20}
    entries += [Entry("ran", 0, 0.0, summary=summary), Entry("ended", 0, 0.0, status="done")]
    states = list(states_of(entries).values())
    done = Ended(0, {"step": 20, "goal_0": 3.0})
    assert past_of(entries, states, [LOSS], {}) == [*tried, ended, done]
    assert best_of(states, [LOSS]) == states[0]
    assert past_of(entries, states[:1], [LOSS], {}) == [tried[0], done], "of those that count"


def test_a_search_without_a_scheduler_has_none() -> None:
    assert stopping_of(_search().spec, 20) is None
