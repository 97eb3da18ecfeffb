"""`stillhouse pool up | status | down`, the commands themselves, against a cluster that stays."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from orchestrator.spec import resolved_yaml

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
BIN = Path(sys.executable).parent


def _stillhouse(*arguments: str, cluster: str) -> subprocess.CompletedProcess[str]:
    """One command, in a process of its own as a user would give it."""
    environment = {**os.environ, "RAY_ADDRESS": cluster, "RAY_AUTH_MODE": "token"}
    return subprocess.run(
        [str(BIN / "stillhouse"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray of one node on loopback that is there before the commands and after them."""
    folder = tmp_path_factory.mktemp("ray")
    program = (
        "import ray, sys\n"
        "context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,"
        f" _temp_dir={str(folder)!r})\n"
        "print(context.address_info['gcs_address'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    head = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert head.stdout is not None
    try:
        yield head.stdout.readline().strip()
    finally:
        head.communicate(input="", timeout=60)


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

    absent = _stillhouse("pool", "status", "shared", cluster=cluster)
    assert absent.returncode == 2 and "no pool named 'shared'" in absent.stderr

    up = _stillhouse("pool", "up", str(file), cluster=cluster)
    assert up.returncode == 0, up.stderr
    again = _stillhouse("pool", "up", str(file), cluster=cluster)
    assert again.returncode == 2 and "a pool named 'shared' is up" in again.stderr

    status = _stillhouse("pool", "status", "shared", cluster=cluster)
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["roles"]["teacher"]["fingerprint"]

    run = _stillhouse("run", str(file), "--json", cluster=cluster)
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])["jobs"][0]
    assert summary["pool"]["asked"] == summary["pool"]["consumed"] > 0

    down = _stillhouse("pool", "down", "shared", cluster=cluster)
    assert down.returncode == 0, down.stderr
    assert _stillhouse("pool", "status", "shared", cluster=cluster).returncode == 2
