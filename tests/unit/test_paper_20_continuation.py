"""Jafari et al., arXiv:2212.05998: from small logits and a margin to the labels."""

from typing import Any

import pytest
import torch
from tiny_objective import objective_of, result, scene
from torch import Tensor

from strategies.contract import Batch, DenseSignal, Outputs
from strategies.progress import Progress

DISTANCE = "logits_distance"


@pytest.mark.parametrize("step", [0, 3, 11, 12, 30])
def test_without_a_margin_and_with_a_jump_it_is_annealing(step: int) -> None:
    jump = {"kind": "step", "start": 0.0, "add": 1.0, "every": 12, "ceiling": 1.0}
    fields = {"t_max": 4, "stair": 3}
    continued = objective_of(kind="continuation_kd", label_share=jump, margin=0.0, **fields)
    annealed = objective_of(kind="annealing_kd", **fields)
    seen, at = scene(71), Progress(step, 40)
    assert torch.equal(result(continued, seen, at=at)[0], result(annealed, seen, at=at)[0])
    assert torch.equal(result(continued, seen, at=at)[1], result(annealed, seen, at=at)[1])
    labels, _, _ = result(objective_of({"kind": "cross_entropy"}), seen)
    assert torch.equal(result(annealed, seen, at=at)[0], labels) == (step >= 12)


def test_the_annealed_distance_is_the_squared_one_to_small_logits() -> None:
    seen = scene(72)
    recipe = objective_of(kind="annealing_kd", t_max=4, stair=3)
    loss, gradient, _ = result(recipe, seen, at=Progress(4, 40))
    gap = seen.hidden.detach() - 0.5 * seen.roles["teacher"]
    assert abs(float(loss - gap.square().sum(1).mean())) < 1e-12
    assert (gradient - 2 * gap / len(gap)).abs().max() < 1e-12


def test_inside_the_margin_the_gradient_is_exactly_0() -> None:
    seen = scene(73)
    gaps = (seen.hidden.detach() - seen.roles["teacher"]).square().sum(1)
    margin = float(gaps.median())
    term = {"kind": DISTANCE, "margin": margin}
    loss, gradient, _ = result(objective_of(term), seen)
    inside = gaps <= margin
    assert 0 < int(inside.sum()) < len(gaps)
    assert torch.equal(gradient[inside], torch.zeros_like(gradient[inside]))
    assert (gradient[~inside].abs().sum(1) > 0).all()
    assert abs(float(loss - (gaps - margin).clamp_min(0).mean())) < 1e-12


def test_the_margin_shrinks_with_the_logits() -> None:
    seen, scale = scene(74), 0.5
    gaps = (seen.hidden.detach() - scale * seen.roles["teacher"]).square().sum(1)
    term = {"kind": DISTANCE, "margin": 20.0, "logit_scale": scale}
    loss, _, _ = result(objective_of(term), seen)
    assert abs(float(loss - (gaps - 20.0 * scale).clamp_min(0).mean())) < 1e-12
    wider = {**term, "margin": 20.0 * 7}
    mean, _, _ = result(objective_of({**term, "over": "mean"}), seen)
    whole, _, _ = result(objective_of(wider), seen)
    assert abs(float(mean * 7 - whole)) < 1e-12


@pytest.mark.parametrize(("epochs", "t_max"), [(30, 10), (40, 20), (23, 5), (7, 7), (200, 20)])
def test_phi_never_falls_and_never_leaves_its_range_even_in_the_last_epoch(
    epochs: int, t_max: int
) -> None:
    stair = epochs // t_max
    objective = objective_of(kind="continuation_kd", t_max=t_max, stair=stair, per="epoch")
    key = f"{DISTANCE}.logit_scale"
    phi = [
        objective.numbers(Progress(10 * e, 10 * epochs, e, epochs), objective.start())[key]
        for e in range(epochs + 1)  # one more than there are
    ]
    assert phi == sorted(phi)
    assert phi[0] == pytest.approx(1 / t_max) and phi[-1] == 1.0 and max(phi) <= 1.0
    wanted = [max(1, t_max - e // stair) for e in range(epochs + 1)]
    assert phi == pytest.approx([1 - (t - 1) / t_max for t in wanted], abs=1e-12)


def test_without_a_stair_phi_rises_evenly_to_the_end() -> None:
    objective = objective_of(kind="continuation_kd", t_max=10)
    numbers = [objective.numbers(Progress(s, 20), objective.start()) for s in range(21)]
    phi = [each[f"{DISTANCE}.logit_scale"] for each in numbers]
    assert phi[0] == pytest.approx(0.1) and phi[-1] == 1.0 and phi == sorted(phi)
    psi = [each["cross_entropy.weight"] for each in numbers]
    assert psi[0] == 0.0 and psi[-1] == 1.0
    total = [a + each[f"{DISTANCE}.weight"] for a, each in zip(psi, numbers, strict=True)]
    assert total == pytest.approx([1.0] * 21)


# --- a role with noise: sin(3x) + 0.3 sin(40x) ---------------------------------------------------


def _learned(term: dict[str, Any]) -> tuple[float, float]:
    """Amplitude of the noise in what a small net has learned, and its error to the clean curve."""
    steps, x = 1000, torch.linspace(-1, 1, 256).unsqueeze(1)
    noise = torch.sin(40 * x)
    role, clean = torch.sin(3 * x) + 0.3 * noise, torch.sin(3 * x)
    batch = Batch({}, torch.zeros(256, 1, dtype=torch.int64), torch.arange(256).unsqueeze(1))
    signals, objective = {"teacher": DenseSignal(role)}, objective_of(term)
    make = torch.Generator().manual_seed(0)
    first = 10 * torch.randn(64, generator=make)
    shift = 10 * (2 * torch.rand(64, generator=make) - 1)
    weights = [first, shift, torch.randn(64, generator=make) / 8, torch.zeros(1)]
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights, lr=1e-2)

    def net() -> Tensor:
        return torch.tanh(x * weights[0] + weights[1]) @ weights[2].unsqueeze(1) + weights[3]

    for step in range(steps):
        numbers = objective.numbers(Progress(step, steps), objective.start())
        scales = {DISTANCE: 1 / 256}
        loss, _ = objective.loss(Outputs(logits=net()), batch, signals, numbers, scales)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gap = net().detach() - clean
    return float((gap * noise).sum() / noise.square().sum()), float(gap.square().mean())


def test_a_margin_halves_what_is_learned_of_the_roles_noise() -> None:
    phi = {"kind": "linear", "start": 0.1, "end": 1.0}
    annealed = {"kind": DISTANCE, "logit_scale": phi}
    amplitude, error = _learned(annealed)
    forgiven_amplitude, forgiven_error = _learned({**annealed, "margin": 0.1})
    assert 0 < forgiven_amplitude < amplitude / 2 and forgiven_error < error / 2
