"""Wen et al., arXiv:1911.07471: wrong targets are mended, temperatures follow the student."""

import pytest
import torch
from tiny_objective import Scene, objective_of, result, scene

from strategies.contract import Outputs
from strategies.measuring import measure, temperatures
from strategies.specs import TemperatureBySpec
from strategies.targets import smooth_wrong, swap

CASES = [("dtd_flsw", "dissimilarity"), ("dtd_cwsm", "student_doubt")]


def _drawn(count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 9, generator=make, dtype=torch.float64)
    return logits, torch.randint(9, (count,), generator=make)


def test_shifting_keeps_the_sorted_probabilities_and_makes_the_label_first() -> None:
    logits, labels = _drawn()
    shifted = swap(logits, labels)
    assert torch.equal(shifted.sort(1).values, logits.sort(1).values)
    assert torch.equal(shifted.argmax(1), labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_shifting_logits_is_shifting_probabilities(temperature: float) -> None:
    logits, labels = _drawn()
    by_logits = (swap(logits, labels) / temperature).softmax(1)
    by_probabilities = swap((logits / temperature).softmax(1), labels)
    assert (by_logits - by_probabilities).abs().max() < 1e-15


def test_a_tie_between_label_and_another_is_no_error_of_the_role() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [3.0, 1.0, 3.0]])
    labels = torch.tensor([2, 2])
    assert torch.equal(swap(logits, labels), logits)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_smoothing_touches_only_what_is_wrong_and_holds_at_every_temperature(
    temperature: float,
) -> None:
    logits, labels = _drawn()
    mended = smooth_wrong(logits, labels, 0.9, temperature)
    right = logits.argmax(1) == labels
    assert torch.equal(mended[right], logits[right])
    found = (mended[~right] / temperature).softmax(1)
    of_label = found.gather(1, labels[~right].unsqueeze(1))
    assert (of_label - 0.9).abs().max() < 1e-12
    assert (found.sort(1).values[:, :-1] - 0.1 / 8).abs().max() < 1e-12


def _of_positions(
    seen: Scene, measured: str, **numbers: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of the measure, and temperatures."""
    role = "teacher" if measured == "dissimilarity" else None
    known = measure([(measured, role)], seen.labels, seen.signals(), Outputs(logits=seen.hidden))  # type: ignore[list-item]
    value = known[(measured, role)]  # type: ignore[index]
    fields = {"beta": 1.0, "floor": 1e-3, "group": 4, **numbers}
    by = TemperatureBySpec.model_validate({"measure": measured, **fields})
    return value, temperatures(by, 10.0, value, seen.batch)


@pytest.mark.parametrize(("recipe", "measured"), CASES)
def test_temperatures_have_the_base_as_mean_and_fall_as_the_measure_rises(
    recipe: str, measured: str
) -> None:
    seen = scene(41)
    value, found = _of_positions(seen, measured)
    assert abs(float(found.mean()) - 10.0) < 1e-12
    correlation = torch.corrcoef(torch.stack([value, found]))[0, 1]
    assert abs(float(correlation) + 1.0) < 1e-12


@pytest.mark.parametrize(("recipe", "measured"), CASES)
def test_temperatures_are_clamped_where_the_formula_would_leave_them_below(
    recipe: str, measured: str
) -> None:
    seen = scene(42, scale=4.0)
    value, held = _of_positions(seen, measured, beta=40.0, floor=1.0)
    free = 10.0 + 40.0 * (value.mean() - value)
    assert free.min() < 0  # what a formula without a floor would use
    assert held.min() >= 1.0 and torch.equal(held, free.clamp_min(1.0))
    loss, gradient, _ = result(objective_of(kind=recipe), seen)
    assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize(("recipe", "measured"), CASES)
def test_the_loss_is_t_squared_kl_at_each_positions_own_temperature(
    recipe: str, measured: str
) -> None:
    seen = scene(43)
    _, held = _of_positions(seen, measured, beta=40.0, floor=1.0)
    loss, gradient, _ = result(objective_of(kind=recipe, adjust="shift"), seen)
    t = held.unsqueeze(1)
    p = (swap(seen.roles["teacher"], seen.labels) / t).softmax(1)
    log_q = (seen.hidden / t).log_softmax(1)
    wanted = (held**2 * (p * (p.log() - log_q)).sum(1)).mean()
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=1e-12)
    (of_wanted,) = torch.autograd.grad(wanted, seen.hidden)  # t is a constant
    torch.testing.assert_close(gradient, of_wanted, rtol=1e-12, atol=1e-12)


def test_kl_is_summed_over_entries_and_averaged_over_positions() -> None:
    """Not divided by the entries too, nor with its sides exchanged or a logarithm left out."""
    seen = scene(44)
    loss, _, _ = result(objective_of(kind="ka_shift", temperature=20.0), seen)
    p = (swap(seen.roles["teacher"], seen.labels) / 20).softmax(1)
    log_q = (seen.hidden.detach() / 20).log_softmax(1)
    wanted = 400 * torch.nn.functional.kl_div(log_q, p, reduction="batchmean")
    assert abs(float(loss - wanted)) < 1e-12
