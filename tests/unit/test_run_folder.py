"""Run folders: nobody writes into another's."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.run_folder import RunFolder, check_start
from orchestrator.spec import JobSpec


def _job(storage: Path, **changes: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "one",
            "student": {"path": "model"},
            "data": {"sources": [{"kind": "text", "path": "a.txt"}]},
            "objective": {"terms": [{"kind": "cross_entropy"}]},
            "training": {"steps": 200},
            "storage": str(storage),
            **changes,
        }
    )


def test_a_run_folder_of_another_job_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    mine, other = _job(tmp_path), _job(tmp_path, seed=7)
    folder = RunFolder.at(str(tmp_path), "one-1")
    folder.write([mine], 0, ["one-1"])
    folder.write([mine], 0, ["one-1"])
    before = (folder.local / "job.yaml").read_text()
    with pytest.raises(SpecError, match=r"belongs to another job \(one, with another seed\)"):
        folder.write([other], 0, ["one-1"])
    assert (folder.local / "job.yaml").read_text() == before
    assert RunFolder.read(folder.uri) == ([mine], 0, ["one-1"])


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.at(str(tmp_path), "thesis")
    folder.local.mkdir()
    (folder.local / "chapter.txt").write_text("years of work")
    with pytest.raises(SpecError, match="it is no run folder"):
        folder.write([_job(tmp_path)], 0, ["thesis"])


def test_a_job_starts_from_a_run_of_the_same_student_data_and_cut_only(tmp_path: Path) -> None:
    folder = RunFolder.at(str(tmp_path), "one-1")
    folder.write([_job(tmp_path)], 0, ["one-1"])
    start = {"run": folder.uri, "step": 100}
    check_start(_job(tmp_path))
    learns = {"terms": [{"kind": "cross_entropy", "weight": 2.0}]}
    check_start(_job(tmp_path, training={"steps": 300, "start": start}, objective=learns))
    with pytest.raises(SpecError, match=r"another seed \(0, and the job has 7\)"):
        check_start(_job(tmp_path, seed=7, training={"steps": 200, "start": start}))
    cut = {"steps": 200, "start": start, "global_batch": 32}
    with pytest.raises(SpecError, match=r"another training\.global_batch \(16, .* 32\)"):
        check_start(_job(tmp_path, training=cut))
    with pytest.raises(SpecError, match="not a run folder"):
        start = {"run": f"{tmp_path}/nowhere", "step": 100}
        check_start(_job(tmp_path, training={"steps": 200, "start": start}))
    with pytest.raises(ValueError, match=r"start\.step: is 200.*nothing is left"):
        _job(tmp_path, training={"steps": 200, "start": {"run": "x", "step": 200}})
