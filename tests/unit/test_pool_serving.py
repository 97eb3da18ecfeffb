"""The fair queue, the desk of a replica, and the sizes of answers. No Ray."""

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pool_fakes import FakeEngine, expected_hidden, fake_request

from orchestrator.errors import SpecError, WorkerBusy, WorkerRaised
from orchestrator.pool.answers import answer_bytes, empty_answer, wanted_counts
from orchestrator.pool.desk import Desk, for_attempt
from orchestrator.pool.fairness import FairQueue
from orchestrator.signals.records import (
    PROTOCOL,
    AttentionAsk,
    HiddenAsk,
    Request,
    RoleDescription,
    TopKAsk,
)

WAIT_S = 20.0


def test_two_tenants_get_equal_cost_however_many_requests_one_sends():
    queue: FairQueue[str] = FairQueue(100)
    for index in range(20):
        assert queue.offer("greedy", 1.0, f"g{index}")
    for index in range(5):
        assert queue.offer("modest", 2.0, f"m{index}")
    order = [queue.pop() for _ in range(25)]
    served = order[:12]
    assert sum(item.startswith("m") for item in served) == 4  # 4 of cost 2 for 8 of cost 1
    assert [item for item in order if item.startswith("g")] == [f"g{i}" for i in range(20)]


def test_tenants_are_served_by_their_weights() -> None:
    queue: FairQueue[str] = FairQueue(1000)
    weights = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 4.0}
    for name, weight in weights.items():
        for _ in range(200):
            assert queue.offer(name, 10.0, name, weight)
    served = [queue.pop() for _ in range(160)]
    assert {name: served.count(name) for name in weights} == pytest.approx(
        {"a": 20, "b": 20, "c": 40, "d": 80}, abs=1
    )


def test_a_weight_that_is_none_is_refused() -> None:
    desk = Desk("teacher", lambda: FakeEngine("teacher", {}), 4)
    try:
        for weight in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(SpecError, match=r"request\.weight.*above 0"):
                desk.submit(replace(fake_request("r"), weight=weight))
    finally:
        desk.close()


def test_a_tenant_that_was_away_has_no_claim_on_the_past():
    queue: FairQueue[str] = FairQueue(100)
    for index in range(10):
        queue.offer("busy", 1.0, f"b{index}")
    for _ in range(5):
        queue.pop()
    for index in range(5):
        queue.offer("late", 1.0, f"l{index}")
    assert sum(queue.pop().startswith("l") for _ in range(4)) == 2


def test_a_full_queue_refuses_but_never_shuts_a_tenant_out():
    queue: FairQueue[str] = FairQueue(4)
    assert all(queue.offer("a", 1.0, "a") for _ in range(4))
    assert not queue.offer("a", 1.0, "a")
    assert queue.offer("b", 1.0, "b")  # its first
    assert not queue.offer("b", 1.0, "b")
    assert [queue.pop(), queue.pop()] == ["a", "b"]
    assert queue.offer("b", 1.0, "b")
    assert queue.pop() == "a"
    assert queue.offer("b", 1.0, "b")
    assert not queue.offer("a", 1.0, "a"), "a holds its half of the queue already"
    with pytest.raises(ValueError, match="limit is 0"):
        FairQueue(0)


class GatedEngine(FakeEngine):
    """Each forward says that it began and waits for leave."""

    def __init__(self, **arguments: object) -> None:
        super().__init__("teacher", arguments)
        self.began, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.served: list[str] = []

    def forward(self, request: Request) -> dict[str, np.ndarray]:
        self.began.release()
        assert self.go.acquire(timeout=WAIT_S)
        self.served.append(request.request_id)
        return super().forward(request)


@pytest.fixture
def open_desk():
    desks: list[Desk] = []

    def make(load: Callable[[], FakeEngine], max_queue: int = 8) -> Desk:
        desks.append(Desk("teacher", load, max_queue))
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()


def test_a_desk_answers_and_reports(open_desk):
    desk = open_desk(lambda: FakeEngine("teacher", {}))
    request = fake_request("r")
    reply = desk.submit(request).result(WAIT_S)
    np.testing.assert_array_equal(reply.arrays["hidden"], expected_hidden(request))
    assert (reply.fingerprint, reply.vocabulary, reply.attempt) == ("teacher-w", 100, 1)
    stats = desk.stats()
    assert (stats.served, stats.samples, stats.queued) == (1, 2, 0)
    assert stats.description is not None
    head = desk.head().result(WAIT_S)
    assert head is not None and head.weight.shape == (100, 4)


def test_a_request_in_flight_is_not_run_twice(open_desk):
    engine = GatedEngine()
    desk = open_desk(lambda: engine)
    first = desk.submit(fake_request("r"))
    assert engine.began.acquire(timeout=WAIT_S)
    again = desk.submit(replace(fake_request("r"), attempt=2))
    other = desk.submit(fake_request("r", token=6))  # the same id, but other work
    assert again is first and other is not first
    engine.go.release(2)
    assert for_attempt(again.result(WAIT_S), 2).attempt == 2
    assert other.result(WAIT_S).arrays["hidden"][0, 0] == 6000
    assert engine.forwards == 2


def test_a_full_desk_refuses_with_a_hint_and_serves_tenants_in_turn(open_desk):
    engine = GatedEngine()
    desk = open_desk(lambda: engine, max_queue=2)
    futures = [desk.submit(fake_request("running", tenant="a"))]
    assert engine.began.acquire(timeout=WAIT_S)
    futures += [desk.submit(fake_request(f"a{i}", tenant="a")) for i in range(2)]
    with pytest.raises(WorkerBusy, match="2 requests are waiting") as caught:
        desk.submit(fake_request("a3", tenant="a"))
    assert 0 < caught.value.retry_after_s <= 2.0
    futures.append(desk.submit(fake_request("b0", tenant="b")))
    engine.go.release(4)
    for future in futures:
        future.result(WAIT_S)
    assert engine.served.index("b0") < engine.served.index("a1")


def test_no_wanted_positions_are_answered_without_a_forward(open_desk):
    engine = FakeEngine("teacher", {})
    desk = open_desk(lambda: engine)
    reply = desk.submit(fake_request("r", wanted=False)).result(WAIT_S)
    assert reply.arrays["hidden"].shape == (0, 4) and reply.arrays["hidden"].dtype == np.float32
    assert engine.forwards == 0
    assert (desk.stats().served, desk.stats().samples) == (1, 0)


def test_samples_are_counted_once_each_and_only_where_something_is_wanted(open_desk):
    engine = GatedEngine()
    desk = open_desk(lambda: engine)
    request = fake_request("r", samples=3)
    request.wanted[:3] = False  # of the first sample nothing
    first, again = desk.submit(request), desk.submit(replace(request, attempt=2))
    engine.go.release()
    assert again.result(WAIT_S) is first.result(WAIT_S)
    assert desk.stats().samples == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": 99}, f"speaks {PROTOCOL}"),
        ({"role": "assistant"}, "serves 'teacher'"),
        ({"fingerprint": "other"}, "wants fingerprint other, the pool serves teacher-w"),
    ],
)
def test_what_the_desk_does_not_serve_is_refused_with_a_remedy(open_desk, change, message):
    desk = open_desk(lambda: FakeEngine("teacher", {}))
    with pytest.raises(SpecError, match=message):
        desk.submit(replace(fake_request("r"), **change)).result(WAIT_S)


def test_an_error_of_the_model_names_the_request_and_the_desk_goes_on(open_desk):
    desk = open_desk(lambda: FakeEngine("teacher", {"raises_on": 13}))
    with pytest.raises(WorkerRaised, match="request bad: ValueError: token of ill omen"):
        desk.submit(fake_request("bad", token=13)).result(WAIT_S)
    assert desk.submit(fake_request("good")).result(WAIT_S).request_id == "good"


def test_a_load_that_raises_fails_those_who_wait_and_those_who_come(open_desk):
    gate = threading.Event()

    def load() -> FakeEngine:
        assert gate.wait(WAIT_S)
        raise ValueError("the shelf is empty")

    desk = open_desk(load)
    waiting = desk.submit(fake_request("r"))
    gate.set()
    with pytest.raises(WorkerRaised, match="request load: ValueError: the shelf is empty"):
        waiting.result(WAIT_S)
    with pytest.raises(WorkerRaised):
        desk.submit(fake_request("r2"))
    with pytest.raises(WorkerRaised):
        desk.head().result(WAIT_S)
    assert isinstance(desk.stats().error, WorkerRaised)


@pytest.mark.parametrize(
    ("ask", "nbytes"),
    [
        (HiddenAsk("float32"), 10 * 8 * 4),
        (HiddenAsk("bfloat16"), 10 * 8 * 2),
        (TopKAsk(4, "float16", (1.0, 2.0)), 10 * (4 * 2 + 4 * 2 + 2 * 4)),
        (TopKAsk(4, "int8", (1.0,)), 10 * (4 * 2 + 4 + 4 + 4)),
        (AttentionAsk(("a",), "float16"), 10 * 3 * 50 * 2),
    ],
)
def test_the_size_of_an_answer_is_known_from_the_ask(ask, nbytes):
    role = RoleDescription(
        "teacher", "w", vocabulary=65536, width=8, parameters=1, attention={"a": 3}
    )
    assert answer_bytes(ask, 10, role, longest=50) == nbytes
    wide = replace(role, vocabulary=65537)  # ids take 17 bits then: 9 bytes for four
    more = 10 if isinstance(ask, TopKAsk) else 0
    assert answer_bytes(ask, 10, wide, longest=50) == nbytes + more
    assert all(len(array) == 0 for array in empty_answer(ask, role).values())


def test_wanted_positions_are_counted_by_sample():
    request = replace(
        fake_request("r"),
        tokens=np.zeros(6, np.int32),
        lengths=np.array([2, 0, 3, 1], np.int32),
        wanted=np.array([True, False, True, True, False, False]),
    )
    assert wanted_counts(request).tolist() == [1, 0, 2, 0]
    with pytest.raises(ValueError, match="add up to 7"):
        wanted_counts(replace(request, lengths=np.array([7], np.int32)))
    with pytest.raises(ValueError, match="add up to 6"):
        wanted_counts(replace(request, lengths=np.array([8, -2], np.int32)))
