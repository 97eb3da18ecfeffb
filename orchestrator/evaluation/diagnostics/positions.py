"""What single positions tell of a student beside a role: omega, and agreement on what is wrong.

C positions of a chunk, N positions, V the student's vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.contract import Batch, LogitSignal, Outputs
from strategies.heads import Workspace, chunks
from strategies.student import StudentLogits
from strategies.teachers import DenseReader, dense_width, read

from .report import OMEGA_EDGES


@dataclass(frozen=True, slots=True)
class Compared:
    """One chunk of positions; buffers, to be read before the next chunk is taken."""

    student: Tensor  # [C, V] logits
    role: Tensor  # [C, V] logits, -inf where the role lacks an entry
    labels: Tensor  # [C] int64


def compared(outputs: Outputs, batch: Batch, signal: LogitSignal) -> Iterator[Compared]:
    """Chunks of a batch's loss-bearing positions. [N, V] is never stored.

    Args:
        outputs: the student's.
        batch: gives the labels.
        signal: the role's, of every entry (`hidden`, `full`).

    Raises:
        ValueError: the signal has only some entries.
    """
    student, labels = StudentLogits(outputs), batch.kept_targets
    dense_width(signal, "compared")
    reader = read(signal, student.width, student.dtype)
    assert isinstance(reader, DenseReader)
    work = Workspace(student.dtype, labels.device)
    for rows in chunks(labels.shape[0], student.width, labels.device):
        size = rows.stop - rows.start
        yield Compared(
            student.write(rows, work.take("student", size, student.width)),
            reader.logits(rows, work.take("role", size, student.width)),
            labels[rows],
        )


def omegas(seen: Compared, lam: float) -> tuple[Tensor, Tensor]:
    """[C] omega, and [C] the role's confidence (the probability of its likeliest entry).

    omega = 1 - lam (1 - q_y) / (1 - p_y), q the role's distribution, p the student's: the label's
    logit gradient of (1 - lam) CE + lam KL over that of CE. Where both are certain of the label it
    is 1; where only the student is, -inf.

    Source:
        Tang et al. "Understanding and Improving Knowledge Distillation." arXiv:2002.03532.
    """
    q, p = _others(seen.role, seen.labels), _others(seen.student, seen.labels)
    ratio = torch.where(torch.isneginf(q), torch.zeros_like(q), (q - p).exp())
    confidence = (seen.role.amax(1) - torch.logsumexp(seen.role, 1)).exp()
    return 1 - lam * ratio, confidence


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """[C] log of 1 - the label's probability, without the loss of digits near 1."""
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return torch.logsumexp(others, 1) - torch.logsumexp(logits, 1)


def omega_summary(omega: Tensor, confidence: Tensor, lam: float) -> dict[str, object]:
    """The distribution of omega over positions.

    Args:
        omega: [N] of all ranks, in any order.
        confidence: [N] the role's.
        lam: as it was taken.

    Returns:
        `positions`, `lam`, `mean`, `negative`: share below 0; and for `all` positions and those
        that are `hard`, `middle` and `easy` (the role's confidence in its lowest, middle and
        highest third) a mapping of `mean`, `negative` and `histogram`, shares between
        `OMEGA_EDGES`, the first below them all. Thirds are cut at the values of the confidence, so
        equal ones stay together; a third without positions is left out.
    """
    ordered = confidence.sort().values
    low, high = (ordered[max(0, -(-len(ordered) * k // 3) - 1)] for k in (1, 2))
    thirds = {
        "all": torch.ones_like(confidence, dtype=torch.bool),
        "hard": confidence <= low,
        "middle": (confidence > low) & (confidence <= high),
        "easy": confidence > high,
    }
    parts = {name: _spread(omega[inside]) for name, inside in thirds.items() if inside.any()}
    return {"positions": float(len(omega)), "lam": lam, **parts}


def _spread(omega: Tensor) -> dict[str, object]:
    edges = torch.tensor(OMEGA_EDGES, dtype=omega.dtype, device=omega.device)
    places = torch.bucketize(omega, edges, right=True)
    shares = torch.bincount(places, minlength=len(OMEGA_EDGES) + 1).double() / len(omega)
    return {
        "mean": float(omega.mean()),
        "negative": float((omega < 0).double().mean()),
        "histogram": shares.tolist(),
    }


COUNTS_WITHOUT_LABELS: tuple[str, ...] = ("positions", "same")
COUNTS: tuple[str, ...] = (*COUNTS_WITHOUT_LABELS, "role_wrong", "same_role_wrong", "both_wrong")


def agreement_counts(seen: Compared) -> dict[str, float]:
    """`COUNTS` of positions, to be summed: see `agreement`."""
    ours, theirs = seen.student.argmax(1), seen.role.argmax(1)
    same, role_wrong = ours == theirs, theirs != seen.labels
    both_wrong = role_wrong & (ours != seen.labels)
    counts = torch.ones_like(same), same, role_wrong, same & role_wrong, both_wrong
    return {name: float(count.sum()) for name, count in zip(COUNTS, counts, strict=True)}


def agreement(sums: dict[str, float]) -> dict[str, float]:
    """Shares of positions at which student and role have the same likeliest entry.

    Returns:
        `agreement`: of all; `agreement_role_wrong`: of those where the role is wrong;
        `agreement_both_wrong`: of those where both are, which says whether they make the same
        mistakes. Without such positions, or without labels (`COUNTS_WITHOUT_LABELS`), a share is
        left out.

    Source:
        Ramesh, Sengupta, Chakraborty. "On the Generalization vs Fidelity Paradox in Knowledge
        Distillation." arXiv:2505.15442, agreement, here by position.
    """
    shares = {
        "agreement": ("same", "positions"),
        "agreement_role_wrong": ("same_role_wrong", "role_wrong"),
        "agreement_both_wrong": ("same_role_wrong", "both_wrong"),
    }
    return {
        "positions": sums["positions"],
        **{name: sums[a] / sums[b] for name, (a, b) in shares.items() if sums.get(b)},
    }
