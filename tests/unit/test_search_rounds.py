"""Schedulers in rounds: HyperBand's table, what a population may vary, lanes that go in legs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import searches
import yaml
from fake_trials import Bench, FakeTrainer
from simulated_rounds import decisions

from orchestrator.errors import SpecError
from orchestrator.search.board import Board, best_of, goal_values
from orchestrator.search.changing import changeable
from orchestrator.search.crew import Crew
from orchestrator.search.deciders import decider_of
from orchestrator.search.hyperband import brackets
from orchestrator.search.jobs import trial_jobs
from orchestrator.search.journal import State, open_journal
from orchestrator.search.plan import Search, check_search, some_job
from orchestrator.search.table import as_plain
from orchestrator.search.umpire import Umpire, Whistle
from orchestrator.search.write import best_job
from orchestrator.series.folder import Folder
from orchestrator.spec import JobSpec, load_jobs
from strategies.progress import Progress
from strategies.schedules import value

pytestmark = pytest.mark.timeout(300)

LR, WEIGHT = searches.LR, searches.SMOOTHING
SPACE = {LR: {"loguniform": [1e-3, 1e-1]}, WEIGHT: {"uniform": [0.5, 2.0]}}
PBT = {"kind": "pbt", "every_steps": 5}
PB2 = {"kind": "pb2", "every_steps": 5}


# --- HyperBand -----------------------------------------------------------------------------------


def test_brackets_are_those_of_the_paper() -> None:
    """Li et al. (2018), table 1: R = 81, eta = 3, as (trials, steps) of each rung."""
    found = []
    for bracket in brackets(81, 1, 3.0, 1):
        kept = [bracket.size, *(bracket.kept(i, bracket.size) for i in range(len(bracket.rungs)))]
        steps = [*(step for step, _ in bracket.rungs), 81]
        found.append(list(zip(kept, steps, strict=True)))
    assert found == [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        [(34, 3), (11, 9), (3, 27), (1, 81)],
        [(15, 9), (5, 27), (1, 81)],
        [(8, 27), (2, 81)],
        [(5, 81)],
    ]


def test_rungs_lie_where_trials_are_measured() -> None:
    (first, *_) = brackets(400, 30, 3.0, 20)
    assert [step for step, _ in first.rungs] == [60, 140]  # 44.4 and 133.3, to the next 20


# --- what is refused -----------------------------------------------------------------------------


def _search(**changes: Any) -> Search:
    return searches.search(**{"space": SPACE, "scheduler": PBT, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"space": {"student.arguments.width": {"choice": [16, 32]}}},
            r"student\.arguments\.width: is \{'choice': \[16, 32\]\}, and .* cannot change while a "
            r"student trains.*objective\.terms\.0\.weight, training\.optimizer\.lr",
        ),
        ({"space": {"seed": {"integer": [0, 3]}}}, "seed cannot change"),
        (
            {"space": {"training.optimizer.weight_decay": {"uniform": [0.1, 1]}}},
            "weight_decay cannot change.*Known: .*lr",
        ),
        (
            {"space": {WEIGHT: {"choice": [1.0, {"kind": "linear", "start": 2, "end": 1}]}}},
            "numbers are what changes",
        ),
        ({"space": {}, "fixed": [{LR: 0.1}]}, r"search\.space: is empty"),
        ({"fixed": [{LR: 0.01}]}, rf"fixed\.0\.{WEIGHT}: is missing"),
        ({"fixed": [{LR: 0.5, WEIGHT: 1.0}]}, r"fixed\.0.*is 0\.5.* from 0\.001 to 0\.1"),
        ({"fixed": [{LR: 0.01, WEIGHT: 1.0, "seed": 3}]}, "seed: is set, and does not vary"),
        ({"searcher": "tpe"}, "searcher: is tpe.*finds numbers itself"),
        ({"budget": {"trials": 1}}, r"budget\.trials: is 1.*2 or more"),
        ({"scheduler": {**PBT, "every_steps": 7}}, "is 7.*multiple of 5 below 20"),
        ({"scheduler": {**PBT, "every_steps": 20}}, "is 20.*multiple of 5 below 20"),
        ({"scheduler": {**PBT, "quantile": 0.6}}, r"quantile.*0\.6"),
        ({"seeds": [0, 1]}, "2 seeds"),
        ({"metric": "summary.tokens"}, "known at a run's end"),
        (
            {"scheduler": PB2, "space": {WEIGHT: {"choice": [0.5, 1.0]}}},
            "pb2 looks for numbers in whole ranges",
        ),
        ({"scheduler": {"kind": "hyperband", "grace_steps": 4}}, r"is 4, outside \[5, 20\)"),
        (
            {"budget": {"trials": 4, "tokens": 10**6}},
            r"search\.budget\.tokens: is 1e\+06.*all members of a population.*pbt.*Remove it",
        ),
        ({"scheduler": PB2, "budget": {"trials": 4, "hours": 2}}, r"budget\.hours: is 2, .*pb2"),
        ({"budget": {"trials": 4, "device_s": 60}}, r"budget\.device_s: is 60, "),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=f"(?s){words}"):
        check_search(_search(**changes))


@pytest.mark.parametrize(
    "scheduler", [PBT, PB2, {"kind": "hyperband", "grace_steps": 5}], ids=lambda each: each["kind"]
)
def test_the_best_of_all_measurements_is_not_kept_over_legs(scheduler: dict[str, Any]) -> None:
    raw = searches.raw_job()
    raw["training"]["checkpoint"]["best"] = {"metric": "student.loss"}
    search = searches.search(raw, space=SPACE, scheduler=scheduler)
    words = rf"training\.checkpoint\.best: keeps.*student\.loss.*{scheduler['kind']}.*Remove it"
    with pytest.raises(SpecError, match=f"(?s){words}"):
        check_search(search)
    check_search(searches.search(raw, space=SPACE, scheduler={"kind": "asha", "grace_steps": 5}))


def test_a_budget_bounds_the_trials_of_hyperband() -> None:
    budget = {"trials": 9, "tokens": 10**6, "hours": 2}
    check_search(_search(scheduler={"kind": "hyperband", "grace_steps": 5}, budget=budget))


def test_what_may_change_is_the_objectives_numbers_and_the_rate() -> None:
    check_search(_search())
    assert changeable(some_job(_search())) == [LR, WEIGHT]
    teacher = {"teacher": {**searches.raw_job()["student"], "task": "classifier"}}
    objective = {"recipe": {"kind": "forward_kl"}}
    by_recipe = searches.search(searches.raw_job(roles=teacher, objective=objective), space=SPACE)
    found = changeable(some_job(Search(by_recipe.job, _search(space={}, fixed=[{LR: 0.1}]).spec)))
    assert "objective.recipe.temperature" in found and LR in found


# --- a population at work ------------------------------------------------------------------------


def _learn(job: JobSpec, step: int, weight: float) -> float:
    at, term = Progress(step, 20), job.objective.terms[0]
    rate = value(job.training.optimizer.lr, at)
    return math.sin(1.7 * weight + 40 * rate * (step + 1)) + value(term.weight, at) / 3


class Draws:
    """A searcher whose trials are a list; those that are over do not come again."""

    def __init__(self, board: Board, settings: list[dict[str, float]]) -> None:
        self._board, self._settings, self._next = board, settings, 0
        self.stopping: Callable[[], bool] = lambda: False
        self.told: dict[str, Any] = {}

    def suggest(self, trial_id: str) -> Any:
        over = {state.number for state in self._board.states if state.over}
        while self._next in over:
            self._next += 1
        number, known = self._next, len(self._board.states)
        if number >= known and self.stopping():
            return "FINISHED"
        self._next += 1
        if number >= len(self._settings):
            return "FINISHED"
        if number not in {state.number for state in self._board.states}:
            self._board.note("trial", number, settings=self._settings[number])
        return {"number": number}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.told[trial_id] = result


MEMBERS = [{LR: 0.002 * (k + 1), WEIGHT: 0.5 + 0.3 * k} for k in range(4)]


def _life(
    search: Search,
    path: Path,
    bench: Bench,
    stop_at: tuple[str, int] | None = None,
    lanes: int = 2,
) -> Any:
    """One life of a search; its states, and what its searcher was told."""
    folder = Folder(path, str(path / "runs"), str(path), "search-run")
    decider = decider_of(search)
    assert decider is not None
    with open_journal(path / "journal.jsonl") as journal:
        board, whistle = Board(journal), Whistle()
        searcher = Draws(board, MEMBERS)
        crew = Crew(
            search.spec,
            board,
            lambda number: trial_jobs(search, board.state, number, folder),
            bench.drivers(),
            whistle,
            lanes,
            lambda event: None,
            lambda: None,
        )
        if stop_at is not None:
            bench.held = frozenset({stop_at})
            bench.before = lambda name, step: crew.stop() if (name, step) == stop_at else None
        searcher.stopping = lambda: crew.stopping
        crew.start()
        goals, stopping = search.spec.goals, searcher.stopping
        umpire = Umpire(goals, board, decider, searcher, whistle, lanes, lambda: None, stopping)
        while not crew.stopping and not umpire.advance(0.05):
            pass
        crew.close()
        if crew.broken is not None:
            raise crew.broken
        return board.states, searcher.told


def _bench() -> Bench:
    return Bench(lambda job, step: 0.0, learn=_learn, pause_s=0.001)


@pytest.mark.parametrize("scheduler", [PBT, PB2], ids=["pbt", "pb2"])
def test_the_best_trials_job_run_from_its_beginning_gives_its_student(
    tmp_path: Path, scheduler: dict[str, Any]
) -> None:
    search, bench = _search(scheduler=scheduler, seeds=[7]), _bench()
    states, told = _life(search, tmp_path, bench)
    assert [state.status for state in states] == ["done"] * 4 and len(told) == 4
    assert any(leg.parent not in (None, s.number) for s in states for leg in s.legs), "exchanged"
    assert sum(state.used.tokens for state in states) == bench.used.tokens == 4 * 20 * 10
    assert sum(state.used.computed for state in states) == bench.used.computed == 20
    for state in states:
        (loss,) = goal_values(state, search.spec.goals)
        file = tmp_path / "best.yaml"
        file.write_text(best_job(search, {s.number: s for s in states}.__getitem__, state.number))
        (job,) = load_jobs(file)
        assert job.training.start is None and job.seed == 7
        again = FakeTrainer(bench, lambda event: None).run([job], ["again"], resume=False)
        assert again["evaluation"]["student"]["loss"] == loss

    best = best_of(states, search.spec.goals)
    assert best is not None
    found = as_plain(search, states, {})["lineage"]
    assert [(each["begin"], each["until"]) for each in found] == [
        (0, 5),
        (5, 10),
        (10, 15),
        (15, 20),
    ]
    assert all((each["run"], each["until"]) in bench.weights for each in found)
    lr = yaml.safe_load(file.read_text())["training"]["optimizer"]["lr"]
    assert lr["kind"] == "piecewise" and lr["points"][0][0] == 0


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("stop_at", [("small-t1", 5), ("small-t2-1", 10)])
def test_a_population_that_was_stopped_decides_what_it_would_have(
    tmp_path: Path, stop_at: tuple[str, int], lanes: int
) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    search = _search()
    whole, _ = _life(search, tmp_path / "whole", _bench())
    bench = _bench()
    first, _ = _life(search, tmp_path / "cut", bench, stop_at, lanes)
    assert any(state.status != "done" for state in first)
    bench.held, bench.before = frozenset(), lambda name, step: None
    second, _ = _life(search, tmp_path / "cut", bench, None, lanes)
    assert decisions(second) == decisions(whole)
    assert [s.results for s in second] == [s.results for s in whole]
    assert [goal_values(s, search.spec.goals) for s in second] == [
        goal_values(s, search.spec.goals) for s in whole
    ]


def test_nothing_is_decided_of_a_population_that_is_not_complete(tmp_path: Path) -> None:
    """Stopped while the first of its members waits for the others, which nobody has drawn yet."""
    search = _search()
    with open_journal(tmp_path / "journal.jsonl") as journal:
        board, decider = Board(journal), decider_of(search)
        assert decider is not None
        board.note("trial", 0, settings=MEMBERS[0])
        board.note("leg", 0, until=5, numbers=MEMBERS[0])
        board.note("run", 0, run_id="a")
        board.note("result", 0, step=5, value=1.0)
        board.note("paused", 0)
        searcher = Draws(board, MEMBERS)
        searcher.stopping = lambda: True
        goals = search.spec.goals
        umpire = Umpire(
            goals, board, decider, searcher, Whistle(), 1, lambda: None, searcher.stopping
        )
        umpire.advance(0.0)
        assert len(board.state(0).legs) == 1 and len(board.states) == 1


def test_a_member_that_fails_is_left_behind_and_reported(tmp_path: Path) -> None:
    bench = _bench()

    def before(name: str, step: int) -> None:
        if name.startswith("small-t3-") and step == 10:
            raise ValueError("as the test wants")

    bench.before = before
    states, told = _life(_search(retries=0), tmp_path, bench)
    assert [state.status for state in states] == ["done"] * 3 + ["failed"]
    assert told["trial-3"] is None
    again, _ = _life(_search(retries=0), tmp_path, bench)
    assert [state.status for state in again] == ["done"] * 3 + ["failed"], "out for good"


def test_hyperband_goes_on_in_the_same_run(tmp_path: Path) -> None:
    search = _search(scheduler={"kind": "hyperband", "grace_steps": 5, "reduction": 2})
    bench = _bench()
    states, told = _life(search, tmp_path, bench)
    statuses = sorted(state.status for state in states)
    assert statuses == ["done", "stopped", "stopped", "stopped"]
    assert sorted(state.step for state in states) == [5, 5, 10, 15]
    (best,) = [state for state in states if state.status == "done"]
    assert len({leg.run_id for leg in best.legs}) == 1 and len(best.legs) == 3
    starts = [start for name, start in bench.ran if name == f"small-t{best.number}"]
    assert starts == [0, 5, 10]
    assert all(isinstance(told[f"trial-{k}"], dict) for k in range(4))


def test_a_changed_scheduler_begins_anew(tmp_path: Path) -> None:
    states, _ = _life(_search(), tmp_path, _bench())
    same, other = _search(), _search(scheduler={**PBT, "every_steps": 10})
    assert decider_of(same).fits(states) and not decider_of(other).fits(states)  # type: ignore[union-attr]


def test_states_of_trials_are_told_by_their_legs() -> None:
    state = State(0, results=((5, 2.0), (10, 1.0)))
    assert state.value_at(5) == 2.0 and state.value_at(7) is None
