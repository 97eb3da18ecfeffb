"""Ramesh et al., arXiv:2505.15442, and the divergence it compares: JSD, and noise on the role."""

import math

import pytest
import torch
from tiny_objective import Scene, objective_of, result, scene

from strategies.targets import noisy


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
def test_jsd_is_symmetric_at_a_half_and_at_most_log_2(scale: float, temperature: float) -> None:
    seen = scene(21, scale=scale)
    turned = Scene(
        seen.roles["teacher"].clone().requires_grad_(),
        {**seen.roles, "teacher": seen.hidden.detach()},
        seen.batch,
    )
    jsd = objective_of(kind="gjsd", temperature=temperature)
    one, other = result(jsd, seen)[0], result(jsd, turned)[0]
    assert abs(float(one - other)) < 1e-12
    assert 0 < float(one) <= math.log(2) * temperature**2 + 1e-12


def _noisy(size: float, **more: object) -> dict:
    return {"kind": "forward_kl", "target": [{"kind": "noise", "size": size, **more}]}


def test_noise_of_size_0_is_no_noise() -> None:
    seen = scene(22)
    plain, noisy = (
        result(objective_of(term), seen) for term in ({"kind": "forward_kl"}, _noisy(0.0))
    )
    assert torch.equal(plain[0], noisy[0]) and torch.equal(plain[1], noisy[1])


def test_noise_comes_back_alike_for_a_position_and_differs_by_seed_and_place() -> None:
    seen = scene(23)
    first = result(objective_of(_noisy(1.0)), seen)
    assert torch.equal(first[1], result(objective_of(_noisy(1.0)), seen)[1])
    assert not torch.equal(first[1], result(objective_of(_noisy(1.0, seed=1)), seen)[1])


@pytest.mark.parametrize("seed", [0, 13, 2**40, 2**63 - 1])
def test_noise_is_standard_normal_times_the_logits_own_deviation(seed: int) -> None:
    make = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(400, 50, generator=make, dtype=torch.float64) + 7
    places = torch.arange(400)
    change = noisy(logits, places, 2.0, True, seed) - logits
    deviations = change / logits.std(1, correction=0, keepdim=True)
    assert abs(float(deviations.mean())) < 0.05
    assert abs(float(deviations.std()) - 2.0) < 0.05
    assert abs(float((deviations.abs() < 2).double().mean()) - 0.683) < 0.02
    neighbours = (
        (deviations[:-1] * deviations[1:]).mean() / 4,
        (deviations[:, :-1] * deviations[:, 1:]).mean() / 4,
    )
    assert max(abs(float(each)) for each in neighbours) < 0.03
    absolute = noisy(logits, places, 2.0, False, seed) - logits
    assert abs(float(absolute.std()) - 2.0) < 0.05
    assert torch.equal(noisy(logits[7:9], places[7:9], 2.0, True, seed), (logits + change)[7:9])


def test_noise_leaves_what_the_role_lacks_lacking() -> None:
    seen = scene(24)
    seen.roles["teacher"][:, 6] = -torch.inf
    seen.batch.targets[seen.batch.targets == 6] = 5
    loss, gradient, _ = result(objective_of(_noisy(1.0)), seen)
    assert loss.isfinite() and gradient.isfinite().all()
