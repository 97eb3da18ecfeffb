"""Tang et al., arXiv:2002.03532: what of the role's answer does what."""

import math

import pytest
import torch
from tiny_objective import Scene, objective_of, result, scene

SHARES = (0.1, 0.5, 0.9)


def _label_gradients(seen: Scene, gradient: torch.Tensor) -> torch.Tensor:
    return gradient.gather(1, seen.labels.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("share", SHARES)
def test_the_labels_gradient_is_rescaled_by_omega(share: float) -> None:
    seen = scene(2)
    _, distilled, _ = result(
        objective_of(kind="forward_kl", label_share=1 - share, temperature=1.0), seen
    )
    _, plain, _ = result(objective_of({"kind": "cross_entropy"}), seen)
    at_label = seen.labels.unsqueeze(1)
    p = seen.roles["teacher"].softmax(1).gather(1, at_label).squeeze(1)
    q = seen.hidden.detach().softmax(1).gather(1, at_label).squeeze(1)
    omega = 1 - share * (1 - p) / (1 - q)
    ratio = _label_gradients(seen, distilled) / _label_gradients(seen, plain)
    assert (ratio - omega).abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("share", SHARES)
def test_kd_pt_keeps_the_labels_gradient_and_the_sum_of_all_others(
    share: float, temperature: float
) -> None:
    seen, numbers = scene(3), {"label_share": share, "temperature": temperature}
    _, whole, _ = result(objective_of(kind="forward_kl", **numbers), seen)
    _, kept, _ = result(objective_of(kind="kd_pt", **numbers), seen)
    of_label = _label_gradients(seen, whole)
    assert (_label_gradients(seen, kept) - of_label).abs().max() < 1e-12
    others = whole.sum(1) - of_label, kept.sum(1) - _label_gradients(seen, kept)
    assert (others[0] - others[1]).abs().max() < 1e-12
    assert (whole - kept).abs().max() > 1e-3  # the relations are gone


@pytest.mark.parametrize("share", SHARES)
def test_label_smoothing_is_distillation_from_a_uniform_role(share: float) -> None:
    seen = scene(4)
    smoothed, of_smoothing, _ = result(
        objective_of(kind="label_smoothing_kd", smoothing=share), seen
    )
    distilled, of_uniform, _ = result(
        objective_of(
            {"kind": "cross_entropy", "weight": 1 - share},
            {"kind": "forward_kl", "weight": share, "target": [{"kind": "uniform"}]},
        ),
        seen,
    )
    assert (of_smoothing - of_uniform).abs().max() < 1e-12
    assert abs(float(smoothed - distilled) - share * math.log(7)) < 1e-12


def test_keeping_all_entries_is_plain_distillation() -> None:
    seen = scene(5)
    numbers = {"label_share": 0.2, "temperature": 2.0}
    kept, _, _ = result(objective_of(kind="kd_topk", kept=1.0, **numbers), seen)
    plain, _, _ = result(objective_of(kind="forward_kl", **numbers), seen)
    assert abs(float(kept - plain)) < 1e-12


def test_similarity_of_a_role_without_a_head_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"head of role 'teacher'.*encoding hidden"):
        result(objective_of(kind="kd_sim"), scene(6))


def test_similarity_follows_the_label_alone() -> None:
    seen = scene(7)
    first, _, _ = result(objective_of(kind="kd_sim"), seen, hidden_roles=True)
    other = Scene(seen.hidden, {**seen.roles, "teacher": seen.roles["assistant"]}, seen.batch)
    again, _, _ = result(objective_of(kind="kd_sim"), other, hidden_roles=True)
    assert torch.equal(first, again)
