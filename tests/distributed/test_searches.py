"""Searches through Ray Tune: with trials that train nothing, and one with real ones."""

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import digits
import psutil
import pytest
import ray
import searches
from fake_trials import Bench
from mlflow.tracking import MlflowClient

from orchestrator.errors import Interrupted, NonFiniteLoss
from orchestrator.runner import run
from orchestrator.search.board import Board, best_of, goal_values
from orchestrator.search.crew import TrialJobs
from orchestrator.search.drive import drive
from orchestrator.search.journal import State, open_journal, states_of
from orchestrator.search.plan import Search, trial_job
from orchestrator.search.progress import SearchProgress
from orchestrator.search.run import Telling, run_search
from orchestrator.search.table import computed_by
from orchestrator.session import join_ray
from orchestrator.spec import JobSpec, load_jobs

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

LR = searches.LR


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    started = join_ray(None)
    yield
    if started:
        ray.shutdown()


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests were started in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _loss(job: JobSpec, step: int) -> float:
    """Least at a learning rate of 0.01, and less the longer it is trained."""
    return abs(job.training.optimizer.lr - 0.01) + 1 / step


class Played:
    """One life of a search, whose journal the next one finds."""

    def __init__(self, search: Search, folder: Path, bench: Bench, lanes: int = 2) -> None:
        self.heard: list[object] = []
        with open_journal(folder / "journal.jsonl") as journal:
            board = Board(journal, sorted(states_of(journal.entries)))
            telling = Telling(search, board, self.heard.append, None)

            def jobs_of(number: int) -> TrialJobs:
                settings = board.state(number).settings
                return TrialJobs(number, (trial_job(search, settings, f"t{number}"),))

            self.interrupted = drive(
                search,
                board,
                [],
                jobs_of,
                bench.drivers(),
                lanes,
                telling,
                20,
                str(folder / "tune"),
            )
            self.states: list[State] = board.states

    @property
    def by_status(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for state in self.states:
            found.setdefault(state.status, []).append(state.number)
        return found


def _search(**changes: Any) -> Search:
    return searches.search(space={LR: {"loguniform": [1e-3, 1e-1]}}, **changes)


def test_trials_run_side_by_side_and_one_that_fails_is_reported(tmp_path: Path) -> None:
    def loss(job: JobSpec, step: int) -> float:
        if job.name == "t2":
            raise NonFiniteLoss(step, "as the test wants")
        return _loss(job, step)

    bench = Bench(loss)
    fixed = [{LR: 0.01}]
    played = Played(_search(fixed=fixed, budget={"trials": 5}), tmp_path, bench)
    assert played.interrupted is False
    assert played.by_status == {"done": [0, 1, 3, 4], "failed": [2]}
    assert [name for name, _ in bench.ran].count("t2") == 2, "tried once more"
    assert "as the test wants" in (played.states[2].error or "")
    best = best_of(played.states, _search().spec.goals)
    assert best is not None and best.number == 0 and best.settings == {LR: 0.01}
    assert goal_values(best, _search().spec.goals) == [0.05]
    last = played.heard[-1]
    assert isinstance(last, SearchProgress) and last.best == 0 and len(last.trials) == 5
    again = Played(_search(fixed=fixed, budget={"trials": 6}), tmp_path, bench)
    assert again.by_status == {"done": [0, 1, 3, 4, 5], "failed": [2]}
    assert [name for name, _ in bench.ran].count("t0") == 1, "what is over is not run again"
    assert again.states[1].settings == played.states[1].settings


@pytest.mark.slow
def test_a_scheduler_stops_what_is_worse(tmp_path: Path) -> None:
    rates = [0.01, 0.02, 0.05, 0.09]
    search = _search(
        fixed=[{LR: rate} for rate in rates],
        budget={"trials": 4},
        scheduler={"kind": "asha", "grace_steps": 5, "reduction": 2},
    )
    bench = Bench(_loss)
    played = Played(search, tmp_path, bench, lanes=1)
    assert played.by_status["done"] == [0] and played.by_status["stopped"] == [1, 2, 3]
    assert all(state.step < 20 for state in played.states[1:])
    assert sum(state.used.tokens for state in played.states) == bench.used.tokens
    assert all(state.used.tokens >= 50 for state in played.states), "those too that were stopped"
    again = Played(search, tmp_path, bench, lanes=1)
    assert len(bench.ran) == 4 and again.by_status == played.by_status


@pytest.mark.slow
def test_a_trial_whose_driver_dies_is_stopped_all_the_same(tmp_path: Path) -> None:
    killed: list[int] = []

    def before(name: str, step: int) -> None:
        if name == "t1" and step == 5 and not killed:
            mine = psutil.Process().children(recursive=True)
            drivers = [each for each in mine if " ".join(each.cmdline()).startswith("ray::Trial")]
            killed.extend(driver.pid for driver in drivers)
            for driver in drivers:
                driver.kill()

    rates = [0.01, 0.05, 0.02]
    search = _search(
        fixed=[{LR: rate} for rate in rates],
        budget={"trials": 3},
        scheduler={"kind": "asha", "grace_steps": 5, "reduction": 2},
    )
    bench = Bench(_loss, before=before, held=frozenset({("t1", 5)}))
    played = Played(search, tmp_path, bench, lanes=1)
    assert killed and played.by_status == {"done": [0], "stopped": [1, 2]}
    assert bench.ran == [("t0", 0), ("t1", 0), ("t2", 0)], "the job itself went on"
    assert played.states[1].step == 5


@pytest.mark.slow
def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path, listening: None) -> None:
    reached = threading.Event()

    def before(name: str, step: int) -> None:
        if name == "t1" and step == 10 and not reached.is_set():
            reached.set()
            _thread.interrupt_main()

    search = _search(budget={"trials": 4}, searcher={"kind": "tpe", "startup_trials": 2})
    bench = Bench(_loss, before=before, held=frozenset({("t1", 10)}))
    first = Played(search, tmp_path, bench, lanes=1)
    assert first.interrupted and first.by_status["done"] == [0] and len(first.states) == 2
    begun = dict(first.states[1].values)
    second = Played(search, tmp_path, bench, lanes=1)
    assert not second.interrupted and second.by_status == {"done": [0, 1, 2, 3]}
    assert second.states[1].values == begun
    assert bench.ran[:3] == [("t0", 0), ("t1", 0), ("t1", 10)], "from its checkpoint"
    assert [step for step, _ in second.states[1].results] == [5, 10, 15]


# --- real trials ---------------------------------------------------------------------------------


def test_trials_that_differ_in_the_student_cost_one_pass_of_the_teacher(tmp_path: Path) -> None:
    teacher = {**digits.student(width=48), "resources": {"cpus": 0.5}}
    job = {
        **searches.raw_job(
            roles={"teacher": teacher},
            objective={"terms": [{"kind": "forward_kl", "temperature": 2.0}]},
            cache={"path": str(tmp_path / "cache")},
        ),
        "storage": str(tmp_path / "runs"),
        "tracking": {"register_as": "digits-best"},
    }
    search = searches.search(
        job,
        space={
            LR: {"loguniform": [1e-3, 1e-1]},
            "objective.terms.0.temperature": {
                "choice": [1.0, {"kind": "linear", "start": {"uniform": [2, 4]}, "end": 1.0}]
            },
            "student.arguments.width": {"choice": [16, 32]},
        },
        metric="kl",
        budget={"trials": 3},
    )
    result = run_search(search, parallel=2)
    assert [state.status for state in result.trials] == ["done"] * 3 and result.failed == {}
    learned, held_out = 20 * 32, 64
    assert sum(map(computed_by, result.trials)) == learned + held_out
    (best,) = load_jobs(result.folder / "best.yaml")
    assert result.best is not None and best.roles["teacher"].task == "classifier"

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("stillhouse")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "search.searcher" in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.data.tags["search.trial"] for run in children) == ["0", "1", "2"]
    assert parent.data.tags["search.best"] == str(result.best.number)
    (version,) = client.search_model_versions("name = 'digits-best'")
    assert version.tags["search.trial"] == str(result.best.number)
    assert version.tags["search.job"] == (result.folder / "best.yaml").read_text()
    for state in result.trials:
        cost = state.summaries[0]["cost"]
        assert state.used.student_s == pytest.approx(cost["student_device_s"])
        assert state.used.teacher_s == pytest.approx(cost["teacher_device_s"])
    assert sum(state.used.teacher_s for state in result.trials) > 0


def test_a_populations_best_job_run_from_its_beginning_gives_its_weights_bit_for_bit(
    tmp_path: Path,
) -> None:
    """Also where the search was interrupted and gone on with on the way."""
    teacher = {**digits.student(width=48), "resources": {"cpus": 0.5}}
    term = {"kind": "forward_kl", "temperature": 2.0}
    job = {
        **searches.raw_job(
            roles={"teacher": teacher},
            objective={"terms": [term, {"kind": "cross_entropy"}]},
            cache={"path": str(tmp_path / "cache")},
        ),
        "storage": str(tmp_path / "runs"),
    }
    search = searches.search(
        job,
        space={
            LR: {"loguniform": [1e-3, 1e-1]},
            "objective.terms.0.temperature": {"uniform": [1.0, 4.0]},
            "objective.terms.1.weight": {"uniform": [0.0, 1.0]},
        },
        budget={"trials": 4},
        scheduler={"kind": "pbt", "every_steps": 5, "quantile": 0.5},
        seeds=[3],
    )
    result = run_search(search, parallel=2)
    assert [state.status for state in result.trials] == ["done"] * 4 and result.failed == {}
    best = result.best
    assert best is not None
    legs = [leg for state in result.trials for leg in state.legs]
    crossed = [
        leg
        for state in result.trials
        for leg in state.legs
        if leg.parent not in (None, state.number)
    ]
    assert len(legs) == 16 and len(crossed) == 3 * 2
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("stillhouse")
    assert experiment is not None
    recorded = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in recorded} == {"FINISHED"}, "a leg that ended was not killed"
    learned, held_out = 20 * 32, 64
    assert sum(map(computed_by, result.trials)) == learned + held_out
    for leg in legs:
        checkpoint = tmp_path / "runs" / search.name / "runs" / leg.run_id / "checkpoints"
        assert (checkpoint / f"step-{leg.until:08d}" / "manifest.json").is_file()

    (again,) = load_jobs(result.folder / "best.yaml")
    assert again.training.start is None
    (summary,) = run([again]).jobs
    assert summary["weights_sha256"] == best.summaries[0]["weights_sha256"]
    assert summary["evaluation"] == best.summaries[0]["evaluation"]


def _interrupts_once() -> Callable[[object], None]:
    """Ctrl-C, as soon as a trial has been measured after ten steps."""
    asked = threading.Event()

    def heard(event: object) -> None:
        far = isinstance(event, SearchProgress) and any(t.step >= 10 for t in event.trials)
        if far and not asked.is_set():
            asked.set()
            _thread.interrupt_main()

    return heard


def test_an_interrupted_population_ends_as_one_that_was_not(
    tmp_path: Path, listening: None
) -> None:
    ends = []
    for name in ("whole", "cut"):
        job = {**searches.raw_job(), "storage": str(tmp_path / name)}
        search = searches.search(
            job,
            space={LR: {"loguniform": [1e-3, 1e-1]}},
            budget={"trials": 3},
            scheduler={"kind": "pb2", "every_steps": 5},
        )
        if name == "cut":
            with pytest.raises(Interrupted):
                run_search(search, parallel=1, on_event=_interrupts_once())
            result = run_search(search, parallel=1, resume=True)
        else:
            result = run_search(search, parallel=1)
        ends.append([state.summaries[0]["weights_sha256"] for state in result.trials])
    assert ends[0] == ends[1]
