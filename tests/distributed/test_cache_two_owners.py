"""Two owners, one of them on what the client takes for another node: routes, losses, waits."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from cache_tools import LARGE, record, same, segments
from fake_cache import FINGERPRINT, InstantPool, hidden_of
from ray.exceptions import RayActorError

from orchestrator.data import Flat
from orchestrator.pool.cache import CacheLink
from orchestrator.pool.cache_owner import CacheOwner
from orchestrator.pool.cache_records import CacheHandle, Lead, Owner, Theirs, Want, bitmap
from orchestrator.pool.records import NAMESPACE
from orchestrator.pool.source import Question, SignalSource
from orchestrator.signals.cache.records import CacheRecord
from orchestrator.signals.records import HiddenAsk

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]
ROOT = Path(__file__).parents[2]
NEAR, FAR = "near", "far"
PUTS = [record(i, width=300) for i in range(40)]
WANTS = [Want(put.key, bitmap(put)) for put in PUTS]


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


@dataclass
class Owners:
    """A folder and an actor each."""

    root: Path
    actors: dict[str, Any]
    handle: CacheHandle

    def stats(self, name: str) -> dict[str, int]:
        return ray.get(self.actors[name].stats.remote(), timeout=30)

    def kill(self, name: str) -> None:
        """Returns when it is dead."""
        ray.kill(self.actors[name])
        with pytest.raises(RayActorError):
            while True:
                ray.get(self.actors[name].pid.remote(), timeout=30)


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[Owners]:
    nodes = {NEAR: ray.get_runtime_context().get_node_id(), FAR: "elsewhere"}
    names = {where: f"{where}/{tmp_path.name}" for where in nodes}
    actors: dict[str, Any] = {
        where: ray.remote(CacheOwner)
        .options(name=name, num_cpus=0)
        .remote(str(tmp_path / where), LARGE)
        for where, name in names.items()
    }
    ray.get([actor.start.remote(LARGE) for actor in actors.values()], timeout=60)
    # What lies in the far folder is never read by a client: its path is that of the near one.
    handle = CacheHandle(
        str(tmp_path / NEAR),
        tuple(Owner(names[where], node, f"address of {where}") for where, node in nodes.items()),
    )
    yield Owners(tmp_path, actors, handle)
    for actor in actors.values():
        ray.kill(actor)


@pytest.fixture
def link(owners: Owners) -> Iterator[CacheLink]:
    link = CacheLink(owners.handle, "run/0")
    yield link
    link.close()


def _claimed(link: CacheLink, question: str = "q") -> list[Any]:
    return link.claim(question, WANTS, 0.0)


def test_records_of_both_are_read_as_they_were_put(owners: Owners, link: CacheLink) -> None:
    assert all(isinstance(verdict, Lead) for verdict in _claimed(link))
    link.put(PUTS)
    link.flush()
    kept = {where: owners.stats(where)["records"] for where in owners.actors}
    assert min(kept.values()) > 5 and sum(kept.values()) == len(PUTS)
    for put, there in zip(PUTS, _claimed(link), strict=True):
        assert isinstance(there, CacheRecord) and same(there, put)
    assert link.missing(WANTS) == []
    assert link.counts.read_bytes == sum(put.nbytes for put in PUTS)
    assert (link.counts.damaged, link.counts.lost_owners) == (0, 0)


def test_damage_in_either_folder_is_computed_anew(owners: Owners, link: CacheLink) -> None:
    link.put(PUTS)
    link.flush()
    for where in owners.actors:
        for file in segments(owners.root / where):
            file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    assert all(verdict == Theirs() for verdict in _claimed(link))
    assert all(isinstance(verdict, Lead) for verdict in _claimed(link))
    assert all(owners.stats(where)["corrupt"] > 0 for where in owners.actors)


def test_what_a_lost_owner_had_is_led_by_who_asks_the_other(
    owners: Owners, link: CacheLink
) -> None:
    link.put(PUTS)
    link.flush()
    far = owners.stats(FAR)["records"]
    owners.kill(FAR)
    verdicts = _claimed(link)
    gone = [i for i, verdict in enumerate(verdicts) if verdict == Theirs()]
    assert len(gone) == far and link.counts.lost_owners == 1
    verdicts = _claimed(link)
    assert [i for i, verdict in enumerate(verdicts) if isinstance(verdict, Lead)] == gone
    assert link.missing(WANTS) == gone
    link.put([PUTS[i] for i in gone])
    link.flush()
    assert owners.stats(NEAR)["records"] == len(PUTS)
    assert all(isinstance(verdict, CacheRecord) for verdict in _claimed(link))
    assert link.counts.lost_owners == 1


def test_without_a_living_owner_all_is_led(owners: Owners, link: CacheLink) -> None:
    _claimed(link)
    owners.kill(NEAR)
    owners.kill(FAR)
    assert all(verdict == Theirs() for verdict in _claimed(link))
    assert _claimed(link) == [Lead(want.positions) for want in WANTS]
    link.put(PUTS)
    link.flush()
    assert link.missing(WANTS) == list(range(len(WANTS)))
    assert link.counts.lost_owners == 2


def test_records_on_their_way_to_an_owner_that_dies_are_misses_and_no_error(
    owners: Owners, link: CacheLink
) -> None:
    link.put(PUTS)
    owners.kill(FAR)
    link.flush()
    assert 0 < len(link.missing(WANTS)) < len(WANTS)


def test_a_question_whose_owner_dies_is_answered_by_the_pool_and_counted(
    owners: Owners,
) -> None:
    samples = 30
    tokens = np.repeat(np.arange(samples, dtype=np.int32), 3)
    flat = Flat(tokens, np.full(samples, 3, np.int32), np.tile([True, True, False], samples))
    expected = hidden_of(flat.tokens, flat.lengths)[flat.wanted]

    def asked(client: str) -> tuple[SignalSource, InstantPool]:
        pool: Any = InstantPool()
        link = CacheLink(owners.handle, client)
        fingerprints = {"teacher": FINGERPRINT}
        return SignalSource(pool, link, client, "run", fingerprints, 1 << 20, 8), pool

    def answer(source: SignalSource, name: str) -> np.ndarray:
        source.submit(Question(name, "teacher", HiddenAsk("float32"), flat))
        return source.result(name).arrays["hidden"]

    first, pool = asked("run/0")
    assert np.array_equal(answer(first, "q"), expected)
    assert pool.samples == samples
    assert first.link is not None
    first.link.flush()
    far = owners.stats(FAR)["records"]
    assert 0 < far < samples
    second, pool = asked("run/1")
    owners.kill(FAR)
    assert np.array_equal(answer(second, "q"), expected)
    assert pool.samples == second.counts.misses == far
    assert second.counts.hits == samples - far
    assert second.link is not None and second.link.counts.lost_owners == 1
    again, pool = asked("run/2")
    assert np.array_equal(answer(again, "q"), expected)
    assert pool.samples == 0, "what was computed anew was not kept by the owner that is left"
    for source in (first, second, again):
        source.close()
