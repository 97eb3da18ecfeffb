"""A study from its file to its table, without Ray: its folder, its command, its last words."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import studies
import yaml

from orchestrator.cli import exit_code
from orchestrator.cli_study import job_text, lines, progress_text
from orchestrator.errors import SpecError
from orchestrator.events import JobEnded, StepDone, Warned
from orchestrator.planner.capacity import Inventory, Node
from orchestrator.series.folder import Folder
from orchestrator.study.folder import open_folder
from orchestrator.study.journal import Entry, open_journal
from orchestrator.study.plan import plan_study
from orchestrator.study.progress import StudyProgress
from orchestrator.study.run import lanes_for, run_study
from orchestrator.study.spec import StudySpec

SMALL = Inventory((Node("here", {"CPU": 2.0}),))


def _spec(tmp_path: Path, **changes: Any) -> StudySpec:
    raw = studies.raw_study(**changes)
    for job in raw["jobs"]:
        job["storage"] = str(tmp_path / "runs")
    return studies.study(**raw)


def _open(spec: StudySpec, tmp_path: Path, *, resume: bool, accept: bool = False) -> Folder:
    local = str(tmp_path / "runs")
    return open_folder(spec, local, local, resume=resume, accept_changes=accept)


def _finish(spec: StudySpec, folder: Folder, accuracy: float = 0.5) -> None:
    """Write a journal in which every job is done."""
    summary = {"evaluation": {"student": {"accuracy": accuracy}}, "export": "-", "wall_s": 1.0}
    with open_journal(folder.journal) as journal:
        for job in plan_study(spec).jobs:
            journal.append(Entry("done", job.key, job.name, f"{job.name}-id", summary))


# --- the folder ----------------------------------------------------------------------------------


def test_a_study_keeps_its_own_run_id_over_its_lives(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    first = _open(spec, tmp_path, resume=False)
    again = _open(spec, tmp_path, resume=True)
    assert first == again and first.run_id.startswith("study-small-")
    assert first.runs == str(tmp_path / "runs" / "small" / "runs")


def test_a_study_begun_before_is_not_begun_over(tmp_path: Path) -> None:
    _open(_spec(tmp_path), tmp_path, resume=False)
    with pytest.raises(SpecError, match="--resume"):
        _open(_spec(tmp_path), tmp_path, resume=False)


def test_there_must_be_something_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nothing to go on with"):
        _open(_spec(tmp_path), tmp_path, resume=True)


def test_a_changed_study_is_refused_with_the_difference(tmp_path: Path) -> None:
    _open(_spec(tmp_path), tmp_path, resume=False)
    changed = _spec(tmp_path, seeds=[0, 5])
    with pytest.raises(SpecError) as refused:
        _open(changed, tmp_path, resume=True)
    assert "  -- 1\n  +- 5" in str(refused.value) and "--accept-changes" in str(refused.value)
    _open(changed, tmp_path, resume=True, accept=True)
    _open(changed, tmp_path, resume=True)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "runs" / "small"
    other.mkdir(parents=True)
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(SpecError, match="no study's"):
        _open(_spec(tmp_path), tmp_path, resume=False)
    assert [file.name for file in other.iterdir()] == ["thesis.txt"]


# --- running -------------------------------------------------------------------------------------


def test_a_study_whose_jobs_are_done_only_writes_its_table(tmp_path: Path) -> None:
    check = {"arm": "kd", "metric": "accuracy", "at_least": 0.6}
    spec = _spec(tmp_path, assertions=[check])
    folder = _open(spec, tmp_path, resume=False)
    _finish(spec, folder)
    result = run_study(spec, resume=True)
    assert result.failed == {} and not result.holds
    plain = json.loads((folder.path / "table.json").read_text())
    assert plain["assertions"][0]["found"]["mean"] == 0.5
    spool = (folder.path / "tracking" / "spool.jsonl").read_text()
    assert '"study.axis.method":"ce, kd"' in spool and '"status":"failed"' in spool


def test_seeds_that_are_added_leave_the_others_done(tmp_path: Path) -> None:
    few, more = _spec(tmp_path, seeds=[0]), _spec(tmp_path, seeds=[0, 1])
    assert {job.key for job in plan_study(few).jobs} < {job.key for job in plan_study(more).jobs}
    assert {job.name for job in plan_study(few).jobs} < {job.name for job in plan_study(more).jobs}


def test_as_many_jobs_run_side_by_side_as_the_cluster_holds(tmp_path: Path) -> None:
    plan = plan_study(_spec(tmp_path))
    assert lanes_for(plan, SMALL, None) == 2  # a worker and a replica of half a core each
    assert lanes_for(plan, SMALL, 1) == 1
    assert lanes_for(plan, Inventory((Node("big", {"CPU": 64.0}),)), None) == len(plan.jobs)
    with pytest.raises(SpecError, match=r"--parallel: is 3.*holds 2"):
        lanes_for(plan, SMALL, 3)


def test_jobs_side_by_side_are_counted_node_by_node(tmp_path: Path) -> None:
    """Two and a half cores of worker and half a core of replica: three of nodes of four cores."""
    raw = studies.raw_study()
    for job in raw["jobs"]:
        job["storage"] = str(tmp_path / "runs")
        job["training"]["resources"]["cpus"] = 2.5
    plan = plan_study(studies.study(**raw))
    nodes = [Inventory(tuple(Node(f"{i}", {"CPU": 12.0 / n}) for i in range(n))) for n in (1, 2, 3)]
    assert [lanes_for(plan, cluster, None) for cluster in nodes] == [4, 4, 3]


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    raw = studies.raw_study()
    for job in raw["jobs"]:
        job["storage"] = str(tmp_path / "runs")
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["seeds=[]"], "seeds"),
        (["compare.baseline=xx"], "no arm of method"),
        (["assertions=[{arm: xx, metric: accuracy, at_least: 0}]"], "assertions.0.arm"),
        (["vary.method.kd={learner: {objective.trems: 1}}"], "'terms'"),
        (["lerner:seed=1"], "Jobs are: teacher, learner"),
    ],
)
def test_a_bad_file_ends_with_two_and_starts_nothing(
    file: Path, capsys: pytest.CaptureFixture[str], changes: list[str], words: str
) -> None:
    options = [part for change in changes for part in ("--set", change)]
    assert exit_code(["study", str(file), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (file.parent / "runs").exists()


@pytest.mark.parametrize(("bound", "code"), [(0.4, 0), (0.6, 1)])
def test_the_command_ends_as_the_assertions_do(
    file: Path, capsys: pytest.CaptureFixture[str], bound: float, code: int
) -> None:
    raw = yaml.safe_load(file.read_text())
    raw["assertions"] = [{"arm": "kd", "metric": "accuracy", "at_least": bound}]
    file.write_text(yaml.safe_dump(raw))
    spec = studies.study(**raw)
    _finish(spec, _open(spec, file.parent, resume=False))
    assert exit_code(["study", str(file), "--resume", "--json"]) == code
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["study"] == "small"
    assert "kd: accuracy" in said.err and "0.500" in said.err
    assert ("kd: accuracy does not hold" in said.err) is (code == 1)


def test_progress_in_a_line() -> None:
    assert progress_text(StudyProgress(45, 12, 1, ("a", "b"), 250.0)) == (
        "12 of 45 done, 2 running (a, b), 1 failed, 4:10 min left"
    )
    assert progress_text(StudyProgress(3, 3, 0, (), 0.0)) == "3 of 3 done"


def test_of_a_job_its_end_and_its_warnings_are_said() -> None:
    ended = JobEnded("a", "done", {"wall_s": 3.2})
    assert job_text(ended) == "a: done in 4 s"
    assert job_text(JobEnded("a", "failed", {"error": "no room"})) == "a: failed: no room"
    assert job_text(StepDone("a", 1, 2, {})) is None
    stream = io.StringIO()
    with lines(stream) as draw:
        draw(Warned("a", "[bold]odd[/]"))
        draw(StudyProgress(2, 1, 0, (), None))
    assert stream.getvalue() == "a: warning: [bold]odd[/]\n1 of 2 done\n"


def test_a_metric_that_is_not_measured_is_said_at_once(tmp_path: Path) -> None:
    from orchestrator.study.run import _warning_of_absent_metrics

    spec = _spec(tmp_path, metrics=["student.acuracy"])
    heard: list[object] = []
    hear = _warning_of_absent_metrics(spec, plan_study(spec), heard.append)
    summary = {"evaluation": {"student": {"accuracy": 0.5}}}
    hear(JobEnded("small-teacher-0-s0", "done", summary))
    assert len(heard) == 1, "the teacher is not what is measured"
    hear(JobEnded("small-learner-0-ce-s0", "done", summary))
    hear(JobEnded("small-learner-0-ce-s1", "done", summary))
    (warning,) = [event for event in heard if isinstance(event, Warned)]
    assert "Did you mean 'student.accuracy'" in warning.text
