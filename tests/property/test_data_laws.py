"""Laws of packing, order and collation, over random lengths, masks and cuts."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from orchestrator.data import Order, SampleStore, collate, share
from orchestrator.data.pack import pack
from orchestrator.data.split import is_held_out
from orchestrator.data.tokenise import Sample

CONTEXT = 24
IGNORED = -100
lengths = st.lists(st.integers(1, CONTEXT), min_size=1, max_size=150)
seeds = st.integers(0, 5)


def store_of(sizes: list[int], masks: np.random.Generator | None = None) -> SampleStore:
    """Every token of every sample is different: `1000 * sample + position`."""
    samples = []
    for index, size in enumerate(sizes):
        mask = np.ones(size, bool) if masks is None else masks.random(size) < 0.5
        mask[0] = False
        tokens = 1000 * (index + 1) + np.arange(size, dtype=np.int32)
        samples.append(Sample(f"s{index}", tokens, mask))
    return SampleStore.of(samples, "v")


@given(lengths, seeds, st.integers(0, 3), st.booleans(), st.integers(1, 8))
def test_an_epoch_holds_every_sample_once_in_rows_within_the_context(
    sizes: list[int], seed: int, epoch: int, packing: bool, batch: int
) -> None:
    order = Order(store_of(sizes), CONTEXT, batch, seed, packing)
    first = sum(order.steps_per_epoch(e) for e in range(epoch))
    steps = range(first, first + order.steps_per_epoch(epoch))
    rows = [row for step in steps for row in order.rows(step)]
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= CONTEXT for row in rows)
    assert all(len(order.rows(step)) == batch for step in steps)
    assert [order.locate(step) for step in steps] == [(epoch, i) for i in range(len(steps))]
    empty = [not row for row in rows]
    assert empty == sorted(empty) and sum(empty) < batch


@given(lengths, seeds, st.lists(st.integers(0, 40), min_size=1, max_size=12), st.booleans())
def test_any_step_asked_of_a_fresh_order_is_what_the_walk_saw(
    sizes: list[int], seed: int, asked: list[int], packing: bool
) -> None:
    walked = Order(store_of(sizes), CONTEXT, 4, seed, packing)
    seen = [walked.rows(step) for step in range(41)]
    resumed = Order(store_of(sizes), CONTEXT, 4, seed, packing)
    for step in asked:
        assert resumed.rows(step) == seen[step]


@given(lengths, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_any_number_of_ranks_and_micro_batches_sees_the_same_rows(
    sizes: list[int], world: int, micro: int, parts: int
) -> None:
    rows = Order(store_of(sizes), CONTEXT, world * micro * parts, 0, True).rows(0)
    shares = [share(rows, rank, world, micro) for rank in range(world)]
    assert [row for own in shares for part in own for row in part] == rows
    assert {len(own) for own in shares} == {parts}
    assert {len(part) for own in shares for part in own} == {micro}


@given(lengths)
def test_packing_needs_fewer_than_twice_the_rows_that_tokens_alone_would(sizes: list[int]) -> None:
    rows = pack(range(len(sizes)), sizes, CONTEXT)
    assert len(rows) <= 2 * -(-sum(sizes) // CONTEXT) + 1


@given(lengths, st.integers(0, 1000))
@settings(max_examples=50)
def test_targets_equal_those_of_a_plain_loop(sizes: list[int], seed: int) -> None:
    store = store_of(sizes, np.random.default_rng(seed))
    rows = [*Order(store, CONTEXT, 1, seed, True).epoch_rows(0), ()]
    batch = collate(store, rows, CONTEXT)
    for r, row in enumerate(rows):
        flat = [(i, p) for i in row for p in range(sizes[i])]
        for t in range(CONTEXT):
            if t >= len(flat):
                got = batch.inputs["input_ids"][r, t], batch.targets[r, t], batch.sample_index[r, t]
                assert got == (0, IGNORED, -1)
                assert batch.inputs["position_ids"][r, t] == t - len(flat)
                continue
            i, p = flat[t]
            learned = p + 1 < sizes[i] and store.loss_mask(i)[p + 1]
            assert batch.inputs["input_ids"][r, t] == store.tokens(i)[p]
            assert batch.inputs["position_ids"][r, t] == p
            assert batch.sample_index[r, t] == i
            assert batch.targets[r, t] == (store.tokens(i)[p + 1] if learned else IGNORED)


@given(lengths, st.integers(0, 1000))
@settings(max_examples=50)
def test_every_learned_token_is_a_target_exactly_once(sizes: list[int], seed: int) -> None:
    """Tokens are planted so that each says which sample and position it came from."""
    store = store_of(sizes, np.random.default_rng(seed))
    batch = collate(store, Order(store, CONTEXT, 1, seed, True).epoch_rows(0), CONTEXT)
    kept = batch.targets != IGNORED
    planted = [store.tokens(i)[store.loss_mask(i)].tolist() for i in range(len(store))]
    assert sorted(batch.targets[kept].tolist()) == sorted(
        token for tokens in planted for token in tokens
    )
    assert (batch.targets[kept] // 1000 - 1 == batch.sample_index[kept]).all()
    assert (batch.targets[kept] == batch.inputs["input_ids"][kept] + 1).all()


@given(lengths)
@settings(max_examples=50)
def test_positions_show_every_border_between_samples_and_padding(sizes: list[int]) -> None:
    """transformers starts a new segment where a position is not one more than the last."""
    store = store_of(sizes)
    batch = collate(store, Order(store, CONTEXT, 1, 0, True).epoch_rows(0), CONTEXT)
    seen = np.diff(batch.inputs["position_ids"], axis=1) != 1
    assert (seen == (np.diff(batch.sample_index, axis=1) != 0)).all()


@given(st.text(max_size=20), st.floats(0, 0.99), st.floats(0, 0.99))
def test_raising_the_held_out_share_only_adds_documents(name: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert is_held_out(name, high) or not is_held_out(name, low)
