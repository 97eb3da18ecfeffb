"""Whatever dies during a search, it ends with the trials and numbers of one that was left alone.

Each search is the command in a process of its own, which brings up its own Ray; strikes come from
here, once the journal says that the search is under way.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import digits
import psutil
import pytest
import searches
import yaml
from mlflow.tracking import MlflowClient
from mlflow_server import Server

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, TRIALS = 60, 3
RETOLD = ("loss/", "schedule/", "train/", "held_out/")
"""Metrics that depend on the job alone; others tell of times and of what was computed when."""
COMMAND = "from orchestrator.cli import main; main()"
POPULATION = {"kind": "pbt", "every_steps": 10, "quantile": 0.5}
Lines = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Ctrl-C is heard by what is started here, also where a shell runs the tests in background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass
class Played:
    """A search in a folder, over as many processes as it takes; see `play`."""

    folder: Path
    uri: str | None = None
    population: bool = False
    lanes: int = 1
    running: "subprocess.Popen[bytes] | None" = field(default=None)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        teacher = {**digits.student(width=48), "resources": {"cpus": 0.5}}
        term = {"kind": "forward_kl", "temperature": 2.0}
        job = searches.raw_job(
            roles={"teacher": teacher},
            objective={"terms": [term]},
            cache={"path": str(self.folder / "cache")},
            **({} if self.uri is None else {"tracking": {"uri": self.uri}}),
        )
        job["training"]["steps"] = 20 if self.population else STEPS
        temperature = {"uniform": [1.0, 4.0]}
        schedule = {"choice": [1.0, {"kind": "linear", "start": {"uniform": [2, 4]}, "end": 1.0}]}
        search = {
            "space": {
                searches.LR: {"loguniform": [1e-3, 1e-1]},
                "objective.terms.0.temperature": temperature if self.population else schedule,
            },
            "metric": "kl",
            "budget": {"trials": TRIALS},
            **({"scheduler": POPULATION} if self.population else {}),
        }
        self.file.write_text(yaml.safe_dump({**job, "search": search}))

    @property
    def file(self) -> Path:
        return self.folder / "search.yaml"

    @property
    def result(self) -> Path:
        return self.folder / "runs" / "small"

    def start(self, *arguments: str) -> None:
        """Begin the search, or go on with it."""
        here = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": here}
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
            env.pop(name, None)
        with open(self.folder / "output.txt", "ab") as output:
            self.running = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "search", f"--parallel={self.lanes}", *arguments],
                cwd=self.folder,
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def begin(self) -> None:
        self.start(str(self.file))

    def go_on(self) -> None:
        self.start("--resume", "small")

    def end(self, code: int = 0) -> None:
        """Wait for the process."""
        assert self.running is not None
        assert self.running.wait(300) == code, self.output[-4000:]

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    @property
    def journal(self) -> Lines:
        path = self.result / "journal.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def await_(self, reached: Callable[[Lines], bool], timeout_s: float = 180.0) -> None:
        """Wait until the journal says so, while trials are left."""
        assert self.running is not None
        until = time.monotonic() + timeout_s
        while not reached(lines := self.journal):
            assert self.running.poll() is None, self.output[-4000:]
            assert time.monotonic() < until, lines
            time.sleep(0.01)
        assert sum(line["kind"] == "ended" for line in lines) < TRIALS, "nothing was left to do"

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray's, by the beginning of their titles."""
        assert self.running is not None
        found = []
        for process in psutil.Process(self.running.pid).children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
            except psutil.Error:
                continue  # it has ended meanwhile
        return found

    def signal(self, number: int, *, whole_group: bool = False) -> None:
        """Send one to the driver, or to all that a terminal would."""
        assert self.running is not None
        (os.killpg if whole_group else os.kill)(self.running.pid, number)

    def kill(self, title: str) -> None:
        """Kill the newest process of a title."""
        victim = max(self.processes(title), key=lambda process: process.create_time())
        victim.kill()
        psutil.wait_procs([victim], timeout=10)
        assert not victim.is_running()

    def stop(self) -> None:
        """End what a failure has left running; its Ray goes with it."""
        if self.running is not None and self.running.poll() is None:
            self.running.kill()
            self.running.wait(10)

    # --- what came out ---------------------------------------------------------------------------

    def trials(self) -> list[dict[str, Any]]:
        """What each trial did and measured, and the weights it ended with."""
        plain = json.loads((self.result / "trials.json").read_text())
        same = ("trial", "status", "values", "settings", "goals", "results")
        return [
            {
                **{name: trial[name] for name in same},
                "weights": [self._weights(run) for run in trial["runs"]],
            }
            for trial in plain["trials"]
        ]

    def _weights(self, run: str) -> str:
        summary = json.loads((self.result / "runs" / run / "summary.json").read_text())
        return summary["weights_sha256"]

    def metrics(self) -> dict[tuple[str, int], dict[str, list[Any]]]:
        """What the tracking store has: trial, first step -> metric -> its steps, with values where
        they are of the job alone. In a population each leg of a trial has a run of its own."""
        client = MlflowClient(self.uri or f"sqlite:///{self.folder}/runs/mlflow.db")
        experiment = client.get_experiment_by_name("stillhouse")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}, "one is left open"
        found: dict[tuple[str, int], dict[str, list[Any]]] = {}
        for run in runs:
            number = run.data.tags.get("search.trial")
            if number is None or run.info.status == "KILLED":
                continue  # the search; what was begun anew, for want of a checkpoint
            told = {
                name: sorted(
                    (point.step, point.value if name.startswith(RETOLD) else None)
                    for point in client.get_metric_history(run.info.run_id, name)
                )
                for name in run.data.metrics
            }
            leg = number, told["loss/total"][0][0]
            assert leg not in found, "a trial has two ends"
            found[leg] = told
        return found


@contextmanager
def play(folder: Path, **changes: Any) -> Iterator[Played]:
    """A search that has begun, until the end of the block."""
    played = Played(folder, **changes)
    try:
        played.begin()
        yield played
    finally:
        played.stop()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """One that nobody disturbs."""
    with play(tmp_path_factory.mktemp("alone") / "search") as played:
        played.end()
    assert [trial["status"] for trial in played.trials()] == ["done"] * TRIALS
    steps = list(range(1, STEPS + 1))
    assert [step for step, _ in played.metrics()["0", 1]["loss/total"]] == steps
    return played


def _measured(trial: int) -> Callable[[Lines], bool]:
    """Whether a trial has been, once at least."""
    return lambda lines: any(e["kind"] == "result" and e["trial"] == trial for e in lines)


def _equal(played: Played, alone: Played) -> None:
    assert played.trials() == alone.trials()
    assert played.metrics() == alone.metrics()


def test_killing_the_driver_loses_nothing(tmp_path: Path, alone: Played) -> None:
    """It is frozen first: what its trials do meanwhile reaches nobody, and dies with it."""
    with play(tmp_path / "search", lanes=2) as played:
        played.await_(_measured(1))
        played.signal(signal.SIGSTOP)
        time.sleep(3.0)  # long enough for the trials to be over, were they to go on
        played.signal(signal.SIGKILL)
        played.end(-signal.SIGKILL)
        played.go_on()
        played.end()
        _equal(played, alone)


def test_killing_its_processes_loses_nothing(tmp_path: Path, alone: Played) -> None:
    """The teacher while it is asked, a trial's worker, and a trial's driver in Ray Tune."""
    with play(tmp_path / "search") as played:
        for trial, title in enumerate(("ray::Replica", "ray::RayTrainWorker", "ray::Trial")):
            played.await_(_measured(trial))
            played.kill(title)
        played.end()
        _equal(played, alone)


def test_killing_the_tracking_server_loses_nothing(tmp_path: Path, alone: Played) -> None:
    server = Server.on_a_free_port(tmp_path)
    try:
        server.start()
        with play(tmp_path / "search", uri=server.uri) as played:
            played.await_(_measured(1))
            server.kill()
            played.end()
            assert played.trials() == alone.trials()
            assert "are not in http" in played.output
            server.start()
            played.go_on()
            played.end()
            _equal(played, alone)
    finally:
        server.stop()


def test_ctrl_c_is_a_clean_stop(tmp_path: Path, alone: Played) -> None:
    with play(tmp_path / "search") as played:
        played.await_(_measured(1))
        played.signal(signal.SIGINT, whole_group=True)  # as a terminal does
        played.end(130)
        assert "go on with --resume small" in played.output
        assert not any(line["status"] == "failed" for line in played.journal)
        assert (played.result / "trials.md").is_file()
        played.go_on()
        played.end()
        _equal(played, alone)


def test_killing_the_driver_of_a_population_loses_nothing(tmp_path: Path) -> None:
    """What was decided is kept, and what was not is decided as it would have been."""
    with play(tmp_path / "alone", population=True, lanes=2) as alone:
        alone.end()
    with play(tmp_path / "killed", population=True, lanes=2) as played:
        played.await_(_crossed)
        played.signal(signal.SIGKILL)
        played.end(-signal.SIGKILL)
        played.go_on()
        played.end()
        _equal(played, alone)


def _crossed(lines: Lines) -> bool:
    """A member has gone on from another's checkpoint."""
    return any(line["kind"] == "leg" and line["parent"] is not None for line in lines)
