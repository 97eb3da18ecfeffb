"""Rows of samples -> the arrays of one micro-batch, by what reads them. Numpy only."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from orchestrator.spec.data import DataSpec

from .collate import IGNORED, NumpyBatch, collate, weights_of
from .pack import Row
from .reading import Reading, inputs_of, reading_of
from .store import SampleStore

Collate = Callable[[SampleStore, Sequence[Row]], NumpyBatch]


def collation(spec: DataSpec) -> Collate:
    """How a job's rows are laid out."""
    reading = reading_of(spec)
    if reading is None:
        return partial(collate, context=spec.context)
    return partial(collate_classes, reading=reading)


def collate_classes(store: SampleStore, rows: Sequence[Row], reading: Reading) -> NumpyBatch:
    """Lay out rows of one sample each, or none, for a classifier.

    Returns:
        Inputs as `inputs_of` makes them; targets and sample index are [R, 1]. A sample without
        a label has target 0, and the batch says so.

    Raises:
        ValueError: a row has several samples.
    """
    crowded = [row for row in rows if len(row) > 1]
    if crowded:
        raise ValueError(f"a classifier's row holds one sample, and this one holds {crowded[0]}")
    nothing = np.zeros(0, np.int32)
    samples = [store.tokens(row[0]) if row else nothing for row in rows]
    targets = [[store.label(row[0]) if row else IGNORED] for row in rows]
    index = [[row[0] if row else -1] for row in rows]
    inputs = inputs_of(reading, samples, int(store.lengths[0]))
    labelled = np.array([[not row or store.labelled(row[0])] for row in rows], bool)
    shape = (len(rows), 1)
    samples_of_rows = np.array(index, np.int64).reshape(shape)
    return NumpyBatch(
        inputs,
        np.array(targets, np.int64).reshape(shape),
        samples_of_rows,
        None if labelled.all() else labelled.reshape(shape),
        weights_of(store, samples_of_rows),
    )
