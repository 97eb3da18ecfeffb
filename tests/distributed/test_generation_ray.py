"""Roles that write, in real actors: killed, gone on with, shared; and a job on their texts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import tiny

from orchestrator.errors import BudgetExhausted, SpecError, WorkerStalled
from orchestrator.events import Event, Phase
from orchestrator.generation import Shelf, Task, written
from orchestrator.generation import writing as room
from orchestrator.generation.shelf import PART_TEXTS
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session
from orchestrator.spec.data import GeneratedSource
from orchestrator.spec.load import validate_jobs
from orchestrator.spec.models import ResourcesSpec, RoleSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

PROMPTS = ["def f(x):\n", "import "]
COUNT = 3 * PART_TEXTS + 5


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_teacher(tmp_path_factory.mktemp("writers") / "teacher")


def raw_job(teacher: Path, root: Path) -> dict[str, Any]:
    source = {"kind": "generated", "prompts": {"text": PROMPTS}, "count": COUNT, "length": 12}
    return {
        "name": "seq",
        "student": {"architecture": tiny.architecture(), "tokenizer": str(tiny.TOKENIZER)},
        "roles": {
            "teacher": {"path": str(teacher), "replicas": 2, "resources": {"cpus": 0.5}},
        },
        "data": {"sources": [source], "context": 32, "held_out": 0.1},
        "objective": {"recipe": {"kind": "sequence_kd"}},
        "training": {
            "steps": 4,
            "global_batch": 4,
            "micro_batch": 2,
            "resources": {"cpus": 0.5},
            "checkpoint": {"every_steps": 4},
        },
        "evaluation": {"before": False, "rows": 8, "generate": None},
        "storage": str(root / "runs"),
        "deterministic": True,
    }


@pytest.fixture(scope="module")
def session(
    teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Session, list[Event], Path]]:
    root, events = tmp_path_factory.mktemp("session"), list[Event]()
    jobs = validate_jobs([raw_job(teacher, root)])
    with Session(jobs, events.append) as opened:
        yield opened, events, root


def task(teacher: Path, **changes: Any) -> Task:
    fields = {"prompts": {"text": PROMPTS}, "count": COUNT, "length": 12, **changes}
    source = GeneratedSource.model_validate({"kind": "generated", **fields})
    resources = {"cpus": 0.5}
    spec = RoleSpec.model_validate({"path": str(teacher), "replicas": 2, "resources": resources})
    return Task("teacher", spec, str(teacher), source, deterministic=True)


def shelf(folder: Path) -> Shelf:
    return Shelf(folder, COUNT, PROMPTS)


@pytest.fixture
def hired(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every author that the test's calls hire."""
    found: list[Any] = []
    hire = room.hire

    def noting(task: Task) -> Any:
        found.append(hire(task))
        return found[-1]

    monkeypatch.setattr(room, "hire", noting)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_killed_writers_and_killed_runs_leave_the_same_texts(
    teacher: Path, tmp_path: Path, hired: list[Any]
) -> None:
    whole = shelf(tmp_path / "undisturbed")
    seen = list(written(task(teacher), whole, restarts=0))
    assert seen[0].done == 0 and seen[-1].done == COUNT
    assert seen[0].tokens_left == 12 * COUNT and seen[0].seconds_left is None
    assert seen[1].seconds_left and seen[-1].tokens_left == 0 and len(hired) == 2

    # A budget of no death: the first one ends the run, and what is written stays.
    broken = shelf(tmp_path / "broken")
    with pytest.raises(BudgetExhausted, match="parts that are there stay"):
        for told in written(task(teacher), broken, restarts=0):
            if told.done:
                ray.kill(hired[-1])
                ray.kill(hired[-2])
    left = len(broken.missing())
    assert 0 < left < 4 and not broken.complete

    # A run that goes on writes what is missing only, and outlives a death.
    before, killed = len(hired), False
    done = [told.done for told in written(task(teacher), broken, restarts=0)]
    assert done[0] > 0 and done[-1] == COUNT
    assert len(hired) - before <= left
    disturbed = shelf(tmp_path / "disturbed")
    for told in written(task(teacher), disturbed, restarts=2):
        if told.done and not killed:
            ray.kill(hired[-1])
            killed = True
    assert killed
    expected = whole.texts.read_bytes()
    assert broken.texts.read_bytes() == expected == disturbed.texts.read_bytes()


@pytest.mark.usefixtures("session")
def test_a_prompt_that_is_too_long_ends_the_run_and_is_no_death(
    teacher: Path, tmp_path: Path, hired: list[Any]
) -> None:
    long = ["x = " * 200]
    with pytest.raises(SpecError, match=r"prompt of text \d+ .*401 tokens"):
        list(written(task(teacher, prompts={"text": long}), Shelf(tmp_path, COUNT, long), 5))
    assert len(hired) == 2


@pytest.mark.usefixtures("session")
def test_a_writer_without_a_place_ends_the_run_with_what_would_give_it_one(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PLACE_S", 0.5)
    monkeypatch.setattr(room, "LOOK_S", 0.1)
    there = task(teacher)
    resources = ResourcesSpec.model_validate({"custom": {"a_node_to_come": 1.0}})
    nowhere = replace(there, spec=there.spec.model_copy(update={"resources": resources}))
    with pytest.raises(WorkerStalled, match=r"no room for a writer.*roles\.teacher\.resources"):
        list(written(nowhere, shelf(tmp_path / "texts"), restarts=0))
    with pytest.raises(WorkerStalled, match="no room for a writer"):
        room.fingerprint_of(nowhere)


def test_a_job_learns_what_its_teacher_has_written_and_another_finds_it_there(
    session: tuple[Session, list[Event], Path],
    teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    hired: list[Any],
) -> None:
    opened, events, root = session
    monkeypatch.setattr("orchestrator.session.CACHE", root / "cache")
    (spec,) = validate_jobs([raw_job(teacher, root)])

    def run(name: str) -> dict[str, Any]:
        folder = RunFolder.at(spec.storage, name)
        folder.write([spec], 0, [name])
        return opened.run_job(spec, folder, {}, resume=False)

    first = run("first")
    assert first["evaluation"]["student"]["loss"] > 0 and first["steps"] == 4
    told = [event.text for event in events if isinstance(event, Phase)]
    assert any(f"0 of {COUNT}, at most {12 * COUNT} tokens left" in text for text in told)
    assert hired and first["pool"] == {}
    (texts,) = (root / "cache" / "generated").glob("*/texts.jsonl")
    assert len(texts.read_text().splitlines()) == COUNT
    hired.clear()
    second = run("second")
    assert not hired and second["weights_sha256"] == first["weights_sha256"]
    workers = opened._group  # in the place of a pool the writers need theirs no more
    raw = raw_job(teacher, root)
    raw["data"]["sources"][0] |= {"temperature": 0.5, "count": 8, "held_out": 0.5}
    raw["evaluation"]["against"] = "teacher"
    (spec,) = validate_jobs([raw])
    third = run("third")
    assert hired and third["evaluation"]["kl"] > 0
    assert workers is not None and opened._group is workers
