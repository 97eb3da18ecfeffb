"""An owner that nobody speaks to ends, gives the directory free, and is found anew."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import quick_owner
import ray

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
        .remote(str(path), 1 << 30)
    )


def _is_there() -> bool:
    try:
        ray.get_actor("owner", namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def test_an_idle_owner_ends_and_leaves_the_directory_to_others(tmp_path: Path) -> None:
    first = _owner(tmp_path)
    assert ray.get(first.start.remote()) is None
    pid = ray.get(first.pid.remote())
    give_up = time.monotonic() + 60
    while _is_there() and time.monotonic() < give_up:
        time.sleep(0.1)  # Ray tells nobody when a name is free
    assert not _is_there()
    Store.open(tmp_path, 1 << 30).close()
    second = _owner(tmp_path)
    assert ray.get(second.start.remote()) is None
    assert ray.get(second.pid.remote()) != pid
