"""The wire tells the truth: equal models give zero, served equals local, errors are measured.

The oracle is written here in float64, from the definitions, so that it shares no code with what it
judges; where `strategies` measures, it must agree.
"""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tiny_models import VOCABULARY, tiny
from torch import Tensor

from orchestrator.models.forward import forward_hidden, forward_logits
from orchestrator.signals.decode import decode, head_from_record
from orchestrator.signals.encode import encode, head_record
from orchestrator.signals.records import HiddenAsk, Reply, SignalAsk, TopKAsk
from strategies.contract import Batch, Head, HiddenSignal, Outputs, TopKSignal
from strategies.objective import build_objective
from strategies.specs import ObjectiveSpec

LADDER = (0.5, 1.0, 2.0, 4.0)


def case(seed: int, rows: int, vocabulary: int, spread: float) -> tuple[Tensor, Head]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, 8, generator=generator) * spread
    bias = torch.randn(vocabulary, generator=generator) if seed % 2 else None
    softcap = 5.0 if seed % 3 == 0 else None
    hidden = torch.randn(rows, 8, generator=generator)
    return hidden, Head(weight, bias, 0.5 if seed % 5 == 0 else 1.0, softcap)


cases = st.builds(
    case,
    st.integers(0, 1 << 16),
    st.integers(1, 6),
    st.integers(2, 40),
    st.sampled_from([0.01, 1.0, 6.0]),
)
temperatures = st.sampled_from(LADDER)
HIDDEN = st.sampled_from([HiddenAsk("float32"), HiddenAsk("bfloat16"), HiddenAsk("float16")])


def across(ask: SignalAsk, hidden: Tensor, head: Head) -> HiddenSignal | TopKSignal:
    """There and back, the head too."""
    reply = Reply("r", "teacher", ask, encode(ask, hidden, head), head.weight.shape[0], "f")
    far_head = head_from_record(head_record("teacher", "f", head))
    return decode(reply, far_head, positions=hidden.shape[0])


def logits64(hidden: Tensor, head: Head) -> Tensor:
    z = hidden.double() @ head.weight.double().T
    z = z if head.bias is None else z + head.bias.double()
    z = z * head.scale
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def kl64(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature, [N], float64."""
    p = torch.log_softmax(teacher / temperature, -1)
    return (p.exp() * (p - torch.log_softmax(student / temperature, -1))).sum(-1)


def bucket_kl64(signal: TopKSignal, student: Tensor, temperature: float) -> Tensor:
    """KL between kept entries and one bucket for the rest, both sides coarsened alike, [N]."""
    rung = signal.ladder.index(temperature)
    p = (signal.logprobs.double() / temperature - signal.log_z[:, rung : rung + 1]).exp()
    q = torch.softmax(student / temperature, -1).gather(1, signal.ids)
    kept = (p * (p.log() - q.log())).nan_to_num(0.0).sum(-1)
    rest_p, rest_q = (1 - p.sum(-1)).clamp_min(0), (1 - q.sum(-1)).clamp_min(1e-300)
    # Float32 cannot tell a rest below this from none, and its logarithm would be noise.
    return kept + torch.where(rest_p > 5e-7, rest_p * (rest_p / rest_q).log(), 0.0)


def measured(signal: HiddenSignal | TopKSignal, hidden: Tensor, head: Head, t: float) -> float:
    """Forward KL per position, by the objective a student would use."""
    rows = hidden.shape[0]
    objective = build_objective(
        ObjectiveSpec.model_validate(
            {"terms": [{"kind": "forward_kl", "role": "teacher", "temperature": t}]}
        )
    )
    grid = torch.zeros(1, rows, dtype=torch.int64)
    _, totals = objective.loss(
        Outputs(hidden=hidden, head=head),
        Batch(grid, grid, grid, grid),
        {"teacher": signal},
        objective.numbers(0, 1),
        {"forward_kl": 1.0},
    )
    return float(totals["forward_kl"]) / rows / t**2


@given(cases, temperatures)
@settings(max_examples=60, deadline=None)
def test_equal_models_give_zero_through_hidden_states(data: tuple[Tensor, Head], t: float):
    hidden, head = data
    signal = across(HiddenAsk("float32"), hidden, head)
    assert isinstance(signal, HiddenSignal)
    served = logits64(signal.hidden, signal.head)
    assert kl64(served, logits64(hidden, head), t).abs().max() < 1e-6
    assert abs(measured(signal, hidden, head, t)) < 1e-6


@given(cases, temperatures, st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_equal_models_give_zero_through_the_top_k(data: tuple[Tensor, Head], t: float, k: int):
    hidden, head = data
    k = min(k, head.weight.shape[0])
    signal = across(TopKAsk(k, "float32", LADDER), hidden, head)
    assert isinstance(signal, TopKSignal)
    student = logits64(hidden, head)
    assert bucket_kl64(signal, student, t).abs().max() < 1e-6
    assert -1e-6 < measured(signal, hidden, head, t) < 1e-6 + floored(student, k, t)


def floored(logits: Tensor, k: int, temperature: float) -> float:
    """What float32 cannot tell: a rest below its epsilon is taken as its epsilon."""
    ranked = torch.log_softmax(logits / temperature, -1).sort(descending=True).values
    epsilon = torch.tensor(torch.finfo(torch.float32).eps, dtype=torch.float64)
    if k == ranked.shape[1]:
        return 0.0
    return float(epsilon * (epsilon.log() - ranked[:, k:].logsumexp(-1)).clamp_min(0.0).max())


@given(cases, st.sampled_from(["float32", "float16"]), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_kept_mass_is_never_more_than_one(data: tuple[Tensor, Head], dtype: Any, k: int):
    hidden, head = data
    vocabulary = head.weight.shape[0]
    signal = across(TopKAsk(min(k, vocabulary), dtype, LADDER), hidden, head)
    assert isinstance(signal, TopKSignal)
    assert signal.logprobs.double().exp().sum(-1).max() <= 1 + 1e-6
    for rung, t in enumerate(LADDER):
        mass = (signal.logprobs / t - signal.log_z[:, rung : rung + 1]).double().exp().sum(-1)
        assert mass.max() <= 1 + 1e-6
        if k >= vocabulary:
            assert mass.min() >= 1 - 1e-6


@given(cases, st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_top_k_is_what_sorting_says(data: tuple[Tensor, Head], k: int):
    hidden, head = data
    k = min(k, head.weight.shape[0])
    signal = across(TopKAsk(k, "float32", (1.0,)), hidden, head)
    assert isinstance(signal, TopKSignal)
    expected = torch.log_softmax(logits64(hidden, head), -1).sort(descending=True).values[:, :k]
    assert signal.ids.dtype == torch.int64 and signal.ids.shape == (hidden.shape[0], k)
    assert torch.allclose(signal.logprobs.double(), expected, atol=1e-5)
    assert all(len(set(row)) == k for row in signal.ids.tolist())


@given(cases, HIDDEN)
@settings(max_examples=60, deadline=None)
def test_hidden_states_keep_their_shape_and_nearly_their_values(
    data: tuple[Tensor, Head], ask: HiddenAsk
):
    hidden, head = data
    signal = across(ask, hidden, head)
    assert isinstance(signal, HiddenSignal) and signal.hidden.shape == hidden.shape
    # float16 has no normal numbers below 6e-5, hence the absolute part.
    allowed = hidden.abs() * torch.finfo(signal.hidden.dtype).eps / 2 + 3e-8
    assert ((signal.hidden.float() - hidden).abs() <= allowed).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "cohere", "phi"])
@pytest.mark.parametrize("ask", [HiddenAsk("float32"), TopKAsk(VOCABULARY, "float32", (1.0,))])
def test_served_equals_local(family: str, ask: SignalAsk):
    loaded = tiny(family)
    head = loaded.head()
    assert head is not None
    ids = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(5))
    positions = torch.arange(9).expand(2, 9)
    with torch.no_grad():
        local = torch.log_softmax(
            forward_logits(loaded.module, ids, positions)[:, 1:].flatten(0, 1), -1
        )
        hidden = forward_hidden(loaded.module, ids, positions)[:, 1:].flatten(0, 1)
    signal = across(ask, hidden, head)
    if isinstance(signal, HiddenSignal):
        served = torch.log_softmax(signal.head.logits(signal.hidden), -1)
    else:
        served = torch.empty_like(local).scatter_(1, signal.ids, signal.logprobs)
    assert (served - local).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("ask", "limit"),
    [
        (HiddenAsk("float32"), 1e-10),
        (HiddenAsk("float16"), 1e-6),
        (HiddenAsk("bfloat16"), 5e-5),
        (TopKAsk(64, "float32", (1.0,)), 1e-8),
        (TopKAsk(64, "float16", (1.0,)), 1e-6),
    ],
)
def test_the_error_of_each_wire_is_within_what_is_stated(
    ask: SignalAsk, limit: float, record_property: Any
):
    """KL of a model to itself across the wire, mean over 512 positions, width 64, V = 1000."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(512, 64, generator=generator)
    head = Head(torch.randn(1000, 64, generator=generator) * 0.25)
    signal, local = across(ask, hidden, head), logits64(hidden, head)
    if isinstance(signal, HiddenSignal):
        error = kl64(logits64(signal.hidden, signal.head), local, 1.0)
    else:
        error = bucket_kl64(signal, local, 1.0)
    record_property("kl", float(error.mean()))
    print(ask, float(error.mean()), float(error.min()))
    assert error.mean().abs() < limit
    assert error.min() > -1e-6
