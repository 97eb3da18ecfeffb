"""The pool on real Ray actors: answers, deaths, refusals, and an end that leaves nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pool_fakes
import psutil
import pytest
import ray
from pool_fakes import expected_hidden, fake_request, fake_role, wait_until

from orchestrator.errors import (
    BudgetExhausted,
    SpecError,
    WorkerLost,
    WorkerRaised,
    WorkerStalled,
)
from orchestrator.pool import Counts, Pool, PoolClient, PoolPlan
from orchestrator.pool.controller import living_actors
from orchestrator.pool.records import controller_name
from orchestrator.spec.models import RoleSpec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        # Workers import the fakes by name. Ray's own runtime_env would cost it its warm workers.
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
        environment.setenv("PYTHONPATH", path)
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@contextmanager
def pool_of(role: RoleSpec, **plan: Any) -> Iterator[Pool]:
    """A pool of one role, "teacher"; afterwards not one actor of it may be left."""
    fast = {"ping_every_s": 0.2, "load": pool_fakes.load, **plan}
    pool = Pool.up(PoolPlan(name="test", roles={"teacher": role}, **fast), wait_s=WAIT_S)
    try:
        yield pool
    finally:
        pool.down()
        assert living_actors(pool.name) == []


@contextmanager
def client_of(pool: Pool, **limits: Any) -> Iterator[PoolClient]:
    window = {"window_bytes": 1 << 20, "window_requests": 8, "patience_s": WAIT_S, **limits}
    client = PoolClient(pool.handle(), "test", **window)
    try:
        yield client
    finally:
        client.close()


def replicas(pool: Pool) -> list[dict[str, Any]]:
    return pool.status()["roles"]["teacher"]["replicas"]


def started(gate: Path) -> list[int]:
    """Processes that have begun a forward."""
    return [int(path.name.removeprefix("started-")) for path in gate.glob("started-*")]


def check_all(client: PoolClient, names: list[str]) -> None:
    for name in names:
        reply = client.result(name, timeout_s=WAIT_S)
        np.testing.assert_array_equal(reply.arrays["hidden"], expected_hidden(fake_request(name)))


def test_several_replicas_answer_and_the_counts_balance():
    with pool_of(fake_role(replicas=2)) as pool, client_of(pool) as client:
        wait_until(lambda: len(pool.membership().replicas["teacher"]) == 2)
        names = [f"r{index}" for index in range(40)]
        for name in names:
            client.submit(fake_request(name))
        check_all(client, names)
        assert client.counts() == Counts(asked=40, delivered=40, consumed=40)
        served = wait_until(
            lambda: s if sum(s := [r.get("served", 0) for r in replicas(pool)]) == 40 else None
        )
        assert all(count > 0 for count in served)
        assert sum(r["samples"] for r in replicas(pool)) == 80  # two a request
        status = pool.status()
        assert status["restarts"] == 0 and not status["standing"]
        assert status["roles"]["teacher"]["fingerprint"] == "teacher-w"
        assert client.describe("teacher").width == 4
        head = client.head("teacher")
        assert head is not None and head.weight.shape == (100, 4)
        with pytest.raises(SpecError, match=r"roles\.assistant: pool .* serves teacher"):
            client.describe("assistant")
        with pytest.raises(ValueError, match="was not submitted, or was taken already"):
            client.result("r0")


def test_a_replica_killed_in_a_forward_costs_nothing(tmp_path):
    role = fake_role(replicas=2, gate=str(tmp_path))
    with pool_of(role) as pool, client_of(pool) as client:
        wait_until(lambda: len(pool.membership().replicas["teacher"]) == 2)
        names = [f"r{index}" for index in range(6)]
        for name in names:
            client.submit(fake_request(name))
        victim, _ = wait_until(lambda: p if len(p := started(tmp_path)) == 2 else None)
        os.kill(victim, signal.SIGKILL)
        (tmp_path / "open").touch()
        check_all(client, names)
        counts = client.counts()
        assert counts.asked == counts.delivered == counts.consumed == 6
        assert counts.redispatched >= 1 and counts.failed == 0
        status = wait_until(lambda: s if (s := pool.status())["restarts"] == 1 else None)
        assert status["restarts_left"] == 7
        assert victim not in [r.get("pid") for r in status["roles"]["teacher"]["replicas"]]


def test_a_killed_controller_comes_back_and_clients_do_not_notice():
    with pool_of(fake_role(replicas=2), restarts=3) as pool, client_of(pool) as client:
        wait_until(lambda: len(pool.membership().replicas["teacher"]) == 2)
        os.kill(next(pids(replicas(pool))), signal.SIGKILL)
        before = wait_until(lambda: s if (s := pool.status())["restarts"] == 1 else None)
        wait_until(lambda: len(list(pids(replicas(pool)))) == 2)
        serving = set(pids(replicas(pool)))
        os.kill(before["pid"], signal.SIGKILL)
        names = [f"r{index}" for index in range(20)]
        for name in names:
            client.submit(fake_request(name))
        check_all(client, names)
        assert client.counts() == Counts(asked=20, delivered=20, consumed=20)
        after = wait_until(
            lambda: s if len(set(pids(replicas_of(s := pool.status())))) == 2 else None
        )
        assert after["pid"] != before["pid"] and after["version"] > before["version"]
        assert set(pids(replicas_of(after))) == serving, "the replicas outlived their controller"
        assert after["restarts"] == 1, "the budget is remembered"
        # The successor keeps watch: a death is made good, and the client hears of it.
        for pid in serving:
            os.kill(pid, signal.SIGKILL)
        client.submit(fake_request("again"))
        check_all(client, ["again"])
        assert pool.status()["restarts"] == 3


def pids(statuses: list[dict[str, Any]]) -> Iterator[int]:
    return (r["pid"] for r in statuses if "pid" in r and r["state"] == "ready")


def replicas_of(status: dict[str, Any]) -> list[dict[str, Any]]:
    return status["roles"]["teacher"]["replicas"]


def test_a_stuck_replica_is_replaced():
    with (
        pool_of(fake_role(), ping_timeout_s=2.0, missed_pings=2) as pool,
        client_of(pool) as client,
    ):
        pid = wait_until(lambda: next(pids(replicas(pool)), None))
        os.kill(pid, signal.SIGSTOP)
        client.submit(fake_request("r"))
        check_all(client, ["r"])
        assert client.counts().redispatched == 1 and pool.status()["restarts"] == 1
        wait_until(lambda: not psutil.pid_exists(pid))


def test_deaths_beyond_the_budget_end_in_a_clear_error(tmp_path):
    role = fake_role(gate=str(tmp_path))
    with pool_of(role, restarts=1) as pool, client_of(pool) as client:
        client.submit(fake_request("r"))
        for count in (1, 2):
            pid = wait_until(lambda n=count: p[-1] if len(p := fresh(tmp_path)) == n else None)
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(BudgetExhausted, match="1 restarts are used"):
            client.result("r", timeout_s=WAIT_S)
        assert client.counts() == Counts(asked=1, failed=1, redispatched=2)
        assert "restarts are used" in pool.status()["roles"]["teacher"]["error"]


def fresh(gate: Path) -> list[int]:
    """Processes that have begun a forward, in the order in which they did."""
    paths = sorted(gate.glob("started-*"), key=lambda path: path.stat().st_mtime_ns)
    return [int(path.name.removeprefix("started-")) for path in paths]


def test_a_late_reply_is_dropped(tmp_path):
    role = fake_role(replicas=2, gate=str(tmp_path))
    with pool_of(role) as pool, client_of(pool, deadline_s=3.0) as client:
        wait_until(lambda: len(pool.membership().replicas["teacher"]) == 2)
        client.submit(fake_request("r"))
        wait_until(lambda: len(started(tmp_path)) == 2)  # late on one, so asked of the other
        (tmp_path / "open").touch()
        check_all(client, ["r"])
        wait_until(lambda: (c := client.counts()).late_dropped == c.redispatched)
        counts = client.counts()
        assert counts.delivered == counts.consumed == 1
        assert counts.late_dropped >= 1
        with pytest.raises(ValueError, match="taken already"):
            client.result("r")


def test_a_full_replica_refuses_and_the_client_comes_back(tmp_path):
    role = fake_role(max_queue=1, gate=str(tmp_path))
    with pool_of(role) as pool, client_of(pool) as client:
        names = [f"r{index}" for index in range(5)]
        for name in names:
            client.submit(fake_request(name))
        wait_until(lambda: client.counts().refused >= 3)
        (tmp_path / "open").touch()
        check_all(client, names)
        counts = client.counts()
        assert counts.asked == counts.delivered == counts.consumed == 5
        assert counts.redispatched == 0, "to be refused is not to be lost"


def test_the_window_bounds_what_is_asked_ahead(tmp_path):
    role = fake_role(gate=str(tmp_path))
    nbytes = 6 * 4 * 4  # six positions of four float32
    with pool_of(role) as pool, client_of(pool, window_bytes=3 * nbytes) as client:
        assert client.room()
        names = [f"r{index}" for index in range(6)]
        for name in names:
            client.submit(fake_request(name))
        assert not client.room()
        queued = wait_until(lambda: q if (q := replicas(pool)[0].get("queued")) == 3 else None)
        assert queued == 3
        (tmp_path / "open").touch()
        check_all(client, names)
        assert client.room()


def test_what_the_caller_waits_for_overtakes_the_window():
    with pool_of(fake_role()) as pool, client_of(pool, window_requests=1) as client:
        for name in ("first", "second"):
            client.submit(fake_request(name))
        check_all(client, ["second", "first"])


def test_an_error_of_the_model_names_the_request_and_others_go_on():
    role = fake_role(replicas=2, raises_on=13)
    with pool_of(role) as pool, client_of(pool) as client:
        client.submit(fake_request("bad", token=13))
        client.submit(fake_request("good"))
        with pytest.raises(WorkerRaised, match=r"in 2 tries.*token of ill omen") as caught:
            client.result("bad", timeout_s=WAIT_S)
        assert caught.value.request_id == "bad"
        check_all(client, ["good"])


def test_a_request_for_another_fingerprint_is_refused():
    with pool_of(fake_role()) as pool, client_of(pool) as client:
        client.submit(fake_request("r", fingerprint="other"))
        with pytest.raises(SpecError, match="wants fingerprint other, the pool serves teacher-w"):
            client.result("r", timeout_s=WAIT_S)
        assert client.counts().redispatched == 0


def test_an_answer_that_takes_too_long_can_be_waited_for_again(tmp_path):
    with pool_of(fake_role(gate=str(tmp_path))) as pool, client_of(pool) as client:
        client.submit(fake_request("r"))
        with pytest.raises(WorkerStalled, match=r"no answer in 0\.1 s"):
            client.result("r", timeout_s=0.1)
        (tmp_path / "open").touch()
        check_all(client, ["r"])


@pytest.mark.parametrize(
    ("load_raises", "expected", "message"),
    [("spec", SpecError, "holds no model"), ("value", WorkerRaised, "the shelf is empty")],
)
def test_a_pool_whose_model_does_not_load_says_why_and_leaves_nothing(
    load_raises, expected, message
):
    plan = PoolPlan(
        name="broken",
        roles={"teacher": fake_role(replicas=2, load_raises=load_raises)},
        load=pool_fakes.load,
        ping_every_s=0.2,
    )
    seen: list[int] = []
    with pytest.raises(expected, match=message):
        Pool.up(plan, wait_s=WAIT_S, progress=lambda members: seen.append(members.version))
    assert seen == sorted(set(seen)) and seen
    names = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True)]
    assert not [name for name in names if name.startswith("broken")]


def test_resources_that_the_cluster_lacks_are_named():
    role = RoleSpec.model_validate(
        {"import": "pool_fakes:load", "resources": {"cpus": 0, "custom": {"moon": 1}}}
    )
    plan = PoolPlan(name="moon", roles={"teacher": role}, load=pool_fakes.load)
    with pytest.raises(WorkerStalled, match="custom resources that the roles ask for"):
        Pool.up(plan, wait_s=0.5)


def test_a_standing_pool_is_found_by_name_and_taken_down_by_anyone():
    plan = PoolPlan(
        name="standing", roles={"teacher": fake_role()}, standing=True, load=pool_fakes.load
    )
    with pytest.raises(SpecError, match="no pool named 'standing' is up"):
        Pool.attach("standing")
    Pool.up(plan, wait_s=WAIT_S)
    with pytest.raises(SpecError, match="a pool named 'standing' is up"):
        Pool.up(plan, wait_s=WAIT_S)
    found = Pool.attach("standing")
    with client_of(found) as client:
        client.submit(fake_request("r"))
        check_all(client, ["r"])
        found.down()
        client.submit(fake_request("after"))
        with pytest.raises(WorkerLost, match="it was taken down"):
            client.result("after", timeout_s=WAIT_S)
    assert living_actors("standing") == []
    found.down()  # twice is fine
    with pytest.raises(WorkerLost, match="'standing' is not up"):
        found.status()


def test_a_client_that_was_not_told_of_the_end_finds_out():
    with pool_of(fake_role()) as pool, client_of(pool) as client:
        client.submit(fake_request("r"))
        check_all(client, ["r"])
        controller = controller_name(pool.name)
        pid = wait_until(lambda: next(pids(replicas(pool)), None))
        for name in sorted(living_actors(pool.name), key=lambda name: name != controller):
            ray.kill(ray.get_actor(name, namespace="stillhouse"), no_restart=True)
        wait_until(lambda: not psutil.pid_exists(pid))  # until then it may still answer
        client.submit(fake_request("after"))
        with pytest.raises(WorkerLost, match="it was taken down"):
            client.result("after", timeout_s=WAIT_S)


def test_a_standing_pool_mends_itself_after_the_driver_that_made_it_left():
    made = f"""
import ray, pool_fakes
from orchestrator.pool import Pool, PoolPlan
ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)
role = pool_fakes.fake_role(weights="$FLAVOUR")
env = {{"FLAVOUR": "plum"}}
plan = PoolPlan("left", {{"teacher": role}}, True, env=env, load=pool_fakes.load, ping_every_s=0.2)
Pool.up(plan, wait_s={WAIT_S})
"""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", made], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    pool = Pool.attach("left")
    try:
        with client_of(pool) as client:
            assert client.describe("teacher").fingerprint == "teacher-plum"
            before = wait_until(lambda: s if list(pids(replicas_of(s := pool.status()))) else None)
            for pid in (before["pid"], *pids(replicas_of(before))):
                os.kill(pid, signal.SIGKILL)
            client.submit(fake_request("r"))
            check_all(client, ["r"])
            assert pool.status()["pid"] != before["pid"]
    finally:
        pool.down()


def test_an_ephemeral_pool_ends_itself_when_its_driver_is_gone():
    plan = PoolPlan(
        name="orphan",
        roles={"teacher": fake_role()},
        load=pool_fakes.load,
        lease_s=3.0,
        ping_every_s=0.2,
    )
    pool = Pool.up(plan, wait_s=WAIT_S)
    assert pool._lease is not None
    pool._lease.stop()  # as if the driver were killed
    wait_until(lambda: living_actors(pool.name) == [])


def test_replicas_end_themselves_when_nobody_is_left():
    plan = PoolPlan(
        name="alone",
        roles={"teacher": fake_role()},
        load=pool_fakes.load,
        lease_s=1.5,
        ping_every_s=0.2,
    )
    pool = Pool.up(plan, wait_s=WAIT_S)
    ray.kill(ray.get_actor(controller_name(pool.name), namespace="stillhouse"), no_restart=True)
    wait_until(lambda: living_actors(pool.name) == [])


def test_importing_the_pool_starts_nothing_and_loads_no_torch():
    code = "import orchestrator.pool, ray, sys; print(ray.is_initialized(), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
