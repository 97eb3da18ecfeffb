"""Safaryan et al., arXiv:2305.17581: distillation subtracts a share of the role's own gradient."""

import pytest
import torch
from tiny_objective import Scene, objective_of, result, scene

from strategies.contract import Outputs
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
