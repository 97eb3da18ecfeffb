"""Cao et al., arXiv:2509.14526: the change of fine-tuning, carried over to the student."""

import pytest
import torch
from tiny_objective import Scene, objective_of, result, scene

from strategies.targets import Target
from strategies.view import View


def _target(seen: Scene, alpha: float) -> torch.Tensor:
    recipe = objective_of(kind="delta_kd", alpha=alpha)
    spec = next(term.spec for term in recipe.vocabulary if term.asks())
    places = torch.zeros_like(seen.labels)
    view = View(seen.labels, seen.hidden.detach(), seen.roles, {}, 1.0, places)
    return Target(tuple(spec.target), (("0.alpha", alpha),))(view, "teacher")  # type: ignore[union-attr]


def _log(logits: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_alpha_0_is_the_role_itself(temperature: float) -> None:
    seen = scene(31)
    numbers = {"temperature": temperature, "label_share": 0.3}
    delta = result(objective_of(kind="delta_kd", alpha=0.0, **numbers), seen)
    plain = result(objective_of(kind="forward_kl", **numbers), seen)
    assert abs(float(delta[0] - plain[0])) < 1e-12
    assert (delta[1] - plain[1]).abs().max() < 1e-12


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-3)])
def test_alpha_1_makes_the_parallelogram_up_to_a_constant(dtype: torch.dtype, limit: float) -> None:
    seen = scene(32, dtype=dtype)
    moved = _log(_target(seen, 1.0)) - _log(seen.roles["student_base"])
    wanted = _log(seen.roles["teacher"]) - _log(seen.roles["teacher_base"])
    apart = moved - wanted
    assert (apart - apart.mean(1, keepdim=True)).abs().max() < limit


def test_equal_bases_make_alpha_irrelevant() -> None:
    seen = scene(33)
    same = Scene(
        seen.hidden, {**seen.roles, "student_base": seen.roles["teacher_base"]}, seen.batch
    )
    losses = [float(result(objective_of(kind="delta_kd", alpha=a), same)[0]) for a in (0, 0.3, 1)]
    assert max(losses) - min(losses) < 1e-12


def test_a_role_that_did_not_change_gives_the_students_base() -> None:
    seen = scene(34)
    same = Scene(seen.hidden, {**seen.roles, "teacher_base": seen.roles["teacher"]}, seen.batch)
    target = _target(same, 1.0).softmax(1)
    assert (target - seen.roles["student_base"].softmax(1)).abs().max() < 1e-12
