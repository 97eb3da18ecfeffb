"""An owner nobody speaks to ends and is found anew; one that is killed comes back as it was."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import quick_owner
import ray
from cache_tools import LARGE, record, segments

from orchestrator.pool.cache_owner import CacheOwner
from orchestrator.pool.records import NAMESPACE
from orchestrator.signals.cache.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        namespace=NAMESPACE,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


def _owner(path: Path) -> Any:
    options = {"name": "owner", "lifetime": "detached", "get_if_exists": True}
    return (
        ray.remote(quick_owner.QuickOwner)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, **options)
        .remote(str(path), LARGE)
    )


def _is_there() -> bool:
    try:
        ray.get_actor("owner", namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def test_an_idle_owner_ends_and_leaves_the_directory_to_others(tmp_path: Path) -> None:
    first = _owner(tmp_path)
    assert ray.get(first.start.remote(LARGE)) is None
    pid = ray.get(first.pid.remote())
    give_up = time.monotonic() + 60
    while _is_there() and time.monotonic() < give_up:
        time.sleep(0.1)  # Ray tells nobody when a name is free
    assert not _is_there()
    Store.open(tmp_path, LARGE).close()
    second = _owner(tmp_path)
    assert ray.get(second.start.remote(LARGE)) is None
    assert ray.get(second.pid.remote()) != pid


def test_an_owner_that_is_killed_comes_back_with_the_limit_that_came_last(tmp_path: Path) -> None:
    owner: Any = (
        ray.remote(CacheOwner)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        .remote(str(tmp_path), LARGE)
    )
    limit = 100_000
    assert ray.get(owner.start.remote(limit)) is None
    pid = ray.get(owner.pid.remote())
    os.kill(pid, signal.SIGKILL)
    for i in range(20):
        ray.get(owner.put.remote([record(i, width=5000)]))  # 20 KB each
        ray.get(owner.flush.remote())
    assert ray.get(owner.pid.remote()) != pid
    assert 0 < sum(file.stat().st_size for file in segments(tmp_path)) <= limit
    assert ray.get(owner.stats.remote())["evicted_segments"] > 0
    ray.kill(owner)
