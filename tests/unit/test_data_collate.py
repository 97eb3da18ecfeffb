"""Rows as arrays: one case worked by hand, and borders that transformers can see."""

import numpy as np
import pytest

from orchestrator.data import SampleStore, collate
from orchestrator.data.tokenise import Sample


def store_of(*samples: tuple[list[int], list[int]]) -> SampleStore:
    return SampleStore.of(
        Sample(f"s{i}", np.array(tokens, np.int32), np.array(mask, bool))
        for i, (tokens, mask) in enumerate(samples)
    )


def test_a_packed_row_worked_by_hand() -> None:
    store = store_of(([11, 12, 13], [0, 1, 1]), ([21, 22, 23, 24], [0, 0, 1, 0]))
    batch = collate(store, [(1, 0), ()], 9)
    assert batch.inputs["input_ids"].tolist() == [[21, 22, 23, 24, 11, 12, 13, 0, 0], [0] * 9]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1], list(range(9))]
    i = -100
    assert batch.targets.tolist() == [[i, 23, i, i, 12, 13, i, i, i], [i] * 9]
    assert batch.sample_index.tolist() == [[1, 1, 1, 1, 0, 0, 0, -1, -1], [-1] * 9]
    arrays = (*batch.inputs.values(), batch.targets, batch.sample_index)
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}


def test_ids_and_masks_come_back_from_a_store() -> None:
    store = store_of(([1, 2], [0, 1]), ([3], [0]))
    assert [store.id(0), store.id(1)] == ["s0", "s1"]
    assert store.lengths.tolist() == [2, 1]
    assert store.loss_mask(0).dtype == bool
    assert len(SampleStore.of([])) == 0


def test_a_row_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 4 tokens"):
        collate(store_of(([1, 2, 3], [0, 1, 1]), ([4, 5], [0, 1])), [(0, 1)], 4)
