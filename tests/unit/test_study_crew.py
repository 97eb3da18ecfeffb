"""A study's jobs side by side: order, failures, interruptions, and what a second life keeps."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import studies
from fake_drivers import Stage

from orchestrator.errors import (
    CheckpointError,
    NonFiniteLoss,
    SpecError,
    StillhouseError,
    WorkerLost,
)
from orchestrator.events import Warned
from orchestrator.series.journal import Journal
from orchestrator.study.crew import Crew, still_there
from orchestrator.study.journal import Entry, Told, open_journal
from orchestrator.study.plan import StudyPlan, plan_study
from orchestrator.study.progress import StudyProgress

pytestmark = pytest.mark.timeout(60)

TEACHER, TAUGHT = "small-teacher-40-s0", "small-learner-40-kd-s0"


@pytest.fixture
def plan() -> StudyPlan:
    return plan_study(studies.study(seeds=[0]))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "exports")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal[Entry]]:
    with open_journal(tmp_path / "journal.jsonl") as opened:
        yield opened


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests were started in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Heard(list[object]):
    """Everything a crew has told."""

    @property
    def last(self) -> StudyProgress:
        return next(event for event in reversed(self) if isinstance(event, StudyProgress))


def _crew(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry], lanes: int = 2
) -> tuple[Crew, Heard]:
    heard = Heard()
    done = still_there(plan, Told.by(journal.entries))
    return Crew(plan, stage.drivers(), journal, done, lanes, heard.append), heard


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_every_job_runs_once_after_what_it_needs(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry], lanes: int
) -> None:
    crew, heard = _crew(plan, stage, journal, lanes)
    assert crew.work() is False and crew.causes == {}
    assert sorted(stage.played) == sorted(job.name for job in plan.jobs)
    assert stage.played.index(TEACHER) < stage.played.index(TAUGHT)
    assert stage.run_ids[TAUGHT] == [f"{TEACHER}.0", f"{TAUGHT}.0"]
    assert (heard.last.done, heard.last.total, heard.last.running) == (6, 6, ())
    assert len(Told.by(journal.entries).done) == 6


def test_two_lanes_work_side_by_side(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry]
) -> None:
    both = threading.Barrier(2, timeout=20)
    first = iter(["first", "second"])

    def meet(name: str) -> None:
        if next(first, None) is not None:
            both.wait()  # a lane alone would wait here for ever

    stage.act = meet
    crew, _ = _crew(plan, stage, journal)
    assert crew.work() is False
    assert stage.opened == 2


def test_a_job_that_fails_once_is_tried_again_with_a_fresh_driver(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry]
) -> None:
    def fail_once(name: str) -> None:
        if name == TEACHER and stage.played.count(name) == 1:
            raise NonFiniteLoss(3, "nan")

    stage.act = fail_once
    crew, heard = _crew(plan, stage, journal, lanes=1)
    crew.work()
    assert crew.causes == {} and (stage.opened, stage.open_most) == (2, 1)
    assert stage.run_ids[TAUGHT][0] == f"{TEACHER}.1"
    assert any(isinstance(event, Warned) and "trying once more" in event.text for event in heard)


@pytest.mark.parametrize(
    ("error", "run_ids"),
    [
        (WorkerLost(TEACHER, "7"), [f"{TEACHER}.0", f"{TEACHER}.0"]),
        (CheckpointError("torn"), [f"{TEACHER}.0", f"{TEACHER}.1"]),
    ],
)
def test_a_second_try_goes_on_from_a_checkpoint_that_is_whole(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry], error: Exception, run_ids: list[str]
) -> None:
    tried: list[str] = []

    def fail_once(name: str) -> None:
        if name == TEACHER:
            tried.append(stage.run_ids[name][-1])
            stage.checkpoints.add(f"{TEACHER}.0")
            if len(tried) == 1:
                raise error

    stage.act = fail_once
    crew, _ = _crew(plan, stage, journal, lanes=1)
    crew.work()
    assert tried == run_ids and crew.causes == {}


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (NonFiniteLoss(3, "nan"), 2),
        (RuntimeError("a fault of ours"), 2),
        (SpecError("data", "is wrong", "Mend it"), 1),
    ],
)
def test_a_job_that_keeps_failing_is_reported_and_the_others_go_on(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry], error: Exception, tries: int
) -> None:
    def fail(name: str) -> None:
        if name == TEACHER:
            raise error

    stage.act = fail
    crew, heard = _crew(plan, stage, journal)
    assert crew.work() is False
    causes = {plan.job(key).name: cause for key, cause in crew.causes.items()}
    assert set(causes) == {TEACHER, TAUGHT}
    assert str(error) in causes[TEACHER] and causes[TAUGHT] == f"needs {TEACHER}"
    assert stage.played.count(TEACHER) == tries and TAUGHT not in stage.played
    assert (heard.last.done, heard.last.failed) == (4, 2)
    assert [entry.name for entry in Told.by(journal.entries).failed.values()] == [TEACHER]


def test_a_fault_of_the_crew_itself_ends_it(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry]
) -> None:
    crew, _ = _crew(plan, stage, journal)
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        crew.work()


def test_ctrl_c_stops_what_runs_and_begins_nothing_more(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry], listening: None
) -> None:
    def strike(name: str) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert stage.stop.wait(20)

    stage.act = strike
    crew, heard = _crew(plan, stage, journal, lanes=1)
    assert crew.work() is True
    assert len(stage.played) == 1 and crew.causes == {}
    told = Told.by(journal.entries)
    assert not told.done and not told.failed and len(told.begun) == 1
    assert any(isinstance(event, Warned) and "stopping" in event.text for event in heard)


def test_a_job_that_somebody_else_stops_ends_the_study(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry]
) -> None:
    stage.stop.set()
    crew, _ = _crew(plan, stage, journal, lanes=1)
    assert crew.work() is True
    assert len(stage.played) == 1 and not Told.by(journal.entries).failed


def test_a_second_life_keeps_what_is_done_and_resumes_what_was_begun(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry], tmp_path: Path
) -> None:
    crew, _ = _crew(plan, stage, journal, lanes=1)
    crew.work()
    path, order = tmp_path / "journal.jsonl", list(stage.played)
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # two done, one begun; killed in a write
    stage.checkpoints.add(f"{order[2]}.0")
    stage.played.clear()
    with open_journal(path) as again:
        assert [entry.kind for entry in again.entries] == ["started", "done"] * 2 + ["started"]
        later, heard = _crew(plan, stage, again, lanes=1)
        stage.exports = stage.exports.with_name("later")
        assert later.work() is False
        assert stage.played == order[2:]
        assert stage.resumed == [f"{order[2]}.0"]
        assert heard.last.done == 6
        assert len(Told.by(again.entries).done) == 6


def test_what_was_begun_without_a_checkpoint_starts_anew(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry]
) -> None:
    key = plan.jobs[0].key
    journal.append(Entry("started", key, plan.jobs[0].name, "lost"))
    crew, _ = _crew(plan, stage, journal, lanes=1)
    crew.work()
    assert stage.resumed == []
    assert Told.by(journal.entries).done[key].run_id == f"{plan.jobs[0].name}.0"


def test_a_failed_job_is_tried_again_in_a_second_life(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry]
) -> None:
    journal.append(Entry("failed", plan.jobs[0].key, plan.jobs[0].name, "", error="no room"))
    crew, _ = _crew(plan, stage, journal)
    crew.work()
    assert crew.causes == {} and plan.jobs[0].name in stage.played


def test_a_teacher_whose_export_is_gone_runs_again_where_it_is_needed(
    plan: StudyPlan, stage: Stage, journal: Journal[Entry], tmp_path: Path
) -> None:
    def done(name: str, export: Path) -> None:
        key = next(job.key for job in plan.jobs if job.name == name)
        journal.append(Entry("done", key, name, f"{name}.0", {"export": str(export)}))

    done(TEACHER, tmp_path / "gone")
    done("small-teacher-0-s0", tmp_path / "gone")
    done("small-learner-0-kd-s0", tmp_path / "gone")
    kept = {entry.name for entry in still_there(plan, Told.by(journal.entries)).values()}
    assert kept == {"small-teacher-0-s0", "small-learner-0-kd-s0"}


# --- the journal ---------------------------------------------------------------------------------


def test_a_journal_has_one_writer(journal: Journal[Entry], tmp_path: Path) -> None:
    with pytest.raises(StillhouseError, match="another process"):
        open_journal(tmp_path / "journal.jsonl")


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    with open_journal(path) as journal:
        journal.append(Entry("started", "a", "job-a", "run-a"))
        journal.append(Entry("done", "a", "job-a", "run-a", {"evaluation": {}}))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with open_journal(path) as journal:
        assert [entry.kind for entry in journal.entries] == ["started"]
        journal.append(Entry("done", "a", "job-a", "run-a", {"evaluation": {}}))
    assert path.read_bytes() == whole


def test_damage_before_the_last_line_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"kind": "done"\n{}\n')
    with pytest.raises(StillhouseError, match="line 1"):
        open_journal(path)
