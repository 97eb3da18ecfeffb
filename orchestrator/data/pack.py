"""Samples -> rows: best fit with a bounded look-back.

Promises: every sample is in exactly one row, whole; no row is longer than the context; the same
lengths in the same order give the same rows. Pure.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

import numpy as np

Row = tuple[int, ...]
"""Indexes of the samples of a row; empty: a row of padding."""

OPEN_ROWS = 64
"""Rows that may still take a sample. More fill better and mix neighbours of the order more."""


def pack(order: Iterable[int], lengths: Sequence[int] | np.ndarray, context: int) -> list[Row]:
    """Put each sample, in order, into the open row it fits best; rows in order of opening.

    Args:
        order: indexes of samples.
        lengths: [S] tokens of each sample, none above the context.
    """
    sizes = np.asarray(lengths).tolist()
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for sample in order:
        size = sizes[sample]
        if size > context:
            raise ValueError(f"sample {sample} has {size} tokens, above the context of {context}")
        found = bisect_left(open_rows, (size, -1))
        if found < len(open_rows):
            room, row = open_rows.pop(found)
            rows[row].append(sample)
        else:
            room, row = context, len(rows)
            rows.append([sample])
        if room > size:
            insort(open_rows, (room - size, row))
        if len(open_rows) > OPEN_ROWS:
            open_rows.pop(0)  # the fullest has the least to hope for
    return [tuple(row) for row in rows]


def fill_rate(rows: Sequence[Row], lengths: Sequence[int] | np.ndarray, context: int) -> float:
    """Share of the rows' positions that hold tokens of samples."""
    sizes = np.asarray(lengths)
    return sum(int(sizes[list(row)].sum()) for row in rows if row) / (context * max(len(rows), 1))
