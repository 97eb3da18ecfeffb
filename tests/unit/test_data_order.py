"""The order: pinned values, edges, refusals, fill rate. Its laws are in tests/property."""

import numpy as np
import pytest

from orchestrator.data import Order, SampleStore, held_out_rows, share
from orchestrator.data.order import permutation
from orchestrator.data.pack import fill_rate, pack
from orchestrator.data.tokenise import Sample


def store_of(lengths: list[int], version: str = "v") -> SampleStore:
    samples = [
        Sample(f"s{i}", np.arange(n, dtype=np.int32), np.arange(n) > 0)
        for i, n in enumerate(lengths)
    ]
    return SampleStore.of(samples, version)


def test_the_permutation_is_pinned() -> None:
    """A changed value here would change the course of every resumed training."""
    assert permutation(8, 0, 0, "version").tolist() == [1, 2, 0, 5, 4, 6, 3, 7]


def test_the_permutation_matches_the_published_hash() -> None:
    """SplitMix64 in Python's integers, after the reference implementation."""
    import hashlib

    bits = (1 << 64) - 1
    state = int.from_bytes(hashlib.sha256(repr((3, "x")).encode()).digest()[:8], "little")
    keys = []
    for _ in range(50):
        state = (state + 0x9E3779B97F4A7C15) & bits
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & bits
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & bits
        keys.append(z ^ (z >> 31))
    expected = sorted(range(50), key=keys.__getitem__)
    assert permutation(50, 3, "x").tolist() == expected


def test_seed_epoch_and_version_each_change_the_order() -> None:
    lengths = [8] * 100
    orders = {
        tuple(Order(store_of(lengths, version), 8, 4, seed, packing).epoch_rows(epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
        for version in ("a", "b")
        for packing in (True, False)  # makes no difference where every sample fills a row
    }
    assert len(orders) == 8


def test_best_fit_worked_by_hand() -> None:
    # 6 and 7 open rows; 3 fits 7's row exactly, 2 the row of 6, and 9 needs its own.
    assert pack([0, 1, 2, 3, 4], [6, 7, 3, 2, 9], 10) == [(0, 3), (1, 2), (4,)]
    assert fill_rate([(0, 3), (1, 2), (4,)], [6, 7, 3, 2, 9], 10) == pytest.approx(27 / 30)


def test_the_fill_rate_of_mixed_lengths_is_high() -> None:
    lengths = (permutation(2000, "lengths") % 500 + 12).tolist()
    order = Order(store_of(lengths), 512, 8, 0, True)
    assert fill_rate(order.epoch_rows(0), lengths, 512) > 0.97


def test_the_last_batch_of_an_epoch_is_filled_up_with_empty_rows() -> None:
    order = Order(store_of([8] * 5), 8, 4, 0, True)
    assert order.steps_per_epoch(0) == 2
    assert order.rows(1)[1:] == [(), (), ()]
    assert [order.locate(step) for step in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


def test_without_packing_a_row_is_one_sample() -> None:
    order = Order(store_of([2] * 7), 64, 7, 0, False)
    assert sorted(order.rows(0)) == [(i,) for i in range(7)]
    assert order.locate(10_000) == (10_000, 0)


def test_an_empty_store_or_too_long_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Order(store_of([]), 8, 1, 0, True)
    with pytest.raises(ValueError, match="9 tokens, above the context of 8"):
        Order(store_of([9]), 8, 1, 0, True)
    with pytest.raises(ValueError, match="below 0"):
        Order(store_of([8]), 8, 1, 0, True).locate(-1)


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        share([()] * 6, 0, 2, 2)
    with pytest.raises(ValueError, match="this is 2"):
        share([()] * 4, 2, 2, 2)


def test_held_out_rows_are_the_same_whatever_else_the_data_holds() -> None:
    lengths = [3, 5, 8, 2, 7, 4]
    rows = held_out_rows(store_of(lengths, "a"), 10, None, packing=True)
    assert held_out_rows(store_of(lengths, "b"), 10, None, packing=True) == rows
    assert held_out_rows(store_of(lengths, "b"), 10, 2, packing=True) == rows[:2]
    assert sorted(i for row in rows for i in row) == list(range(6))
    assert held_out_rows(store_of([]), 10, 4, packing=True) == []
