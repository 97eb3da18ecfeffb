"""Which rows a step sees: a pure function of (samples, seed, epoch, step).

Promises: each epoch holds every sample exactly once; the same step gives the same rows on any
number of ranks, any micro-batch, any machine and numpy version, and after any resume. Nothing is
drawn from a generator with state: the permutation sorts samples by a 64-bit hash.
"""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from .membership import Membership
from .pack import Row, pack
from .store import SampleStore

EPOCHS_KEPT = 2
"""Epochs whose rows stay in memory: the current one, and the next for work asked ahead."""


def permutation(size: int, *key: object) -> np.ndarray:
    """[size] int64: the indexes in the order of a hash of (key, index).

    The hash is SplitMix64 of index after index from a start that SHA-256 draws from the key.
    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    start = hashlib.sha256(repr(key).encode()).digest()[:8]
    z = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += np.frombuffer(start, "<u8").astype(np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")


class Order:
    """The sequence of global batches of a training.

    Args:
        store: its version and lengths decide the rows; no token is read.
        context: tokens in a row; None: a row is one sample, however long.
        global_batch: rows of a step over all ranks.
        seed: of the job.
        packing: several samples may share a row.
        membership: which samples an epoch holds; None: each holds all.
    """

    def __init__(
        self,
        store: SampleStore,
        context: int | None,
        global_batch: int,
        seed: int,
        packing: bool,
        membership: Membership | None = None,
    ) -> None:
        if not len(store):
            raise ValueError("an order needs at least one sample; the store is empty")
        if context is not None and store.lengths.max() > context:
            raise ValueError(
                f"a sample has {store.lengths.max()} tokens, above the context of {context}; "
                "prepare the data with this context"
            )
        self._lengths, self._version = store.lengths, store.version
        self._context, self._global_batch = context, global_batch
        self._seed, self._packing = seed, packing
        self._membership = Membership(len(store)) if membership is None else membership
        self._epochs: OrderedDict[int, list[Row]] = OrderedDict()
        self._ends: list[int] = []  # the step after each epoch's last, as far as counted

    def epoch_rows(self, epoch: int) -> list[Row]:
        """All rows of an epoch, without filling up."""
        if epoch not in self._epochs:
            members = self._membership.members(epoch)
            order = permutation(len(self._lengths), self._seed, epoch, self._version)
            if len(members) < len(order):
                order = order[np.isin(order, members)]
            order = order.tolist()
            self._epochs[epoch] = _rows(order, self._lengths, self._context, self._packing)
            if len(self._epochs) > EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def steps_per_epoch(self, epoch: int) -> int:
        """Steps of an epoch; packing may make epochs differ by a few."""
        self._count(lambda: len(self._ends) > epoch)
        return self._ends[epoch] - (self._ends[epoch - 1] if epoch else 0)

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, step in the epoch) of a step counted from 0 over all epochs."""
        if step < 0:
            raise ValueError(f"step {step} is below 0")
        self._count(lambda: bool(self._ends) and self._ends[-1] > step)
        epoch = bisect_right(self._ends, step)
        return epoch, step - (self._ends[epoch - 1] if epoch else 0)

    def knows(self, step: int) -> bool:
        """Whether what the step sees is decided."""
        decided = self._membership.decided
        if decided is None:
            return True
        self._count(lambda: len(self._ends) >= decided)
        return step < self._ends[decided - 1]

    def samples_of_epoch(self, epoch: int) -> int:
        """Samples that an epoch holds."""
        return self._membership.size(epoch)

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last of its epoch."""
        epoch, within = self.locate(step)
        return within + 1 == self.steps_per_epoch(epoch)

    def rows(self, step: int) -> list[Row]:
        """The `global_batch` rows of a step; an epoch's last ones may be empty."""
        epoch, within = self.locate(step)
        start = within * self._global_batch
        rows = self.epoch_rows(epoch)[start : start + self._global_batch]
        return rows + [()] * (self._global_batch - len(rows))

    def _count(self, enough: Callable[[], bool]) -> None:
        while not enough():
            epoch = len(self._ends)
            packed = self._packing
            rows = len(self.epoch_rows(epoch)) if packed else self._membership.size(epoch)
            steps = -(-rows // self._global_batch)
            self._ends.append(steps + (self._ends[-1] if self._ends else 0))


def share(rows: Sequence[Row], rank: int, world: int, micro_batch: int) -> list[list[Row]]:
    """A rank's rows of a global batch: one contiguous block, cut into micro-batches.

    Args:
        rows: a multiple of world * micro_batch; every rank gets the same number.
    """
    if len(rows) % (world * micro_batch) or not 0 <= rank < world:
        raise ValueError(
            f"{len(rows)} rows do not divide over {world} ranks (this is {rank}) in micro-batches "
            f"of {micro_batch}; the number must be a multiple of {world * micro_batch}"
        )
    block = len(rows) // world
    own = list(rows[rank * block : (rank + 1) * block])
    return [own[start : start + micro_batch] for start in range(0, block, micro_batch)]


def held_out_rows(
    store: SampleStore, context: int | None, limit: int | None, *, packing: bool
) -> list[Row]:
    """Rows for evaluation, the same for every job over the same held-out samples.

    Samples are permuted, so that the first rows are a fair sample of all documents.

    Args:
        context: as in `Order`.
        limit: at most this many rows; None: all.
        packing: several samples may share a row.
    """
    order = permutation(len(store), "held out").tolist()
    return _rows(order, store.lengths, context, packing)[:limit]


def _rows(order: list[int], lengths: np.ndarray, context: int | None, packing: bool) -> list[Row]:
    if packing:
        if context is None:
            raise ValueError("rows without a context cannot be packed; set packing to False")
        return pack(order, lengths, context)
    return [(sample,) for sample in order]
