"""What a search does without Ray: its lanes, what it tries, what it writes, how it is resumed."""

import importlib.util
import json
import math
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import searches
import yaml
from fake_trials import Bench, added
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cli import exit_code
from orchestrator.cli_search import Talk, table_of
from orchestrator.errors import CheckpointError, NonFiniteLoss, SpecError, WorkerLost
from orchestrator.events import Used
from orchestrator.planner.capacity import Inventory, Node
from orchestrator.search.board import Board, Spent, best_of, front_of, goal_values, used_up
from orchestrator.search.crew import Crew, TrialJobs
from orchestrator.search.drive import Chooser, _close
from orchestrator.search.importance import importance
from orchestrator.search.jobs import trial_jobs
from orchestrator.search.journal import Entry, State, open_journal
from orchestrator.search.plan import Search, check_search, key_of, trial_job
from orchestrator.search.progress import SearchProgress
from orchestrator.search.report import as_page
from orchestrator.search.run import Telling, _conclude, lanes_for, progress_of, run_search
from orchestrator.search.spec import BudgetSpec, GoalSpec
from orchestrator.search.suggest import Suggestions, Tried
from orchestrator.search.table import as_markdown, as_plain, computed_by, shown_values
from orchestrator.search.write import best_job, write_results
from orchestrator.series.folder import Folder, open_folder
from orchestrator.spec import JobSpec, load_jobs
from orchestrator.spec.paths import absolute_paths

pytestmark = pytest.mark.timeout(120)

LR, WEIGHT = searches.LR, searches.SMOOTHING
LOSS = GoalSpec(metric="student.loss", mode="min")


def _search(**changes: Any) -> Search:
    return searches.search(**{"space": {LR: {"loguniform": [1e-3, 1e-1]}}, **changes})


class FakeExchange:
    """Ray Tune's side, played by a test."""

    def __init__(self) -> None:
        self.said: queue.Queue[tuple[str, int]] = queue.Queue()
        self.posted: dict[int, list[Mapping[str, float]]] = {}
        self.ended: dict[int, str | None] = {}
        self.change = threading.Condition()

    def messages(self, timeout_s: float) -> Sequence[tuple[str, int]]:
        try:
            return [self.said.get(timeout=0.02)]
        except queue.Empty:
            return []

    def post(self, trial: int, numbers: Mapping[str, float], *, last: bool = False) -> None:
        with self.change:
            self.posted.setdefault(trial, []).append(dict(numbers))
            if last:
                self.ended[trial] = None
            self.change.notify_all()

    def fail(self, trial: int, error: str) -> None:
        with self.change:
            self.ended[trial] = error
            self.change.notify_all()

    def wait(self, condition: Any) -> None:
        with self.change:
            assert self.change.wait_for(condition, timeout=30)


class Life:
    """A crew at work on some trials."""

    def __init__(
        self,
        search: Search,
        folder: Path,
        bench: Bench,
        rates: Sequence[float],
        lanes: int = 2,
        pause_at: int | None = None,
    ) -> None:
        self.journal = open_journal(folder / "journal.jsonl")
        self.board, self.exchange = Board(self.journal), FakeExchange()
        for number, rate in enumerate(rates):
            if number not in {state.number for state in self.board.states}:
                self.board.note("trial", number, key=str(rate), settings={LR: rate})

        def jobs_of(number: int) -> TrialJobs:
            found = self.board.state(number).settings
            seeds = search.spec.seeds or [0]
            jobs = [trial_job(search, found, f"t{number}s{seed}") for seed in seeds]
            return TrialJobs(number, tuple(jobs), pause_at)

        self.heard: list[object] = []
        self.crew = Crew(
            search.spec,
            self.board,
            jobs_of,
            bench.drivers(),
            self.exchange,
            lanes,
            self.heard.append,
            lambda: None,
        )
        self.crew.start()

    def begin(self, *numbers: int) -> None:
        for number in numbers:
            self.exchange.said.put(("begin", number))

    def end(self) -> list[State]:
        self.crew.close()
        self.journal.close()
        if self.crew.broken is not None:
            raise self.crew.broken
        return self.board.states


def _loss(job: JobSpec, step: int) -> float:
    return job.training.optimizer.lr + 1 / step


def test_measurements_are_told_as_they_come_and_the_last_one_with_the_end(tmp_path: Path) -> None:
    life = Life(_search(), tmp_path, Bench(_loss), [0.01, 0.02])
    life.begin(0, 1)
    life.exchange.wait(lambda: len(life.exchange.ended) == 2)
    states = life.end()
    assert [state.status for state in states] == ["done", "done"]
    assert [each["step"] for each in life.exchange.posted[0]] == [5, 10, 15, 20]
    assert life.exchange.posted[0][-1]["goal_0"] == pytest.approx(0.01 + 1 / 20)
    assert states[1].results == tuple((step, 0.02 + 1 / step) for step in (5, 10, 15))
    assert goal_values(states[1], [LOSS]) == [0.07]


def test_a_trial_that_nobody_wants_gives_its_lane_to_the_next(tmp_path: Path) -> None:
    hold = threading.Event()

    def before(name: str, step: int) -> None:
        if name == "t0s0" and step == 10:
            assert hold.wait(30)

    bench = Bench(_loss, before=before)
    life = Life(_search(), tmp_path, bench, [0.01, 0.02], lanes=1)
    life.begin(0)
    life.exchange.wait(lambda: 0 in life.exchange.posted)
    life.exchange.said.put(("leave", 0))
    life.begin(1)
    hold.set()
    life.exchange.wait(lambda: 1 in life.exchange.ended)
    states = life.end()
    assert [state.status for state in states] == ["stopped", "done"]
    assert states[0].step < 20 and bench.ran == [("t0s0", 0), ("t1s0", 0)]
    assert 0 not in life.exchange.ended


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (WorkerLost("teacher", "1", "gone"), 3),
        (SpecError("data", "is wrong", "Mend it"), 1),
        (ValueError("a bug"), 3),
    ],
)
def test_what_fails_is_tried_again_within_the_budget(
    tmp_path: Path, error: Exception, tries: int
) -> None:
    def loss(job: JobSpec, step: int) -> float:
        if job.name == "t0s0" and step == 10:
            raise error
        return _loss(job, step)

    bench = Bench(loss)
    life = Life(_search(retries=2), tmp_path, bench, [0.01, 0.02])
    life.begin(0, 1)
    life.exchange.wait(lambda: len(life.exchange.ended) == 2)
    states = life.end()
    assert [state.status for state in states] == ["failed", "done"]
    assert str(error) in (states[0].error or "") and states[0].error in life.exchange.ended.values()
    starts = [start for name, start in bench.ran if name == "t0s0"]
    assert starts == [0, 5, 5][:tries], "from its checkpoint"
    assert [step for step, _ in states[0].results] == [5], "told once"


def test_a_checkpoint_that_is_broken_is_not_gone_on_with(tmp_path: Path) -> None:
    failed: list[int] = []

    def loss(job: JobSpec, step: int) -> float:
        if step == 10 and not failed:
            failed.append(step)
            raise CheckpointError("torn")
        return _loss(job, step)

    bench = Bench(loss)
    life = Life(_search(), tmp_path, bench, [0.01])
    life.begin(0)
    life.exchange.wait(lambda: 0 in life.exchange.ended)
    assert life.end()[0].status == "done" and bench.ran == [("t0s0", 0), ("t0s0", 0)]


def test_a_trial_without_its_metric_has_failed(tmp_path: Path) -> None:
    life = Life(_search(), tmp_path, Bench(lambda job, step: float("nan")), [0.01])
    life.begin(0)
    life.exchange.wait(lambda: 0 in life.exchange.ended)
    assert life.end()[0].error == "measured no student.loss"


def test_a_trial_whose_driver_died_is_not_run_twice(tmp_path: Path) -> None:
    again = threading.Event()

    def before(name: str, step: int) -> None:
        if step == 10:
            again.wait(30)

    def loss(job: JobSpec, step: int) -> float:
        if job.name == "t1s0":
            raise NonFiniteLoss(step, "nan")
        return _loss(job, step)

    bench = Bench(loss, before=before)
    life = Life(_search(retries=0), tmp_path, bench, [0.01, 0.02, 0.03], lanes=2)
    life.begin(0, 1)
    life.exchange.wait(lambda: 1 in life.exchange.ended and 0 in life.exchange.posted)
    life.begin(0, 1, 2)  # one that runs, one that has failed, and a new one
    again.set()
    life.exchange.wait(lambda: len(life.exchange.ended) == 3)
    assert [state.status for state in life.end()] == ["done", "failed", "done"]
    assert sorted(bench.ran) == [("t0s0", 0), ("t1s0", 0), ("t2s0", 0)]


def test_seeds_are_runs_of_one_trial(tmp_path: Path) -> None:
    bench = Bench(lambda job, step: float(job.name[-1]))
    life = Life(_search(seeds=[3, 5]), tmp_path, bench, [0.01])
    life.begin(0)
    life.exchange.wait(lambda: 0 in life.exchange.ended)
    (state,) = life.end()
    assert goal_values(state, [LOSS]) == [4.0] and len(state.runs) == 2 and state.results == ()
    assert life.exchange.posted[0] == [{"step": 20, "goal_0": 4.0}]


def test_another_life_goes_on(tmp_path: Path) -> None:
    reached = threading.Event()

    def before(name: str, step: int) -> None:
        if name == "t1s0" and step == 15:
            reached.set()

    bench = Bench(_loss, before=before)
    first = Life(_search(), tmp_path, bench, [0.01, 0.02, 0.03], lanes=1)
    first.begin(0, 1, 2)
    assert reached.wait(30)
    first.crew.stop()
    states = first.end()
    assert [state.status for state in states] == ["done", "running", "waiting"]

    second = Life(_search(), tmp_path, bench, [0.01, 0.02, 0.03], lanes=1)
    second.begin(0, 1, 2)
    second.exchange.wait(lambda: len(second.exchange.ended) == 3)
    assert [state.status for state in second.end()] == ["done"] * 3
    names = [name for name, _ in bench.ran]
    assert names == ["t0s0", "t1s0", "t1s0", "t2s0"]
    assert [step for name, step in bench.ran][2] >= 10, "from its checkpoint"
    assert [each["step"] for each in second.exchange.posted[0]] == [20], "its end alone"
    assert [each["step"] for each in second.exchange.posted[1]][-1] == 20
    assert [step for step, _ in second.board.state(1).results] == [5, 10, 15], "measured once"
    assert [each["step"] for each in second.exchange.posted[2]] == [5, 10, 15, 20]


def test_what_chooses_and_breaks_stops_what_runs(tmp_path: Path) -> None:
    """Else lanes would train to their end before the error shows."""
    began = threading.Event()
    bench = Bench(_loss, before=lambda name, step: began.set(), held=frozenset({("t0s0", 5)}))
    life = Life(_search(), tmp_path, bench, [0.01])
    life.begin(0)

    def work() -> None:
        assert began.wait(30)
        raise ValueError("as the test wants")

    chooser = Chooser(work, life.crew.stop)
    assert chooser.wait(30) and isinstance(chooser.broken, ValueError)
    assert life.crew.stopping
    (state,) = life.end()
    assert state.status == "running" and state.step == 5, "it can be gone on with"


def test_ctrl_c_while_the_lanes_end_stops_them(tmp_path: Path) -> None:
    heard: list[object] = []

    class Closing:
        stopped, closed = 0, 0

        def close(self) -> None:
            self.closed += 1
            if self.closed == 1:
                raise KeyboardInterrupt

        def stop(self) -> None:
            self.stopped += 1

    class Listener:
        event = heard.append

    crew: Any = Closing()
    telling: Any = Listener
    assert _close(crew, telling) and crew.closed == 2 and crew.stopped == 1 and len(heard) == 1
    assert not _close(crew, telling)


def test_what_is_decided_of_a_pause_before_the_lane_hears_of_it_stays(tmp_path: Path) -> None:
    life = Life(_search(), tmp_path, Bench(_loss), [0.01], pause_at=10)
    note = life.board.note

    def noted(kind: Any, number: int, **facts: Any) -> State:
        state = note(kind, number, **facts)
        return note("ended", number, status="stopped") if kind == "paused" else state

    life.board.note = noted  # type: ignore[method-assign]
    life.begin(0)
    life.exchange.wait(lambda: 0 in life.exchange.ended)
    assert [state.status for state in life.end()] == ["stopped"]


# --- what is used --------------------------------------------------------------------------------


def _total(states: Sequence[State]) -> Used:
    used = Used()
    for state in states:
        used = added(used, state.used)
    return used


def test_work_of_trials_that_were_stopped_failed_and_resumed_is_counted(tmp_path: Path) -> None:
    """Also what was done twice, because no checkpoint had it."""
    crashed: list[str] = []

    def loss(job: JobSpec, step: int) -> float:
        if job.name == "t1s0" and step == 10 and crashed.count("t1s0") < 2:
            crashed.append("t1s0")
            raise WorkerLost("teacher", "1", "gone")
        if job.name == "t2s0" and step == 10:
            raise NonFiniteLoss(step, "nan")
        return _loss(job, step)

    reached = threading.Event()

    def before(name: str, step: int) -> None:
        if name == "t3s0" and step == 15:
            reached.set()

    bench = Bench(loss, before=before, held=frozenset({("t0s0", 10), ("t3s0", 15)}))
    life = Life(_search(retries=1), tmp_path, bench, [0.01] * 4, lanes=1)
    life.begin(0)
    life.exchange.wait(lambda: len(life.exchange.posted.get(0, [])) == 2)
    life.exchange.said.put(("leave", 0))
    life.begin(1, 2, 3)
    assert reached.wait(30)
    life.crew.stop()
    states = life.end()
    assert [state.status for state in states] == ["stopped", "failed", "failed", "running"]
    assert _total(states) == bench.used and bench.used.computed == 15
    assert states[0].used == Used(100, 5.0, 2.5, 10), "a trial that was stopped has worked"

    bench.held = frozenset()
    again = Life(_search(retries=0), tmp_path, bench, [0.01] * 4, lanes=1)
    assert again.board.states == states, "told by the journal alone"
    again.begin(0, 1, 2, 3)
    again.exchange.wait(lambda: len(again.exchange.ended) == 4)
    states = again.end()
    assert [state.status for state in states] == ["stopped", "done", "failed", "done"]
    assert _total(states) == bench.used and sum(map(computed_by, states)) == 20


@given(st.lists(st.tuples(st.sampled_from("awcx"), st.integers(1, 3)), max_size=20))
@settings(deadline=None)
def test_each_piece_of_work_counts_once_however_a_run_is_cut(
    acts: list[tuple[str, int]],
) -> None:
    """A run that works, keeps checkpoints and dies, as often as it will; some of its readings are
    never written down, but for the last before it begins again."""
    state, done, kept = State(0), 0, 0
    truth, heard = 0, 0

    def entry(kind: Any, tokens: int) -> Entry:
        return Entry(kind, 0, 0.0, run_id="a", used=asdict(Used(tokens=tokens)))

    state = state.after(entry("began", 0))
    for act, much in acts:
        if act == "w":  # works
            done, truth = done + much, truth + much
            heard = done
        elif act == "a":  # is heard of
            state = state.after(entry("used", done))
        elif act == "c":
            kept = done
        else:  # dies, and goes on
            state = state.after(entry("used", heard)).after(entry("began", kept))
            done = heard = kept
    assert state.after(entry("used", done)).used.tokens == truth


def test_a_run_that_starts_from_anothers_checkpoint_has_not_used_what_that_one_has() -> None:
    began = Entry("began", 0, 0.0, run_id="b", used=asdict(Used(100, 5.0, 2.0, 7)))
    ran = Entry("ran", 0, 0.0, run_id="b", summary={"tokens": 150, "cache": {"misses": 8}})
    assert State(0).after(began).after(ran).used == Used(50, 0.0, 0.0, 1)
    lost = State(0).after(replace(began, used=asdict(Used(10)))).after(began)
    assert lost.used.tokens == 90, "what a killed driver had not heard, its checkpoint knows"


def test_what_trials_use_shows_while_they_run_and_ends_a_search(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal.jsonl") as journal:
        board = Board(journal)
        for number in range(2):
            board.note("trial", number, settings={LR: 0.01})
            board.note("run", number, run_id=f"run{number}")
            board.began(number, f"run{number}", Used())
        lines = len(journal.entries)
        board.uses(0, "run0", Used(400, 3.0, 1.5, 30))
        board.uses(1, "run1", Used(100, 1.0, 0.5, 12))
        assert len(journal.entries) == lines, "steps are told too often to be written"
        spent = board.spent()
        assert (spent.tokens, spent.device_s) == (500, 6.0) and 0 <= spent.hours < 0.1
        board.settle(0)
        board.note("ended", 0, status="stopped")
        board.settle(1)
        board.note("ended", 1, status="failed", error="it broke")
        for budget, over in (
            ({"tokens": 500}, True),
            ({"tokens": 501}, False),
            ({"device_s": 6}, True),
            ({"device_s": 6.1}, False),
        ):
            search = _search(budget={"trials": 9, **budget})
            telling = Telling(search, board, lambda event: None, None)
            assert telling.used_up() == over
        again = Board(journal).spent()
        assert (again.tokens, again.device_s) == (500, 6.0)
        progress = progress_of(_search(budget={"trials": 2, "device_s": 60}), board, {})
    assert progress.spent == (("device_s", 6.0, 60.0),)
    assert [trial.computed for trial in progress.trials] == [30, 12]


def test_no_trial_begins_once_a_search_has_used_its_tokens(tmp_path: Path) -> None:
    search = _search(budget={"tokens": 350})
    bench = Bench(_loss, pause_s=0.0)
    life = Life(search, tmp_path, bench, [])
    telling = Telling(search, life.board, lambda event: None, None)

    def begin(trial: Tried) -> None:
        life.board.note("trial", trial.number, settings=trial.settings)

    suggestions = Suggestions(search, [], [], telling.used_up, begin, {})
    begun = 0
    while isinstance(found := suggestions.suggest(f"id{begun}"), dict):
        number = found["number"]
        life.begin(number)
        life.exchange.wait(lambda number=number: number in life.exchange.ended)
        begun += 1
        assert begun < 9, "the search has no end"
    assert begun == 2 and life.board.spent().tokens == 400
    life.end()


# --- what is tried -------------------------------------------------------------------------------


def _suggestions(search: Search) -> Any:
    begun: list[Tried] = []
    found = Suggestions(search, [], [], lambda: False, begun.append, {"exchange": "x"})
    return found, begun


def test_fixed_trials_come_first_and_trials_end_with_the_budget() -> None:
    search = _search(fixed=[{LR: 0.5}], budget={"trials": 3})
    suggestions, begun = _suggestions(search)
    configs = [suggestions.suggest(f"id{number}") for number in range(4)]
    assert configs[:3] == [{"number": number, "exchange": "x"} for number in range(3)]
    assert configs[3] == "FINISHED"
    assert begun[0] == Tried(0, {}, {LR: 0.5})
    assert begun[1].settings[LR] != begun[2].settings[LR]


def test_a_trial_without_a_number_has_failed_for_optuna_too() -> None:
    suggestions, _ = _suggestions(_search(searcher="tpe", budget={"trials": 2}))
    suggestions.suggest("id0")
    suggestions.on_trial_complete("id0", {"goal_0": math.nan, "step": 0})
    (trial,) = suggestions._draws._study.trials
    assert trial.state.name == "FAIL"


def test_grids_are_combined_with_draws() -> None:
    space = {LR: {"uniform": [0.1, 0.2]}, "seed": {"grid": [1, 2]}}
    suggestions, begun = _suggestions(_search(space=space))
    for number in range(4):
        suggestions.suggest(f"id{number}")
    assert [trial.settings["seed"] for trial in begun] == [1, 2, 1, 2]
    assert len({trial.settings[LR] for trial in begun}) == 4


def test_a_draw_that_makes_no_valid_job_is_drawn_anew() -> None:
    """Batches that do not divide: an inside that no corner shows."""
    space = {"training.global_batch": {"integer": [16, 80]}}
    search = _search(space=space, budget={"trials": 5})
    suggestions, begun = _suggestions(search)
    for number in range(5):
        suggestions.suggest(f"id{number}")
    assert all(trial.settings["training.global_batch"] % 16 == 0 for trial in begun)


# --- what comes out ------------------------------------------------------------------------------


def _done(number: int, loss: float, parameters: int = 1, **facts: Any) -> State:
    summary = {"evaluation": {"student": {"loss": loss}}, "parameters": parameters, "steps": 20}
    found = {"status": "done", "summaries": {0: summary}, "runs": {0: f"run{number}"}, **facts}
    return State(number, **{"settings": {LR: 0.01 * (number + 1)}, **found})


def test_the_best_went_to_its_end() -> None:
    stopped = State(3, status="stopped", results=((5, 0.1),))
    states = [_done(0, 3.0), _done(1, 2.0), stopped]
    assert best_of(states, [LOSS]) == states[1]
    assert best_of(states, [GoalSpec(metric="student.loss", mode="max")]) == states[0]
    assert best_of([stopped], [LOSS]) is None and best_of([], [LOSS]) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
@settings(deadline=None)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    goals = [LOSS, GoalSpec(metric="summary.parameters", mode="max")]
    states = [_done(number, float(loss), size) for number, (loss, size) in enumerate(points)]
    front = {state.number for state in front_of(states, goals)}
    for number, (loss, size) in enumerate(points):
        beaten = any(a <= loss and b >= size and (a, b) != (loss, size) for a, b in points)
        assert (number in front) != beaten


def test_a_budget_is_used_up_by_what_it_limits() -> None:
    spent = Spent(tokens=100, device_s=50, hours=1)
    assert used_up(BudgetSpec(), spent) is None
    assert used_up(BudgetSpec(tokens=101, device_s=51, hours=2), spent) is None
    assert used_up(BudgetSpec(tokens=100), spent) == "budget.tokens 100"
    assert used_up(BudgetSpec(hours=0.5), spent) == "budget.hours 0.5"


def test_the_table_has_the_best_first_and_the_best_job_is_a_job(tmp_path: Path) -> None:
    search = _search(tradeoffs=[{"metric": "summary.parameters", "mode": "min"}])
    failed = State(2, settings={LR: 0.5}, status="failed", error="it broke")
    states = [_done(0, 3.0, 1), _done(1, 2.0, 5), failed]
    table = as_markdown(search, states)
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row.split()[1] for row in rows] == ["trial", "--:", "1", "0", "2"]
    assert "trial 2 failed: it broke" in table
    plain = as_plain(search, states, {})
    assert plain["best"] == 1 and plain["front"] == [0, 1]
    assert plain["trials"][0]["goals"] == {"student.loss": 3.0, "summary.parameters": 1.0}
    file = tmp_path / "best.yaml"
    file.write_text(best_job(search, states.__getitem__, 1))
    (job,) = load_jobs(file)
    assert job == trial_job(search, states[1].settings, "small")


def _drawn_trials(search: Search, loss: Any, count: int = 24) -> list[State]:
    """Trials that went to their end, with a loss that is a function of what was drawn."""
    suggestions, begun = _suggestions(search)
    for number in range(count):
        suggestions.suggest(f"id{number}")
    return [
        _done(trial.number, loss(trial), values=trial.values, settings=trial.settings)
        for trial in begun
    ]


def test_what_the_loss_depends_on_matters_most() -> None:
    space = {
        LR: {"loguniform": [1e-3, 1e-1]},
        "training.optimizer.weight_decay": {"uniform": [0, 1]},
        "seed": {"choice": [1, 2]},
    }
    search = _search(space=space, budget={"trials": 24})
    states = _drawn_trials(search, lambda trial: math.log(trial.settings[LR]))
    shares = importance(search, states)
    assert next(iter(shares)) == LR and shares[LR] > 0.8 and set(shares) == set(space)
    other = _drawn_trials(search, lambda trial: trial.settings["training.optimizer.weight_decay"])
    assert next(iter(importance(search, other))) == "training.optimizer.weight_decay"
    assert importance(search, states[:3]) == {}
    assert importance(search, _drawn_trials(search, lambda trial: 1.0)) == {}


def test_the_page_has_a_picture_for_each_question(tmp_path: Path) -> None:
    search = searches.search(
        budget={"trials": 6}, tradeoffs=[{"metric": "summary.parameters", "mode": "min"}]
    )
    states = _drawn_trials(search, lambda trial: trial.settings[LR], 6)
    page = as_page(search, states, {LR: 0.9, WEIGHT: 0.1})
    for title in ("History", "Parallel coordinates", "Importance", "Pareto front"):
        assert f'alt="{title}"' in page
    assert as_page(search, states, {LR: 0.9, WEIGHT: 0.1}) == page, "the same bytes"
    empty = as_page(search, [State(0, settings={LR: 0.1}, status="failed", error="x")], {})
    assert "<figure>" not in empty and "failed" in empty


def test_trials_are_drawn_and_told(tmp_path: Path) -> None:
    said: list[str] = []
    with open_journal(tmp_path / "journal.jsonl") as journal:
        board, search = Board(journal), _search(budget={"trials": 2, "tokens": 5000})
        board.note("trial", 0, settings={LR: 0.01})
        board.note("run", 0, run_id="a")
        talk = Talk(said.append)
        talk(progress_of(search, board, {0: 20}))
        board.note("result", 0, step=5, value=2.5)
        board.note("ended", 0, status="stopped")
        progress = progress_of(search, board, {0: 20})
        talk(progress)
        talk(progress)
    assert isinstance(progress, SearchProgress) and len(said) == 2
    assert said[1].startswith("trial 0: stopped at step 5 student.loss 2.5 (training.optimizer.lr")
    assert "1 of 2 over" in said[1] and "tokens 0 of 5000" in said[1]
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table_of(progress))
    text = console.export_text()
    assert "optimizer.lr" in text and "5/20" in text and "stopped" in text


def _populated(tmp_path: Path) -> tuple[Search, Board]:
    """A population whose winner has trained with three rates, none of which it began with."""
    space = {LR: {"loguniform": [1e-3, 1e-1]}}
    search = _search(space=space, scheduler={"kind": "pbt", "every_steps": 5})
    board = Board(open_journal(tmp_path / "journal.jsonl"))
    for number in range(5):
        board.note("trial", number, values={LR: 0.09}, settings={LR: 0.09})
        for index, rate in enumerate((0.01, 0.012, 0.0144)):
            numbers, ends = {LR: rate}, 5 * (index + 1)
            board.note("leg", number, leg=index, begin=ends - 5, until=ends, numbers=numbers)
            board.note("run", number, run_id=f"run{number}")
        summary = {"evaluation": {"student": {"loss": 1.0 + number}}, "steps": 15, "export": "x"}
        board.note("ran", number, run_id=f"run{number}", summary=summary)
        board.note("ended", number, status="done")
    return search, board


def test_members_of_a_population_are_shown_with_the_numbers_they_train_with(
    tmp_path: Path,
) -> None:
    search, board = _populated(tmp_path)
    assert shown_values(board.state(0)) == {LR: "0.0144"}
    assert progress_of(search, board, {}).trials[0].values == ((LR, "0.0144"),)
    table = as_markdown(search, board.states)
    assert "0.0144" in table and "0.09" not in table
    folder = Folder(tmp_path, str(tmp_path / "runs"), str(tmp_path), "search-run")
    (job,) = trial_jobs(search, board.state, 0, folder).jobs
    assert job.tracking.tags[f"search.{LR}"] == "0.0144"
    page = as_page(search, board.states, {})
    assert 'alt="History"' in page and 'alt="Parallel coordinates"' not in page


class FakeTracker:
    """Keeps what a search tells of its end."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self.points: list[tuple[int, dict[str, float]]] = []
        self.students: list[tuple[str, str, dict[str, str]]] = []

    def tags(self, values: dict[str, str]) -> None:
        self.said |= values

    def artifact(self, path: Path) -> None:
        assert path.is_file()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.points.append((step, values))

    def register_student(self, export: Path, name: str, facts: dict[str, str]) -> None:
        self.students.append((str(export), name, facts))


def _ended(board: Board, number: int, folder: Path, loss: float) -> None:
    (folder / f"export{number}").mkdir()
    summary = {
        "evaluation": {"student": {"loss": loss}},
        "parameters": number,
        "steps": 20,
        "export": str(folder / f"export{number}"),
    }
    board.note("trial", number, values={LR: 0.01 * (number + 1)}, settings={LR: 0.01})
    board.note("run", number, run_id=f"run{number}")
    board.note("ran", number, run_id=f"run{number}", summary=summary)
    board.note("ended", number, status="done")


def test_the_best_student_is_registered_once_the_search_is_over(tmp_path: Path) -> None:
    search = _search(tradeoffs=[{"metric": "summary.parameters", "mode": "min"}])
    job = trial_job(search, {LR: 0.01}, "small")
    tracking = job.tracking.model_copy(update={"register_as": "digits-best"})
    over = job.model_copy(update={"tracking": tracking})
    folder = Folder(tmp_path, str(tmp_path / "runs"), str(tmp_path), "search-run")
    board, told = Board(open_journal(tmp_path / "journal.jsonl")), FakeTracker()
    tracker: Any = told
    _ended(board, 0, tmp_path, 2.0)
    _conclude(search, folder, board, tracker, None)
    assert told.students == [], "the search is to go on"
    _ended(board, 1, tmp_path, 1.0)
    for _ in range(2):  # looked at again once it is over
        _conclude(search, folder, board, tracker, over)
        board = Board(board._journal)
    ((export, name, facts),) = told.students
    assert (export, name) == (str(tmp_path / "export1"), "digits-best")
    assert (facts["search.trial"], facts["search.run"]) == ("1", "run1")
    assert yaml.safe_load(facts["search.job"]) == yaml.safe_load(
        (tmp_path / "best.yaml").read_text()
    )
    assert told.said["search.front"] == "0, 1"
    assert "no other beats: 0, 1" in (tmp_path / "trials.md").read_text()
    _ended(board, 2, tmp_path, 0.5)
    _conclude(search, folder, board, tracker, over)
    assert len(told.students) == 2, "another is the best"


def test_importance_says_nothing_of_a_populations_first_numbers(tmp_path: Path) -> None:
    search, board = _populated(tmp_path)
    told: Any = FakeTracker()
    folder = Folder(tmp_path, str(tmp_path / "runs"), str(tmp_path), "search-run")
    _conclude(search, folder, board, told, None)
    assert json.loads((tmp_path / "trials.json").read_text())["importance"] == {}
    assert not any("importance" in tag for tag in told.said)


def test_what_is_best_is_told_anew_where_a_trial_that_failed_succeeds(tmp_path: Path) -> None:
    board, told = Board(open_journal(tmp_path / "journal.jsonl")), FakeTracker()
    tracker: Any = told
    for number in (0, 1):
        _ended(board, number, tmp_path, 2.0)
    board.note("trial", 2, settings={LR: 0.01})
    board.note("ended", 2, status="failed", error="it broke")
    Telling(_search(), board, lambda event: None, tracker).changed()
    later = Board(board._journal)
    later.note("run", 2, run_id="run2")
    summary = {"evaluation": {"student": {"loss": 1.0}}, "steps": 20}
    later.note("ran", 2, run_id="run2", summary=summary)
    later.note("ended", 2, status="done")
    Telling(_search(), later, lambda event: None, tracker).changed()
    (first, before), (second, after) = told.points
    assert second > first, "tracking keeps one value a step"
    assert (before, after) == ({"best/student.loss": 2.0}, {"best/student.loss": 1.0})


def test_a_trial_of_several_seeds_shows_the_mean_of_those_that_are_done(tmp_path: Path) -> None:
    search = _search(seeds=[0, 1, 2])
    with open_journal(tmp_path / "journal.jsonl") as journal:
        board = Board(journal)
        board.note("trial", 0, settings={LR: 0.01})
        for place, loss in enumerate((2.0, 4.0)):
            assert progress_of(search, board, {}).trials[0].metric == (2.0 if place else None)
            board.note("run", 0, place=place, run_id=f"run{place}")
            summary = {"evaluation": {"student": {"loss": loss}}}
            board.note("ran", 0, place=place, run_id=f"run{place}", summary=summary)
        assert progress_of(search, board, {}).trials[0].metric == 3.0


# --- running -------------------------------------------------------------------------------------


def _raw(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    job = {**searches.raw_job(), "storage": str(tmp_path / "runs")}
    return {**job, "search": {**searches.raw_search(), **changes}}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "search.yaml"
    raw = _raw(tmp_path, fixed=[{LR: 0.01}], space={}, budget={})
    path.write_text(yaml.safe_dump(raw))
    return path


def _finish(file: Path, status: str = "done") -> Path:
    """The folder of a search whose one trial is over."""
    from orchestrator.search.load import load_search, search_yaml

    search = load_search(file)
    folder = file.parent / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "search.yaml").write_text(search_yaml(search))
    job = absolute_paths(trial_job(search, {LR: 0.01}, "small"))
    summary = {"evaluation": {"student": {"loss": 1.5}}, "steps": 20, "export": "gone"}
    with open_journal(folder / "journal.jsonl") as journal:
        board = Board(journal)
        board.note("trial", 0, key=key_of(job), settings={LR: 0.01})
        board.note("run", 0, run_id="run0")
        board.note("ran", 0, run_id="run0", summary=summary)
        board.note("ended", 0, status=status)
    return folder


def test_a_search_whose_trials_are_over_only_writes_its_table(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _finish(file)
    monkeypatch.chdir(file.parent)
    assert exit_code(["search", "--resume", "small", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plain["best"] == 0 and plain["trials"][0]["goals"] == {"student.loss": 1.5}
    assert (folder / "best.yaml").is_file() and "student.loss" in (folder / "trials.md").read_text()
    spool = (folder / "tracking" / "spool.jsonl").read_text()
    assert '"search.best":"0"' in spool and '"status":"finished"' in spool


def test_what_is_written_in_the_end_leaves_the_run_id_alone(tmp_path: Path) -> None:
    """A search can be gone on with as often as one likes, and stays one run in tracking."""
    search, root = _search(), str(tmp_path)

    def opened(resume: bool) -> Folder:
        return open_folder(
            "search",
            "small",
            "a: 1",
            Path.read_text,
            root,
            root,
            resume=resume,
            accept_changes=True,
        )

    folder = opened(False)
    with open_journal(folder.journal) as journal:
        written = write_results(folder.path, search, Board(journal), {})
    assert len(written) == 3 and opened(True).run_id == folder.run_id


def test_a_changed_file_is_refused_with_the_difference(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _finish(file)
    change = ["--set", "training.threads=2"]
    assert exit_code(["search", str(file)]) == 2
    assert "begun before" in capsys.readouterr().err
    assert exit_code(["search", str(file), "--resume", "small", *change]) == 2
    refused = capsys.readouterr().err
    assert "  +  threads: 2" in refused and "--accept-changes" in refused
    assert exit_code(["search", str(file), "--resume", "other"]) == 2
    assert "is search 'small'" in capsys.readouterr().err
    assert exit_code(["search", "--resume", "nowhere"]) == 2
    assert exit_code(["search"]) == 2


def test_a_changed_file_goes_on_where_that_is_accepted(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _finish(file)
    change = ["--set", "search.retries=3"]
    assert exit_code(["search", str(file), "--resume", "small", *change]) == 2
    assert "  +  retries: 3" in capsys.readouterr().err
    accepted = [str(file), "--resume", "small", "--accept-changes", *change]
    assert exit_code(["search", *accepted]) == 0
    assert "retries: 3" in (folder / "search.yaml").read_text()
    assert '"trial":' in (folder / "journal.jsonl").read_text(), "its trial is kept"


def test_a_trial_that_the_changed_file_would_make_otherwise_is_not_kept(file: Path) -> None:
    from orchestrator.search.journal import states_of
    from orchestrator.search.load import load_search
    from orchestrator.search.run import _kept

    with open_journal(_finish(file) / "journal.jsonl") as journal:
        states = states_of(journal.entries)
    assert _kept(load_search(file), states) == ([0], [])
    assert _kept(load_search(file, ["search.retries=3"]), states) == ([0], [])
    assert _kept(load_search(file, ["training.threads=2"]), states) == ([], [0])


@pytest.mark.parametrize("changed", [False, True])
def test_trials_that_are_not_kept_are_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """Whatever made their jobs others: here it is a default that a new version has."""
    from orchestrator.events import Warned
    from orchestrator.search import run as module
    from orchestrator.search.load import load_search

    _finish(file)
    monkeypatch.chdir(file.parent)
    heard: list[object] = []
    monkeypatch.setattr(module, "_work", lambda *arguments: False)
    if changed:
        monkeypatch.setattr(module, "key_of", lambda job: key_of(job) + "new")
    run_search(load_search(file), resume=True, on_event=heard.append)
    said = [event.text for event in heard if isinstance(event, Warned)]
    assert len(said) == changed
    assert all("trials 0 are not kept" in text and "a new version" in text for text in said)


KEPT: list[tuple[dict[str, Any], dict[str, Any], list[int]]] = [
    ({}, {}, [0, 1, 2]),
    ({"space": {LR: {"uniform": [0.01, 0.5]}}}, {}, [0, 1, 2]),  # the same values, drawn otherwise
    ({"space": {LR: {"uniform": [0.03, 0.5]}}}, {}, [0, 2]),  # 0.02 lies outside
    ({"space": {LR: {"quniform": [0.02, 0.12, 0.05]}}}, {}, [0, 1]),  # 0.04 is between two steps
    ({"space": {LR: {"choice": [0.02, 0.04]}}}, {}, [0]),  # a choice's values are labels
    ({"fixed": []}, {}, [1, 2]),
    ({"fixed": [{LR: 0.02}, {LR: 0.01}]}, {}, [0, 1, 2]),
    ({"searcher": "tpe", "budget": {"trials": 9, "hours": 1}, "retries": 5}, {}, [0, 1, 2]),
    ({"metric": "student.top1_accuracy", "mode": "max"}, {}, [0, 1, 2]),
    ({}, {"seed": 3}, []),
    ({}, {"tracking": {"experiment": "elsewhere"}}, [0, 1, 2]),
]


@pytest.mark.parametrize(("search", "job", "kept"), KEPT)
def test_trials_are_kept_that_the_file_would_make_as_they_were(
    search: dict[str, Any], job: dict[str, Any], kept: list[int]
) -> None:
    from orchestrator.search.run import _kept

    space = {"space": {LR: {"uniform": [0.01, 0.1]}}, "fixed": [{LR: 0.01}]}
    before = _search(**space)
    states = {}
    for number, rate in enumerate([0.01, 0.02, 0.04]):
        key = key_of(absolute_paths(trial_job(before, {LR: rate}, "small")))
        values = {LR: rate} if number else {}
        states[number] = State(number, key=key, values=values, settings={LR: rate})
    after = searches.search({**searches.raw_job(), **job}, **{**space, **search})
    skipped = [number for number in states if number not in kept]
    assert _kept(after, states) == (kept, skipped)


def test_a_field_that_varied_and_is_now_the_jobs_keeps_its_trials() -> None:
    from orchestrator.search.run import _kept

    decay = "training.optimizer.weight_decay"
    settings = {LR: 0.02, decay: 0.25}
    before = _search(space={LR: {"uniform": [0.01, 0.1]}, decay: {"uniform": [0.1, 0.5]}})
    key = key_of(absolute_paths(trial_job(before, settings, "small")))
    states = {0: State(0, key=key, values=settings, settings=settings)}
    raw = searches.raw_job()
    raw["training"]["optimizer"]["weight_decay"] = 0.25
    assert _kept(searches.search(raw, space={LR: {"uniform": [0.01, 0.1]}}), states) == ([0], [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["search.space={training.optimiser.lr: {uniform: [0.1, 1]}}"], "'optimizer'"),
        (["search.metric=student.los"], "student.loss"),
        (["search.budget.trials=0"], "search.budget.trials"),
        (["search.fixed=[{data.sources: []}]"], "search.fixed.0.data.sources"),
        (["student.path=/nowhere"], "student"),
    ],
)
def test_a_bad_file_ends_with_two_and_starts_nothing(
    file: Path, capsys: pytest.CaptureFixture[str], changes: list[str], words: str
) -> None:
    options = [part for change in changes for part in ("--set", change)]
    assert exit_code(["search", str(file), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (file.parent / "runs").exists()


def test_a_searcher_that_is_not_installed_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "cmaes" else real(name)
    )
    assert exit_code(["search", str(file), "--set", "search.searcher=cmaes"]) == 2
    assert "stillhouse[cmaes]" in capsys.readouterr().err


def test_a_search_runs_in_one_process_at_a_time(file: Path) -> None:
    from orchestrator.errors import StillhouseError
    from orchestrator.search.load import load_search

    folder = _finish(file)
    with (
        open_journal(folder / "journal.jsonl"),
        pytest.raises(StillhouseError, match="this search runs already"),
    ):
        run_search(load_search(file), resume=True)


def test_as_many_trials_run_side_by_side_as_fit_beside_the_pool() -> None:
    import digits

    teacher = {**digits.student(), "resources": {"cpus": 0.5}}
    raw = searches.raw_job(
        roles={"teacher": teacher}, objective={"terms": [{"kind": "forward_kl"}]}
    )
    search = searches.search(raw, space={LR: {"loguniform": [1e-3, 1e-1]}})
    job = trial_job(search, {LR: 0.01}, "small")
    two = Inventory((Node("here", {"CPU": 2.0}),))
    assert lanes_for([job], two, None) == 3  # workers of half a core, beside a replica of as much
    assert lanes_for([job], two, 2) == 2
    with pytest.raises(SpecError, match=r"concurrency: is 4, and the cluster holds 3"):
        lanes_for([job], two, 4)


def test_the_pool_serves_what_some_trial_asks_and_all_run_beside_it() -> None:
    """A choice of objectives whose later options ask another role."""
    import digits

    teacher = {**digits.student(), "resources": {"cpus": 0.5}}
    raw = searches.raw_job(roles={"teacher": teacher, "second_teacher": teacher})
    asks = [{"kind": "forward_kl"}, {"kind": "forward_kl", "role": "second_teacher"}]
    labels = {"kind": "cross_entropy"}
    space = {"objective.terms": {"choice": [[labels], [labels, asks[0]], asks]}}
    jobs = check_search(searches.search(raw, space=space))
    assert [list(job.used_roles) for job in jobs] == [
        [],
        ["teacher"],
        ["teacher", "second_teacher"],
    ]
    two = Inventory((Node("here", {"CPU": 2.0}),))
    assert lanes_for(jobs[:1], two, None) == 4
    assert lanes_for(jobs, two, None) == 2
    one = Inventory((Node("here", {"CPU": 1.0}),))
    with pytest.raises(SpecError, match=r"1\.5 CPU are asked for.*0\.5 too few"):
        lanes_for(jobs, one, None)
    raw["pool"] = {"kind": "standing", "name": "shared"}
    assert lanes_for(check_search(searches.search(raw, space=space)), one, None) == 2


def test_nothing_of_a_loss_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    def loss(job: JobSpec, step: int) -> float:
        raise NonFiniteLoss(step, "nan")

    life = Life(_search(retries=0), tmp_path, Bench(loss), [0.01])
    life.begin(0)
    life.exchange.wait(lambda: 0 in life.exchange.ended)
    (state,) = life.end()
    assert state.status == "failed" and state.results == () and state.summaries == {}
