"""The command: exit codes, what goes to which stream, and how a run is drawn."""

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from orchestrator import doctor, runner
from orchestrator.cli import comparison_rows, environment_defaults, exit_code
from orchestrator.errors import Interrupted, SpecError, StillhouseError
from orchestrator.events import (
    CheckpointWritten,
    Evaluated,
    Event,
    JobEnded,
    JobStarted,
    Phase,
    StepDone,
    Warned,
)
from orchestrator.spec import load_jobs
from orchestrator.terminal import LiveLines, Pace, PlainLines, duration

TOKENIZER = Path(__file__).parents[2] / "docs/examples/teacher"
METRICS = {
    "loss/total": 3.25,
    "loss/forward_kl": 3.0,
    "loss/cross_entropy": 0.25,
    "throughput/tokens_per_s": 1234.0,
    "student/wait_share": 0.25,
    "pool/busy_share": 0.5,
}
SUMMARY = {
    "status": "done",
    "run_id": "small-20260101-ab",
    "steps": 2,
    "evaluation": {
        "student": {"loss": 2.0, "perplexity": 7.39},
        "teacher": {"loss": 1.0, "perplexity": 2.72},
        "top1_agreement": 0.5,
        "kl": 0.1,
    },
    "generated": "def read(self):",
}


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """The command installs a handler of its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job file that passes every check."""
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "text.txt").write_text("some words " * 50)
    document = {
        "name": "small",
        "student": {
            "architecture": {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1},
            "tokenizer": str(TOKENIZER),
        },
        "data": {"sources": [{"kind": "text", "path": str(tmp_path / "text.txt")}], "context": 32},
        "objective": {"terms": [{"kind": "cross_entropy"}]},
        "training": {"steps": 2, "checkpoint": {"every_steps": 2}},
        "storage": str(tmp_path / "runs"),
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


Fake = Callable[..., Any]


def run_with(monkeypatch: pytest.MonkeyPatch, fake: Fake, *arguments: str) -> int:
    """Exit code of a command whose runner is `fake`."""
    monkeypatch.setattr(runner, "run", fake)
    return exit_code(["run", *arguments])


def good_run(jobs: Any, on_event: Callable[[Event], None]) -> runner.RunResult:
    on_event(JobStarted("small", SUMMARY["run_id"], 2))
    on_event(StepDone("small", 1, 2, METRICS))
    on_event(StepDone("small", 2, 2, METRICS))
    on_event(JobEnded("small", "done", SUMMARY))
    return runner.RunResult([SUMMARY])


# --- exit codes and streams ----------------------------------------------------------------------


def test_a_run_prints_its_steps_and_ends_with_the_table(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(monkeypatch, good_run, str(job)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("small: step 2/2  total 3.2500") for line in lines)
    assert lines[-1].split()[:4] == ["small", "2.0000", "7.39", "50.0%"]


def test_with_json_the_last_line_of_output_is_the_result_and_progress_goes_to_errors(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(monkeypatch, good_run, str(job), "--json") == 0
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [{"jobs": [SUMMARY]}]
    assert "step 2/2" in err


def test_a_failed_run_exits_with_1_and_still_tells_of_the_jobs_that_ended(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(jobs: Any, on_event: Callable[[Event], None]) -> None:
        on_event(JobEnded("small", "failed", {"status": "failed", "run_id": "small-1"}))
        raise StillhouseError("the disk caught fire")

    assert run_with(monkeypatch, fails, str(job), "--json") == 1
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert result["jobs"] == [{"status": "failed", "run_id": "small-1"}]
    assert "disk caught fire" in result["error"]
    assert "disk caught fire" in err and "Traceback" not in err


@pytest.mark.parametrize("error", [Interrupted("checkpoint of step 3"), KeyboardInterrupt()])
def test_an_interrupted_run_exits_with_130(
    job: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def stops(jobs: Any, on_event: Any) -> None:
        raise error

    assert run_with(monkeypatch, stops, str(job)) == 130


def test_a_polite_kill_stops_like_ctrl_c(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_killed(jobs: Any, on_event: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    assert run_with(monkeypatch, is_killed, str(job)) == 130


def test_what_only_the_cluster_could_refuse_exits_with_2(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(jobs: Any, on_event: Any) -> None:
        raise SpecError("training.workers", "is 9, and the cluster holds 2", "Set it to 2")

    assert run_with(monkeypatch, refuses, str(job)) == 2
    assert "training.workers: is 9" in capsys.readouterr().err


def test_a_fault_of_ours_is_not_dressed_up_as_a_user_s(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(jobs: Any, on_event: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_with(monkeypatch, breaks, str(job))


def test_an_unknown_command_exits_with_2_and_help_with_0() -> None:
    assert exit_code(["validte"]) == 2
    assert exit_code(["--help"]) == 0


def test_validate_prints_a_job_file_that_loads_to_the_same_job_and_its_plan(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["validate", str(job), "--set", "seed=7"]) == 0
    out = capsys.readouterr().out
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(out)
    assert load_jobs(resolved) == load_jobs(job, ["seed=7"])
    assert "# plan of small:" in out


def test_the_environment_fills_what_the_job_leaves_open() -> None:
    environment = {"RAY_ADDRESS": "10.0.0.1:6379", "MLFLOW_TRACKING_URI": "", "HOME": "/root"}
    assert environment_defaults(environment) == {"ray.address": "10.0.0.1:6379"}


def test_resume_and_eval_hand_the_folder_on(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "job.yaml").write_text(job.read_text())
    seen: list[str] = []

    def takes(run_folder: str, on_event: Any) -> runner.RunResult:
        seen.append(run_folder)
        return runner.RunResult([])

    monkeypatch.setattr(runner, "resume", takes)
    monkeypatch.setattr(runner, "evaluate", takes)
    assert exit_code(["resume", str(folder)]) == 0
    assert exit_code(["eval", str(folder), "--json"]) == 0
    assert seen == [str(folder)] * 2


def test_the_table_has_the_teacher_once_and_then_each_student(job: Path) -> None:
    jobs = [load_jobs(job, ["name=small", *TEACHER])[0], load_jobs(job, ["name=small-b"])[0]]
    second = {**SUMMARY, "run_id": "small-b-20260101-cd"}
    rows = comparison_rows([SUMMARY, second], jobs)
    assert [row.model for row in rows] == ["teacher", "small", "small-b"]
    assert (rows[0].loss, rows[1].loss, rows[1].generated) == (1.0, 2.0, "def read(self):")


TEACHER = ["roles={teacher: {path: a}}", "evaluation.against=teacher"]


# --- drawing -------------------------------------------------------------------------------------


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_is_told_from_the_pace_of_the_latest_steps() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.left_s(1, 10) is None
    clock.now = 2.0
    assert pace.left_s(2, 10) == pytest.approx(16.0)
    clock.now = 4.0
    assert pace.left_s(1, 10) is None, "back to a checkpoint: the old pace says nothing"


def test_plain_lines_keep_a_distance_but_never_miss_a_first_or_last_step() -> None:
    clock, stream = Clock(), io.StringIO()
    lines = PlainLines(stream, every_s=5.0, clock=clock)
    for name in ("a", "b"):
        lines(JobStarted(name, f"{name}-1", 4))
        for step in range(1, 5):
            clock.now += 2.0
            lines(StepDone(name, step, 4, METRICS))
    steps = [line.split("  ")[0] for line in stream.getvalue().splitlines() if "step" in line]
    assert steps == [
        *("a: started, 4 steps, run a-1", "a: step 1/4", "a: step 4/4"),
        *("b: started, 4 steps, run b-1", "b: step 1/4", "b: step 4/4"),
    ]


def test_a_step_line_has_losses_throughput_wait_and_pool() -> None:
    stream = io.StringIO()
    PlainLines(stream)(StepDone("a", 1, 2, METRICS))
    assert stream.getvalue() == (
        "a: step 1/2  total 3.2500  forward_kl 3.0000  cross_entropy 0.2500  1,234 tokens/s  "
        "wait 25%  pool busy 50%\n"
    )


def test_everything_but_steps_is_a_line_of_its_own() -> None:
    stream = io.StringIO()
    lines = PlainLines(stream)
    lines(Phase("a", "loading teacher"))
    lines(Evaluated("a", 3, {"student": {"loss": 2.0}, "kl": 0.125, "teacher": {"loss": None}}, {}))
    lines(CheckpointWritten("a", 3, "runs/a/checkpoints/3"))
    lines(Warned("a", "careful"))
    lines(JobEnded("a", "failed", {"error": "boom"}))
    assert stream.getvalue().splitlines() == [
        "a: loading teacher",
        "a: step 3, held out: student loss 2, kl 0.125",
        "a: checkpoint of step 3 in runs/a/checkpoints/3",
        "a: warning: careful",
        "a: failed: boom",
    ]


def test_the_live_line_shows_the_step_and_lasting_lines_stay_above() -> None:
    stream = io.StringIO()
    lines = LiveLines(Console(file=stream, force_terminal=True, width=120, color_system=None))

    def drawn() -> str:
        console = Console(file=io.StringIO(), width=120)
        with console.capture() as capture:
            console.print(lines.draw())
        return capture.get()

    lines(JobStarted("a", "a-1", 4))
    lines(Phase("a", "loading [teacher]"))
    assert "loading [teacher] ..." in drawn()
    lines(StepDone("a", 2, 4, METRICS))
    assert "2/4" in drawn() and "total 3.2500" in drawn() and "wait 25%" in drawn()
    lines(Phase("a", "evaluating"))
    assert "2/4" in drawn() and "evaluating ..." in drawn()
    lines(JobEnded("a", "done"))
    assert drawn().strip() == ""
    assert "a: started, 4 steps" in stream.getvalue() and "a: done" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.2, "1:00 min"), (185, "3:05 min"), (7800, "2:10 h")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- doctor --------------------------------------------------------------------------------------


def test_the_doctor_finds_nothing_bad_where_the_tests_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    findings = doctor.examine(cxx=None)
    assert {finding.name for finding in findings} >= {
        *("Python", "torch", "ray", "C++ compiler", "Python headers", "ninja", "accelerators"),
        *("memory", "shared memory", "disk", "port 6379"),
    }
    bad = [finding for finding in findings if finding.status == "bad"]
    assert bad == []
    assert exit_code(["doctor"]) == 0
    assert "C++ compiler" in capsys.readouterr().out


def test_the_doctor_says_what_to_do_about_what_is_missing(tmp_path: Path) -> None:
    def nothing(name: str) -> None:
        return None

    missing = [
        doctor._compiler(nothing, None),
        doctor._compiler(nothing, "my-c++"),
        doctor._headers(tmp_path),
        doctor._ninja(nothing),
    ]
    assert [finding.status for finding in missing] == ["bad"] * 4
    assert "apt-get install g++" in missing[0].remedy
    assert "my-c++" in missing[1].found
    assert "python3-dev" in missing[2].remedy
    assert doctor._memory(1 << 30).status == "warn"
    assert doctor._accelerators(nothing).status == "ok"


def test_the_doctor_sees_a_port_in_use() -> None:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        number = holder.getsockname()[1]
        assert doctor._port(number, "somebody").status == "warn"
    assert doctor._port(number, "somebody").status == "ok"
