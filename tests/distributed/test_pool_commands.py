"""Standing pools by the commands themselves, against a cluster that stays."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from staying_cluster import start, staying_cluster, stillhouse

from orchestrator.data import end_to_end, prepare
from orchestrator.pool.label import needed
from orchestrator.pool.source import pieces_of
from orchestrator.spec import JobSpec, resolved_yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with staying_cluster(cpus=4) as address:
        yield address


def test_a_pool_goes_up_serves_a_job_and_goes_down(cluster: str, tmp_path: Path) -> None:
    pool = {"kind": "standing", "name": "shared"}
    spec = tiny.job(
        tiny.save_teacher(tmp_path / "teacher"),
        tiny.save_text(tmp_path / "text"),
        tmp_path / "runs",
        pool=pool,
    )
    file = tmp_path / "job.yaml"
    file.write_text(resolved_yaml([spec]))

    absent = stillhouse("pool", "status", "shared", cluster=cluster)
    assert absent.returncode == 2 and "no pool named 'shared'" in absent.stderr

    up = stillhouse("pool", "up", str(file), cluster=cluster)
    assert up.returncode == 0, up.stderr
    again = stillhouse("pool", "up", str(file), cluster=cluster)
    assert again.returncode == 2 and "a pool named 'shared' is up" in again.stderr

    status = stillhouse("pool", "status", "shared", cluster=cluster)
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["roles"]["teacher"]["fingerprint"]

    run = stillhouse("run", str(file), "--json", cluster=cluster)
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])["jobs"][0]
    assert summary["pool"]["asked"] == summary["pool"]["consumed"] > 0

    down = stillhouse("pool", "down", "shared", cluster=cluster)
    assert down.returncode == 0, down.stderr
    assert stillhouse("pool", "status", "shared", cluster=cluster).returncode == 2


def _records(spec: JobSpec, fingerprint: str, folder: Path) -> int:
    """Distinct records that a job needs, counted from its data alone."""
    data = prepare(spec.data, str(tiny.TOKENIZER), str(folder))
    keys: set[bytes] = set()
    for part in needed(spec, data, {"teacher": True}):
        flat = end_to_end(part.store, [part.samples])
        keys |= {piece.want.key for piece in pieces_of(flat, fingerprint, part.ask)}
    return len(keys)


def test_two_jobs_at_once_packed_differently_ask_for_each_record_once(
    cluster: str, tmp_path: Path
) -> None:
    """Two drivers on one pool: it ran what was distinct, and both learn what they learn alone."""
    teacher, text = tiny.save_teacher(tmp_path / "teacher"), tiny.save_text(tmp_path / "text")

    def summary_of(out: str) -> dict[str, Any]:
        return json.loads(out.splitlines()[-1])["jobs"][0]

    def job(seed: int, **changes: Any) -> str:
        changes = {"pool": {"kind": "standing", "name": "two"}, **changes}
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        spec = tiny.job(teacher, text, tmp_path / "runs", seed=seed, **changes)
        file.write_text(resolved_yaml([spec]))
        return str(file)

    cached = {"cache": {"path": str(tmp_path / "cache")}}
    files = [job(seed, **cached) for seed in (0, 1)]
    up = stillhouse("pool", "up", files[0], cluster=cluster)
    assert up.returncode == 0, up.stderr
    runs = [start("run", file, "--json", cluster=cluster) for file in files]
    told = [run.communicate(timeout=280) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], [error[-2000:] for _, error in told]
    summaries = [summary_of(out) for out, _ in told]
    status = stillhouse("pool", "status", "two", cluster=cluster)
    (role,) = json.loads(status.stdout)["roles"].values()
    spec = tiny.job(teacher, text, tmp_path / "runs")
    distinct = _records(spec, role["fingerprint"], tmp_path / "data")
    assert sum(replica["samples"] for replica in role["replicas"]) == distinct
    assert sum(summary["cache"]["misses"] for summary in summaries) == distinct
    found = [summary["cache"]["hits"] + summary["cache"]["shared"] for summary in summaries]
    assert max(found) > 0, "neither had anything of the other"
    for seed, summary in enumerate(summaries):
        alone = stillhouse("run", job(seed), "--json", cluster=cluster)
        assert summary_of(alone.stdout)["weights_sha256"] == summary["weights_sha256"]
    assert stillhouse("pool", "down", "two", cluster=cluster).returncode == 0
