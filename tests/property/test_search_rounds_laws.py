"""Laws of schedulers in rounds, on simulated trials: replay, resume, order."""

import random
from typing import Any

import hypothesis.strategies as st
import pytest
import searches
from hypothesis import given, settings
from simulated_rounds import Simulation, decisions, trained

from orchestrator.search.changing import first_numbers
from orchestrator.search.deciders import decider_of
from orchestrator.search.journal import State
from orchestrator.search.lineage import lineage, schedules
from orchestrator.search.rounds import Decider
from orchestrator.search.space import Random, drawn
from strategies.progress import Progress
from strategies.replay import of_segments
from strategies.schedules import value
from strategies.specs import PiecewiseSchedule

pytestmark = pytest.mark.timeout(300)

LR, WEIGHT = searches.LR, searches.SMOOTHING
SPACE = {LR: {"loguniform": [1e-3, 1e-1]}, WEIGHT: {"uniform": [0.5, 2.0]}}
SCHEDULERS: list[dict[str, Any]] = [
    {"kind": "pbt", "every_steps": 5},
    {"kind": "pbt", "every_steps": 10, "quantile": 0.5, "resample": 0.0},
    {"kind": "pb2", "every_steps": 5, "quantile": 0.4},
    {"kind": "hyperband", "grace_steps": 5, "reduction": 2},
]
quick = settings(deadline=None, max_examples=12)


def _decider(scheduler: dict[str, Any], seed: int, mode: str = "min") -> Decider:
    found = decider_of(searches.search(space=SPACE, scheduler=scheduler, seed=seed, mode=mode))
    assert found is not None
    return found


def _simulation(
    scheduler: dict[str, Any], seed: int, members: int = 5, mode: str = "min"
) -> Simulation:
    space = searches.search(space=SPACE).spec.space
    own = [drawn(space, Random(random.Random(f"{seed}/{number}"))) for number in range(members)]
    first = first_numbers(space)
    return Simulation(
        _decider(scheduler, seed, mode),
        members,
        lambda number: first(State(number, settings=own[number])),
    )


@quick
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.lists(st.floats(1e-3, 10), min_size=8, max_size=8),
    st.booleans(),
)
def test_a_schedule_of_segments_has_each_value_in_all_its_steps(
    lengths: list[int], values: list[float], repeat: bool
) -> None:
    begins = [sum(lengths[:place]) for place in range(len(lengths))]
    if repeat:
        values = [values[place // 2] for place in range(8)]
    segments = list(zip(begins, values, strict=False))
    schedule = of_segments(segments)
    total = sum(lengths)
    wanted = [v for length, v in zip(lengths, values, strict=False) for _ in range(length)]
    assert [value(schedule, Progress(step, total)) for step in range(total)] == wanted
    assert value(schedule, Progress(10**6, total)) == wanted[-1]


def test_segments_that_do_not_rise_from_0_are_refused() -> None:
    for segments in ([], [(1, 2.0)], [(0, 1.0), (0, 2.0)]):
        with pytest.raises(ValueError, match="do not rise from 0"):
            of_segments(segments)


@quick
@given(st.sampled_from(SCHEDULERS[:3]), st.integers(0, 10**6))
def test_a_lineage_run_again_by_its_schedules_gives_the_same_student(
    scheduler: dict[str, Any], seed: int
) -> None:
    played = _simulation(scheduler, seed).play(random.Random(seed))
    by_number = {state.number: state for state in played.states}
    for state in played.states:
        assert state.status == "done"
        raw = schedules(lineage(by_number.__getitem__, state.number))
        kept = {path: PiecewiseSchedule.model_validate(each) for path, each in raw.items()}
        weight = 1.0
        for step in range(20):
            numbers = {path: value(each, Progress(step, 20)) for path, each in kept.items()}
            weight = trained(weight, step, numbers)
        assert weight == played.weight(state.number, 20)
        assert weight == state.value_at(20)


@quick
@given(st.sampled_from(SCHEDULERS), st.integers(0, 10**6), st.integers(0, 10**6))
def test_what_is_decided_does_not_depend_on_who_comes_first(
    scheduler: dict[str, Any], seed: int, other: int
) -> None:
    one = _simulation(scheduler, seed).play(random.Random(seed))
    again = _simulation(scheduler, seed).play(random.Random(other))
    assert decisions(one.states) == decisions(again.states)


@quick
@given(st.sampled_from(SCHEDULERS), st.integers(0, 10**6))
def test_the_most_of_a_number_is_the_least_of_its_negative(
    scheduler: dict[str, Any], seed: int
) -> None:
    least = _simulation(scheduler, seed).play(random.Random(seed))
    most = _simulation(scheduler, seed, mode="max")
    most.measure = lambda weight: -weight
    assert decisions(most.play(random.Random(seed)).states) == decisions(least.states)
    other = _simulation(scheduler, seed, mode="max").play(random.Random(seed))
    assert decisions(other.states) != decisions(least.states)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_journal_that_was_cut_anywhere_is_gone_on_with_as_if_nothing_had_been(
    scheduler: dict[str, Any],
) -> None:
    whole = _simulation(scheduler, 3).play(random.Random(0))
    for most in range(1, len(whole.entries), 7):
        cut = _simulation(scheduler, 3).play(random.Random(0), most)
        cut.play(random.Random(most))
        assert decisions(cut.states) == decisions(whole.states), most


@quick
@given(st.sampled_from(SCHEDULERS), st.integers(0, 10**6), st.integers(0, 4), st.integers(1, 4))
def test_a_trial_that_fails_holds_nobody_up(
    scheduler: dict[str, Any], seed: int, trial: int, at: int
) -> None:
    simulation = _simulation(scheduler, seed)
    simulation.fails = lambda number, step: number == trial and step == 5 * at
    states = simulation.play(random.Random(seed)).states
    assert all(state.status in ("done", "stopped", "failed") for state in states)
    assert any(state.status == "done" for state in states)
    assert all(state.number == trial for state in states if state.status == "failed")


@quick
@given(st.sampled_from(SCHEDULERS[:3]), st.integers(0, 10**6))
def test_numbers_stay_in_their_ranges(scheduler: dict[str, Any], seed: int) -> None:
    for state in _simulation(scheduler, seed).play(random.Random(seed)).states:
        for leg in state.legs:
            assert 1e-3 <= leg.numbers[LR] <= 1e-1 and 0.5 <= leg.numbers[WEIGHT] <= 2.0


@quick
@given(st.integers(0, 10**6))
def test_the_best_half_of_a_population_goes_on_as_it_was(seed: int) -> None:
    """Nobody above the quantile is replaced, and whoever replaces lies above the other one."""
    played = _simulation(SCHEDULERS[0], seed, members=8).play(random.Random(seed))
    for index in range(3):
        step = 5 * (index + 1)
        values = sorted(state.value_at(step) or 0.0 for state in played.states)
        for state in played.states:
            leg, mine = state.legs[index + 1], state.value_at(step)
            if leg.parent == state.number:
                assert leg.numbers == state.legs[index].numbers
            else:
                assert mine in values[-2:]
                (parent,) = [other for other in played.states if other.number == leg.parent]
                assert parent.value_at(step) in values[:2]
