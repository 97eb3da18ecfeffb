"""Every loss x teacher form x weights x padding x temperature against the float64 oracle."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from loss_oracle import oracle, sampled_signal, topk_signal
from torch import Tensor

from strategies import heads
from strategies.contract import DenseSignal, Head, HiddenSignal, LogitSignal
from strategies.linear import logits_loss, vocabulary_loss
from strategies.parts import Part

LADDER = (0.5, 1.0, 2.0, 3.0)
FORMS = ("hidden", "dense", "dense with holes", "topk", "topk of all")
LIMITS = [(1, 0), (0, 1), (0, 0), (1, -1), (-0.5, 0.5)]
NEAR_LIMITS = [(1e-7, 1.0), (1.0, -1e-7), (0.01, 0.02), (1e-4, -2e-4), (0.3, -0.2999)]
POWERS = [*LIMITS, *NEAR_LIMITS, (0.2, 0.7), (0.5, 0.5), (1.5, -0.3), (-0.4, 0.9)]
EVERY_ENTRY = ("adaptive_kl", "decoupled", "universal", "logits_distance")
NUMBERS = st.one_of(
    st.sampled_from(["forward_kl", "reverse_kl", "total_variation"]).map(lambda k: {"kind": k}),
    st.fixed_dictionaries(
        {"kind": st.just("jensen_shannon"), "beta": st.sampled_from([0.01, 0.3, 0.5, 0.95])}
    ),
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["skewed_forward_kl", "skewed_reverse_kl"]),
            "skew": st.sampled_from([0.01, 0.1, 0.5, 0.95]),
        }
    ),
    st.sampled_from(POWERS).map(
        lambda powers: {"kind": "alpha_beta", "alpha": powers[0], "beta": powers[1]}
    ),
    st.fixed_dictionaries(
        {"kind": st.just("adaptive_kl"), "head_mass": st.sampled_from([0.2, 0.5, 0.9])}
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("decoupled"),
            "label_weight": st.sampled_from([0.0, 1.0]),
            "others_weight": st.sampled_from([0.0, 1.0, 8.0]),
        }
    ),
    st.just({"kind": "universal"}),
    st.fixed_dictionaries(
        {
            "kind": st.just("logits_distance"),
            "logit_scale": st.sampled_from([0.0, 0.3, 1.0]),
            "margin": st.sampled_from([0.0, 3.0]),
            "over": st.sampled_from(["sum", "mean"]),
        }
    ),
)
CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "count": st.integers(1, 5),
        "width": st.integers(5, 9),
        "wider": st.sampled_from([0, 0, -2, 3]),
        "form": st.sampled_from(FORMS),
        "temperature": st.sampled_from([0.5, 1.0, 3.0, "by position"]),
        "weights": st.booleans(),
        "scale": st.sampled_from([1.0, 4.0]),
    }
)
quick = settings(max_examples=150, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def several_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "LEAST_ROWS", 3)
        patch.setattr(heads, "CPU_CHUNK_BYTES", 1)
        patch.setattr(heads, "CPU_BLOCK_BYTES", 80)
        yield


def suited(case: dict, numbers: dict) -> dict:
    """The case in a form that the term can learn from."""
    if numbers["kind"] in EVERY_ENTRY and case["form"].startswith("topk"):
        case = case | {"form": "dense"}
    return case | {"temperature": 1.0} if numbers["kind"] == "logits_distance" else case


class Drawn:
    """A student and a teacher as a case says."""

    def __init__(self, case: dict) -> None:
        self.make = torch.Generator().manual_seed(case["seed"])
        count, width = case["count"], case["width"]
        self.hidden = self.normal(count, 4).requires_grad_()
        self.head = Head(self.normal(width, 4).requires_grad_(), self.normal(width), 0.8, 12.0)
        teacher_head = Head(self.normal(width + case["wider"], 4) * case["scale"], softcap=30.0)
        teacher_hidden = self.normal(count, 4)
        self.teacher = teacher_head.logits(teacher_hidden.double())
        self.targets = torch.randint(width, (count,), generator=self.make)
        self.kept: Tensor | None = None
        self.signal = self._signal(case["form"], HiddenSignal(teacher_hidden, teacher_head))
        choice = torch.randint(len(LADDER), (count,), generator=self.make)
        self.temperature: float | Tensor = case["temperature"]
        if case["temperature"] == "by position":
            self.temperature = torch.tensor(LADDER)[choice]
        self.weight = None
        if case["weights"]:
            self.weight = self.normal(count).abs() * (torch.arange(count) % 3 != 1)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.make)

    def _signal(self, form: str, hidden: HiddenSignal) -> LogitSignal:
        if form == "hidden":
            return hidden
        if form == "dense with holes":
            self.teacher[:, 1] = -torch.inf
        if form.startswith("dense"):
            return DenseSignal(self.teacher)
        whole = form == "topk of all"
        sent = topk_signal(self.teacher, self.teacher.shape[1] if whole else 2, LADDER)
        self.kept = None if whole else sent.ids
        return sent

    def part(self, scale: float, numbers: dict) -> Part:
        return Part(
            scale=scale,
            role="teacher",
            temperature=self.temperature,
            position_weight=self.weight,
            **numbers,
        )

    def wanted(self, logits: Tensor, numbers: dict) -> Tensor:
        return oracle(
            student=logits,
            teacher=self.teacher,
            targets=self.targets,
            temperature=self.temperature,
            kept=self.kept,
            position_weight=self.weight,
            **numbers,
        )


def _assert_equal(loss: Tensor, want: Tensor, inputs: tuple[Tensor, ...], case: dict) -> None:
    # What float32 can tell: values that nearly cancel are known to a share of their summands.
    floor = 1e-6 * case["count"] * 9
    assert abs(loss.item() - want.item()) <= 1e-5 * abs(want.item()) + floor
    got, wanted = torch.autograd.grad(loss, inputs), torch.autograd.grad(want, inputs)
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 10 * floor


@quick
@given(CASES, NUMBERS)
def test_the_chunked_pass_gives_the_oracles_value_and_gradient(case: dict, numbers: dict) -> None:
    case = suited(case, numbers)
    drawn = Drawn(case)
    inputs = drawn.hidden, drawn.head.weight
    part = drawn.part(0.7, numbers)
    signals = {"teacher": drawn.signal}
    loss, _ = vocabulary_loss(drawn.hidden, drawn.head, drawn.targets, signals, [part])
    doubled = Head(drawn.head.weight.double(), drawn.head.bias, 0.8, 12.0)
    want = 0.7 * drawn.wanted(doubled.logits(drawn.hidden.double()), numbers)
    _assert_equal(loss, want, inputs, case)


@quick
@given(CASES, NUMBERS)
def test_logits_as_outputs_give_the_oracles_value_and_gradient(case: dict, numbers: dict) -> None:
    case = suited(case, numbers)
    drawn = Drawn(case)
    logits = drawn.normal(case["count"], case["width"]).requires_grad_()
    part = drawn.part(0.7, numbers)
    loss, _ = logits_loss(logits, drawn.targets, {"teacher": drawn.signal}, [part])
    _assert_equal(loss, 0.7 * drawn.wanted(logits, numbers), (logits,), case)


@quick
@given(CASES, st.sampled_from([0.0, 0.2]))
def test_cross_entropy_with_weights_is_the_oracles(case: dict, smoothing: float) -> None:
    drawn = Drawn(case)
    part = Part("cross_entropy", 0.7, label_smoothing=smoothing, position_weight=drawn.weight)
    loss, _ = vocabulary_loss(drawn.hidden, drawn.head, drawn.targets, {}, [part])
    logits = Head(drawn.head.weight.double(), drawn.head.bias, 0.8, 12.0).logits(
        drawn.hidden.double()
    )
    want = 0.7 * oracle(
        "cross_entropy",
        logits,
        None,
        drawn.targets,
        label_smoothing=smoothing,
        position_weight=drawn.weight,
    )
    _assert_equal(loss, want, (drawn.hidden, drawn.head.weight), case)


@quick
@given(CASES, NUMBERS)
def test_equal_models_read_zero(case: dict, numbers: dict) -> None:
    if numbers["kind"] == "logits_distance":
        numbers = numbers | {"logit_scale": 1.0}
    case = suited(case, numbers)
    drawn = Drawn(case | {"form": "hidden", "wider": 0})
    logits = drawn.normal(case["count"], case["width"]) * 30  # a rest of e^-60 is common
    topk = case["form"].startswith("topk")
    signal = topk_signal(logits, 2, LADDER) if topk else DenseSignal(logits)
    hidden = logits.clone().requires_grad_()
    head = Head(torch.eye(case["width"]))
    part = drawn.part(1.0, numbers)
    loss, _ = vocabulary_loss(hidden, head, drawn.targets, {"teacher": signal}, [part])
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert 0 <= loss.item() <= (1e-6 if topk else 1e-12) * 9 * case["count"]
    if numbers["kind"] != "total_variation" or not topk:  # at its kink rounding picks a side
        assert gradient.abs().max() <= 1e-5


@example(
    {
        "seed": 0,
        "count": 1,
        "width": 9,
        "wider": 0,
        "form": "hidden",
        "temperature": 0.5,
        "weights": True,
        "scale": 1.0,
    },
    {"kind": "adaptive_kl", "head_mass": 0.2},
    1e4,
)
@quick
@given(CASES, NUMBERS, st.sampled_from([1e4, -1e4]))
def test_extreme_logits_give_finite_values_and_gradients(
    case: dict, numbers: dict, extreme: float
) -> None:
    case = suited(case, numbers)
    drawn = Drawn(case | {"form": "hidden", "wider": 0})
    student = drawn.normal(case["count"], case["width"])
    topk = case["form"].startswith("topk")
    # float32 cannot hold the logarithms of what is left when an entry of 1e4 is cut off.
    wider = 0 if topk else case["wider"]
    teacher = drawn.normal(case["count"], case["width"] + wider)
    student[:, 0], teacher[:, -1] = extreme, extreme
    kept = None
    signal: LogitSignal = DenseSignal(teacher)
    if topk:
        signal = topk_signal(teacher, 2, LADDER)
        kept = signal.ids
    hidden = student.clone().requires_grad_()
    head, part = Head(torch.eye(case["width"])), drawn.part(1.0, numbers)
    loss, _ = vocabulary_loss(hidden, head, drawn.targets, {"teacher": signal}, [part])
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.isfinite() and gradient.isfinite().all()
    powers = numbers.get("alpha", 0), numbers.get("beta", 0)
    # Nor those of what is beside a label of 1e4; and negative powers are held at a largest value.
    if min(*powers, sum(powers)) >= 0 and numbers["kind"] != "decoupled":
        drawn.teacher, drawn.kept = teacher, kept
        exact = student.double().requires_grad_()
        want = drawn.wanted(exact, numbers)
        assert abs(loss.item() - want.item()) <= 1e-5 * abs(want.item()) + 1e-5
        (wanted,) = torch.autograd.grad(want, exact)
        assert (gradient - wanted).norm() <= 1e-4 * wanted.norm() + 1e-5


@quick
@given(CASES)
def test_draws_give_the_value_and_gradient_of_their_own_cross_entropy(case: dict) -> None:
    drawn = Drawn(case | {"form": "hidden", "temperature": 1.0})
    signal = sampled_signal(drawn.teacher, 6, drawn.make, 1.3)
    logits = drawn.normal(case["count"], case["width"]).double().requires_grad_()
    log_q = logits.log_softmax(1)
    want = 0.0 * log_q.sum()  # every draw may be beyond the student
    for n in range(case["count"]):
        weight = 1.0 if drawn.weight is None else float(drawn.weight[n])
        want = want - weight * float(signal.entropy[n])
        for entry, share in zip(signal.ids[n].tolist(), signal.weights[n].tolist(), strict=True):
            if entry < case["width"]:
                want = want - weight * share * log_q[n, entry]
    (wanted,) = torch.autograd.grad(want, logits)
    hidden = logits.detach().float().requires_grad_()
    part = Part("forward_kl", 1.0, "teacher", position_weight=drawn.weight)
    given, parts = {"teacher": signal}, [part]
    for loss in (
        vocabulary_loss(hidden, Head(torch.eye(case["width"])), drawn.targets, given, parts)[0],
        logits_loss(hidden, drawn.targets, given, parts)[0],
    ):
        assert loss.item() == pytest.approx(want.item(), rel=1e-5, abs=2e-5)
        (gradient,) = torch.autograd.grad(loss, hidden)
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("proposal_temperature", [1.0, 1.5])
def test_the_mean_gradient_over_draws_is_the_full_gradient(proposal_temperature: float) -> None:
    make = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(8, 40, generator=make), 2 * torch.randn(8, 40, generator=make)
    head, targets = Head(torch.eye(40)), torch.zeros(8, dtype=torch.long)
    part = Part("forward_kl", 1 / 8, "teacher")

    def run(signal: LogitSignal) -> tuple[Tensor, Tensor]:
        hidden = student.clone().requires_grad_()
        loss, _ = vocabulary_loss(hidden, head, targets, {"teacher": signal}, [part])
        return loss.detach(), torch.autograd.grad(loss, hidden)[0].flatten()

    full_value, full = run(DenseSignal(teacher))
    answers = [run(sampled_signal(teacher, 12, make, proposal_temperature)) for _ in range(200)]
    directions = torch.randn(full.numel(), 5, generator=make)
    seen = torch.stack([gradient for _, gradient in answers]) @ directions
    seen = torch.cat([seen, torch.stack([value for value, _ in answers]).unsqueeze(1)], 1)
    wanted = torch.cat([full @ directions, full_value.unsqueeze(0)])
    error = (seen.mean(0) - wanted).abs()
    assert (error <= 3 * seen.std(0) / 200**0.5).all()
    assert (seen.std(0) > 0).all()
