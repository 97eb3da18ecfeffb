"""A few of a job's own samples, small enough for one process, in both layouts: the student's rows
and the samples end to end that a role is asked.

Both come out of the data room's own functions. Which position of which sample each signal row is
about is worked out here once more, from the store alone. Imports numpy and torch.

S samples, N loss-bearing positions in row-major order.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from orchestrator.data import Flat, Row, SampleStore, collate, end_to_end
from orchestrator.data.order import permutation
from orchestrator.data.pack import pack
from orchestrator.data.tokenise import Sample
from orchestrator.spec import JobSpec
from orchestrator.students.batches import to_device
from strategies.contract import Batch

WINDOW, ROW = 128, 256
"""Tokens of a sample, and of a row, at most: two samples share a row even if all are long."""
LEAD = 32
"""Tokens before the first learned one that a window keeps."""
SAMPLES = 64
LEAST_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Place:
    """What one signal row is about."""

    sample: int  # index in the store
    position: int  # in the sample; the token learned is the next one


@dataclass(frozen=True)
class Specimen:
    """Samples, packed as the job packs, with at most the wanted number of loss positions."""

    store: SampleStore
    rows: tuple[Row, ...]
    context: int
    places: tuple[Place, ...]  # [N]

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        """The student's rows."""
        return to_device(collate(self.store, self.rows, self.context), torch.device(device))

    def flat(self) -> Flat:
        """What a role is asked."""
        return end_to_end(self.store, self.rows)

    def unpacked(self) -> "Specimen":
        """The same positions in the same order, each sample in a row of its own."""
        return replace(self, rows=tuple((sample,) for row in self.rows for sample in row))


def specimen(job: JobSpec, train: SampleStore, positions: int) -> Specimen:
    """The first samples of the job's order, cut to windows.

    Args:
        job: says how samples are ordered and packed.
        train: its samples.
        positions: N at most; what bears loss beyond it is thinned out evenly.
    """
    chosen: list[Sample] = []
    learned = 0
    for index in permutation(len(train), job.seed, 0, train.version)[:SAMPLES].tolist():
        if learned >= positions and len(chosen) >= LEAST_SAMPLES:
            break
        chosen.append(_window(train, index))
        learned += int(chosen[-1].loss_mask.sum())
    store = SampleStore.of(_thinned(chosen, positions), train.version)
    context = min(job.data.context, ROW)
    rows = pack(range(len(store)), store.lengths, context) if job.data.packing else None
    rows = tuple(rows if rows is not None else ((i,) for i in range(len(store))))
    places = tuple(
        Place(sample, int(learned) - 1)
        for row in rows
        for sample in row
        for learned in np.flatnonzero(store.loss_mask(sample))
    )
    return Specimen(store, rows, context, places)


def _window(train: SampleStore, index: int) -> Sample:
    tokens, mask = train.tokens(index), train.loss_mask(index)
    start = max(0, int(np.flatnonzero(mask)[0]) - LEAD) if len(tokens) > WINDOW else 0
    part = slice(start, start + WINDOW)
    learned = mask[part].copy()
    learned[0] = False
    return Sample(train.id(index), tokens[part].copy(), learned)


def _thinned(samples: list[Sample], positions: int) -> list[Sample]:
    total = sum(int(sample.loss_mask.sum()) for sample in samples)
    if total <= positions:
        return samples
    kept = np.zeros(total, dtype=bool)
    kept[np.linspace(0, total - 1, positions).round().astype(int)] = True
    thinned, start = [], 0
    for sample in samples:
        mask = sample.loss_mask.copy()
        mask[mask] = kept[start : start + int(mask.sum())]
        start += int(sample.loss_mask.sum())
        thinned.append(Sample(sample.id, sample.tokens, mask))
    return thinned
