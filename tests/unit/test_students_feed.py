"""The feed: work asked ahead within a window, answers in order, every sample counted once."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from fake_client import FakeClient

from orchestrator.data import Order, SampleStore, collate
from orchestrator.data.tokenise import Sample
from orchestrator.errors import CountsDiffer
from orchestrator.pool.source import SignalSource
from orchestrator.signals.records import HiddenAsk
from orchestrator.students.feed import AHEAD_WITHOUT_POOL, Feed, Micro
from orchestrator.students.ledger import Ledger, check
from orchestrator.students.questions import Questions
from strategies.contract import Head

CPU = torch.device("cpu")
CONTEXT, GLOBAL_BATCH, SAMPLES = 8, 4, 13
COLLATE = partial(collate, context=CONTEXT)


@pytest.fixture
def store() -> SampleStore:
    rng = np.random.default_rng(0)

    def sample(i: int) -> Sample:
        length = int(rng.integers(3, 7))
        learned = np.arange(length) > 0
        return Sample(f"d{i}", rng.integers(1, 50, length).astype(np.int32), learned)

    return SampleStore.of([sample(i) for i in range(SAMPLES)], "v1")


def _questions(client: FakeClient, roles: tuple[str, ...] = ("teacher",)) -> Questions:
    port: Any = client
    head = Head(torch.zeros(50, 2))
    return Questions(
        SignalSource(port, None, "run/0", "run", {}, 1 << 20, 8),
        {role: HiddenAsk("float32") for role in roles},
        {role: head for role in roles},
        replicas=1,
    )


def _feed(
    store: SampleStore,
    questions: Questions | None,
    *,
    start: int = 0,
    end: int = 6,
    rank: int = 0,
    world: int = 1,
    micro_batch: int = 1,
    ledger: Ledger | None = None,
) -> Feed:
    order = Order(store, CONTEXT, GLOBAL_BATCH, seed=0, packing=False)
    ledger = ledger or Ledger()
    return Feed(
        store, order, COLLATE, micro_batch, rank, world, start, end, CPU, questions, ledger
    )  # fmt: skip


def _ids(micro: Micro) -> torch.Tensor:
    return micro.batch.inputs["input_ids"]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 40])
def test_answers_come_in_order_and_belong_to_their_batch(store: SampleStore, window: int) -> None:
    client = FakeClient(window)
    feed = _feed(store, _questions(client))
    for step in range(6):
        micros = feed.step(step)
        assert len(micros) == GLOBAL_BATCH
        for micro in micros:
            signal: Any = micro.signals["teacher"]
            wanted = _ids(micro)[micro.batch.mask].float()
            assert torch.equal(signal.hidden[:, 0], wanted)
    assert client.taken == client.asked
    assert not client.open


@pytest.mark.parametrize("window", [1, 3, 7])
def test_the_window_is_kept_full_and_never_overrun(store: SampleStore, window: int) -> None:
    client = FakeClient(window)
    feed = _feed(store, _questions(client))
    for step in range(5):
        feed.step(step)
        left = (6 - step - 1) * GLOBAL_BATCH
        assert len(client.open) == min(window, left)
    assert client.most_open == window


def test_a_window_below_one_step_works_even_when_others_fill_it(store: SampleStore) -> None:
    client = FakeClient(window=0)
    feed = _feed(store, _questions(client))
    assert [len(feed.step(step)) for step in range(6)] == [GLOBAL_BATCH] * 6


def test_ranks_and_micro_batches_share_a_step_without_overlap(store: SampleStore) -> None:
    whole = torch.cat(
        [m.batch.inputs["input_ids"] for m in _feed(store, None, micro_batch=4).step(0)]
    )
    halves = [
        torch.cat(
            [m.batch.inputs["input_ids"] for m in _feed(store, None, rank=rank, world=2).step(0)]
        )
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat(halves), whole)


def test_starting_later_gives_what_the_undisturbed_feed_gives(store: SampleStore) -> None:
    undisturbed, later = _feed(store, None), _feed(store, None, start=3)
    for step in range(3):
        undisturbed.step(step)
    for step in (3, 4, 5):
        pairs = zip(undisturbed.step(step), later.step(step), strict=True)
        assert all(
            torch.equal(a.batch.inputs["input_ids"], b.batch.inputs["input_ids"]) for a, b in pairs
        )


@pytest.mark.parametrize("pool", [False, True])
def test_where_nothing_is_asked_only_a_little_is_collated_ahead(
    store: SampleStore, pool: bool
) -> None:
    questions = _questions(FakeClient(9), ()) if pool else None
    feed = _feed(store, questions)
    feed.fill()
    assert len(feed._ahead) == AHEAD_WITHOUT_POOL


@pytest.mark.parametrize("roles", [("teacher",), ("teacher", "assistant")])
def test_each_epoch_counts_every_sample_once_for_each_role(
    store: SampleStore, roles: tuple[str, ...]
) -> None:
    feed = _feed(store, _questions(FakeClient(5), roles), end=8)
    for step in range(8):  # 13 samples, 4 a step: two epochs of four steps
        feed.commit(step, feed.step(step))
    ledger = feed.ledger
    expected = {0: SAMPLES * len(roles), 1: SAMPLES * len(roles)}
    assert ledger.asked == ledger.delivered == ledger.consumed == expected


def test_what_is_asked_ahead_is_not_yet_delivered_nor_consumed(store: SampleStore) -> None:
    feed = _feed(store, _questions(FakeClient(6)))
    micros = feed.step(0)
    assert feed.ledger.consumed == {}
    feed.commit(0, micros)
    assert feed.ledger.consumed == feed.ledger.delivered == {0: 4}
    assert sum(feed.ledger.asked.values()) == 4 + 6


def test_a_restored_ledger_forgets_what_was_not_committed(store: SampleStore) -> None:
    feed = _feed(store, _questions(FakeClient(9)))
    for step in range(3):
        feed.commit(step, feed.step(step))
    feed.step(3)
    restored = Ledger.restored(Ledger(consumed=feed.ledger.consumed).committed())
    again = _feed(store, _questions(FakeClient(9)), start=3, end=4, ledger=restored)
    again.commit(3, again.step(3))
    assert restored.asked == restored.delivered == restored.consumed == {0: SAMPLES}


@pytest.mark.parametrize(
    ("asked", "delivered", "consumed", "expected"),
    [(13, 12, 12, None), (13, 13, 12, 13), (12, 12, 12, 13), (14, 13, 13, None)],
)
def test_books_that_do_not_balance_are_refused(
    asked: int, delivered: int, consumed: int, expected: int | None
) -> None:
    found = {"asked": asked, "delivered": delivered, "consumed": consumed}
    with pytest.raises(CountsDiffer, match="epoch 2 does not balance"):
        check(2, found, expected)


def test_balanced_books_pass() -> None:
    check(0, {"asked": 5, "delivered": 5, "consumed": 5}, 5)
    check(0, {"asked": 5, "delivered": 5, "consumed": 5}, None)
