"""A small student, its roles and a batch of rows, for tests of whole objectives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from strategies.contract import (
    IGNORED,
    Batch,
    DenseSignal,
    Head,
    HiddenSignal,
    LogitSignal,
    Outputs,
)
from strategies.objective import Objective, build_objective
from strategies.progress import Progress
from strategies.specs import ObjectiveSpec

ROLES = ("teacher", "second_teacher", "assistant", "teacher_base", "student_base")


@dataclass(frozen=True)
class Scene:
    """Student logits, every role's logits and labels of a batch of rows."""

    hidden: Tensor  # [N, V]: the logits themselves; the head is the identity
    roles: Mapping[str, Tensor]  # by role [N, V]
    batch: Batch

    @property
    def labels(self) -> Tensor:
        """[N]."""
        return self.batch.kept_targets

    @property
    def rows(self) -> list[int]:
        """Of each position."""
        return self.batch.mask.nonzero()[:, 0].tolist()

    def signals(self, hidden: bool = False) -> dict[str, LogitSignal]:
        """What the roles send: logits, or hidden states behind an identity."""
        if not hidden:
            return {name: DenseSignal(logits) for name, logits in self.roles.items()}
        return {
            name: HiddenSignal(logits, Head(torch.eye(logits.shape[1], dtype=logits.dtype)))
            for name, logits in self.roles.items()
        }


def scene(
    seed: int = 0,
    rows: int = 4,
    length: int = 3,
    entries: int = 7,
    dtype: torch.dtype = torch.float64,
    scale: float = 2.0,
    right: float = 0.5,
) -> Scene:
    """A random scene.

    Args:
        seed: of everything.
        rows: of the micro-batch.
        length: positions of a row, of which the first of each odd row bears no loss.
        entries: V.
        dtype: of logits.
        scale: of logits.
        right: share of the positions whose label is the teacher's first choice.
    """
    make = torch.Generator().manual_seed(seed)
    targets = torch.randint(entries, (rows, length), generator=make)
    targets[1::2, 0] = IGNORED
    count = int((targets != IGNORED).sum())

    def logits() -> Tensor:
        return (scale * torch.randn(count, entries, generator=make, dtype=torch.float64)).to(dtype)

    roles = {name: logits() for name in ROLES}
    chosen = torch.rand(count, generator=make) < right
    kept = targets[targets != IGNORED]
    targets[targets != IGNORED] = torch.where(chosen, roles["teacher"].argmax(1), kept)
    index = torch.arange(rows).unsqueeze(1).expand(rows, length)
    positions = torch.arange(length).expand(rows, length)
    batch = Batch({"position_ids": positions}, targets, index)
    return Scene(logits().requires_grad_(), roles, batch)


def objective_of(*terms: dict[str, Any], **recipe: Any) -> Objective:
    """An objective of terms, or of one recipe by its fields."""
    given = {"recipe": recipe} if recipe else {"terms": list(terms)}
    return build_objective(ObjectiveSpec.model_validate(given))


def result(
    objective: Objective,
    seen: Scene,
    *,
    through_head: bool = False,
    hidden_roles: bool = False,
    at: Progress | None = None,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """The loss as a job has it (means weighed and added), its gradient by logits, and the means."""
    signals = seen.signals(hidden_roles)
    numbers = objective.numbers(at or Progress(0, 10), objective.start())
    counts = {name: float(n) for name, n in objective.counts(seen.batch, signals).items()}
    scales = {name: numbers[f"{name}.weight"] / max(n, 1.0) for name, n in counts.items()}
    outputs = Outputs(logits=seen.hidden)
    if through_head:
        eye = torch.eye(seen.hidden.shape[1], dtype=seen.hidden.dtype)
        outputs = Outputs(hidden=seen.hidden, head=Head(eye))
    loss, totals = objective.loss(outputs, seen.batch, signals, numbers, scales)
    (gradient,) = torch.autograd.grad(loss, seen.hidden)
    means = {name: float(total) / max(counts[name], 1.0) for name, total in totals.items()}
    return loss.detach(), gradient, means
