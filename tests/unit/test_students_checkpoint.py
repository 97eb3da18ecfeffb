"""Checkpoints: published last, checked before use, read back as written."""

import json
import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from orchestrator.errors import CheckpointError
from orchestrator.students.checkpoint import (
    MANIFEST,
    Checkpoints,
    random_state,
    restore_random_state,
)

JOB: dict[str, Any] = {"workers": 1, "zero": 2, "data_version": "v1", "seed": 7}


@pytest.fixture(scope="module", autouse=True)
def _one_rank() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(params=["folder", "file", "memory"])
def run_folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A plain folder, the same as a URI, and a store that is not this node's disk."""
    return {
        "folder": f"{tmp_path}/runs/a",
        "file": f"file://{tmp_path}/runs/a",
        "memory": f"memory://{uuid.uuid4().hex}/runs/a",
    }[request.param]


def _at(run_folder: str, keep: int = 2, run_id: str = "a") -> Checkpoints:
    return Checkpoints(run_folder, run_id, keep, rank=0, local_rank=0)


def _save(text: str) -> Any:
    def save(folder: Path) -> None:
        (folder / "state").mkdir()
        (folder / "state" / "weights").write_text(text)

    return save


def _write(checkpoints: Checkpoints, step: int, **changes: Any) -> str:
    return checkpoints.write(step, _save(f"weights {step}"), {"tokens": step}, **{**JOB, **changes})


def _read(checkpoints: Checkpoints, step: int) -> tuple[str, dict[str, Any]]:
    seen: list[str] = []
    state = checkpoints.read(
        step, lambda folder: seen.append((folder / "state" / "weights").read_text())
    )
    return seen[0], state


def test_a_checkpoint_is_read_back_as_written(run_folder: str) -> None:
    _write(_at(run_folder), 10)
    again = _at(run_folder)
    manifest = again.latest(**JOB)
    assert manifest is not None and manifest.step == 10
    assert sorted(manifest.files) == ["rank-0.json", "state/weights"]
    assert _read(again, 10) == ("weights 10", {"tokens": 10})


def test_a_run_without_checkpoints_has_none(run_folder: str) -> None:
    assert _at(run_folder).latest(**JOB) is None


def test_the_manifest_is_published_when_everything_else_is_there(run_folder: str) -> None:
    checkpoints = _at(run_folder)
    publish = checkpoints._publish
    fs, root = fsspec.core.url_to_fs(run_folder)
    there: list[list[str]] = []

    def watched(folder: str, text: str) -> None:
        there.append(sorted(str(path).removeprefix(f"{folder}/") for path in fs.find(folder)))
        publish(folder, text)

    checkpoints._publish = watched  # type: ignore[method-assign]
    _write(checkpoints, 10)
    assert there == [["rank-0.json", "state/weights"]]
    assert fs.exists(f"{root}/checkpoints/step-00000010/{MANIFEST}")


def test_a_checkpoint_that_died_before_its_manifest_does_not_exist(run_folder: str) -> None:
    checkpoints = _at(run_folder)
    _write(checkpoints, 10)

    def dies(folder: str, text: str) -> None:
        raise ConnectionError("the store is gone")

    checkpoints._publish = dies  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        _write(checkpoints, 20)
    again = _at(run_folder)
    assert again.steps() == [10]
    _write(again, 20, data_version="v1")
    assert again.steps() == [10, 20]
    assert _read(again, 20)[0] == "weights 20"


def test_only_the_newest_are_kept_and_nothing_of_the_others(run_folder: str) -> None:
    checkpoints = _at(run_folder, keep=2)
    for step in (9, 10, 100, 1000):
        _write(checkpoints, step)
    assert checkpoints.steps() == [100, 1000]
    fs, root = fsspec.core.url_to_fs(run_folder)
    assert len(fs.ls(f"{root}/checkpoints", detail=False)) == 2


def test_writing_to_a_remote_store_leaves_nothing_on_this_node() -> None:
    checkpoints = _at(f"memory://{uuid.uuid4().hex}/a", run_id=uuid.uuid4().hex)
    _write(checkpoints, 10)
    assert not list(checkpoints._scratch().glob("step-*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"workers": 2}, "training.workers 1, the job has 2"),
        ({"zero": 3}, "training.zero.* 2, the job has 3"),
        ({"data_version": "v2"}, "data version 'v1', the job has 'v2'"),
        ({"seed": 8}, "seed 7, the job has 8"),
    ],
)
def test_a_checkpoint_of_another_job_is_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    _write(_at(str(tmp_path)), 10)
    with pytest.raises(CheckpointError, match=says):
        _at(str(tmp_path)).latest(**{**JOB, **change})


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    _write(_at(str(tmp_path)), 10)
    with pytest.raises(CheckpointError, match="run_id 'a', the job has 'b'"):
        _at(str(tmp_path), run_id="b").latest(**JOB)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    manifest = Path(_write(_at(str(tmp_path)), 10), MANIFEST)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 3"):
        _at(str(tmp_path)).latest(**JOB)


@pytest.mark.parametrize("harm", ["missing", "short"])
def test_a_torn_checkpoint_is_refused_and_the_one_before_not_taken_silently(
    run_folder: str, harm: str
) -> None:
    checkpoints = _at(run_folder)
    _write(checkpoints, 10)
    fs, root = fsspec.core.url_to_fs(run_folder)
    _write(checkpoints, 20)
    weights = f"{root}/checkpoints/step-00000020/state/weights"
    if harm == "missing":
        fs.rm_file(weights)
    else:
        fs.pipe_file(weights, b"wei")
    with pytest.raises(CheckpointError, match="is torn; remove"):
        checkpoints.latest(**JOB)


def test_a_manifest_that_is_not_json_is_refused(tmp_path: Path) -> None:
    manifest = Path(_write(_at(str(tmp_path)), 10), MANIFEST)
    manifest.write_text(manifest.read_text()[:40])
    with pytest.raises(CheckpointError, match="cannot be read"):
        _at(str(tmp_path)).latest(**JOB)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_pickles_of_another_user_are_not_read(tmp_path: Path) -> None:
    folder = Path(_write(_at(str(tmp_path)), 10))
    os.chown(folder, 12345, -1)
    with pytest.raises(CheckpointError, match="belongs to user 12345"):
        _read(_at(str(tmp_path)), 10)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_single_pickle_of_another_user_is_not_read(tmp_path: Path) -> None:
    folder = Path(_write(_at(str(tmp_path)), 10))
    os.chown(folder / "state" / "weights", 12345, -1)
    with pytest.raises(CheckpointError, match="belongs to user 12345"):
        _read(_at(str(tmp_path)), 10)


def _draw() -> tuple[Any, ...]:
    normal = np.random.normal(size=3).tolist()  # leaves a cached normal behind
    return (random.random(), random.gauss(0, 1), normal, torch.rand(3).tolist())


def test_random_state_survives_json() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    _draw()
    state = json.loads(json.dumps(random_state()))
    first = _draw()
    assert _draw() != first
    restore_random_state(state)
    assert _draw() == first


def test_reading_a_checkpoint_restores_random_state(tmp_path: Path) -> None:
    checkpoints = _at(str(tmp_path))
    _write(checkpoints, 10)
    first = _draw()
    _read(checkpoints, 10)
    assert _draw() == first


def test_a_run_goes_on_from_another_ones_checkpoint(run_folder: str) -> None:
    theirs = _at(run_folder, keep=3)
    for step in (5, 10):
        _write(theirs, step)
    mine = _at(f"{run_folder}-2", run_id="a-2")
    other = mine.of(run_folder)
    assert other.at(5, **JOB).step == 5
    assert _read(other, 5) == ("weights 5", {"tokens": 5})
    assert mine.latest(**JOB) is None, "it is not its own"
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 \(there are: 5, 10\)"):
        other.at(7, **JOB)
    for changed in ({"workers": 2}, {"zero": 0}, {"data_version": "v2"}, {"seed": 8}):
        with pytest.raises(CheckpointError, match="was written with"):
            other.at(5, **{**JOB, **changed})
