"""Kulkarni et al., arXiv:1911.06786, and Gao et al., arXiv:1812.01819: what a stage learns from.

Jobs of stages: tests/distributed/test_stages.py and test_stage_lists.py.
"""

import copy
from dataclasses import replace

import torch
from feature_scenes import images, objective_of, result
from torch import Tensor

from strategies.contract import IGNORED

SAME = {"layers": [{"student": "a", "role": "a"}]}


def test_labels_are_nothing_to_a_stage_of_features_to_the_bit() -> None:
    seen = images(3)
    targets = seen.batch.targets
    permuted = torch.where(targets == IGNORED, targets, (targets + 3) % 7)
    assert not permuted.equal(targets)
    objective = objective_of({"kind": "hidden_states", **SAME}, ("a", "a"))
    loss, gradients, _ = result(objective, seen)
    again = result(objective, replace(seen, batch=replace(seen.batch, targets=permuted)))
    assert loss.equal(again[0]) and gradients["a"].any()
    assert all(gradient.equal(again[1][path]) for path, gradient in gradients.items())


def _trained(weight: float, steps: int) -> tuple[Tensor, Tensor]:
    """A linear map that learns a feature under Adam: as it began, and after so many steps."""
    torch.manual_seed(0)
    objective = objective_of({"kind": "hidden_states", "weight": weight, **SAME}, ("a", "a"))
    seen = images(3)
    inputs = torch.randn(len(seen.role["a"]), 6, dtype=torch.float64)
    student = torch.nn.Linear(6, 4 * 2 * 3).double()
    began = copy.deepcopy(student.weight.data)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(steps):
        ours = student(inputs).view_as(seen.role["a"])
        _, gradients, _ = result(objective, replace(seen, student={**seen.student, "a": ours}))
        optimizer.zero_grad()
        ours.backward(gradients["a"])
        optimizer.step()
    return began, student.weight.data


def test_a_weight_of_the_feature_loss_is_nothing_to_adam() -> None:
    """So stages of one term have no weight to tune; under SGD it would be ten times the rate."""
    began, one = _trained(1.0, 50)
    _, ten = _trained(10.0, 50)
    assert float((one - began).abs().mean()) > 0.1
    torch.testing.assert_close(one, ten, rtol=0, atol=1e-5)
