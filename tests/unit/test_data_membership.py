"""Epochs that hold other samples than the one before."""

import numpy as np
import pytest

from orchestrator.data import Order, SampleStore
from orchestrator.data.membership import ChangedStore, Membership, Undecided
from orchestrator.data.tokenise import Sample


def store_of(count: int) -> SampleStore:
    words = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    mask = np.array([False, True])
    samples = [Sample(str(i), row.view(np.int32), mask) for i, row in enumerate(words)]
    return SampleStore.of(samples, "v")


def order_of(membership: Membership | None, count: int = 10) -> Order:
    return Order(store_of(count), 8, 4, 0, packing=False, membership=membership)


def test_members_keep_the_order_that_they_have_among_all() -> None:
    membership = Membership(10, lambda epoch: 10 if epoch == 0 else 4, stable=1)
    order, whole = order_of(membership), order_of(None)
    membership.decide(1, 2, np.array([1, 4, 5, 9]))
    wanted = [row for row in whole.epoch_rows(1) if row[0] in (1, 4, 5, 9)]
    assert order.epoch_rows(1) == wanted and order.epoch_rows(0) == whole.epoch_rows(0)


def test_steps_of_coming_epochs_are_known_where_their_sizes_are() -> None:
    membership = Membership(10, lambda epoch: 10 if epoch < 2 else 4, stable=2)
    order = order_of(membership)
    assert [order.steps_per_epoch(epoch) for epoch in range(3)] == [3, 3, 1]
    assert [order.knows(step) for step in range(7)] == [True] * 6 + [False]
    assert order.locate(6) == (2, 0) and order.ends_epoch(6)
    with pytest.raises(Undecided):
        order.rows(6)


def test_a_decision_opens_its_epochs() -> None:
    membership = Membership(10, lambda epoch: 10 if epoch == 0 else 4, stable=1)
    order = order_of(membership)
    assert not order.knows(3)
    membership.decide(1, 3, np.array([0, 1, 2, 3]))
    assert order.knows(3) and order.knows(4) and not order.knows(5)
    assert {row[0] for row in order.rows(4)} == {0, 1, 2, 3}
    assert order.samples_of_epoch(0) == 10 and order.samples_of_epoch(2) == 4


def test_a_blend_is_a_weighted_sum_of_two_samples_and_leaves_the_others() -> None:
    store = store_of(3)
    blended = ChangedStore.over(store, {1: (2, 0.75)}, {})
    assert blended.tokens(1).view(np.float32).tolist() == [2.5, 3.5]
    assert blended.tokens(0).tolist() == store.tokens(0).tolist()
    assert len(blended) == 3 and blended.id(2) == "2"
