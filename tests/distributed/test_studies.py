"""A study through Ray, DeepSpeed and MLflow, and its second life."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import studies
from mlflow.tracking import MlflowClient

from orchestrator.events import StepDone
from orchestrator.session import join_ray
from orchestrator.study.journal import Entry, open_journal
from orchestrator.study.progress import StudyProgress
from orchestrator.study.run import StudyResult, run_study
from orchestrator.study.spec import StudySpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Played:
    """A study that ended, and what it told."""

    spec: StudySpec
    storage: Path
    result: StudyResult
    heard: list[object]

    @property
    def journal(self) -> Path:
        return self.result.folder / "journal.jsonl"

    def entries(self) -> list[Entry]:
        with open_journal(self.journal) as journal:
            return list(journal.entries)

    def done(self) -> dict[str, str]:
        """Run ids by name."""
        return {entry.name: entry.run_id for entry in self.entries() if entry.kind == "done"}


def _play(spec: StudySpec, storage: Path, **options: Any) -> Played:
    heard: list[object] = []
    result = run_study(spec, on_event=heard.append, **options)
    return Played(spec, storage, result, heard)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Two methods x two seeds: two teachers and four learners."""
    root = tmp_path_factory.mktemp("study")
    raw = studies.raw_study()
    for job in raw["jobs"]:
        job["storage"] = str(root / "runs")
        job["cache"] = {"path": str(root / "cache")}
        job["training"]["epochs"] = 1
    raw["vary"].pop("noise")
    raw["assertions"] = [{"arm": "kd", "metric": "accuracy", "at_least": 0.3}]
    started = join_ray(None)  # both lives in one cluster: Ray is slow to start
    yield _play(studies.study(**raw), root / "runs", parallel=2)
    if started:
        ray.shutdown()


def test_every_cell_is_measured_and_told(first: Played) -> None:
    assert first.result.failed == {} and first.result.holds
    assert len(first.done()) == 6
    rows = {dict(row.setting)["method"]: row for row in first.result.results.rows}
    assert rows["ce"].means["accuracy"].n == rows["kd"].means["accuracy"].n == 2
    (difference,) = first.result.results.differences
    assert difference.difference.n == 2
    plain = json.loads((first.result.folder / "table.json").read_text())
    assert plain["missing"] == {} and len(plain["cells"]) == 4
    progress = [event for event in first.heard if isinstance(event, StudyProgress)]
    assert progress[-1].done == progress[-1].total == 6
    assert max(len(event.running) for event in progress) == 2


def test_the_runs_of_jobs_lie_below_the_studys_own(first: Played) -> None:
    client = MlflowClient(f"sqlite:///{first.storage}/mlflow.db")
    experiment = client.get_experiment_by_name("stillhouse")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "study" in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["stillhouse.run_id"] for run in children} == set(first.done().values())
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"table.md", "table.html", "table.json", "plot-accuracy.svg", "study.yaml"} <= files
    assert parent.info.status == "FINISHED"
    row = next(r for r in first.result.results.rows if dict(r.setting)["method"] == "kd")
    told = parent.data.metrics["study/accuracy/method kd"]
    assert told == pytest.approx(row.means["accuracy"].mean)


def test_a_second_life_keeps_what_is_done_and_ends_with_the_same_numbers(first: Played) -> None:
    """As if killed: one job had begun and had a checkpoint, two had not begun."""
    before, whole = first.done(), first.entries()
    ended = [entry.name for entry in whole if entry.kind == "done"]
    begun, unknown = ended[-3], ended[-2:]
    kept = [
        entry
        for entry in whole
        if entry.name not in unknown and not (entry.name == begun and entry.kind == "done")
    ]
    first.journal.unlink()
    with open_journal(first.journal) as journal:
        for entry in kept:
            journal.append(entry)
    again = _play(first.spec, first.storage, resume=True)
    after = again.done()
    assert {name: after[name] for name in ended[:-2]} == {name: before[name] for name in ended[:-2]}
    assert all(after[name] != before[name] for name in unknown)
    worked = {event.job for event in again.heard if isinstance(event, StepDone)}
    assert worked == set(unknown), "what had its last checkpoint has no step left to do"
    assert again.result.results == first.result.results
    assert again.result.holds
