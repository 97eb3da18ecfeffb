"""Measures of all positions of a batch in one pass of its own, and what they decide. No gradients.

A measure must be known before the loss where a count, a temperature or a comparison of rows depends
on it. [N, V] is never stored. Measures of a role alone see all its entries, so that they are the
same whether a student is at hand or not; the others see the student's.

N positions, V entries.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .contract import Batch, HiddenSignal, LogitSignal, Outputs
from .heads import Workspace, blocks, chunks, compute_dtype
from .measures import measured, needs_role, needs_student
from .specs import Measure, TemperatureBySpec, WeighBySpec
from .student import StudentLogits
from .teachers import DenseReader, dense_width, read
from .view import View, share_of

Wanted = tuple[Measure, str | None]
"""A measure and the role it looks at; None where it looks at none."""


def wanted(measure: Measure, role: str) -> Wanted:
    """The measure of a term that learns from `role`."""
    return measure, role if needs_role(measure) else None


@torch.no_grad()
def measure(
    asked: Sequence[Wanted],
    labels: Tensor,
    signals: Mapping[str, LogitSignal],
    outputs: Outputs | None = None,
) -> dict[Wanted, Tensor]:
    """Values of every position.

    Args:
        asked: which.
        labels: [N] int64.
        signals: of the roles that are looked at; with logits of every entry (`hidden`, `full`).
        outputs: the student's; needed where a measure looks at it.

    Returns:
        By measure [N] float32 (float64 for float64 outputs).

    Raises:
        ValueError: a role's signal does not have every entry.
    """
    distinct = list(dict.fromkeys(asked))
    found: dict[Wanted, Tensor] = {}
    for role in dict.fromkeys(role for name, role in distinct if not needs_student(name)):
        assert role is not None  # what needs no student looks at a role
        mine = [one for one in distinct if one[1] == role and not needs_student(one[0])]
        found |= _pass(mine, labels, {role: signals[role]}, None, dense_width(signals[role], role))
    rest = [one for one in distinct if needs_student(one[0])]
    if rest:
        if outputs is None:
            raise ValueError(f"{rest[0][0]} looks at the student, whose outputs are not there yet")
        student = StudentLogits(outputs)
        theirs = {role: signals[role] for _, role in rest if role is not None}
        found |= _pass(rest, labels, theirs, student, student.width)
    return found


def _pass(
    asked: Sequence[Wanted],
    labels: Tensor,
    signals: Mapping[str, LogitSignal],
    student: StudentLogits | None,
    width: int,
) -> dict[Wanted, Tensor]:
    tensors = [s.hidden if isinstance(s, HiddenSignal) else s.logits for s in signals.values()]  # type: ignore[union-attr]
    dtype = compute_dtype(*tensors) if student is None else student.dtype
    readers: dict[str, DenseReader] = {}
    for role, signal in signals.items():
        dense_width(signal, role)
        reader = read(signal, width, dtype)
        assert isinstance(reader, DenseReader)
        readers[role] = reader
    count, device = labels.shape[0], labels.device
    values = {one: torch.empty(count, dtype=dtype, device=device) for one in asked}
    work = Workspace(dtype, device)
    for rows in chunks(count, width, device):
        size = rows.stop - rows.start
        ours = work.take("student", size, width)
        if student is not None:
            student.write(rows, ours)
        theirs = {
            role: reader.logits(rows, work.take(f"role {role}", size, width))
            for role, reader in readers.items()
        }
        for block in blocks(size, width, device):
            inside = slice(rows.start + block.start, rows.start + block.stop)
            places = torch.zeros_like(labels[inside])
            of_roles = {role: logits[block] for role, logits in theirs.items()}
            view = View(labels[inside], ours[block], of_roles, {}, 1.0, places)
            for one in asked:
                values[one][inside] = measured(one[0], view, one[1])
    return values


# --- what measures decide ------------------------------------------------------------------------


def weights(spec: WeighBySpec, values: Tensor, batch: Batch) -> Tensor:
    """[N] factors of a term's positions."""
    value = values.pow(spec.power)
    if spec.group is not None and spec.mean:
        value = group_mean(value, group_of(batch, spec.group))
    elif spec.group is not None and spec.top is not None:
        value = in_top(value, group_of(batch, spec.group), spec.top)
    return 1 - value if spec.complement else value


def temperatures(spec: TemperatureBySpec, base: float, values: Tensor, batch: Batch) -> Tensor:
    """[N] temperatures: base + beta (mean of the group - own), not below the floor."""
    value = values.pow(spec.power)
    mean = group_mean(value, group_of(batch, spec.group))
    return (base + spec.beta * (mean - value)).clamp_min(spec.floor)


def group_of(batch: Batch, rows: int) -> Tensor:
    """[N] int64: the group of each position, `rows` rows of the micro-batch a group."""
    return batch.mask.nonzero()[:, 0] // rows


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """[N] the mean over each position's group."""
    if not len(values):
        return values
    groups = int(group.max()) + 1
    sums = values.new_zeros(groups).index_add_(0, group, values)
    counts = values.new_zeros(groups).index_add_(0, group, torch.ones_like(values))
    return (sums / counts.clamp_min(1.0))[group]


def in_top(values: Tensor, group: Tensor, share: float) -> Tensor:
    """[N] 1 for the ceil(share * n) largest of each group of n, 0 for the rest; ties by order."""
    keep = torch.zeros_like(values)
    for index in group.unique().tolist():
        mine = (group == index).nonzero().squeeze(1)
        order = torch.argsort(values[mine], descending=True, stable=True)
        keep[mine[order[: share_of(len(mine), share)]]] = 1.0
    return keep
