"""Laws of the vocabulary terms, over random students, teachers and numbers.

Logits are drawn directly: hidden states are the logits and the head's weight is the identity.
"""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from loss_oracle import topk_signal
from torch import Tensor

from strategies import divergences, heads
from strategies.contract import DenseSignal, Head, LogitSignal, TopKSignal
from strategies.linear import vocabulary_loss
from strategies.parts import Part

KINDS = (
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
    "alpha_beta",
)
NUMBERS = {
    "jensen_shannon": ("beta",),
    "skewed_forward_kl": ("skew",),
    "skewed_reverse_kl": ("skew",),
    "alpha_beta": ("alpha", "beta"),
}
SCALES = st.sampled_from([0.01, 1.0, 10.0])

cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "count": st.integers(1, 6),
        "vocabulary": st.integers(2, 12),
        "student_scale": SCALES,
        "teacher_scale": SCALES,
    }
)
parts = st.builds(
    Part,
    kind=st.sampled_from(KINDS),
    scale=st.just(1.0),
    role=st.just("teacher"),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    beta=st.sampled_from([0.05, 0.5, 0.9]),
    skew=st.sampled_from([0.1, 0.7]),
    alpha=st.sampled_from([0.2, 1.0]),
)
quick = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def several_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "LEAST_ROWS", 2)
        patch.setattr(heads, "CPU_CHUNK_BYTES", 1)
        patch.setattr(heads, "CPU_BLOCK_BYTES", 1)
        yield


def _draw(case: dict) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(case["seed"])
    shape = case["count"], case["vocabulary"]
    student = torch.randn(shape, generator=make) * case["student_scale"]
    return student, torch.randn(shape, generator=make) * case["teacher_scale"]


def _topk(teacher: Tensor, k: int, temperature: float) -> TopKSignal:
    return topk_signal(teacher, k, (temperature,))


def _run(
    student: Tensor, signal: LogitSignal, *terms: Part, targets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(loss, gradient by logits) of terms on a teacher."""
    hidden = student.clone().requires_grad_()
    head = Head(torch.eye(student.shape[1], dtype=student.dtype))
    if targets is None:
        targets = torch.zeros(len(student), dtype=torch.long)
    loss, _ = vocabulary_loss(hidden, head, targets, {"teacher": signal}, terms)
    (gradient,) = torch.autograd.grad(loss, hidden)
    return loss.detach(), gradient


def _near(got: Tensor, wanted: Tensor, size: float = 1.0) -> None:
    """Equal to rounding of numbers of the given size."""
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5 * max(1.0, size))


@quick
@given(cases, parts, st.booleans())
def test_a_divergence_is_never_negative(case: dict, part: Part, topk: bool) -> None:
    student, teacher = _draw(case)
    k = case["vocabulary"] - 1
    signal = _topk(teacher, k, part.temperature) if topk else DenseSignal(teacher)
    loss, gradient = _run(student, signal, part)
    assert loss >= 0 and gradient.isfinite().all()
    near, _ = _run(teacher * (1 + 1e-6), signal, part)
    assert near >= 0


@quick
@given(cases, parts, st.booleans())
def test_a_divergence_is_zero_at_equality_and_only_there(
    case: dict, part: Part, topk: bool
) -> None:
    student, teacher = _draw(case)
    size = part.temperature**2 * case["count"]
    k = max(1, case["vocabulary"] // 2)
    signal = _topk(teacher, k, part.temperature) if topk else DenseSignal(teacher)
    loss, gradient = _run(teacher, signal, part)
    assert loss <= 2e-6 * size
    if part.kind != "total_variation" or not topk:  # at its kink rounding picks a side
        assert gradient.abs().max() <= 1e-5 * part.temperature
    if case["student_scale"] >= 1 and case["teacher_scale"] >= 1:
        elsewhere, _ = _run(teacher.flip(1) + student, DenseSignal(teacher), part)
        assert elsewhere > 0


@quick
@given(cases, parts, st.floats(-50, 50))
def test_adding_a_constant_to_logits_changes_nothing(case: dict, part: Part, by: float) -> None:
    student, teacher = _draw(case)
    loss, gradient = _run(student, DenseSignal(teacher), part)
    shifted, same = _run(student + by, DenseSignal(teacher - 2 * by), part)
    size = part.temperature**2 * max(1.0, 4 * float(loss)) * (1 + abs(by) / 10)
    _near(shifted, loss, size)
    _near(same, gradient, size)


@quick
@given(cases, parts, st.booleans())
def test_the_gradient_by_logits_sums_to_zero(case: dict, part: Part, topk: bool) -> None:
    student, teacher = _draw(case)
    signal = _topk(teacher, 1, part.temperature) if topk else DenseSignal(teacher)
    _, gradient = _run(student, signal, part, Part("cross_entropy", label_smoothing=0.1))
    _near(gradient.sum(1), torch.zeros(len(gradient)), float(gradient.abs().max()))


@quick
@given(cases, parts, st.booleans(), st.randoms(use_true_random=False))
def test_permuting_the_vocabulary_changes_nothing(case, part: Part, topk: bool, chance) -> None:
    student, teacher = _draw(case)
    order = list(range(case["vocabulary"]))
    chance.shuffle(order)

    def signal(logits: Tensor) -> LogitSignal:
        return _topk(logits, 1, part.temperature) if topk else DenseSignal(logits)

    loss, gradient = _run(student, signal(teacher), part)
    permuted, same = _run(student[:, order], signal(teacher[:, order]), part)
    size = max(1.0, float(loss))
    _near(permuted, loss, size)
    _near(same, gradient[:, order], size)


@quick
@given(cases, parts, st.booleans(), st.integers(0, 6))
def test_splitting_the_positions_changes_nothing(
    case: dict, part: Part, topk: bool, at: int
) -> None:
    student, teacher = _draw(case)

    def run(rows: slice) -> tuple[Tensor, Tensor]:
        if topk:
            return _run(student[rows], _topk(teacher[rows], 1, part.temperature), part)
        return _run(student[rows], DenseSignal(teacher[rows]), part)

    loss, gradient = run(slice(None))
    (left, above), (right, below) = run(slice(None, at)), run(slice(at, None))
    _near(left + right, loss)
    assert torch.equal(torch.cat([above, below]), gradient)


@quick
@given(cases, parts)
def test_topk_with_k_equal_to_v_is_dense(case: dict, part: Part) -> None:
    student, teacher = _draw(case)
    dense, wanted = _run(student, DenseSignal(teacher), part)
    whole, got = _run(student, _topk(teacher, case["vocabulary"], part.temperature), part)
    size = part.temperature**2 * max(1.0, float(dense)) / min(1.0, part.temperature)
    _near(whole, dense, size)
    _near(got, wanted, size)


@quick
@given(cases, parts, st.data())
def test_a_coarser_view_never_shows_more_divergence(case: dict, part: Part, data) -> None:
    student, teacher = _draw(case)
    k = data.draw(st.integers(1, case["vocabulary"] - 1), label="k")
    dense, _ = _run(student, DenseSignal(teacher), part)
    coarse, _ = _run(student, _topk(teacher, k, part.temperature), part)
    if part.kind != "alpha_beta":  # only a family that is convex in both sides promises this
        assert coarse <= dense * (1 + 1e-4) + 1e-5 * part.temperature**2 * case["count"]


@quick
@given(cases, parts, st.booleans(), st.sampled_from([1e4, -1e4]))
def test_extreme_logits_stay_finite(case: dict, part: Part, topk: bool, extreme: float) -> None:
    student, teacher = _draw(case)
    student[:, 0], teacher[:, -1] = extreme, extreme
    signal = _topk(teacher, 1, part.temperature) if topk else DenseSignal(teacher)
    smoothed = Part("cross_entropy", label_smoothing=0.1)
    for logits in (student, teacher):
        loss, gradient = _run(logits, signal, part, smoothed)
        assert loss.isfinite() and gradient.isfinite().all()


@quick
@given(cases, st.lists(parts, min_size=1, max_size=4), st.data())
def test_a_mixture_is_the_sum_of_its_parts(case: dict, terms: list[Part], data) -> None:
    student, teacher = _draw(case)
    make = torch.Generator().manual_seed(case["seed"])
    targets = torch.randint(case["vocabulary"], (case["count"],), generator=make)
    signal = DenseSignal(teacher)
    if data.draw(st.booleans(), label="top k"):
        signal = topk_signal(teacher, 1, (0.5, 1.0, 3.0))
    terms = [*terms, Part("cross_entropy", 0.5)]
    loss, gradient = _run(student, signal, *terms, targets=targets)
    each = [_run(student, signal, term, targets=targets) for term in terms]
    size = max(1.0, float(loss))
    _near(loss, torch.stack([one for one, _ in each]).sum(), size)
    _near(gradient, torch.stack([one for _, one in each]).sum(0), size)


@quick
@given(cases, parts)
def test_the_pass_and_the_readable_definition_agree(case: dict, part: Part) -> None:
    student, teacher = _draw(case)
    extra = {name: getattr(part, name) for name in NUMBERS.get(part.kind, ())}
    logits = student.clone().requires_grad_()
    want = getattr(divergences, part.kind)(logits, teacher, part.temperature, **extra).sum()
    loss, gradient = _run(student, DenseSignal(teacher), part)
    size = part.temperature**2 * max(1.0, float(loss)) / min(1.0, part.temperature)
    _near(loss, want.detach(), size)
    _near(gradient, torch.autograd.grad(want, logits)[0], size)
