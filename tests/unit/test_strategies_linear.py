"""The chunked pass against a float64 oracle, and its behaviour as an autograd function."""

import platform
import subprocess
import sys

import pytest
import torch
from loss_oracle import oracle, sampled_signal, topk_signal
from torch import Tensor

from strategies import comparison, heads, linear
from strategies.contract import DenseSignal, Head, HiddenSignal, LogitSignal
from strategies.linear import vocabulary_loss
from strategies.parts import Part

N, WIDTH, VOCABULARY, KEPT = 11, 6, 23, 5
LADDER = (1.0, 2.5)
DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
    "alpha_beta",
)
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale and cap": {"scale": 0.7, "softcap": 4.0},
    "all": {"bias": True, "scale": 1.3, "softcap": 6.0},
}


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three or four rows in blocks of two, so that every test crosses borders."""
    monkeypatch.setattr(heads, "LEAST_ROWS", 4)
    monkeypatch.setattr(heads, "CPU_CHUNK_BYTES", 1)
    monkeypatch.setattr(heads, "CPU_BLOCK_BYTES", 2 * 4 * VOCABULARY)


class Case:
    """A student, and a teacher's logits, of given widths."""

    def __init__(
        self, head: str = "plain", teacher_width: int = VOCABULARY, count: int = N, seed: int = 0
    ) -> None:
        make = torch.Generator().manual_seed(seed)
        options = dict(HEADS[head])
        bias = torch.randn(VOCABULARY, generator=make) if options.pop("bias", False) else None
        self.hidden = torch.randn(count, WIDTH, generator=make).requires_grad_()
        self.weight = torch.randn(VOCABULARY, WIDTH, generator=make).requires_grad_()
        self.bias = None if bias is None else bias.requires_grad_()
        self.head = Head(self.weight, self.bias, **options)
        self.targets = torch.randint(VOCABULARY, (count,), generator=make)
        self.teacher_hidden = torch.randn(count, 4, generator=make)
        self.teacher_head = Head(
            torch.randn(teacher_width, 4, generator=make),
            torch.randn(teacher_width, generator=make),
            scale=0.9,
            softcap=8.0,
        )
        self.teacher_logits = _logits(self.teacher_hidden, self.teacher_head)

    @property
    def inputs(self) -> list[Tensor]:
        return [t for t in (self.hidden, self.weight, self.bias) if t is not None]

    def student_logits(self) -> Tensor:
        return _logits(self.hidden, self.head)

    def signal(self, kind: str) -> tuple[LogitSignal, Tensor | None]:
        """The signal, and the ids it keeps if it is a top k of part of the vocabulary."""
        if kind == "hidden":
            return HiddenSignal(self.teacher_hidden, self.teacher_head), None
        if kind == "dense":
            return DenseSignal(self.teacher_logits.float()), None
        width = self.teacher_logits.shape[1]
        signal = topk_signal(self.teacher_logits, width if kind == "topk of all" else KEPT, LADDER)
        return signal, signal.ids if kind == "topk" else None


def _logits(hidden: Tensor, head: Head) -> Tensor:
    z = hidden.double() @ head.weight.double().t()
    z = head.scale * (z if head.bias is None else z + head.bias.double())
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def _assert_close(case: Case, signals: dict[str, LogitSignal], parts: list[Part], want: Tensor):
    loss, _ = vocabulary_loss(case.hidden, case.head, case.targets, signals, parts)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    expected = torch.autograd.grad(want, case.inputs)
    for got, wanted in zip(torch.autograd.grad(loss, case.inputs), expected, strict=True):
        assert (got - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.mark.parametrize("teacher_width", [VOCABULARY, VOCABULARY - 4, VOCABULARY + 4])
@pytest.mark.parametrize("temperature", LADDER)
@pytest.mark.parametrize("signal_kind", ["hidden", "dense", "topk", "topk of all"])
@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("head", ["plain", "all"])
def test_value_and_gradient_are_those_of_the_oracle(
    head: str, kind: str, signal_kind: str, temperature: float, teacher_width: int
) -> None:
    case = Case(head, teacher_width)
    signal, kept = case.signal(signal_kind)
    part = Part(kind, 0.3, "teacher", temperature, beta=0.3)
    want = 0.3 * oracle(
        kind,
        case.student_logits(),
        case.teacher_logits,
        case.targets,
        temperature,
        beta=0.3,
        kept=kept,
    )
    _assert_close(case, {"teacher": signal}, [part], want)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("head", HEADS)
def test_cross_entropy_is_that_of_the_oracle(head: str, label_smoothing: float) -> None:
    case = Case(head)
    part = Part("cross_entropy", 2.0, label_smoothing=label_smoothing)
    want = 2.0 * oracle(
        "cross_entropy",
        case.student_logits(),
        None,
        case.targets,
        label_smoothing=label_smoothing,
    )
    _assert_close(case, {}, [part], want)


@pytest.mark.parametrize("head", HEADS)
def test_a_mixture_over_roles_encodings_and_temperatures_is_the_sum_of_its_terms(
    head: str,
) -> None:
    case, other = Case(head), Case(teacher_width=VOCABULARY - 3, seed=1)
    dense, kept = case.signal("hidden"), other.signal("topk")
    narrow, _ = other.signal("hidden")
    signals = {"teacher": dense[0], "assistant": kept[0], "narrow": narrow}
    mixture = [
        (Part("cross_entropy", 0.5, label_smoothing=0.1), None, None),
        (Part("forward_kl", 0.25, "teacher", 2.5), case, None),
        (Part("forward_kl", 0.75, "teacher"), case, None),
        (Part("reverse_kl", 0.6, "assistant", 2.5), other, kept[1]),
        (Part("reverse_kl", 0.2, "narrow"), other, None),
        (Part("jensen_shannon", 0.4, "assistant", beta=0.8), other, kept[1]),
        (Part("jensen_shannon", 0.4, "teacher", 2.5, beta=0.1), case, None),
        (Part("forward_kl", 0.3, "narrow"), other, None),
    ]
    student = case.student_logits()
    each = [
        oracle(
            part.kind,
            student,
            None if of is None else of.teacher_logits,
            case.targets,
            part.temperature,
            part.beta,
            part.label_smoothing,
            ids,
        )
        for part, of, ids in mixture
    ]
    parts = [part for part, _, _ in mixture]
    _, totals = vocabulary_loss(case.hidden, case.head, case.targets, signals, parts)
    torch.testing.assert_close(totals.double(), torch.stack(each).detach(), rtol=1e-5, atol=0)
    _assert_close(case, signals, parts, sum(p.scale * e for p, e in zip(parts, each, strict=True)))


@pytest.mark.parametrize("signal_kind", ["hidden", "dense", "topk", "topk of all"])
def test_no_positions_give_a_zero_that_reaches_every_parameter(signal_kind: str) -> None:
    case = Case("all", count=0)
    signal, _ = case.signal(signal_kind)
    parts = [Part("cross_entropy"), *(Part(kind, 1.0, "teacher") for kind in DIVERGENCES)]
    loss, totals = vocabulary_loss(case.hidden, case.head, case.targets, {"teacher": signal}, parts)
    assert loss.item() == 0 and totals.tolist() == [0.0] * len(parts)
    loss.backward()
    for tensor in case.inputs:
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape and not tensor.grad.any()


def test_a_scale_of_zero_reports_a_term_without_training_on_it() -> None:
    case = Case()
    signals = {"teacher": case.signal("hidden")[0]}
    parts = [Part(kind, 0.0, "teacher") for kind in DIVERGENCES] + [Part("cross_entropy", 0.0)]
    loss, totals = vocabulary_loss(case.hidden, case.head, case.targets, signals, parts)
    assert loss.item() == 0 and (totals > 0).all()
    assert not any(g.any() for g in torch.autograd.grad(loss, case.inputs))


def test_gradients_follow_the_incoming_one_and_are_used_once() -> None:
    case = Case("all")
    parts = [Part("cross_entropy")]
    loss, _ = vocabulary_loss(case.hidden, case.head, case.targets, {}, parts)
    plain = torch.autograd.grad(loss, case.inputs)
    loss, _ = vocabulary_loss(case.hidden, case.head, case.targets, {}, parts)
    tripled = torch.autograd.grad(3 * loss, case.inputs, retain_graph=True)
    for one, three in zip(plain, tripled, strict=True):
        torch.testing.assert_close(3 * one, three)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, case.inputs)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_others_keep_theirs(frozen: str) -> None:
    case = Case("all")
    loss, _ = vocabulary_loss(case.hidden, case.head, case.targets, {}, [Part("cross_entropy")])
    whole = dict(
        zip(("hidden", "weight", "bias"), torch.autograd.grad(loss, case.inputs), strict=True)
    )
    getattr(case, frozen).requires_grad_(False)
    loss, _ = vocabulary_loss(case.hidden, case.head, case.targets, {}, [Part("cross_entropy")])
    loss.backward()
    for name, gradient in whole.items():
        got = getattr(case, name).grad
        assert got is None if name == frozen else torch.equal(got, gradient)


def test_without_grad_mode_no_gradient_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    answers: list[Tensor | None] = []
    compare = linear.compare

    def spy(*arguments) -> Tensor | None:
        answers.append(compare(*arguments))
        return answers[-1]

    monkeypatch.setattr(linear, "compare", spy)
    arguments = (case.hidden, case.head, case.targets, {}, [Part("cross_entropy")])
    with torch.no_grad():
        quiet, _ = vocabulary_loss(*arguments)
    assert answers and not quiet.requires_grad
    assert all(answer is None for answer in answers)
    loud, _ = vocabulary_loss(*arguments)
    assert answers[-1] is not None and torch.equal(loud.detach(), quiet)


def test_the_weight_may_be_released_between_forward_and_backward() -> None:
    case = Case()
    loss, _ = vocabulary_loss(case.hidden, case.head, case.targets, {}, [Part("cross_entropy")])
    expected = torch.autograd.grad(
        vocabulary_loss(case.hidden, case.head, case.targets, {}, [Part("cross_entropy")])[0],
        case.hidden,
    )[0]
    kept = case.weight.data
    case.weight.data = torch.full_like(kept, float("nan"))  # as a partitioned parameter's is
    loss.backward()
    assert case.hidden.grad is not None and torch.equal(case.hidden.grad, expected)


def test_bfloat16_models_accumulate_the_weight_gradient_in_float32() -> None:
    case = Case(count=400)
    hidden = case.hidden.detach().bfloat16().requires_grad_()
    weight = case.weight.detach().bfloat16().requires_grad_()
    teacher = HiddenSignal(case.teacher_hidden.bfloat16(), case.teacher_head)
    parts = [Part("cross_entropy"), Part("reverse_kl", 0.5, "teacher")]
    loss, _ = vocabulary_loss(hidden, Head(weight), case.targets, {"teacher": teacher}, parts)
    student = hidden.double() @ weight.double().t()
    theirs = _logits(teacher.hidden, case.teacher_head)
    want = oracle("cross_entropy", student, None, case.targets) + 0.5 * oracle(
        "reverse_kl", student, theirs, case.targets
    )
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(want.item(), rel=1e-5)
    got = torch.autograd.grad(loss, (hidden, weight))
    wanted = torch.autograd.grad(want, (hidden, weight))
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        # One rounding to bfloat16 at the end on both sides; 100 roundings would show.
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-3)


def test_float64_inputs_are_computed_in_float64() -> None:
    case = Case("all")
    for name in ("hidden", "weight", "bias"):
        setattr(case, name, getattr(case, name).detach().double().requires_grad_())
    case.head = Head(case.weight, case.bias, 1.3, 6.0)
    signals = {"teacher": DenseSignal(case.teacher_logits)}
    for kind in DIVERGENCES:
        part = Part(kind, 1.0, "teacher", 2.5)
        loss, _ = vocabulary_loss(case.hidden, case.head, case.targets, signals, [part])
        want = oracle(kind, case.student_logits(), case.teacher_logits, case.targets, 2.5)
        assert loss.item() == pytest.approx(want.item(), rel=1e-12)
        expected = torch.autograd.grad(want, case.inputs)
        for got, wanted in zip(torch.autograd.grad(loss, case.inputs), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_dense_teachers_may_rule_entries_out() -> None:
    case = Case()
    ruled_out = case.teacher_logits.clone()
    ruled_out[:, 3:9] = -torch.inf
    for kind in ("forward_kl", "jensen_shannon"):
        want = oracle(kind, case.student_logits(), ruled_out, case.targets)
        signals = {"teacher": DenseSignal(ruled_out.float())}
        _assert_close(case, signals, [Part(kind, 1.0, "teacher")], want)


def test_another_number_of_positions_is_refused_by_name() -> None:
    case = Case()
    signal = DenseSignal(case.teacher_logits[:-1])
    part = Part("forward_kl", 1.0, "teacher")
    with pytest.raises(ValueError, match=r"signal of 'teacher' covers 10 positions.* 11"):
        vocabulary_loss(case.hidden, case.head, case.targets, {"teacher": signal}, [part])
    with pytest.raises(ValueError, match="targets covers 10 positions"):
        vocabulary_loss(case.hidden, case.head, case.targets[1:], {}, [Part("cross_entropy")])
    with pytest.raises(ValueError, match="no signal for role 'teacher'"):
        vocabulary_loss(case.hidden, case.head, case.targets, {}, [part])


def test_chunks_cover_every_position_once_in_nearly_equal_pieces() -> None:
    for count in (0, 1, 4, 5, 11, 1000):
        pieces = list(heads.chunks(count, VOCABULARY, torch.device("cpu")))
        assert [i for piece in pieces for i in range(count)[piece]] == list(range(count))
        sizes = {piece.stop - piece.start for piece in pieces}
        assert not sizes or (max(sizes) - min(sizes) <= 1 and max(sizes) <= 4)


@pytest.mark.parametrize("powers", [(1e-7, 1e-7), (1e-7, -2e-7), (-1e-7, 1e-7), (1e-12, 0.0)])
def test_alpha_beta_is_accurate_where_its_formula_divides_by_almost_nothing(
    powers: tuple[float, float],
) -> None:
    case = Case()
    part = Part("alpha_beta", 1.0, "teacher", alpha=powers[0], beta=powers[1])
    student = case.student_logits()
    want = oracle("alpha_beta", student, case.teacher_logits, case.targets, alpha=0.0, beta=0.0)
    _assert_close(case, {"teacher": case.signal("hidden")[0]}, [part], want)


def test_weights_and_temperatures_by_position_are_those_of_each_position_alone() -> None:
    case = Case("all")
    signals = {"teacher": case.signal("hidden")[0], "topk": case.signal("topk")[0]}
    temperature = torch.linspace(1.0, 2.5, N, dtype=torch.float64)
    weight = torch.linspace(-1.0, 2.0, N).clamp_min(0)
    parts = [
        Part("forward_kl", 0.5, "teacher", temperature, position_weight=weight),
        Part("total_variation", 0.4, "topk", temperature),
        Part("cross_entropy", 0.3, position_weight=weight),
    ]
    loss, _ = vocabulary_loss(case.hidden, case.head, case.targets, signals, parts)
    got = torch.autograd.grad(loss, case.inputs)
    wanted = [torch.zeros_like(tensor) for tensor in case.inputs]
    total = 0.0
    for n in range(N):
        one = slice(n, n + 1)
        each = [
            Part(part.kind, part.scale * (1.0 if free else float(weight[n])), part.role, t)
            for part, t, free in zip(
                parts, (float(temperature[n]), float(temperature[n]), 1.0), (0, 1, 0), strict=True
            )
        ]
        teacher = HiddenSignal(case.teacher_hidden[one], case.teacher_head)
        alone = {"teacher": teacher, "topk": topk_signal(case.teacher_logits[one], KEPT, LADDER)}
        loss_n, _ = vocabulary_loss(case.hidden[one], case.head, case.targets[one], alone, each)
        for sum_, part in zip(wanted, torch.autograd.grad(loss_n, case.inputs), strict=True):
            sum_ += part
        total += loss_n.item()
    assert loss.item() == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(list(got), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("field", ["temperature", "position_weight"])
def test_numbers_by_position_must_cover_the_positions(field: str) -> None:
    case = Case()
    part = Part("forward_kl", 1.0, "teacher", **{field: torch.ones(N + 1)})
    signals = {"teacher": case.signal("hidden")[0]}
    with pytest.raises(ValueError, match=rf"{field} of forward_kl covers 12 positions"):
        vocabulary_loss(case.hidden, case.head, case.targets, signals, [part])


@pytest.mark.parametrize("kind", DIVERGENCES[1:])
def test_draws_are_refused_to_every_term_that_they_would_mislead(kind: str) -> None:
    case = Case()
    draws = sampled_signal(case.teacher_logits, 3, torch.Generator().manual_seed(0))
    arguments = (case.hidden, case.head, case.targets, {"teacher": draws})
    with pytest.raises(ValueError, match=f"{kind} cannot learn from the encoding sampled"):
        vocabulary_loss(*arguments, [Part(kind, 1.0, "teacher")])
    for temperature in (2.0, torch.ones(N)):
        with pytest.raises(ValueError, match="unbiased at temperature 1 only"):
            vocabulary_loss(*arguments, [Part("forward_kl", 1.0, "teacher", temperature)])


def test_the_softmax_of_a_temperature_is_computed_once_for_all_terms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(count=2)
    widths: list[int] = []
    soften = comparison.soften

    def spy(logits: Tensor, temperature: float | Tensor = 1.0) -> comparison.Softened:
        widths.append(logits.shape[1])
        return soften(logits, temperature)

    monkeypatch.setattr(comparison, "soften", spy)
    signals = {"teacher": case.signal("hidden")[0], "topk": case.signal("topk")[0]}
    parts = [Part(kind, 1.0, role, t) for kind in DIVERGENCES for role in signals for t in LADDER]
    vocabulary_loss(case.hidden, case.head, case.targets, signals, [*parts, Part("cross_entropy")])
    of_vocabulary = [width for width in widths if width == VOCABULARY]
    assert len(of_vocabulary) == 2 * len(LADDER)  # student and dense teacher, each temperature


def test_a_bucket_of_the_student_below_float32_is_summed_anew() -> None:
    logits = torch.tensor([[0.0, -200.0, -201.0], [0.0, 1.0, 2.0]])
    teacher = torch.tensor([[0.0, -1.0, -3.0], [0.5, 0.0, -1.0]])
    hidden = logits.clone().requires_grad_()
    signals = {"teacher": topk_signal(teacher, 1, (1.0,))}
    loss, _ = vocabulary_loss(
        hidden,
        Head(torch.eye(3)),
        torch.zeros(2, dtype=torch.long),
        signals,
        [Part("forward_kl", 1.0, "teacher")],
    )
    exact = logits.double().requires_grad_()
    ids = signals["teacher"].ids
    want = oracle("forward_kl", exact, teacher, torch.zeros(2, dtype=torch.long), kept=ids)
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    (got,), (wanted,) = torch.autograd.grad(loss, hidden), torch.autograd.grad(want, exact)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


PEAK = r"""
import re, torch
from strategies.parts import Part
from strategies.contract import Head, HiddenSignal, SampledSignal, TopKSignal
from strategies.contract import Outputs
from strategies.linear import vocabulary_loss
from strategies.measuring import measure
from strategies.specs.targets import MixSpec, SwapSpec
from strategies.targets import Target

torch.set_num_threads(1)
mixed = MixSpec(kind="mix", roles=["other"], weights=[1.0, 1.0])
weights = (("0.weights.0", 1.0), ("0.weights.1", 1.0))
parts = [
    Part("forward_kl", 1.0, "hidden", target=Target((mixed, SwapSpec(kind="swap")), weights)),
    Part("decoupled", 1.0, "hidden"),
    Part("cross_entropy"),
    Part("jensen_shannon", 1.0, "hidden"),
    Part("alpha_beta", 1.0, "hidden", 2.0, alpha=0.01, beta=0.01),
    Part("reverse_kl", 1.0, "topk"),
    Part("forward_kl", 1.0, "sampled"),
]
def chunked(count, width=32768):
    hidden = torch.randn(count, 8, requires_grad=True)
    weight = torch.randn(width, 8, requires_grad=True)
    targets = torch.randint(width, (count,))
    ids, ones = torch.arange(16).expand(count, 16), torch.ones(count, 16)
    signals = {
        "hidden": HiddenSignal(torch.randn(count, 8), Head(torch.randn(width, 8))),
        "other": HiddenSignal(torch.randn(count, 8), Head(torch.randn(width, 8))),
        "topk": TopKSignal(ids, -4 * ones, -ones[:, :1], (1.0,), width),
        "sampled": SampledSignal(ids, ones / 16, ones[:, 0], width),
    }
    vocabulary_loss(hidden, Head(weight), targets, signals, parts)[0].backward()
    outputs = Outputs(hidden=hidden, head=Head(weight))
    measure([("gap", "hidden"), ("role_entropy", "hidden")], targets, signals, outputs)
def mib(name):
    # Not ru_maxrss: a child inherits its parent's.
    return int(re.search(name + r":\s+(\d+) kB", open("/proc/self/status").read())[1]) / 1024
chunked(64)
before = mib("VmRSS")
chunked(4096)
print(mib("VmHWM") - before)
torch.ones(4096, 32768)
print(mib("VmHWM") - before)
"""


def test_logits_of_all_positions_never_exist_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=200, check=True
    )
    chunked_mib, whole_mib = map(float, done.stdout.split())
    assert whole_mib > 0.98 * 4096 * 32768 * 4 / 2**20  # the measure sees one [N, V]
    assert chunked_mib < whole_mib / 3


FAULTS = r"""
import resource, torch
from strategies.comparison import Asked, Dense, compare_at
from strategies.parts import Part
from strategies.heads import Workspace

torch.set_num_threads(1)
student, teacher = torch.randn(4, 32768), torch.randn(4, 32768)
labels = torch.zeros(4, 1, dtype=torch.int64)
part = Part("jensen_shannon", 1.0, "teacher")
asked = [Asked(part, 1.0, Dense(teacher, False, "teacher"), labels, True)]
def faults_of_a_block():
    for _ in range(3):
        compare_at(student, 1.0, asked)
    return [once() for _ in range(5)]
def once():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        compare_at(student, 1.0, asked)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10
before = max(faults_of_a_block())  # where a block happens to end the heap, fewer
Workspace(torch.float32, torch.device("cpu"))
print(before, min(faults_of_a_block()))  # pages that the system took back only add
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep pages anyway")
def test_blocks_do_not_ask_the_system_for_fresh_pages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=200, check=True
    )
    before, with_workspace = map(float, done.stdout.split())
    assert before > 50  # the measure sees them
    assert with_workspace < 5
