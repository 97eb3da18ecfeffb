"""Users, items and scores for tests of rankers, and plain references in loops."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strategies.contract import IGNORED, Batch, DenseSignal, Outputs
from strategies.objective import Objective, build_objective
from strategies.progress import Progress
from strategies.specs import ObjectiveSpec

Histories = Sequence[Sequence[int]]


def histories(users: int, items: int, seed: int = 0, most: int = 6) -> list[list[int]]:
    """Items of each user, rising, one at least; low numbers are popular."""
    make = torch.Generator().manual_seed(seed)
    weights = 1.0 / (1 + torch.arange(items, dtype=torch.float64))
    found = []
    for _ in range(users):
        count = 1 + int(torch.randint(min(most, items), (1,), generator=make))
        found.append(sorted(torch.multinomial(weights, count, generator=make).tolist()))
    return found


def popularity(owned: Histories, items: int) -> Tensor:
    """[V] how many users have each item."""
    counts = torch.zeros(items, dtype=torch.int64)
    for own in owned:
        for item in own:
            counts[item] += 1
    return counts


def batch_of(owned: Histories, users: Iterable[int], padding: int = 0, epoch: int = 0) -> Batch:
    """Rows of users by number, and then empty ones."""
    numbers = list(users)
    rows = [list(owned[user]) for user in numbers] + [[]] * padding
    most = max([1, *map(len, rows)])
    items = torch.tensor([row + [-1] * (most - len(row)) for row in rows], dtype=torch.int64)
    bears = torch.tensor([[0]] * len(numbers) + [[IGNORED]] * padding).reshape(-1, 1)
    places = torch.tensor([*numbers, *[0] * padding], dtype=torch.int64)
    index = torch.tensor([*numbers, *[-1] * padding], dtype=torch.int64).reshape(-1, 1)
    return Batch({"users": places, "items": items.reshape(-1, most)}, bears, index, epoch)


def objective_of(counts: Tensor, *terms: dict[str, Any], **recipe: Any) -> Objective:
    """An objective over items of a popularity."""
    given = {"recipe": recipe} if recipe else {"terms": list(terms)}
    return build_objective(ObjectiveSpec.model_validate(given), popularity=counts)


def result(
    objective: Objective, scores: Tensor, batch: Batch, **roles: Tensor
) -> tuple[Tensor, Tensor, dict[str, float], dict[str, float]]:
    """Sum of the terms' totals, its gradient by scores [N, V], the totals, and the counts."""
    signals = {name: DenseSignal(logits) for name, logits in roles.items()}
    numbers = objective.numbers(Progress(0, 1), objective.start())
    counts = {k: float(v) for k, v in objective.counts(batch, signals).items()}
    ours = scores.clone().requires_grad_()
    scales = dict.fromkeys(counts, 1.0)
    loss, totals = objective.loss(Outputs(logits=ours), batch, signals, numbers, scales)
    (gradient,) = torch.autograd.grad(loss, ours)
    return loss.detach(), gradient, {k: float(v) for k, v in totals.items()}, counts


def pair_losses(scores: Tensor, pairs: Iterable[tuple[int, int, int]]) -> tuple[float, Tensor]:
    """-log sigmoid(better - worse) of (row, better, worse), and the gradient: by formulas."""
    value, gradient = 0.0, torch.zeros_like(scores)
    for row, better, worse in pairs:
        margin = float(scores[row, better]) - float(scores[row, worse])
        value += math.log1p(math.exp(-abs(margin))) + max(0.0, -margin)
        pull = 1.0 / (1.0 + math.exp(margin))
        gradient[row, better] -= pull
        gradient[row, worse] += pull
    return value, gradient


def write_csv(path: Path, rows: Iterable[Sequence[Any]], header: str = "user,item,time") -> Path:
    """A file of interactions."""
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def raw_job(path: Path, users: int, items: int, **changes: Any) -> dict[str, Any]:
    """BPR of a small factorisation; `changes` replace top-level sections."""
    format = {"kind": "interactions", "leave_one_out": True}
    return {
        "name": "ranking",
        "student": {
            "import": "orchestrator.models.ranking:mf",
            "task": "classifier",
            "arguments": {"users": users, "items": items, "width": 4},
        },
        "data": {"sources": [{"kind": "csv", "path": str(path), "format": format}]},
        "objective": {"terms": [{"kind": "bpr"}]},
        "training": {"epochs": 2, "global_batch": 8, "micro_batch": 4},
        "evaluation": {"rows": None},
        **changes,
    }
