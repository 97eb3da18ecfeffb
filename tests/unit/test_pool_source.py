"""Where signals come from: known ones from the cache, each unknown one from the pool once."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from fake_cache import FINGERPRINT, InstantPool, MemoryLink, hidden_of
from hypothesis import given, settings

from orchestrator.data import Flat
from orchestrator.errors import CacheLacks, WorkerLost, WorkerRaised
from orchestrator.pool.source import Question, SignalSource, pieces_of
from orchestrator.pool.stock import saved_s
from orchestrator.signals.cache.keys import RANGE
from orchestrator.signals.cache.records import RoleCard
from orchestrator.signals.records import HiddenAsk

ASK = HiddenAsk("float32")


def _source(
    cache: MemoryLink | None, pool: InstantPool | None, client: str = "a", memory: int = 0
) -> SignalSource:
    ports: Any = (pool, None if cache is None else cache.link(client))
    cards = {"teacher": RoleCard(InstantPool().describe("teacher"), None)}
    return SignalSource(*ports, client, "run", {"teacher": FINGERPRINT}, 1 << 20, 8, cards, memory)


def _flat(samples: list[tuple[list[int], list[bool]]]) -> Flat:
    tokens = np.array([token for content, _ in samples for token in content], np.int32)
    wanted = np.array([bit for _, bits in samples for bit in bits], bool)
    return Flat(tokens, np.array([len(content) for content, _ in samples], np.int32), wanted)


def _sample(content: list[int], *wanted: int) -> tuple[list[int], list[bool]]:
    return content, [i in wanted for i in range(len(content))]


def _answer(source: SignalSource, flat: Flat, name: str = "q") -> np.ndarray:
    source.submit(Question(name, "teacher", ASK, flat))
    return source.result(name).arrays["hidden"]


def _expected(flat: Flat) -> np.ndarray:
    return hidden_of(flat.tokens, flat.lengths)[flat.wanted]


@st.composite
def flats(draw: st.DrawFn) -> Flat:
    """A few short samples out of few tokens, so that contents repeat."""
    contents = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=5))
    masks = [draw(st.lists(st.booleans(), min_size=len(c), max_size=len(c))) for c in contents]
    return _flat(list(zip(contents, masks, strict=True)))


@settings(max_examples=60, deadline=None)
@given(st.lists(flats(), min_size=1, max_size=5), st.sampled_from([0, 30, 1 << 20]))
def test_answers_do_not_depend_on_what_the_cache_held(questions: list[Flat], memory: int) -> None:
    cache, pool = MemoryLink(), InstantPool()
    source = _source(cache, pool, memory=memory)
    for index, flat in enumerate(questions):
        source.submit(Question(str(index), "teacher", ASK, flat))
    for index, flat in enumerate(questions):
        reply = source.result(str(index))
        assert np.array_equal(reply.arrays["hidden"], _expected(flat))
    source.close()


def test_what_was_asked_once_is_not_asked_again_whatever_shares_the_question() -> None:
    cache, pool = MemoryLink(), InstantPool()
    first = _flat([_sample([1, 2, 3], 0, 1), _sample([4, 5], 0)])
    again = _flat([_sample([4, 5], 0), _sample([7, 8], 0), _sample([1, 2, 3], 1)])
    assert np.array_equal(_answer(_source(cache, pool), first), _expected(first))
    source = _source(cache, pool, "b")
    assert np.array_equal(_answer(source, again), _expected(again))
    assert [request.lengths.tolist() for request in pool.asked] == [[3, 2], [2]]
    assert (source.counts.hits, source.counts.misses) == (2, 1)


def test_a_record_with_other_positions_is_widened_and_then_serves_both() -> None:
    cache, pool = MemoryLink(), InstantPool()
    left, right = _flat([_sample([1, 2, 3, 4], 0, 1)]), _flat([_sample([1, 2, 3, 4], 3)])
    for flat in (left, right, left, right):
        assert np.array_equal(_answer(_source(cache, pool), flat), _expected(flat))
    assert [request.wanted.nonzero()[0].tolist() for request in pool.asked] == [[0, 1], [0, 1, 3]]


def test_what_a_client_remembers_it_asks_nobody() -> None:
    cache, pool = MemoryLink(), InstantPool()
    wide, narrow = _flat([_sample([1, 2, 3], 0, 1)]), _flat([_sample([1, 2, 3], 1)])
    wider, other = _flat([_sample([1, 2, 3], 0, 2)]), _flat([_sample([4, 5], 0)])
    source = _source(cache, pool, memory=24)  # bytes: three positions of one record
    for flat, computed in ((wide, 1), (wider, 2), (narrow, 2), (other, 3)):
        assert np.array_equal(_answer(source, flat), _expected(flat))
        assert pool.samples == computed
    cache.records.clear()
    assert np.array_equal(_answer(source, wide), _expected(wide))
    assert pool.samples == 3, "the first is remembered"
    assert np.array_equal(_answer(source, other), _expected(other))
    assert pool.samples == 4, "for another there was no room"
    counts = source.counts
    assert (counts.hits, counts.misses, counts.shared) == (2, 4, 0)


def test_what_is_remembered_is_a_copy() -> None:
    cache, pool = MemoryLink(), InstantPool()
    flat = _flat([_sample([1, 2, 3], 0, 1)])
    source = _source(cache, pool, memory=1 << 20)
    _answer(source, flat)
    for record in cache.records.values():
        record.arrays["hidden"][:] = np.nan
    assert np.array_equal(_answer(source, flat), _expected(flat))


def test_equal_samples_of_a_question_are_run_once() -> None:
    cache, pool = MemoryLink(), InstantPool()
    flat = _flat([_sample([1, 2], 0), _sample([1, 2], 0, 1), _sample([1, 2], 1)])
    assert np.array_equal(_answer(_source(cache, pool), flat), _expected(flat))
    assert pool.samples == 1


def test_a_long_sample_has_a_record_for_each_range() -> None:
    cache, pool = MemoryLink(), InstantPool()
    length = 2 * RANGE + 10
    whole = _flat([_sample([i % 7 for i in range(length)], 0, RANGE, length - 2)])
    last = _flat([_sample([i % 7 for i in range(length)], length - 2)])
    assert len(pieces_of(whole, FINGERPRINT, ASK)) == 3
    assert np.array_equal(_answer(_source(cache, pool), last), _expected(last))
    assert np.array_equal(_answer(_source(cache, pool), whole), _expected(whole))
    assert [int(request.wanted.sum()) for request in pool.asked] == [1, 2]


def test_two_clients_at_once_compute_each_record_once() -> None:
    cache, pools = MemoryLink(), (InstantPool(), InstantPool())
    pools[0].gate.clear()
    a, b = (_source(cache, pool, name) for pool, name in zip(pools, "ab", strict=True))
    shared, own = _sample([1, 2], 0), _sample([3, 4], 0)
    a.submit(Question("q", "teacher", ASK, _flat([shared])))
    while not pools[0].asked:
        pass  # until the first client leads
    b.submit(Question("q", "teacher", ASK, _flat([shared, own])))
    while not pools[1].asked:
        pass  # what it leads itself it asks before it waits
    pools[0].gate.set()
    for source, flat in ((a, _flat([shared])), (b, _flat([shared, own]))):
        assert np.array_equal(source.result("q").arrays["hidden"], _expected(flat))
    assert [pool.samples for pool in pools] == [1, 1]
    assert b.counts.shared == 1


def test_a_leader_that_fails_leaves_its_work_to_who_waits() -> None:
    cache, bad, good = MemoryLink(), InstantPool(), InstantPool()
    bad.gate.clear()
    bad.error = WorkerRaised("teacher", "q", "boom")
    a, b = _source(cache, bad, "a"), _source(cache, good, "b")
    flat = _flat([_sample([1, 2], 0)])
    a.submit(Question("q", "teacher", ASK, flat))
    while not bad.asked:
        pass
    b.submit(Question("q", "teacher", ASK, flat))
    bad.gate.set()
    with pytest.raises(WorkerRaised, match="boom"):
        a.result("q")
    assert np.array_equal(b.result("q").arrays["hidden"], _expected(flat))
    assert good.samples == 1


def test_without_a_pool_what_the_cache_lacks_is_an_error_with_its_number() -> None:
    cache = MemoryLink()
    known = _flat([_sample([1, 2], 0)])
    _answer(_source(cache, InstantPool()), known)
    source = _source(cache, None, "b")
    source.submit(Question("q", "teacher", ASK, _flat([_sample([1, 2], 0), _sample([9], 0)])))
    with pytest.raises(CacheLacks, match="the cache lacks 1 of the records"):
        source.result("q")


@pytest.mark.parametrize("cached", [False, True])
def test_roles_work_for_those_whose_answers_they_compute(cached: bool) -> None:
    pool, cache = InstantPool(token_s=0.5), MemoryLink() if cached else None
    many, few = _flat([_sample([i, 1, 2, 3], 0) for i in range(25)]), _flat([_sample([9, 9], 0)])
    busy, idle = _source(cache, pool, "a"), _source(cache, pool, "b")
    _answer(busy, many)
    _answer(idle, few)
    assert (busy.counts.worked_s, idle.counts.worked_s) == (50.0, 1.0)
    _answer(idle, many, "known")
    assert idle.counts.worked_s == (1.0 if cached else 51.0)


def test_what_a_token_costs_is_told_by_a_jobs_own_answers(tmp_path: Path) -> None:
    pool, cache = InstantPool(token_s=0.5), MemoryLink()
    where: Any = SimpleNamespace(handle=SimpleNamespace(path=str(tmp_path)))
    known, fresh = _flat([_sample([i, 1, 2], 0) for i in range(30)]), _flat([_sample([9] * 4, 0)])
    for client in "ab":  # side by side: the one's work is not the other's
        source = _source(cache, pool, client)
        _answer(source, known)
        _answer(source, fresh if client == "b" else known, "q2")
        counts = asdict(source.counts)
        saved = saved_s(where, {"teacher": FINGERPRINT}, counts, source.counts.worked_s)
        assert saved == 0.5 * source.counts.saved_tokens == 0.5 * 90


def test_what_a_source_that_stops_hands_over_is_counted_and_nothing_else() -> None:
    pool, cache = InstantPool(token_s=0.5), MemoryLink()
    source = _source(cache, pool)
    _answer(source, _flat([_sample([1, 2], 0)]))
    pool.gate.clear()
    source.submit(Question("late", "teacher", ASK, _flat([_sample([3, 4], 0)])))
    while len(pool.asked) < 2:
        pass  # until it leads
    source.close()
    pool.gate.set()
    with pytest.raises(WorkerLost, match="closed"):
        source.result("late")
    assert source.counts.misses == len(cache.records) == 1 and source.counts.worked_s == 1.0
    assert _answer(_source(cache, pool, "b"), _flat([_sample([3, 4], 0)])).shape == (1, 2)


def test_the_window_counts_questions_and_bytes() -> None:
    cache, pool = MemoryLink(), InstantPool()
    ports: Any = (pool, cache.link("a"))
    source = SignalSource(*ports, "a", "run", {"teacher": FINGERPRINT}, 20, 8)
    assert source.room()
    source.submit(Question("q", "teacher", ASK, _flat([_sample([1, 2, 3], 0, 1, 2)])))
    assert not source.room()  # 3 positions of 8 bytes
    source.result("q")
    assert source.room()


def test_without_a_cache_the_pool_is_asked_directly() -> None:
    pool = InstantPool()
    flat = _flat([_sample([1, 2], 0), _sample([1, 2], 0)])
    assert np.array_equal(_answer(_source(None, pool), flat), _expected(flat))
    assert pool.samples == 2


@pytest.mark.parametrize("cached", [False, True])
def test_ranks_of_a_job_are_one_tenant_and_ask_under_names_of_their_own(cached: bool) -> None:
    pool, cache = InstantPool(), MemoryLink() if cached else None
    for rank, token in (("run/0", 1), ("run/1", 2)):
        _answer(_source(cache, pool, rank), _flat([_sample([token, token], 0)]))
    assert {request.tenant for request in pool.asked} == {"run"}
    assert [request.request_id.split("/q")[0] for request in pool.asked] == ["run/0", "run/1"]
