"""Batches with layers of student and role at hand, for tests of terms that look inside."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from feature_oracle import Feature
from torch import Tensor

from strategies.contract import IGNORED, AttentionSignal, Batch, LayersSignal, Outputs, Signals
from strategies.objective import Objective, build_objective
from strategies.pairs import Pair
from strategies.progress import Progress
from strategies.specs import ObjectiveSpec

KEYS, HEADS = 5, (2, 3)


@dataclass(frozen=True)
class Inside:
    """What student and role have inside, of one batch."""

    batch: Batch
    student: Mapping[str, Tensor]  # leaves, by path
    role: Mapping[str, Tensor]
    logits: Tensor  # [N, V] of the student, a leaf
    maps: bool

    def outputs(self) -> Outputs:
        """The student's."""
        attention = {path: x for path, x in self.student.items() if path.startswith("attention")}
        layers = {path: x for path, x in self.student.items() if path not in attention}
        return Outputs(logits=self.logits, layers=layers, attention=attention)

    def signals(self) -> Signals:
        """The role's."""
        attention = {path: x for path, x in self.role.items() if path.startswith("attention")}
        layers = {path: x for path, x in self.role.items() if path not in attention}
        return {
            "teacher.layers": LayersSignal(layers),
            "teacher.attention": AttentionSignal(attention),
        }

    def samples(self, feature: Tensor) -> Feature:
        """As the oracle wants it."""
        feature = feature.double()
        if self.maps:
            return [list(x.flatten(1).T) for x in feature]
        found: dict[int, list[Tensor]] = {}
        index = self.batch.sample_index[self.batch.mask].tolist()
        for sample, x in zip(index, feature, strict=True):
            found.setdefault(sample, []).append(x)
        return list(found.values())

    def groups(self, rows: int) -> list[int]:
        """Of each sample."""
        found: dict[int, int] = {}
        for row, position in self.batch.mask.nonzero().tolist():
            found.setdefault(int(self.batch.sample_index[row, position]), row // rows)
        return list(found.values())


def texts(seed: int = 0, dtype: torch.dtype = torch.float64, equal: bool = False) -> Inside:
    """Four rows of two samples, ragged loss masks, one row without any loss."""
    make = torch.Generator().manual_seed(seed)
    rows, length = 4, 9
    split = torch.randint(3, 7, (rows, 1), generator=make)
    place = torch.arange(length).expand(rows, length)
    second = place >= split
    targets = torch.randint(7, (rows, length), generator=make)
    targets[torch.rand(rows, length, generator=make) < 0.3] = IGNORED
    targets[:, 0], targets[:, -1] = 3, 2  # every sample bears loss somewhere
    targets[2] = IGNORED
    index = 2 * torch.arange(rows)[:, None] + second
    positions = torch.where(second, place - split, place)
    batch = Batch({"position_ids": positions}, targets, index)
    return _inside(batch, make, (), dtype, equal)


def images(seed: int = 0, dtype: torch.dtype = torch.float64, equal: bool = False) -> Inside:
    """Eight samples with maps of two by three positions, and an empty row."""
    make = torch.Generator().manual_seed(seed)
    targets = torch.randint(7, (9, 1), generator=make)
    targets[4] = IGNORED
    index = torch.where(targets == IGNORED, -1, torch.arange(9)[:, None])
    return _inside(Batch({}, targets, index), make, (2, 3), dtype, equal)


def _inside(
    batch: Batch, make: torch.Generator, places: tuple[int, ...], dtype: torch.dtype, equal: bool
) -> Inside:
    count = int(batch.mask.sum())

    def feature(channels: int) -> Tensor:
        return torch.randn(count, channels, *places, generator=make, dtype=torch.float64)

    def attention(heads: int) -> Tensor:
        scores = torch.randn(count, heads, KEYS, generator=make, dtype=torch.float64)
        scores[::2, :, KEYS - 2 :] = -torch.inf
        return scores.softmax(-1)

    student = {"a": feature(4), "b": feature(3), "attention": attention(HEADS[0])}
    role = {path: x.clone() for path, x in student.items()} if equal else {}
    wide = {"wide": feature(5), "attention_wide": attention(HEADS[1])}
    role |= {} if equal else {"a": feature(4), "b": feature(3), "attention": attention(HEADS[0])}
    logits = torch.randn(count, 7, generator=make, dtype=torch.float64)
    return Inside(
        batch,
        {path: x.to(dtype).requires_grad_() for path, x in student.items()},
        {path: x.to(dtype) for path, x in (role | wide).items()},
        logits.to(dtype).requires_grad_(),
        bool(places),
    )


def objective_of(term: dict[str, Any], *pairs: tuple[str, str]) -> Objective:
    """An objective of one term whose layers are these."""
    spec = ObjectiveSpec.model_validate({"terms": [term]})
    found = {spec.names[0]: tuple(Pair(*pair) for pair in pairs)}
    return build_objective(spec, pairs=found)


def result(objective: Objective, seen: Inside) -> tuple[Tensor, dict[str, Tensor], float]:
    """Mean, its gradient by each layer of the student, and the count."""
    outputs, signals = seen.outputs(), seen.signals()
    (name,) = [term.name for term in objective.terms]
    count = float(objective.counts(seen.batch, signals)[name])
    numbers = objective.numbers(Progress(0, 10), objective.start())
    loss, _ = objective.loss(outputs, seen.batch, signals, numbers, {name: 1 / max(count, 1.0)})
    return loss.detach(), gradients(loss, seen), count


def gradients(loss: Tensor, seen: Inside) -> dict[str, Tensor]:
    """By each layer of the student; zeros where the loss does not reach."""
    leaves = dict(seen.student)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        path: torch.zeros_like(leaf) if gradient is None else gradient
        for (path, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def without_loss(seen: Inside) -> Inside:
    """The same rows, none of which bears loss."""
    batch = replace(seen.batch, targets=torch.full_like(seen.batch.targets, IGNORED))

    def none(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {path: x.detach()[:0].requires_grad_() for path, x in tensors.items()}

    return Inside(batch, none(seen.student), none(seen.role), seen.logits[:0], seen.maps)
