"""Safaryan et al., arXiv:2305.17581: distillation subtracts a share of the role's own gradient."""

import functools

import pytest
import torch
from tiny_objective import Scene, objective_of, result, scene

from strategies.contract import Batch, DenseSignal, Outputs
from strategies.progress import Progress


def _scene_of_linear_models() -> tuple[Scene, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, and a student and a role that are linear up to the softmax, in float64."""
    base = scene(5)
    make = torch.Generator().manual_seed(6)
    inputs = torch.randn(len(base.labels), 5, generator=make, dtype=torch.float64)
    student, role = (torch.randn(7, 5, generator=make, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    roles = {**base.roles, "teacher": inputs @ role.t()}
    return Scene(inputs @ student.t(), roles, base.batch), inputs, student, role


def _gradient_of_labels(inputs: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor):
    weight = weight.detach().clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(inputs @ weight.t(), labels)
    return torch.autograd.grad(loss, weight)[0]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_gradient_is_that_of_the_labels_less_a_share_of_the_roles(share: float) -> None:
    seen, inputs, student, role = _scene_of_linear_models()
    objective = objective_of(kind="partial_variance", role_share=share)
    signals, numbers = seen.signals(), objective.numbers(Progress(0, 1), objective.start())
    scales = {
        name: numbers[f"{name}.weight"] / float(count)
        for name, count in objective.counts(seen.batch, signals).items()
    }
    outputs = Outputs(logits=seen.hidden)
    loss, _ = objective.loss(outputs, seen.batch, signals, numbers, scales)
    (got,) = torch.autograd.grad(loss, student)
    of_student = _gradient_of_labels(inputs, student, seen.labels)
    of_role = _gradient_of_labels(inputs, role, seen.labels)
    assert (got - (of_student - share * of_role)).abs().max() < 1e-12


def test_the_share_may_move() -> None:
    falling = {"kind": "linear", "start": 0.8, "end": 0.2}
    seen, objective = scene(1), objective_of(kind="partial_variance", role_share=falling)
    for step, share in ((0, 0.8), (5, 0.5), (10, 0.2)):
        moving = result(objective, seen, at=Progress(step, 10))
        fixed = result(objective_of(kind="partial_variance", role_share=share), seen)
        torch.testing.assert_close(moving[0], fixed[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moving[1], fixed[1], rtol=1e-12, atol=1e-12)


# --- what it does to the noise of stochastic gradients: linear regression ------------------------

SAMPLES, WIDTH, RUNS, STEPS, RATE, NOISE = 500, 20, 200, 300, 0.01, 1.17


@functools.cache
def _error_at_rest(gap: float, share: float) -> float:
    """Mean squared distance to the optimum that SGD ends with.

    The labels and what the role says of an input are two roles whose only logit is a number. All
    runs begin at the optimum and are the positions of one batch.

    Args:
        gap: loss of the role above the optimum's.
        share: of the role in what is learned; 0 is plain SGD.
    """
    make = torch.Generator().manual_seed(0)
    double = {"generator": make, "dtype": torch.float64}
    inputs = torch.randn(SAMPLES, WIDTH, **double)  # type: ignore[arg-type]
    labels = inputs.sum(1) + NOISE * torch.randn(SAMPLES, **double)  # type: ignore[arg-type]
    best = torch.linalg.lstsq(inputs, labels.unsqueeze(1)).solution.squeeze(1)
    away = torch.randn(WIDTH, **double)  # type: ignore[arg-type]
    away *= (2 * gap / (inputs @ away).square().mean()).sqrt()
    targets = torch.zeros(RUNS, 1, dtype=torch.int64)
    batch = Batch({}, targets, torch.arange(RUNS).unsqueeze(1))
    terms = [
        {"kind": "logits_distance", "role": role, "name": role, "weight": weight / 2}
        for role, weight in (("labels", 1 - share), ("teacher", share))
    ]
    objective = objective_of(*terms)
    numbers = objective.numbers(Progress(0, 1), objective.start())
    scales = {name: numbers[f"{name}.weight"] for name in ("labels", "teacher")}
    students, total = best.repeat(RUNS, 1), 0.0
    for step in range(STEPS):
        rows = torch.randint(SAMPLES, (RUNS,), generator=make)
        seen = inputs[rows]
        said = {"labels": labels[rows], "teacher": seen @ (best + away)}
        signals = {role: DenseSignal(value.unsqueeze(1)) for role, value in said.items()}
        logits = (students * seen).sum(1, keepdim=True).requires_grad_()
        loss, _ = objective.loss(Outputs(logits=logits), batch, signals, numbers, scales)
        (gradient,) = torch.autograd.grad(loss, logits)
        students = students - RATE * gradient * seen
        if step >= STEPS // 2:
            total += float((students - best).square().sum(1).mean())
    return total


def _over_plain(gap: float, share: float) -> float:
    return _error_at_rest(gap, share) / _error_at_rest(0.0, 0.0)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8, 0.9, 1.0])
def test_an_optimal_role_leaves_the_square_of_what_is_not_its_share(share: float) -> None:
    assert _over_plain(0.0, share) == pytest.approx((1 - share) ** 2, rel=1e-6, abs=1e-12)


def test_a_good_role_helps_most_near_its_lam0_and_a_mediocre_or_bad_one_soon_hurts() -> None:
    shares = (0.2, 0.4, 0.6, 0.8, 1.0)
    good, mediocre, bad = (
        [_over_plain(gap, share) for share in shares] for gap in (0.02, 0.43, 13.0)
    )
    assert min(good) == good[shares.index(0.8)] == pytest.approx(0.2, abs=0.02)
    assert mediocre == sorted(mediocre) and mediocre[0] == pytest.approx(0.86, abs=0.02)
    assert mediocre[1] > 1 and mediocre[-1] > 4
    assert all(each > 4 for each in bad)
