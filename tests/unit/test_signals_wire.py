"""What crosses the wire: layouts, refusals, and heads."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.signals import encode as encode_module
from orchestrator.signals.decode import decode, head_from_record
from orchestrator.signals.encode import encode, encode_logits, head_record
from orchestrator.signals.records import PROTOCOL, HiddenAsk, Reply, SignalAsk, TopKAsk
from strategies.contract import Head, HiddenSignal, TopKSignal

V, D, N = 11, 4, 3
TOPK = TopKAsk(4, "float32", (1.0, 2.0))


def head(dtype: torch.dtype = torch.float32, **fields: Any) -> Head:
    weight = torch.randn(V, D, generator=torch.Generator().manual_seed(1))
    return Head(weight.to(dtype), **fields)


def hidden(rows: int = N) -> torch.Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(2))


def reply(ask: SignalAsk, arrays: dict[str, np.ndarray], vocabulary: int = V) -> Reply:
    return Reply("r1", "teacher", ask, arrays, vocabulary, "f" * 64)


def topk_reply(ask: TopKAsk = TOPK) -> Reply:
    return reply(ask, encode(ask, hidden(), head()))


def test_top_k_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.1, 0.4]]))
    arrays = encode_logits(TopKAsk(2, "float32", (1.0, 2.0)), logits)
    assert arrays["ids"].tolist() == [[0, 2]] and arrays["ids"].dtype == np.uint16
    assert np.exp(arrays["logprobs"]) == pytest.approx(np.array([[0.5, 0.4]]))
    # At temperature 2 the probabilities' square roots, summed over all three.
    roots = np.sqrt([0.5, 0.1, 0.4]).sum()
    assert np.exp(arrays["log_z"]) == pytest.approx(np.array([[1.0, roots]]))


@pytest.mark.parametrize(("vocabulary", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_the_largest_id_survives_at_either_width(vocabulary: int, dtype: type):
    logits = torch.zeros(1, vocabulary)
    logits[0, -1] = 5.0
    ask = TopKAsk(1, "float32", (1.0,))
    arrays = encode_logits(ask, logits)
    signal = decode(reply(ask, arrays, vocabulary), None)
    assert arrays["ids"].dtype == dtype
    assert isinstance(signal, TopKSignal) and signal.ids.tolist() == [[vocabulary - 1]]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_chunks_do_not_show(rows: int, dtype: Any, monkeypatch: pytest.MonkeyPatch):
    ask = TopKAsk(4, dtype, (1.0, 3.0))
    whole = encode(ask, hidden(rows), head())
    sizes: list[int] = []
    plain = Head.logits
    monkeypatch.setattr(encode_module, "CHUNK_ELEMENTS", 2 * V + 1)
    monkeypatch.setattr(Head, "logits", lambda self, h: (sizes.append(len(h)), plain(self, h))[1])
    cut = encode(ask, hidden(rows), head())
    assert max(sizes, default=0) <= 2
    # Allowing for the last bit: a product of fewer rows may round elsewhere.
    assert all(np.allclose(whole[k], cut[k], rtol=1e-6, atol=1e-6) for k in whole)
    assert {k: v.shape for k, v in cut.items()} == {
        "ids": (rows, 4),
        "logprobs": (rows, 4),
        "log_z": (rows, 2),
    }


def test_a_model_without_a_head_gives_the_same_top_k_from_logits():
    by_head, by_logits = (
        encode(TOPK, hidden(), head()),
        encode_logits(TOPK, head().logits(hidden())),
    )
    assert all(np.array_equal(by_head[name], by_logits[name]) for name in by_head)


@pytest.mark.parametrize("ladder", [(1.0,), (2.0, 4.0)])
def test_a_rounded_mass_above_one_is_brought_back(ladder: tuple[float, ...]):
    """Half, half and a little: more than one, though the role kept less than everything."""
    ask = TopKAsk(3, "float16", ladder)
    arrays = {
        "ids": np.array([[0, 1, 2]], np.uint16),
        "logprobs": np.array([[-0.69, -0.695, -6.0]], np.float16),
        "log_z": np.zeros((1, len(ladder)), np.float32),
    }
    signal = decode(reply(ask, arrays), None)
    assert isinstance(signal, TopKSignal)
    assert signal.logprobs.exp().sum() == pytest.approx(1.0, abs=1e-6)
    for rung, temperature in enumerate(ladder):
        kept = (signal.logprobs / temperature - signal.log_z[:, rung]).exp().sum()
        assert kept <= 1 + 1e-6


def test_impossible_entries_stay_finite_and_improbable():
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    for dtype in ("float32", "float16"):
        ask = TopKAsk(3, dtype, (1.0,))
        signal = decode(reply(ask, encode_logits(ask, logits), 3), None)
        assert isinstance(signal, TopKSignal)
        assert torch.isfinite(signal.logprobs).all() and signal.logprobs.exp()[0, 2] == 0.0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_refused(bad: float):
    with pytest.raises(ValueError, match="not finite"):
        encode_logits(TOPK, torch.tensor([[0.0, bad, 1.0, 2.0, 3.0]]))


def test_more_entries_than_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"k \(12\) is above .* \(11\)"):
        encode(TopKAsk(12, "float32", (1.0,)), hidden(), head())


def test_a_hidden_state_that_overflows_float16_is_refused():
    big = hidden()
    big[1, 2] = -70000.0
    with pytest.raises(ValueError, match=r"70000 does not fit float16 .* bfloat16 or float32"):
        encode(HiddenAsk("float16"), big, None)
    assert encode(HiddenAsk("bfloat16"), big, None)["hidden"].dtype == np.uint16


def test_asks_that_need_a_head_are_refused_without_one():
    with pytest.raises(ValueError, match="encode_logits"):
        encode(TOPK, hidden(), None)
    with pytest.raises(ValueError, match="model with a head"):
        encode_logits(HiddenAsk("float32"), torch.zeros(1, V))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hidden_states_come_back_in_the_wires_dtype(dtype: Any):
    ask = HiddenAsk(dtype)
    signal = decode(reply(ask, encode(ask, hidden(), None)), head(), positions=N)
    assert isinstance(signal, HiddenSignal)
    assert torch.equal(signal.hidden, hidden().to(getattr(torch, dtype)))


def test_arrays_share_no_memory_with_the_model_and_signals_share_the_wires():
    states = hidden()
    arrays = encode(HiddenAsk("float32"), states, None)
    states.zero_()
    assert arrays["hidden"].any()
    signal = decode(reply(HiddenAsk("float32"), arrays), head())
    assert isinstance(signal, HiddenSignal)
    assert signal.hidden.data_ptr() == arrays["hidden"].ctypes.data


def test_read_only_arrays_are_taken(recwarn: pytest.WarningsRecorder):
    answer = topk_reply()
    for array in answer.arrays.values():
        array.flags.writeable = False
    assert isinstance(decode(answer, None), TopKSignal)


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


def damaged(**arrays: np.ndarray | None) -> Reply:
    answer = topk_reply()
    changed = {**answer.arrays, **arrays}
    return replace(answer, arrays={k: v for k, v in changed.items() if v is not None})


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (replace(topk_reply(), protocol=PROTOCOL + 1), "protocol"),
        (damaged(log_z=None), "holds arrays"),
        (damaged(extra=np.zeros(1)), "holds arrays"),
        (damaged(ids=np.zeros((N, 3), np.uint16)), "ids of shape"),
        (damaged(ids=np.zeros((N, 4), np.int64)), "ids of int64"),
        (damaged(ids=np.full((N, 4), V, np.uint16)), "holds id 11"),
        (damaged(logprobs=np.zeros((N - 1, 4), np.float32)), "logprobs of shape"),
        (damaged(logprobs=np.zeros((N, 4), np.float16)), "logprobs of float16"),
        (damaged(logprobs=np.full((N, 4), np.nan, np.float32)), "not finite"),
        (damaged(log_z=np.zeros((N, 1), np.float32)), "log_z of shape"),
        (damaged(log_z=np.full((N, 2), np.inf, np.float32)), "not finite"),
    ],
)
def test_a_reply_that_does_not_hold_what_was_asked_is_refused(answer: Reply, problem: str):
    with pytest.raises(ValueError, match=problem):
        decode(answer, None)


def test_a_reply_about_other_positions_is_refused():
    assert decode(topk_reply(), None, positions=N)
    with pytest.raises(ValueError, match=r"expected \(4, 4\)"):
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
