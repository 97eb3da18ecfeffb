"""What crosses the wire: bytes, layouts, refusals, and heads."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.errors import SpecError
from orchestrator.signals.encodings import (
    RoleOutputs,
    decode,
    encode,
    head_from_record,
    head_record,
    sampled,
)
from orchestrator.signals.encodings import outputs as outputs_module
from orchestrator.signals.encodings.codes import IMPOSSIBLE, from_codes, to_codes
from orchestrator.signals.encodings.layers import projection
from orchestrator.signals.encodings.topk import NO_REST
from orchestrator.signals.encodings.uniforms import token_hash, uniforms
from orchestrator.signals.layouts import Sizes, empty, layout, position_bytes
from orchestrator.signals.records import (
    PROTOCOL,
    AttentionAsk,
    FullAsk,
    HiddenAsk,
    LayersAsk,
    Reply,
    SampledAsk,
    SignalAsk,
    TopKAsk,
)
from strategies.contract import (
    AttentionSignal,
    DenseSignal,
    Head,
    HiddenSignal,
    LayersSignal,
    SampledSignal,
    TopKSignal,
)

V, D, N = 11, 4, 3
TOPK = TopKAsk(4, "float32", (1.0, 2.0))
SAMPLED = SampledAsk(6, 1.5, "float32", seed=3)
QWEN = Sizes(vocabulary=151_936, width=4096)


def head(dtype: torch.dtype = torch.float32, **fields: Any) -> Head:
    weight = torch.randn(V, D, generator=torch.Generator().manual_seed(1))
    return Head(weight.to(dtype), **fields)


def hidden(rows: int = N) -> torch.Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(2))


def outputs(rows: int = N, **fields: Any) -> RoleOutputs:
    """Of a role with a head."""
    places = np.arange(rows)
    fields = {"hidden": hidden(rows), "head": head(), **fields}
    return RoleOutputs(samples=np.full(rows, 77, np.uint64), positions=places, **fields)


def of_logits(logits: torch.Tensor) -> RoleOutputs:
    rows = len(logits)
    return RoleOutputs(logits=logits, samples=np.zeros(rows, np.uint64), positions=np.arange(rows))


def reply(ask: SignalAsk, arrays: dict[str, np.ndarray], vocabulary: int = V) -> Reply:
    return Reply("r1", "teacher", ask, arrays, vocabulary, "f" * 64)


def topk_across(ask: TopKAsk, logits: torch.Tensor) -> TopKSignal:
    signal = decode(reply(ask, encode(ask, of_logits(logits)), logits.shape[1]), None)
    assert isinstance(signal, TopKSignal)
    return signal


def topk_reply(ask: TopKAsk = TOPK) -> Reply:
    return reply(ask, encode(ask, outputs()))


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (TopKAsk(64, "float32", (1.0,)), 64 * 18 // 8 + 256 + 4),
        (TopKAsk(64, "float16", (1.0,)), 276),  # at most 290
        (TopKAsk(64, "int8", (1.0,)), 216),  # at most 230
        (TopKAsk(64, "int8", (1.0, 2.0, 4.0)), 224),
        (SampledAsk(12, 1.0, "int8", 0), 27 + 4),  # at most 48
        (SampledAsk(12, 1.5, "int8", 0), 27 + 12 + 4 + 4),
        (HiddenAsk("bfloat16"), 2 * 4096),
        (FullAsk("float16"), 2 * 151_936),
    ],
)
def test_bytes_of_a_position_of_a_large_vocabulary(ask: SignalAsk, expected: int):
    assert position_bytes(ask, QWEN) == expected


ASKS = [
    FullAsk("float32"),
    FullAsk("bfloat16"),
    HiddenAsk("float16"),
    TOPK,
    TopKAsk(4, "float16", (1.0,)),
    TopKAsk(V, "int8", (2.0,)),
    SAMPLED,
    SampledAsk(6, 1.0, "int8", seed=3),
    SampledAsk(5, 0.7, "int8", seed=3),
    LayersAsk(("a", "b"), "float16"),
    LayersAsk(("a",), "float32", project=2),
    AttentionAsk(("a",), "bfloat16"),
]


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_an_answer_has_the_arrays_that_its_layout_declares(ask: SignalAsk, rows: int):
    role = Sizes("teacher", V, D, layers={"a": 5, "b": 3}, attention={"a": 2})
    if isinstance(ask, AttentionAsk):
        captured = {"a": torch.rand(rows, 2, 9)}
    else:
        captured = {"a": torch.rand(rows, 5), "b": torch.rand(rows, 3)}
    arrays = encode(ask, outputs(rows, captured=captured))
    blank = empty(ask, role, rows, longest=9)
    assert {k: (a.shape, a.dtype) for k, a in arrays.items()} == {
        k: (a.shape, a.dtype) for k, a in blank.items()
    }
    assert position_bytes(ask, role, 9) * rows == reply(ask, arrays).nbytes
    assert decode(reply(ask, arrays), head(), positions=rows)


# --- topk ----------------------------------------------------------------------------------------


def test_top_k_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.1, 0.4]]))
    arrays = encode(TopKAsk(2, "float32", (1.0, 2.0)), of_logits(logits))
    assert arrays["ids"].tolist() == [[0 + (2 << 2)]]  # two bits an id
    assert np.exp(arrays["logprobs"]) == pytest.approx(np.array([[0.5, 0.4]]))
    assert np.exp(arrays["rest"]) == pytest.approx(np.array([[0.1, 0.1**0.5]]))


@pytest.mark.parametrize("vocabulary", [2, 1 << 16, (1 << 16) + 1])
def test_the_largest_id_survives_at_every_width(vocabulary: int):
    logits = torch.zeros(1, vocabulary)
    logits[0, -1] = 5.0
    assert topk_across(TopKAsk(1, "float32", (1.0,)), logits).ids.tolist() == [[vocabulary - 1]]


def test_a_tiny_rest_is_not_lost():
    """One minus the kept mass would be 0 here: float32 cannot tell e-44 from none."""
    logits = torch.tensor([[50.0, 0.0, 6.0, -30.0]])
    signal = topk_across(TopKAsk(1, "float16", (1.0, 2.0)), logits)
    exact = torch.tensor([0.0, 6.0, -30.0], dtype=torch.float64)
    log_z = torch.logsumexp(logits.double(), -1)
    expected = [float(torch.logsumexp((exact - log_z) / t, -1)) for t in (1.0, 2.0)]
    assert signal.rest[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert expected[0] < -43


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("ladder", [(1.0, 3.0), (2.0,)])
def test_nothing_is_left_when_everything_is_kept(dtype: Any, ladder: tuple[float, ...]):
    arrays = encode(TopKAsk(V, dtype, ladder), outputs())
    assert (arrays["rest"] == np.float32(NO_REST)).all() and np.isfinite(NO_REST)
    signal = decode(reply(TopKAsk(V, dtype, ladder), arrays), None)
    assert isinstance(signal, TopKSignal) and torch.isneginf(signal.rest).all()
    assert signal.logprobs.exp().sum(-1) == pytest.approx(torch.ones(N))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("k", [1, 4, 10])
def test_rounded_entries_and_their_rest_sum_to_one(dtype: Any, k: int):
    signal = decode(topk_reply(TopKAsk(k, dtype, (0.5, 1.0, 2.0))), None)
    assert isinstance(signal, TopKSignal)
    total = signal.logprobs.double().exp().sum(-1) + signal.rest[:, 1].double().exp()
    assert total == pytest.approx(torch.ones(N, dtype=torch.float64), abs=1e-6)


def test_renormalising_changes_no_distribution_at_any_rung():
    ask = TopKAsk(4, "int8", (0.5, 1.0, 3.0))
    answer = topk_reply(ask)
    signal = decode(answer, None)
    assert isinstance(signal, TopKSignal)
    raw = from_codes(answer.arrays["logprobs"], answer.arrays["range"], "cpu")
    for rung, t in enumerate(ask.temperatures):
        sent = torch.cat([raw / t, torch.from_numpy(answer.arrays["rest"])[:, rung : rung + 1]], 1)
        got = torch.cat([signal.logprobs / t, signal.rest[:, rung : rung + 1]], 1)
        assert torch.allclose(sent.softmax(1), got.softmax(1), atol=1e-6)


def test_impossible_entries_stay_finite_and_improbable():
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    for dtype in ("float32", "float16", "int8"):
        signal = topk_across(TopKAsk(3, dtype, (1.0,)), logits)
        assert torch.isfinite(signal.logprobs).all() and signal.logprobs.exp()[0, 2] == 0.0
        # It takes nothing of int8's range either.
        kept = torch.log_softmax(torch.tensor([1.0, 0.0]), -1)
        assert torch.allclose(signal.logprobs[0, :2], kept, atol=3e-3)
        rest = topk_across(TopKAsk(2, dtype, (1.0,)), logits).rest
        assert torch.isneginf(rest).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("ask", [TOPK, SAMPLED, FullAsk("float32")])
def test_logits_that_are_not_finite_are_refused(ask: SignalAsk, bad: float):
    with pytest.raises(ValueError, match="not finite"):
        encode(ask, of_logits(torch.tensor([[0.0, bad, 1.0, 2.0, 3.0]])))


def test_more_entries_than_the_vocabulary_are_refused():
    ask = TopKAsk(12, "float32", (1.0,))
    with pytest.raises(ValueError, match=r"k \(12\) is above .* \(11\)"):
        encode(ask, outputs())
    with pytest.raises(SpecError, match=r"roles\.tutor\.encoding\.k: is 12, .* 11\. Set it to 11"):
        layout(ask, Sizes("tutor", 11))


@pytest.mark.parametrize("ask", [TOPK, TopKAsk(4, "int8", (1.0, 3.0)), SAMPLED, FullAsk("float32")])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_chunks_do_not_show(rows: int, ask: SignalAsk, monkeypatch: pytest.MonkeyPatch):
    whole = decode(reply(ask, encode(ask, outputs(rows))), None)
    sizes: list[int] = []
    plain = Head.logits
    monkeypatch.setattr(outputs_module, "CHUNK_ELEMENTS", 2 * V + 1)
    monkeypatch.setattr(Head, "logits", lambda self, h: (sizes.append(len(h)), plain(self, h))[1])
    cut = decode(reply(ask, encode(ask, outputs(rows))), None)
    assert max(sizes, default=0) <= 2
    for name in ("ids", "logprobs", "rest", "weights", "entropy", "logits"):
        if hasattr(whole, name):
            # Allowing for the last bit: a product of fewer rows may round elsewhere.
            torch.testing.assert_close(getattr(whole, name), getattr(cut, name))


@pytest.mark.parametrize("ask", [TOPK, SAMPLED, FullAsk("float32")])
def test_a_model_without_a_head_gives_the_same_from_logits(ask: SignalAsk):
    logits = head().logits(hidden())
    kept = logits.clone()
    by_head = encode(ask, outputs())
    by_logits = encode(ask, outputs(hidden=None, head=None, logits=logits))
    assert all(np.array_equal(by_head[name], by_logits[name]) for name in by_head)
    assert torch.equal(logits, kept), "the model's own logits were overwritten"


# --- eight bits ----------------------------------------------------------------------------------


def test_eight_bits_err_by_half_a_step_at_most():
    logs = -torch.rand(50, 9, generator=torch.Generator().manual_seed(0)) * torch.logspace(
        -4, 4, 50
    ).unsqueeze(1)
    codes, ends = to_codes(logs)
    got = from_codes(codes, ends, "cpu")
    low, high = torch.from_numpy(ends).float().unbind(1)
    assert (low <= logs.amin(1)).all() and (high >= logs.amax(1)).all()
    half = (high - low).unsqueeze(1) / 254 / 2
    assert ((got - logs).abs() <= half * 1.001 + 1e-9).all()
    assert codes.min() >= 1
    # And the ends are no further apart than float16 makes them.
    assert ((high - low) <= (logs.amax(1) - logs.amin(1)) + logs.abs().amax(1) * 2e-3 + 1e-7).all()


def test_equal_and_impossible_entries_have_codes():
    logs = torch.tensor([[-2.0, -2.0, IMPOSSIBLE], [IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE]])
    codes, ends = to_codes(logs)
    assert codes.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert torch.equal(from_codes(codes, ends, "cpu"), logs)


# --- sampled -------------------------------------------------------------------------------------


def test_draws_by_hand():
    """Quarters fit a comb of four teeth exactly, however it is moved."""
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.25, 0.25]])).expand(20, 4)
    ask = SampledAsk(4, 1.0, "float32", seed=1)
    arrays = encode(ask, of_logits(logits))
    assert set(arrays) == {"ids", "entropy"}
    signal = decode(reply(ask, arrays, 4), None)
    assert isinstance(signal, SampledSignal)
    assert signal.ids.tolist() == [[0, 0, 2, 3]] * 20
    assert (signal.weights == 0.25).all()
    assert signal.entropy == pytest.approx(torch.full((20,), 1.5 * np.log(2)))


@pytest.mark.parametrize("moved", [0.0, 1.0 - 2.0**-53])
def test_what_is_impossible_is_never_drawn(moved: float, monkeypatch: pytest.MonkeyPatch):
    """Not at the very ends of the comb's way either, where rounding could put a tooth outside."""
    monkeypatch.setattr(sampled, "uniforms", lambda seed, samples, positions: np.full(1, moved))
    logits = torch.full((1, 9), -torch.inf)
    logits[0, 2:5] = torch.tensor([0.0, 1.0, 2.0])
    ask = SampledAsk(12, 1.0, "float32", seed=0)
    signal = decode(reply(ask, encode(ask, of_logits(logits)), 9), None)
    assert isinstance(signal, SampledSignal)
    assert set(signal.ids[0].tolist()) == {2, 3, 4}


def test_weights_undo_the_temperature_of_the_draws():
    logits = torch.log(torch.tensor([[0.8, 0.2]]))
    ask = SampledAsk(3, 2.0, "float32", seed=0)  # proposal: 2 to 1
    signal = decode(reply(ask, encode(ask, of_logits(logits)), 2), None)
    assert isinstance(signal, SampledSignal)
    assert signal.ids.tolist() == [[0, 0, 1]]
    assert signal.weights[0].tolist() == pytest.approx([0.4, 0.4, 0.2])


def splitmix(state: int) -> int:
    """SplitMix64's output function, in Python's own integers."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> shift)) * factor % (1 << 64)
    return state ^ (state >> 31)


def test_random_numbers_are_what_they_always_were():
    """A cache keeps what they decided, so they may never change."""
    gamma = 0x9E3779B97F4A7C15
    assert splitmix(gamma) == 0xE220A8397B1DCDAF  # the first output of seed 0, as published
    assert token_hash(np.array([1, 2, 3])) == 11402386789778234582

    def expected(seed: int, sample: int, position: int) -> float:
        state = splitmix(sample ^ splitmix((seed + gamma) % (1 << 64)))
        return (splitmix((state + (position + 1) * gamma) % (1 << 64)) >> 11) * 2.0**-53

    cases = [(11402386789778234582, 0), (5, 0), (5, 1), (2**64 - 1, 4095)]
    samples = np.array([sample for sample, _ in cases], np.uint64)
    positions = np.array([position for _, position in cases])
    got = uniforms(7, samples, positions)
    assert got.tolist() == [expected(7, *case) for case in cases]
    assert len(set(got)) == 4 and (got != uniforms(8, samples, positions)).all()


def test_random_numbers_are_spread_evenly():
    many = uniforms(0, np.full(4000, 9, np.uint64), np.arange(4000))
    counts, _ = np.histogram(many, 10, (0.0, 1.0))
    assert ((counts - 400) ** 2 / 400).sum() < 25  # chi-square of 9 degrees, p = 0.003


def test_draws_need_to_know_whose_they_are():
    with pytest.raises(ValueError, match="sample and the position"):
        encode(SAMPLED, RoleOutputs(hidden=hidden(), head=head()))


# --- full, hidden, layers, attention -------------------------------------------------------------


@pytest.mark.parametrize("ask", [HiddenAsk("float16"), FullAsk("float16")])
def test_a_value_that_overflows_float16_is_refused(ask: SignalAsk):
    big = hidden()
    big[1, 2] = -70000.0
    logits = torch.full((1, V), 70000.0)
    given = outputs(hidden=big) if isinstance(ask, HiddenAsk) else of_logits(logits)
    with pytest.raises(ValueError, match=r"70000 does not fit float16 .* bfloat16 or float32"):
        encode(ask, given)
    wide = encode(HiddenAsk("bfloat16"), outputs(hidden=big))
    assert wide["hidden"].dtype == np.uint16


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hidden_states_that_are_not_finite_do_not_cross(bad: float, dtype: Any):
    states = hidden()
    arrays = encode(HiddenAsk(dtype), outputs())
    states[2, 1] = bad
    with pytest.raises(ValueError, match="not finite"):
        encode(HiddenAsk(dtype), outputs(hidden=states))
    arrays["hidden"][0, 0] = 0x7F80 if dtype == "bfloat16" else bad
    with pytest.raises(ValueError, match="not finite"):
        decode(reply(HiddenAsk(dtype), arrays), head())


def test_an_ask_that_the_role_cannot_answer_is_refused():
    with pytest.raises(ValueError, match="neither logits nor hidden states"):
        encode(TOPK, RoleOutputs())
    with pytest.raises(ValueError, match="model with a head"):
        encode(HiddenAsk("float32"), of_logits(torch.zeros(1, V)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hidden_states_and_logits_come_back_in_the_wires_dtype(dtype: Any):
    wire = getattr(torch, dtype)
    signal = decode(reply(HiddenAsk(dtype), encode(HiddenAsk(dtype), outputs())), head())
    assert isinstance(signal, HiddenSignal)
    assert torch.equal(signal.hidden, hidden().to(wire))
    dense = decode(reply(FullAsk(dtype), encode(FullAsk(dtype), outputs())), None)
    assert isinstance(dense, DenseSignal)
    assert torch.equal(dense.logits, head().logits(hidden()).to(wire))


def test_arrays_share_no_memory_with_the_model_and_signals_share_the_wires():
    states = hidden()
    arrays = encode(HiddenAsk("float32"), outputs(hidden=states))
    states.zero_()
    assert arrays["hidden"].any()
    signal = decode(reply(HiddenAsk("float32"), arrays), head())
    assert isinstance(signal, HiddenSignal)
    assert signal.hidden.data_ptr() == arrays["hidden"].ctypes.data


def test_a_projection_is_the_same_everywhere_and_keeps_squared_norms():
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    ask = LayersAsk(("a",), "float32", project=16, seed=5)
    signal = decode(reply(ask, encode(ask, outputs(captured={"a": x}))), None)
    assert isinstance(signal, LayersSignal)
    matrix = projection(5, 64, 16)
    assert torch.equal(signal.outputs["a"], x @ matrix)
    assert set(matrix.unique().tolist()) == {-0.25, 0.25}
    ratio = signal.outputs["a"].square().sum(1) / x.square().sum(1)
    assert ratio.mean() == pytest.approx(1.0, abs=0.1)
    assert not torch.equal(projection(6, 64, 16), matrix)


def test_attention_comes_back_by_layer():
    probabilities = torch.rand(N, 2, 5)
    ask = AttentionAsk(("x", "y"), "float32")
    given = outputs(captured={"x": probabilities, "y": probabilities * 2})
    signal = decode(reply(ask, encode(ask, given)), None, positions=N)
    assert isinstance(signal, AttentionSignal)
    assert torch.equal(signal.probabilities["y"], probabilities * 2)


def test_layers_that_the_role_lacks_are_refused_with_those_it_has():
    many = {f"model.layers.{i}.mlp": 4 for i in range(40)}
    role = Sizes("teacher", layers=many, attention={"model.layers.0.attn": 2})
    with pytest.raises(SpecError, match=r"no layer model.layers.41.mlp; it has model.* 28 more"):
        layout(LayersAsk(("model.layers.41.mlp",), "float32"), role)
    with pytest.raises(SpecError, match=r"no layer lm_head; it has model\.layers\.0\.attn"):
        layout(AttentionAsk(("lm_head",), "float32"), role)
    with pytest.raises(SpecError, match=r"roles\.teacher\.attention.*Set it to eager"):
        layout(AttentionAsk(("model.layers.0.attn",), "float32"), Sizes("teacher", layers=many))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # pytest forgets ours
def test_read_only_arrays_are_taken():
    for ask in (TOPK, SAMPLED, HiddenAsk("bfloat16"), TopKAsk(4, "int8", (1.0,))):
        answer = reply(ask, encode(ask, outputs()))
        for array in answer.arrays.values():
            array.flags.writeable = False
        assert decode(answer, head())


# --- heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_survives_the_wire(dtype: torch.dtype):
    sent = head(dtype, bias=torch.ones(V, dtype=dtype), scale=0.5, softcap=3.0)
    record = head_record("teacher", "f", sent)
    assert record.bfloat16 is (dtype == torch.bfloat16)
    got = head_from_record(record)
    assert torch.equal(got.weight, sent.weight) and (got.scale, got.softcap) == (0.5, 3.0)
    x = hidden().to(dtype)
    assert torch.equal(got.logits(x), sent.logits(x))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"protocol": PROTOCOL + 1}, "protocol"),
        ({"weight": np.zeros((V, D), np.float64)}, "float64 matrix"),
        ({"weight": np.zeros(V, np.float32)}, r"expected \[V, d\]"),
        ({"bias": np.zeros(V + 1, np.float32)}, "bias of shape"),
    ],
)
def test_a_record_that_is_no_head_is_refused(change: dict, problem: str):
    with pytest.raises(ValueError, match=problem):
        head_from_record(replace(head_record("teacher", "f", head()), **change))


# --- replies that are not what was asked ---------------------------------------------------------


def damaged(ask: SignalAsk = TOPK, **arrays: np.ndarray | None) -> Reply:
    answer = reply(ask, encode(ask, outputs()))
    changed = {**answer.arrays, **arrays}
    return replace(answer, arrays={k: v for k, v in changed.items() if v is not None})


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (replace(topk_reply(), protocol=PROTOCOL + 1), "protocol"),
        (damaged(rest=None), "holds arrays"),
        (damaged(extra=np.zeros(1)), "holds arrays"),
        (damaged(ids=np.zeros((N, 3), np.uint8)), "ids of shape"),
        (damaged(ids=np.zeros((N, 2), np.int64)), "ids of int64"),
        (damaged(ids=np.full((N, 2), 0xBB, np.uint8)), "holds id 11"),
        (damaged(logprobs=np.zeros((N - 1, 4), np.float32)), "logprobs of shape"),
        (damaged(logprobs=np.zeros((N, 4), np.float16)), "logprobs of float16"),
        (damaged(logprobs=np.full((N, 4), np.nan, np.float32)), "logprobs that is not finite"),
        (damaged(rest=np.zeros((N, 1), np.float32)), "rest of shape"),
        (damaged(rest=np.full((N, 2), np.inf, np.float32)), "rest that is not finite"),
        (
            damaged(TopKAsk(4, "int8", (1.0,)), range=np.full((N, 2), np.nan, np.float16)),
            "range that is not finite",
        ),
        (damaged(SAMPLED, weights=None), "holds arrays"),
        (damaged(SAMPLED, entropy=np.full(N, np.nan, np.float32)), "entropy that is not finite"),
        (damaged(SAMPLED, weights=np.full((N, 6), np.inf, np.float32)), "not finite"),
        (damaged(FullAsk("float32"), logits=np.zeros((N, V + 1), np.float32)), "logits of shape"),
        (damaged(FullAsk("float32"), logits=np.full((N, V), np.nan, np.float32)), "not finite"),
        (reply(LayersAsk(("a",), "float32"), {"b": np.zeros((N, 2), np.float32)}), "a"),
        (reply(LayersAsk(("a",), "float32"), {"a": np.zeros(N, np.float64)}), "shape"),
        (reply(AttentionAsk(("a",), "float32"), {"a": np.zeros((N, 2), np.float32)}), "shape"),
        (reply(AttentionAsk(("a",), "float32"), {"b": np.zeros((N, 2, 2), np.float32)}), "arrays"),
    ],
)
def test_a_reply_that_does_not_hold_what_was_asked_is_refused(answer: Reply, problem: str):
    with pytest.raises(ValueError, match=problem):
        decode(answer, None)


def test_a_reply_about_other_positions_is_refused():
    assert decode(topk_reply(), None, positions=N)
    with pytest.raises(ValueError, match=r"expected \(4, 2\)"):
        decode(topk_reply(), None, positions=N + 1)


@pytest.mark.parametrize(
    ("given", "vocabulary", "problem"),
    [(None, V, "fetch it first"), (head(), V + 1, "has vocabulary 12"), (head(), V, "shape")],
)
def test_hidden_states_that_do_not_fit_the_head_are_refused(
    given: Head | None, vocabulary: int, problem: str
):
    array = np.zeros((N, D + 1), np.float32)
    with pytest.raises(ValueError, match=problem):
        decode(reply(HiddenAsk("float32"), {"hidden": array}, vocabulary), given)
