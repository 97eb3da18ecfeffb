"""The elementwise part of the vocabulary pass on a GPU, as Triton kernels: the same numbers.

`compare_at` is `comparison.compare_at` for logits on a CUDA device. A row of the student's and a
role's logits is read twice (three times where a term's pull has a sum that only the data tell)
and the gradient is written once, where and in the dtype that the next matrix product wants it.
Terms that have no kernel here (`supported`) are computed eagerly, as is everything where Triton
cannot be used, of which one warning tells.

C positions of a chunk, V the student's vocabulary.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import comparison
from .comparison import Asked, Dense, Labels

SUMMED = ("reverse_kl", "jensen_shannon", "skewed_forward_kl", "skewed_reverse_kl")
"""Kinds whose pull has a sum that only a pass over the row tells."""
KINDS = ("cross_entropy", "forward_kl", *SUMMED, "total_variation")
"""In the order of the kernel's factors and values."""


def compare_at(
    logits: Tensor,
    temperature: float | Tensor,
    asked: Sequence[Asked],
    out: Tensor | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """As `comparison.compare_at`."""
    if not all(map(supported, asked)) or logits.dtype != torch.float32 or not usable():
        return comparison.compare_at(logits, temperature, asked, out)
    return compare_rows(logits, temperature, asked, out)


def supported(one: Asked) -> bool:
    """Whether the kernel knows a term's kind, over a whole vocabulary."""
    if isinstance(one.answer, Labels):
        return one.part.kind == "cross_entropy"
    holes = isinstance(one.answer, Dense) and one.answer.has_holes and one.part.needs_support
    return isinstance(one.answer, Dense) and one.part.kind in KINDS and not holes


@functools.cache
def usable() -> bool:
    """Whether Triton compiles and runs a kernel here; says so once if not."""
    try:
        row = torch.zeros(1, 8, device="cuda")
        part = comparison.Part("forward_kl", 1.0, "role")
        answer = Dense(row, False, "role")
        labels = torch.zeros(1, 1, dtype=torch.int64, device="cuda")
        compare_rows(row, 1.0, [Asked(part, 1.0, answer, labels, True)])
    except Exception as error:  # whatever a compiler raises: the eager path gives the same numbers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"the loss has no GPU kernel here ({reason}); it is computed eagerly, which gives the "
            "same numbers and is slower. Install the triton of this torch and a C compiler",
            stacklevel=2,
        )
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Launch:
    """Terms of one role, each kind at most once, by their index in what is asked."""

    role: Dense | None
    indices: dict[str, int]  # by kind


def compare_rows(
    logits: Tensor,
    temperature: float | Tensor,
    asked: Sequence[Asked],
    out: Tensor | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Run the kernel once for every role, and again for a kind that a role is asked for twice.

    Args:
        logits: [C, V] float32.
        temperature: a number, or [C, 1].
        asked: supported terms.
        out: [C, V], where one launch writes the gradient, in its dtype; several sum it up in
            float32 elsewhere. It may be `logits`.
    """
    launches = _launches(asked)
    gradient = None
    if any(one.wanted for one in asked):
        gradient = torch.empty_like(logits) if out is None or len(launches) > 1 else out
    values = torch.empty(len(asked), len(logits), dtype=torch.float32, device=logits.device)
    heat = _rows(temperature, logits)
    for number, launch in enumerate(launches):
        _run(launch, asked, logits, heat, values, gradient, number > 0)
    return list(values), gradient


def _launches(asked: Sequence[Asked]) -> list[_Launch]:
    """Labels ride along with the first role."""
    made: list[tuple[str | None, _Launch]] = []
    order = sorted(range(len(asked)), key=lambda index: isinstance(asked[index].answer, Labels))
    for index in order:
        one = asked[index]
        role = one.answer if isinstance(one.answer, Dense) else None
        name = None if role is None else role.name
        for known, launch in made:
            if one.part.kind not in launch.indices and name in (known, None):
                launch.indices[one.part.kind] = index
                break
        else:
            made.append((name, _Launch(role, {one.part.kind: index})))
    return [launch for _, launch in made]


def _run(
    launch: _Launch,
    asked: Sequence[Asked],
    logits: Tensor,
    heat: Tensor,
    values: Tensor,
    gradient: Tensor | None,
    add: bool,
) -> None:
    from .triton_rows import compare_kernel

    count = len(logits)
    first = next(iter(launch.indices.values()))
    theirs = logits if launch.role is None else launch.role.logits
    factors = torch.zeros(len(KINDS), count, dtype=torch.float32, device=logits.device)
    numbers: dict[str, Any] = {"beta": 0.5, "forward_skew": 0.1, "reverse_skew": 0.1}
    smoothing = 0.0
    for kind, index in launch.indices.items():
        one = asked[index]
        if one.wanted:
            factors[KINDS.index(kind)] = _rows(one.factor, logits)
        if kind == "jensen_shannon":
            numbers["beta"] = one.part.beta
        elif kind == "skewed_forward_kl":
            numbers["forward_skew"] = one.part.skew
        elif kind == "skewed_reverse_kl":
            numbers["reverse_skew"] = one.part.skew
        elif kind == "cross_entropy":
            smoothing = one.part.label_smoothing
    places = [launch.indices.get(kind, -1) for kind in KINDS]
    compare_kernel(
        logits, theirs, asked[first].labels, heat, factors, values, gradient, add=add,
        has_role=launch.role is not None, smoothing=smoothing, places=places, **numbers,
    )  # fmt: skip


def _rows(number: float | Tensor, like: Tensor) -> Tensor:
    """A number, or [C, 1], as contiguous [C] float32."""
    if isinstance(number, Tensor):
        return number.to(torch.float32).expand(like.shape[0], 1).reshape(-1).contiguous()
    return torch.full((like.shape[0],), number, dtype=torch.float32, device=like.device)
