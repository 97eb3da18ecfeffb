"""What the doctor vouches for is what a pool of real actors says, and the doctor starts no Ray."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import tiny
import torch
import yaml

from orchestrator.data import prepare
from orchestrator.pool import Pool, PoolClient, PoolPlan
from orchestrator.signals.encodings import decode, head_from_record
from orchestrator.signals.records import Request
from orchestrator.signals_doctor.specimen import specimen
from orchestrator.signals_doctor.subjects import engine_of, served
from orchestrator.spec import JobSpec
from strategies.contract import TopKSignal

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 90.0


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    root = tmp_path_factory.mktemp("house")
    teacher, text = tiny.save_teacher(root / "teacher"), tiny.save_text(root / "text")
    encoding = {"kind": "topk", "k": 16, "dtype": "int8", "temperatures": [1.0, 2.0]}
    role = {"path": str(teacher), "encoding": encoding, "resources": {"cpus": 0.5}}
    return tiny.job(teacher, text, root / "runs", roles={"teacher": role})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    monkeypatch.setenv("PYTHONPATH", path)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_pool_answers_what_the_doctor_looked_at(job: JobSpec, tmp_path: Path) -> None:
    data = prepare(job.data, str(tiny.TOKENIZER), str(tmp_path))
    found = specimen(job, data.train, 64)
    flat = found.flat()
    with engine_of(job, "teacher") as engine:
        looked_at = served(engine, job, "teacher", flat, torch.device("cpu"))
    plan = PoolPlan("doctor", dict(job.roles), deterministic=job.deterministic, seed=job.seed)
    pool = Pool.up(plan, wait_s=WAIT_S)
    client = PoolClient(pool.handle(), "test", 1 << 24, 4, WAIT_S)
    try:
        request = Request(
            "one", "teacher", "test", looked_at.ask, flat.tokens, flat.lengths, flat.wanted
        )
        client.submit(request)
        reply = client.result("one", timeout_s=WAIT_S)
        record = client.head("teacher")
    finally:
        client.close()
        pool.down()
    assert reply.fingerprint == looked_at.description.fingerprint
    assert record is not None and looked_at.head is not None
    assert torch.equal(head_from_record(record).weight, looked_at.head.weight)
    signal = decode(reply, None)
    assert isinstance(signal, TopKSignal) and isinstance(looked_at.own, TopKSignal)
    for field in ("ids", "logprobs", "rest"):
        ours, theirs = getattr(looked_at.own, field), getattr(signal, field)
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_the_command_checks_a_job_in_a_process_of_its_own(job: JobSpec, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    raw = job.model_dump(mode="json", by_alias=True, exclude_none=True)
    file.write_text(yaml.safe_dump(raw))
    code = (
        "import sys; from orchestrator.cli import exit_code; "
        "code = exit_code(['doctor', '--signals', sys.argv[1], '--json']); "
        "import ray; assert not ray.is_initialized(); sys.exit(code)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "CXX")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        cwd=ROOT,
        env={**environment, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] and all(finding["ok"] for finding in result["findings"])
    assert {finding["check"] for finding in result["findings"]} == {
        "alignment", "served", "zero", "oracle", "vocabulary",
    }  # fmt: skip
