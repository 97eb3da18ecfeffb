"""Rows of samples -> arrays of one micro-batch, or the samples end to end.

Promises: a sample's positions restart at 0, and its targets never look into another sample.
Padding is one further segment at the row's end, whose positions restart at 0 too: transformers
reads sample borders off the positions. Shape letters: R rows, T positions (the context).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .crossing import Samples
from .pack import Row
from .store import SampleStore

IGNORED = -100
"""Target of a position that bears no loss; `strategies.contract.IGNORED` (which loads torch)."""


@dataclass(frozen=True, slots=True)
class NumpyBatch:
    """One micro-batch, as `strategies.contract.Batch` says; whole numbers are int64."""

    inputs: Mapping[str, np.ndarray]  # keyword arguments of the model, [R, ...]
    targets: np.ndarray  # [R, T]; IGNORED where no loss is borne
    sample_index: np.ndarray  # [R, T]; index in the store, -1 in padding
    labelled: np.ndarray | None = None  # [R, T] bool; None: everywhere
    weights: np.ndarray | None = None  # [R, T] float32; None: 1 each


def collate(store: SampleStore, rows: Sequence[Row], context: int) -> NumpyBatch:
    """Lay out rows of a causal model; an empty row is all padding, tokens of id 0.

    Raises:
        ValueError: a row is longer than the context.
    """
    shape = (len(rows), context)
    input_ids = np.zeros(shape, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    sample_index = np.full(shape, -1, dtype=np.int64)
    for r, row in enumerate(rows):
        start = 0
        for sample in row:
            tokens = store.tokens(sample)
            end = start + len(tokens)
            if end > context:
                raise ValueError(f"row {r} has more than {context} tokens: {row}")
            input_ids[r, start:end] = tokens
            position_ids[r, start:end] = np.arange(len(tokens))
            learned = store.loss_mask(sample)[1:]
            targets[r, start : end - 1] = np.where(learned, tokens[1:], IGNORED)
            sample_index[r, start:end] = sample
            start = end
        position_ids[r, start:] = np.arange(context - start)
    inputs = {"input_ids": input_ids, "position_ids": position_ids}
    return NumpyBatch(inputs, targets, sample_index, weights=weights_of(store, sample_index))


def weights_of(store: SampleStore, sample_index: np.ndarray) -> np.ndarray | None:
    """[R, T] float32: what the sample of each position counts, 1 in padding; None: 1 each."""
    weights = store.weights
    if weights is None:
        return None
    return np.where(sample_index < 0, np.float32(1), weights[sample_index])


@dataclass(frozen=True, slots=True)
class Flat:
    """The samples of some rows end to end: what a role is asked, whatever row packs them.

    The wanted positions are those that bear loss, in the row-major order of `collate`.
    """

    tokens: np.ndarray  # [M] int32
    lengths: np.ndarray  # [S] int32
    wanted: np.ndarray  # [M] bool


def end_to_end(store: Samples, rows: Sequence[Row]) -> Flat:
    """Lay the rows' samples out one after the other; S may be 0."""
    samples = [sample for row in rows for sample in row]
    tokens = [store.tokens(sample) for sample in samples]
    wanted = [store.wanted(sample) for sample in samples]
    return Flat(
        np.concatenate([np.zeros(0, np.int32), *tokens]).astype(np.int32, copy=False),
        np.array([len(part) for part in tokens], np.int32),
        np.concatenate([np.zeros(0, bool), *wanted]),
    )
