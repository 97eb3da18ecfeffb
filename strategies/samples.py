"""Which samples are asked about, and how a data set changes between epochs. Pure.

R rows, T positions in a row, N loss-bearing positions, S samples of the data.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .contract import IGNORED, Batch
from .measuring import group_of, in_top
from .specs.samples import CondenseSpec, HookSpec, SelectSpec
from .targets import mixed_bits, uniform

# --- a part of a batch ---------------------------------------------------------------------------


def narrowed(spec: SelectSpec, values: Tensor, batch: Batch) -> Batch:
    """`batch` with loss at the positions of chosen samples only.

    Args:
        spec: how many are chosen, and which end of the ranking.
        values: [N] of the measure.
        batch: whose rows hold whole samples.
    """
    samples = batch.sample_index[batch.mask]
    distinct, place = samples.unique(return_inverse=True)
    counts = torch.zeros(len(distinct), dtype=torch.float64).index_add_(
        0, place.cpu(), torch.ones(len(place), dtype=torch.float64)
    )
    sums = torch.zeros_like(counts).index_add_(0, place.cpu(), values.double().cpu())
    score = sums / counts
    group = torch.zeros(len(distinct), dtype=torch.int64)
    group[place.cpu()] = group_of(batch, spec.group).cpu()
    keep = in_top(score if spec.largest else -score, group, spec.share).to(torch.bool)
    chosen = batch.sample_index.unsqueeze(-1).eq(distinct[keep.to(distinct.device)]).any(-1)
    return only(batch, chosen[batch.mask])


def only(batch: Batch, kept: Tensor) -> Batch:
    """`batch` with loss at some of its N loss-bearing positions only; `kept` is [N] bool."""
    targets = batch.targets.clone()
    targets[batch.mask] = batch.kept_targets.masked_fill(~kept, IGNORED)
    return replace(batch, targets=targets)


def random_scores(batch: Batch, step: int) -> Tensor:
    """[N] float64 in [0, 1), the same for all positions of a sample: a hash of sample and step."""
    return uniform(mixed_bits(mixed_bits(batch.sample_index[batch.mask]) + step))


# --- between epochs ------------------------------------------------------------------------------


@dataclass(slots=True)
class Book:
    """Running sums by sample: one value a visit."""

    value: np.ndarray  # [S] float64
    visits: np.ndarray  # [S] int64

    @classmethod
    def of(cls, samples: int) -> "Book":
        """Nothing seen yet."""
        return cls(np.zeros(samples), np.zeros(samples, np.int64))

    def add(self, values: Tensor, batch: Batch) -> None:
        """One visit to each sample of a batch: the mean of [N] `values` over its positions."""
        samples = batch.sample_index[batch.mask].cpu().numpy()
        distinct, place = np.unique(samples, return_inverse=True)
        sums = np.bincount(place, weights=values.double().cpu().numpy(), minlength=len(distinct))
        self.value[distinct] += sums / np.bincount(place, minlength=len(distinct))
        self.visits[distinct] += 1


@dataclass(frozen=True, slots=True)
class Blend:
    """A kept sample that took a dropped one in."""

    other: int
    share: float  # of the kept one


@dataclass(frozen=True, slots=True)
class Epoch:
    """What a change may look at."""

    number: int  # epochs done
    members: np.ndarray  # [m] int64, rising: indices of the samples that are left
    samples: int  # S, of the whole data
    book: Book  # since the last change, over all ranks
    ids: Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Change:
    """What the next epochs hold."""

    members: np.ndarray  # [m] int64, rising, at least one
    blends: Mapping[int, Blend] | None = field(default_factory=dict)
    """By member; features only. None: those of before stay."""
    weights: Mapping[int, float] | None = field(default_factory=dict)
    """What members count in the mean of each term, above 0; others count 1. None: as before."""


Hook = Callable[[Epoch], Change]


def hook_of(spec: CondenseSpec | HookSpec) -> Hook:
    """The callable of a spec.

    Raises:
        ValueError: an import path that does not import.
    """
    if isinstance(spec, CondenseSpec):
        return lambda epoch: condensed(spec, epoch)
    module, _, name = spec.target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{spec.target!r} does not import ({error}); name module:function"
        ) from error
    return lambda epoch: found(epoch, **spec.arguments)


def size_after(spec: CondenseSpec, samples: int, epochs: int) -> int:
    """Samples that are left after so many epochs: max(keep S, S - stage S (1 - keep) / stages)."""
    stage = min(epochs // spec.every, spec.stages)
    left = samples - stage * samples * (1 - spec.keep) / spec.stages
    return max(1, math.ceil(left - 1e-9))  # never below the share; 700 of 1000 are not 700.0000001


def condensed(spec: CondenseSpec, epoch: Epoch) -> Change:
    """Drop the lowest scores; blend what is dropped into the lowest that stay."""
    target = size_after(spec, epoch.samples, epoch.number)
    members = epoch.members
    if target >= len(members):
        return Change(members, blends=None)  # the last stage's set is trained on to the end
    ranked = members[np.argsort(-_scores(spec, epoch), kind="stable")]
    kept, dropped = ranked[:target], ranked[target:]
    blends: dict[int, Blend] = {}
    if spec.mix is not None:
        lowest = kept[-len(dropped) :]
        for place, (mine, other) in enumerate(zip(lowest, dropped, strict=False)):
            done = place / max(1, len(lowest) - 1)
            blends[int(mine)] = Blend(int(other), 1.0 + (spec.mix - 1.0) * done)
    return Change(np.sort(kept), blends)


def _scores(spec: CondenseSpec, epoch: Epoch) -> np.ndarray:
    """[m] of the members."""
    members, book = epoch.members, epoch.book
    if spec.by == "random":
        seeded = torch.from_numpy(members) + (spec.seed << 32) + (epoch.number << 44)
        return uniform(mixed_bits(mixed_bits(seeded))).numpy()
    visits = np.maximum(book.visits[members], 1)
    cost = (visits / spec.every) ** spec.cost_power
    return book.value[members] / visits * cost
