"""Promise 3, term by term: cut into micro-batches, a step has the same value and gradient.

`test_cutting_changes_nothing` has ranks, ZeRO and the engine for a few terms; here is every kind of
term on a vocabulary, with every target, place, measure and weight, in one process.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from strategies.contract import Batch, Head, HiddenSignal, Outputs
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.specs import ObjectiveSpec

ROWS, LENGTH, WIDTH, VOCABULARY, GROUP = 8, 6, 5, 11, 2
ROLES = ("teacher", "second", "third", "fourth")
KL: dict[str, Any] = {"kind": "forward_kl", "temperature": 2.0}
TERMS: dict[str, dict[str, Any]] = {
    **{
        kind: {"kind": kind}
        for kind in (
            "cross_entropy", "forward_kl", "reverse_kl", "jensen_shannon", "skewed_forward_kl",
            "skewed_reverse_kl", "total_variation", "alpha_beta", "adaptive_kl", "decoupled",
            "universal", "logits_distance",
        )
    },
    **{
        f"target {kind}": {**KL, "target": [{"kind": kind}]}
        for kind in ("swap", "keep_label", "similarity", "uniform", "likeliest")
    },
    "target smooth_wrong": {**KL, "target": [{"kind": "smooth_wrong", "confidence": 0.9}]},
    "target rectify": {**KL, "target": [{"kind": "rectify"}]},
    "target keep_top": {**KL, "target": [{"kind": "keep_top", "share": 0.3}]},
    "target noise": {**KL, "target": [{"kind": "noise", "size": 1.0}]},
    "target delta": {**KL, "target": [
        {"kind": "delta", "teacher_base": "second", "student_base": "third", "alpha": 0.5}]},
    "target towards_student": {**KL, "target": [{"kind": "towards_student", "share": 0.3}]},
    "target mix": {**KL, "target": [
        {"kind": "mix", "roles": ["second", "fourth"], "weights": [1.0, 1.0, 1.0],
         "by": "entropy"}]},
    "where right": {**KL, "where": "role_right"},
    "where wrong": {**KL, "where": "role_wrong"},
    **{
        f"weighed by {measure}": {**KL, "weigh_by": {"measure": measure}}
        for measure in (
            "student_entropy", "student_confidence", "student_margin", "student_doubt",
            "student_loss", "role_entropy", "role_confidence", "role_right", "dissimilarity", "gap",
        )
    },
    "weighed by a mean": {
        **KL, "weigh_by": {"measure": "student_entropy", "mean": True, "group": GROUP}},
    "weighed by rank": {
        **KL, "weigh_by": {"measure": "student_entropy", "top": 0.5, "group": GROUP}},
    "tempered": {
        **KL, "temperature_by": {"measure": "dissimilarity", "beta": 3.0, "group": GROUP}},
}  # fmt: skip


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
BEARS = drawn(ROWS, LENGTH, seed=2) < torch.linspace(-1.0, 1.5, ROWS)[:, None]
HIDDEN = drawn(ROWS, LENGTH, WIDTH, seed=3)
THEIRS = {role: drawn(ROWS, LENGTH, WIDTH, seed=10 + i) for i, role in enumerate(ROLES)}
HEADS = {role: 2 * drawn(VOCABULARY, WIDTH, seed=20 + i) for i, role in enumerate(ROLES)}
WEIGHTS = drawn(ROWS, 1, seed=5).exp().expand(ROWS, LENGTH)


def of_rows(rows: slice, hidden: Tensor, head: Tensor, weighed: bool) -> tuple[Any, ...]:
    """Outputs, batch and signals of some rows."""
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)[rows]
    batch = Batch(
        {"input_ids": LABELS[rows], "position_ids": positions},
        LABELS[rows].masked_fill(~BEARS[rows], -100),
        torch.arange(ROWS)[rows, None].expand(-1, LENGTH),
        weights=WEIGHTS[rows] if weighed else None,
    )
    signals = {
        role: HiddenSignal(theirs[rows][batch.mask], Head(HEADS[role]))
        for role, theirs in THEIRS.items()
    }
    return Outputs(hidden=hidden[rows][batch.mask], head=Head(head)), batch, signals


def step(spec: ObjectiveSpec, cut: int, weighed: bool) -> tuple[float, Tensor, Tensor]:
    """Loss, and gradients by hidden states and head, of micro-batches of `cut` rows."""
    objective = build_objective(spec)
    hidden, head = HIDDEN.clone().requires_grad_(), drawn(VOCABULARY, WIDTH, seed=4)
    head.requires_grad_()
    parts = [slice(begin, begin + cut) for begin in range(0, ROWS, cut)]
    numbers = objective.numbers(Progress(3, 10), objective.start())
    counts = dict.fromkeys((term.name for term in objective.terms), 0.0)
    for part in parts:
        _, batch, signals = of_rows(part, hidden, head, weighed)
        for name, count in objective.counts(batch, signals).items():
            counts[name] += float(count)
    scales = {name: 1 / (count or 1.0) for name, count in counts.items()}
    total = 0.0
    for part in parts:
        outputs, batch, signals = of_rows(part, hidden, head, weighed)
        loss, _ = objective.loss(outputs, batch, signals, numbers, scales)
        loss.backward()
        total += float(loss.detach())
    assert hidden.grad is not None and head.grad is not None
    return total, hidden.grad, head.grad


@pytest.mark.parametrize("weighed", [False, True], ids=["plain", "weighed"])
@pytest.mark.parametrize("name", TERMS)
def test_a_step_does_not_depend_on_the_cut(name: str, weighed: bool) -> None:
    spec = ObjectiveSpec.model_validate({"terms": [TERMS[name]]})
    whole = step(spec, ROWS, weighed)
    assert whole[1].abs().max() > 1e-6 and whole[2].abs().max() > 1e-6
    for cut in (2, 4):
        found = step(spec, cut, weighed)
        assert found[0] == pytest.approx(whole[0], rel=1e-6)
        for mine, wanted in zip(found[1:], whole[1:], strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-7)


def test_a_group_that_a_cut_splits_changes_the_step() -> None:
    spec = ObjectiveSpec.model_validate({"terms": [TERMS["tempered"]]})
    assert step(spec, 1, False)[0] != pytest.approx(step(spec, ROWS, False)[0], rel=1e-4)
