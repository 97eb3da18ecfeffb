"""Recommenders by import path: matrix factorisation and LightGCN, for students and teachers.

    student: {import: "orchestrator.models.ranking:mf", task: classifier,
              arguments: {users: 943, items: 1682, width: 10}}

Both are called as `module(users=[R], items=[R, most])` and give the scores of all items, [R, V];
`items`, what each user is trained on, is for models without a vector a user. Promises: no batch
statistics and no dropout, so a user's scores depend on the user alone; the vectors are parameters
of the module itself, which ZeRO-3 gathers for its forward. Imports torch only.

Letters: R users of a batch, U users, V items, E interactions, d width.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from orchestrator.errors import SpecError
from orchestrator.interactions import Table, read_csv, table_of
from orchestrator.spec.formats import Interactions


def mf(users: int, items: int, width: int = 64, size: float = 0.1) -> "MF":
    """Matrix factorisation: the score of an item is its vector times the user's.

    Args:
        users: U.
        items: V.
        width: d.
        size: standard deviation of fresh vectors.

    Raises:
        ValueError: a number is not positive.

    Source:
        Koren, Bell, Volinsky. "Matrix Factorization Techniques for Recommender Systems." IEEE
        Computer 42(8), 2009; without biases, as arXiv:2211.14729 has it.
    """
    _check(users=users, items=items, width=width, size=size)
    return MF(users, items, width, size)


def lightgcn(
    path: str,
    format: Mapping[str, Any] | None = None,
    held_out: float = 0.05,
    width: int = 64,
    layers: int = 3,
    size: float = 0.1,
) -> "LightGCN":
    """LightGCN: vectors averaged over walks on the graph of interactions that are trained on.

    The graph becomes a buffer: it is exported, loaded and fingerprinted with the weights.

    Args:
        path: the CSV of the job's data source.
        format: that of the data source; None: all its defaults.
        held_out: `data.held_out`; with `leave_one_out` it is 0.
        width: d.
        layers: K; 0 is matrix factorisation.
        size: standard deviation of fresh vectors.

    Raises:
        ValueError: a number is out of range, or the file cannot be read as the format says.

    Source:
        He, Deng, Wang, Li, Zhang, Wang. "LightGCN: Simplifying and Powering Graph Convolution
        Network for Recommendation." arXiv:2002.02126, equations 3 and 4, with alpha = 1 / (K + 1).
    """
    _check(width=width, layers=layers + 1, size=size)
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is {held_out}; give data.held_out, from 0 to below 1")
    table = _table(path, format or {}, held_out)
    return LightGCN(table, width, layers, size)


class MF(nn.Module):
    """See `mf`."""

    def __init__(self, users: int, items: int, width: int, size: float) -> None:
        super().__init__()
        self.num_labels = items
        self.user_vectors = nn.Parameter(torch.randn(users, width) * size)
        self.item_vectors = nn.Parameter(torch.randn(items, width) * size)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """[R], [R, most] -> [R, V]."""
        return self.user_vectors[users] @ self.item_vectors.T


class LightGCN(nn.Module):
    """See `lightgcn`."""

    edges: Tensor

    def __init__(self, table: Table, width: int, layers: int, size: float) -> None:
        super().__init__()
        self.num_labels = len(table.items)
        self._layers = layers
        self.user_vectors = nn.Parameter(torch.randn(len(table.users), width) * size)
        self.item_vectors = nn.Parameter(torch.randn(len(table.items), width) * size)
        self.register_buffer("edges", torch.from_numpy(table.edges))  # [2, E]

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """[R], [R, most] -> [R, V]."""
        of_users, of_items = self.propagated()
        return of_users[users] @ of_items.T

    def propagated(self) -> tuple[Tensor, Tensor]:
        """[U, d] and [V, d]: the mean over layers, each the last one's sum over neighbours."""
        user, item = self.edges
        ours, theirs = self.user_vectors, self.item_vectors
        weight = (_degrees(user, len(ours)) * _degrees(item, len(theirs))).rsqrt()
        weight = weight.to(ours.dtype).unsqueeze(1)
        summed = [ours, theirs]
        for _ in range(self._layers):
            ours, theirs = (
                torch.zeros_like(ours).index_add(0, user, theirs[item] * weight),
                torch.zeros_like(theirs).index_add(0, item, ours[user] * weight),
            )
            summed = [summed[0] + ours, summed[1] + theirs]
        return summed[0] / (self._layers + 1), summed[1] / (self._layers + 1)


def _degrees(ends: Tensor, nodes: int) -> Tensor:
    """[E] float64: edges at the end of each edge."""
    return torch.bincount(ends, minlength=nodes)[ends].double()


def _table(path: str, format: Mapping[str, Any], held_out: float) -> Table:
    try:
        rule = Interactions.model_validate({"kind": "interactions", **format})
        share = 0.0 if rule.leave_one_out else held_out
        return table_of(read_csv(path, rule), rule, share, "path")
    except ValidationError as error:
        raise ValueError(f"format is no format of interactions ({error})") from error
    except SpecError as error:
        raise ValueError(str(error)) from error


def _check(**sizes: float) -> None:
    for name, size in sizes.items():
        if not size > 0 or math.isinf(size):
            raise ValueError(f"{name} is too small ({size:g}); give a positive number")
