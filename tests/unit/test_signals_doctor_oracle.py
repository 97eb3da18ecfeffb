"""The doctor's oracle against the tests' own: two plain forms of one formula, written apart."""

import pytest
import torch
from loss_oracle import oracle as reference
from loss_oracle import topk_signal

from orchestrator.signals_doctor import oracle
from orchestrator.signals_doctor.losses import Moment
from strategies.contract import Head, Outputs, SampledSignal
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.schedules import value
from strategies.specs import CrossEntropySpec, ObjectiveSpec

N, D = 5, 7
TERMS = [
    {"kind": "forward_kl"},
    {"kind": "reverse_kl"},
    {"kind": "jensen_shannon", "beta": 0.3},
    {"kind": "skewed_forward_kl", "skew": 0.2},
    {"kind": "skewed_reverse_kl", "skew": 0.2},
    {"kind": "total_variation"},
    *(
        {"kind": "alpha_beta", "alpha": alpha, "beta": beta}
        for alpha, beta in ((0.2, 0.7), (1, 0), (0, 1), (0, 0), (0.5, -0.5), (-0.4, 1.1))
    ),
]


def moment(temperature: float = 1.0, **term: object) -> Moment:
    spec = ObjectiveSpec.model_validate({"terms": [{**term, "temperature": temperature}]})
    [built] = build_objective(spec).vocabulary
    numbers = {name: value(number, Progress(0, 1)) for name, number in built.numbers().items()}
    return Moment(built, "", numbers)


def outputs(width: int, seed: int) -> Outputs:
    """With every part that a head may have."""
    make = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=make, dtype=torch.float64)

    return Outputs(draw(N, D), Head(draw(width, D), draw(width), 1.5, 9.0))


def logits(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    assert head.bias is not None and head.softcap is not None
    z = head.scale * (hidden @ head.weight.T + head.bias)
    return head.softcap * torch.tanh(z / head.softcap)


@pytest.mark.parametrize("term", TERMS, ids=lambda term: "-".join(map(str, term.values())))
@pytest.mark.parametrize("widths", [(23, 23), (29, 23), (23, 29)], ids=str)
@pytest.mark.parametrize("kept", [None, 6])
def test_values_and_gradients_are_the_reference_s(
    term: dict[str, object],
    widths: tuple[int, int],
    kept: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oracle, "CHUNK_ELEMENTS", 2 * widths[0])  # several chunks and blocks
    monkeypatch.setattr(oracle, "BLOCK_ELEMENTS", 5 * D)
    student, role = outputs(widths[0], 1), outputs(widths[1], 2)
    assert student.hidden is not None and student.head is not None
    assert role.hidden is not None and role.head is not None
    at = moment(2.0, **term)
    theirs = logits(role.hidden, role.head)
    leaf = student.hidden.clone().requires_grad_()
    ids, truth = None, None
    if kept is None:
        truth = oracle.dense(at.term.spec, at.numbers, student, role)
    else:
        signal = topk_signal(theirs, kept, (1.0, 2.0))
        ids = signal.ids
        truth = oracle.coarse(at.term.spec, at.numbers, student, role, signal)
    numbers = {name: at.numbers[name] for name in ("beta", "skew", "alpha") if name in at.numbers}
    total = reference(
        at.term.spec.kind,
        logits(leaf, student.head),
        theirs,
        torch.zeros(N, dtype=torch.int64),
        2.0,
        kept=ids,
        **numbers,
    )
    total.backward()
    assert truth.value == pytest.approx(float(total.detach()) / N, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(truth.gradient, leaf.grad, rtol=1e-8, atol=1e-11)


def test_labels_are_the_reference_s() -> None:
    student, spec = outputs(23, 3), CrossEntropySpec(kind="cross_entropy", label_smoothing=0.2)
    assert student.hidden is not None and student.head is not None
    targets = torch.arange(N)
    truth = oracle.labels(spec, student, targets)
    leaf = student.hidden.clone().requires_grad_()
    total = reference(
        "cross_entropy", logits(leaf, student.head), None, targets, label_smoothing=0.2
    )
    total.backward()
    assert truth.value == pytest.approx(float(total.detach()) / N, rel=1e-9)
    torch.testing.assert_close(truth.gradient, leaf.grad)


def test_draws_of_every_entry_by_its_probability_are_the_whole_divergence() -> None:
    student, role = outputs(23, 4), outputs(23, 5)
    assert role.hidden is not None and role.head is not None
    p = logits(role.hidden, role.head).softmax(1)
    entropy = -(p * p.log()).sum(1)
    everything = SampledSignal(torch.arange(23).expand(N, 23), p, entropy, 23)
    drawn = oracle.drawn(student, everything)
    at = moment(kind="forward_kl")
    whole = oracle.dense(at.term.spec, at.numbers, student, role)
    assert drawn.value == pytest.approx(whole.value, rel=1e-9)
    torch.testing.assert_close(drawn.gradient, whole.gradient)


def test_between_rungs_the_rest_is_a_straight_line_in_the_inverse_temperature() -> None:
    student = outputs(23, 6)
    assert student.hidden is not None and student.head is not None
    theirs = logits(student.hidden, student.head)
    at = moment(1.5, kind="forward_kl")
    on = oracle.coarse(
        at.term.spec, at.numbers, student, student, topk_signal(theirs, 6, (1.0, 1.5, 2.0))
    )
    between = oracle.coarse(
        at.term.spec, at.numbers, student, student, topk_signal(theirs, 6, (1.0, 2.0))
    )
    assert on.value == pytest.approx(0.0, abs=1e-12)
    assert 1e-5 < between.value < 0.1
