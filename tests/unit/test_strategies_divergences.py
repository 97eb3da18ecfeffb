"""Each formula against a value computed by hand, and against the float64 oracle."""

import math

import pytest
import torch
from loss_oracle import oracle
from torch import Tensor

from strategies import divergences

P, Q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
LN2 = math.log(2)
KINDS = (
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
    "alpha_beta",
)


def _logits(probabilities: Tensor) -> Tensor:
    return probabilities.log() + 3.0


def test_cross_entropy_by_hand() -> None:
    targets = torch.tensor([2])
    assert divergences.cross_entropy(_logits(Q), targets).item() == pytest.approx(LN2)
    # A tenth of the weight is even: mean of -log q = (2 + 2 + 1) ln 2 / 3.
    smoothed = divergences.cross_entropy(_logits(Q), targets, label_smoothing=0.1).item()
    assert smoothed == pytest.approx(0.9 * LN2 + 0.1 * 5 * LN2 / 3)


def test_forward_kl_by_hand() -> None:
    # 0.5 ln 2 + 0 - 0.25 ln 2
    assert divergences.forward_kl(_logits(Q), _logits(P)).item() == pytest.approx(0.25 * LN2)


def test_reverse_kl_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert divergences.reverse_kl(student, teacher).item() == pytest.approx(expected)


def test_jensen_shannon_by_hand() -> None:
    # Disjoint but for rounding: m = (0.3, 0.7), so 0.3 ln(1 / 0.3) + 0.7 ln(1 / 0.7).
    student, teacher = torch.tensor([[-200.0, 0.0]]), torch.tensor([[0.0, -200.0]])
    expected = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    got = divergences.jensen_shannon(student, teacher, beta=0.3).item()
    assert got == pytest.approx(expected)


def test_skewed_kls_by_hand() -> None:
    # m = 0.2 (1/2, 1/4, 1/4) + 0.8 (1/4, 1/4, 1/2) = (0.3, 0.25, 0.45)
    forward = 0.5 * math.log(0.5 / 0.3) + 0.25 * math.log(0.25 / 0.45)
    got = divergences.skewed_forward_kl(_logits(Q), _logits(P), skew=0.2).item()
    assert got == pytest.approx(forward)
    # m = 0.8 (1/2, 1/4, 1/4) + 0.2 (1/4, 1/4, 1/2) = (0.45, 0.25, 0.3)
    reverse = 0.25 * math.log(0.25 / 0.45) + 0.5 * math.log(0.5 / 0.3)
    got = divergences.skewed_reverse_kl(_logits(Q), _logits(P), skew=0.2).item()
    assert got == pytest.approx(reverse)


def test_total_variation_by_hand_grows_with_the_temperature_itself() -> None:
    assert divergences.total_variation(_logits(Q), _logits(P)).item() == pytest.approx(0.25)
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(9), 0.0]])
    assert divergences.total_variation(student, teacher, 2.0).item() == pytest.approx(2 * 0.25)


def test_alpha_beta_by_hand() -> None:
    # 2 sum (sqrt p - sqrt q)^2 = 2 * 2 * (sqrt 0.5 - 0.5)^2
    got = divergences.alpha_beta(_logits(Q), _logits(P)).item()
    assert got == pytest.approx(4 * (math.sqrt(0.5) - 0.5) ** 2)
    squares = divergences.alpha_beta(_logits(Q), _logits(P), alpha=0.0, beta=0.0).item()
    assert squares == pytest.approx(0.5 * 2 * LN2**2)
    opposite = divergences.alpha_beta(_logits(Q), _logits(P), alpha=1.0, beta=-1.0).item()
    assert opposite == pytest.approx((2 - 1 - LN2) + (0.5 - 1 + LN2))


@pytest.mark.parametrize(
    ("powers", "same"), [((1.0, 0.0), "forward_kl"), ((0.0, 1.0), "reverse_kl")]
)
def test_alpha_beta_meets_the_kls_at_its_limits_and_nearby(
    powers: tuple[float, float], same: str
) -> None:
    make = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 9, generator=make).unbind()
    want = getattr(divergences, same)(student, teacher)
    for step in (0.0, 1e-7, -1e-7):
        near = divergences.alpha_beta(student, teacher, 1.0, powers[0] + step, powers[1] + step)
        torch.testing.assert_close(near, want, rtol=1e-5, atol=1e-6)


def test_temperature_softens_both_sides_and_its_square_scales_the_value() -> None:
    # At temperature 2 logits (ln 9, 0) are probabilities (3/4, 1/4).
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(9), 0.0]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert divergences.forward_kl(student, teacher, 2.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("teacher_width", [5, 7, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_unequal_vocabularies_agree_with_the_oracle(kind: str, teacher_width: int) -> None:
    make = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 7, generator=make, requires_grad=True)
    teacher = torch.randn(2, 3, teacher_width, generator=make)
    got = getattr(divergences, kind)(student, teacher, 1.5)
    assert got.shape == (2, 3)
    flat = student.view(6, 7), teacher.view(6, teacher_width)
    want = oracle(kind, *flat, targets=torch.zeros(6, dtype=torch.long), temperature=1.5)
    assert got.sum().item() == pytest.approx(want.item(), rel=1e-5)
    (mine,), (theirs,) = (
        torch.autograd.grad(got.sum(), student),
        torch.autograd.grad(want, student),
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_bfloat16_logits_are_lifted_to_float32() -> None:
    logits = torch.randn(4, 9).bfloat16()
    assert divergences.forward_kl(logits, logits).dtype == torch.float32


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = torch.randn(2, 5, requires_grad=True)
    student = torch.randn(2, 5, requires_grad=True)
    for name in KINDS:
        getattr(divergences, name)(student, teacher).sum().backward()
    assert teacher.grad is None and student.grad is not None
