"""The wire tells the truth: equal models give zero, served equals local, errors are measured.

The oracle is written here in float64, from the definitions, so that it shares no code with what it
judges; where `strategies` measures, it must agree.
"""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tiny_models import VOCABULARY, tiny
from torch import Tensor

from orchestrator.models.forward import forward_hidden, forward_logits
from orchestrator.pool.forwards import PADDED, arrange
from orchestrator.signals.encodings import (
    RoleOutputs,
    decode,
    encode,
    head_from_record,
    head_record,
)
from orchestrator.signals.encodings.bits import pack, unpack
from orchestrator.signals.encodings.codes import from_codes, to_codes
from orchestrator.signals.records import (
    FullAsk,
    HiddenAsk,
    Reply,
    SampledAsk,
    SignalAsk,
    TopKAsk,
)
from strategies.contract import (
    Batch,
    DenseSignal,
    Head,
    HiddenSignal,
    Outputs,
    SampledSignal,
    TopKSignal,
)
from strategies.objective import build_objective
from strategies.progress import Progress
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
FLOATS = st.sampled_from(["float32", "bfloat16", "float16"])
LOGS = st.sampled_from(["float32", "float16", "int8"])


def across(ask: SignalAsk, hidden: Tensor, head: Head, sample: int = 5) -> Any:
    """There and back, the head too."""
    rows = len(hidden)
    outputs = RoleOutputs(
        hidden, head, samples=np.full(rows, sample, np.uint64), positions=np.arange(rows)
    )
    reply = Reply("r", "teacher", ask, encode(ask, outputs), head.weight.shape[0], "f")
    far_head = head_from_record(head_record("teacher", "f", head))
    return decode(reply, far_head, positions=rows)


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
    rest = signal.rest[:, rung : rung + 1].double()
    p = torch.log_softmax(torch.cat([signal.logprobs.double() / temperature, rest], 1), 1)
    softened = torch.log_softmax(student, -1) / temperature
    others = softened.scatter(1, signal.ids, -torch.inf).logsumexp(-1, keepdim=True)
    q = torch.log_softmax(torch.cat([softened.gather(1, signal.ids), others], 1), 1)
    return torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum(-1)


def measured(signal: Any, hidden: Tensor, head: Head, t: float) -> float:
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
        Batch({}, grid, grid),
        {"teacher": signal},
        objective.numbers(Progress(0, 1), {}),
        {"forward_kl": 1.0},
    )
    return float(totals["forward_kl"]) / rows / t**2


# --- bytes ---------------------------------------------------------------------------------------


@given(st.data(), st.integers(1, 32), st.integers(0, 5), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_packed_ids_come_back_and_are_the_bits_of_their_row(
    data: st.DataObject, bits: int, rows: int, count: int
):
    values = data.draw(
        st.lists(
            st.lists(st.integers(0, (1 << bits) - 1), min_size=count, max_size=count),
            min_size=rows,
            max_size=rows,
        )
    )
    ids = np.array(values, np.int64).reshape(rows, count)
    packed = pack(ids, bits)
    assert packed.dtype == np.uint8 and packed.shape == (rows, math.ceil(count * bits / 8))
    for row, line in zip(values, packed, strict=True):
        number = sum(value << (j * bits) for j, value in enumerate(row))
        assert int.from_bytes(line.tobytes(), "little") == number
    assert (unpack(packed, bits, count) == ids).all()


@given(st.lists(st.floats(-6e4, 0.0, width=32), min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_eight_bits_keep_order_and_err_by_half_a_step(values: list[float]):
    logs = torch.tensor([values])
    codes, ends = to_codes(logs)
    got = from_codes(codes, ends, "cpu")
    low, high = ends[0].astype(np.float64)
    assert low <= min(values) and max(values) <= high
    assert ((got - logs).abs() <= (high - low) / 508 * 1.001 + 1e-5).all()
    assert (got[0, logs[0].argsort()].diff() >= 0).all()


# --- equal models --------------------------------------------------------------------------------


@given(cases, temperatures)
@settings(max_examples=60, deadline=None)
def test_equal_models_give_zero_through_hidden_states(data: tuple[Tensor, Head], t: float):
    hidden, head = data
    signal = across(HiddenAsk("float32"), hidden, head)
    assert isinstance(signal, HiddenSignal)
    served = logits64(signal.hidden, signal.head)
    assert kl64(served, logits64(hidden, head), t).abs().max() < 1e-6
    assert abs(measured(signal, hidden, head, t)) < 1e-6


@given(cases, temperatures)
@settings(max_examples=40, deadline=None)
def test_equal_models_give_zero_through_all_logits(data: tuple[Tensor, Head], t: float):
    hidden, head = data
    signal = across(FullAsk("float32"), hidden, head)
    assert isinstance(signal, DenseSignal)
    assert kl64(signal.logits.double(), logits64(hidden, head), t).abs().max() < 1e-6
    assert abs(measured(signal, hidden, head, t)) < 1e-6


@given(cases, temperatures, st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_equal_models_give_zero_through_the_top_k(data: tuple[Tensor, Head], t: float, k: int):
    hidden, head = data
    k = min(k, head.weight.shape[0])
    signal = across(TopKAsk(k, "float32", LADDER), hidden, head)
    assert isinstance(signal, TopKSignal)
    assert bucket_kl64(signal, logits64(hidden, head), t).abs().max() < 1e-6
    if k < head.weight.shape[0]:
        assert abs(measured(signal, hidden, head, t)) < 1e-6


# --- topk ----------------------------------------------------------------------------------------


@given(cases, LOGS, st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_kept_entries_and_rest_sum_to_one(data: tuple[Tensor, Head], dtype: Any, k: int):
    hidden, head = data
    signal = across(TopKAsk(min(k, head.weight.shape[0]), dtype, LADDER), hidden, head)
    assert isinstance(signal, TopKSignal)
    mass = signal.logprobs.double().exp().sum(-1) + signal.rest[:, 1].double().exp()
    assert (mass - 1).abs().max() < 1e-6


@given(cases, st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_top_k_and_its_rest_are_what_sorting_says(data: tuple[Tensor, Head], k: int):
    hidden, head = data
    k = min(k, head.weight.shape[0])
    signal = across(TopKAsk(k, "float32", LADDER), hidden, head)
    assert isinstance(signal, TopKSignal)
    ranked = torch.log_softmax(logits64(hidden, head), -1).sort(descending=True).values
    assert signal.ids.dtype == torch.int64 and signal.ids.shape == (hidden.shape[0], k)
    assert torch.allclose(signal.logprobs.double(), ranked[:, :k], atol=1e-5)
    assert all(len(set(row)) == k for row in signal.ids.tolist())
    for rung, t in enumerate(LADDER):
        # Relative, however small: a float32 logit of size 30 is known to 4e-6.
        expected = torch.logsumexp(ranked[:, k:] / t, -1)
        torch.testing.assert_close(signal.rest[:, rung].double(), expected, rtol=1e-5, atol=1e-5)


# --- sampled -------------------------------------------------------------------------------------


@given(cases, st.integers(1, 30), st.sampled_from([0.7, 1.0, 2.0]), st.integers(0, 1 << 40))
@settings(max_examples=100, deadline=None)
def test_each_entry_is_drawn_as_often_as_it_should_be_rounded_up_or_down(
    data: tuple[Tensor, Head], draws: int, t: float, seed: int
):
    hidden, head = data
    signal = across(SampledAsk(draws, t, "float32", seed), hidden, head)
    assert isinstance(signal, SampledSignal)
    logits = logits64(hidden, head)
    p, q = torch.softmax(logits, -1), torch.softmax(logits / t, -1)
    counts = torch.zeros_like(q).scatter_add_(
        1, signal.ids, torch.ones_like(q).gather(1, signal.ids)
    )
    assert ((counts - draws * q).abs() < 1 + 1e-4).all()
    assert (signal.ids.diff() >= 0).all()
    ratio = (p / q).gather(1, signal.ids) / draws
    torch.testing.assert_close(signal.weights.double(), ratio, rtol=1e-4, atol=0)
    entropy = -(p * p.log()).sum(-1)
    torch.testing.assert_close(signal.entropy.double(), entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("temperature", [0.8, 1.0, 1.5, 2.0])
def test_draws_are_unbiased(temperature: float, dtype: Any):
    """The mean over 3000 positions of one distribution, for probabilities and a few functions."""
    hidden, head = case(2, 1, 40, 0.3)  # nothing so rare that it might never be drawn
    p = torch.softmax(logits64(hidden, head), -1)[0]
    many = hidden.expand(3000, -1)
    signal = across(SampledAsk(6, temperature, dtype, 11), many, head)
    functions = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).double()
    functions = torch.cat([functions, torch.eye(40).double(), torch.ones(40, 1).double()], 1)
    estimates = (signal.weights.double().unsqueeze(-1) * functions[signal.ids]).sum(1)
    error = estimates.std(0) / math.sqrt(len(estimates))
    # int8 rounds a weight by up to half a step: a relative 4e-3 here, evenly up and down.
    slack = {"float32": 1e-6, "float16": 5e-4, "int8": 2e-3}[dtype] * (functions.abs().T @ p)
    assert ((estimates.mean(0) - p @ functions).abs() <= 3.5 * error + slack).all()
    assert signal.weights.sum(1).mean() == pytest.approx(1.0, abs=5e-3)


@given(st.integers(0, 1 << 62), st.integers(0, 1 << 62))
@settings(max_examples=30, deadline=None)
def test_draws_depend_on_seed_sample_and_position_alone(seed: int, sample: int):
    hidden, head = case(3, 4, 40, 1.0)
    ask = SampledAsk(5, 1.0, "float32", seed)
    whole = across(ask, hidden, head, sample)
    for row in range(4):
        outputs = RoleOutputs(
            hidden[row : row + 1],
            head,
            samples=np.array([sample], np.uint64),
            positions=np.array([row]),
        )
        alone = decode(Reply("r", "t", ask, encode(ask, outputs), 40, "f"), None)
        assert isinstance(alone, SampledSignal)
        assert torch.equal(alone.ids[0], whole.ids[row])


# --- hidden, served ------------------------------------------------------------------------------


@given(cases, FLOATS)
@settings(max_examples=60, deadline=None)
def test_hidden_states_keep_their_shape_and_nearly_their_values(
    data: tuple[Tensor, Head], dtype: Any
):
    hidden, head = data
    signal = across(HiddenAsk(dtype), hidden, head)
    assert isinstance(signal, HiddenSignal) and signal.hidden.shape == hidden.shape
    # float16 has no normal numbers below 6e-5, hence the absolute part.
    allowed = hidden.abs() * torch.finfo(signal.hidden.dtype).eps / 2 + 3e-8
    assert ((signal.hidden.float() - hidden).abs() <= allowed).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "cohere", "phi"])
@pytest.mark.parametrize(
    "ask", [HiddenAsk("float32"), TopKAsk(VOCABULARY, "float32", (1.0,)), FullAsk("float32")]
)
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
    match signal:
        case HiddenSignal():
            served = torch.log_softmax(signal.head.logits(signal.hidden), -1)
        case DenseSignal():
            served = torch.log_softmax(signal.logits, -1)
        case _:
            served = torch.empty_like(local).scatter_(1, signal.ids, signal.logprobs)
    assert (served - local).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("ask", "limit"),
    [
        (FullAsk("float32"), 1e-10),
        (FullAsk("float16"), 1e-6),
        (FullAsk("bfloat16"), 5e-5),
        (HiddenAsk("float32"), 1e-10),
        (HiddenAsk("float16"), 1e-6),
        (HiddenAsk("bfloat16"), 5e-5),
        (TopKAsk(64, "float32", (1.0,)), 1e-8),
        (TopKAsk(64, "float16", (1.0,)), 5e-7),
        (TopKAsk(64, "int8", (1.0,)), 2e-5),
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
    match signal:
        case HiddenSignal():
            error = kl64(logits64(signal.hidden, signal.head), local, 1.0)
        case DenseSignal():
            error = kl64(signal.logits.double(), local, 1.0)
        case _:
            error = bucket_kl64(signal, local, 1.0)
    record_property("kl", float(error.mean()))
    print(ask, float(error.mean()), float(error.min()))
    assert error.mean().abs() < limit
    assert error.min() > -1e-6


# --- which samples share a forward ---------------------------------------------------------------


@given(st.lists(st.integers(1, 300), max_size=40), st.sampled_from([1, 64, 512, 16384]))
@settings(max_examples=200, deadline=None)
def test_every_sample_runs_once_in_forwards_that_are_bounded(lengths: list[int], tokens: int):
    groups = arrange(lengths, tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * max(lengths[i] for i in group)
        assert len(group) == 1 or padded <= tokens
        assert padded <= PADDED * sum(lengths[i] for i in group)
    if tokens == 1:
        assert all(len(group) == 1 for group in groups)
