"""The real engine behind a replica, on tiny models and without Ray: served equals local, and an
answer is about its sample alone."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import enlarge

from orchestrator.errors import SpecError
from orchestrator.models.capture import attention_of, output_of, watching
from orchestrator.models.forward import forward_hidden, forward_logits
from orchestrator.models.load import load_model
from orchestrator.pool import engine as engine_module
from orchestrator.pool import forwards
from orchestrator.pool.answers import answer_bytes
from orchestrator.pool.desk import Desk
from orchestrator.pool.engine import ModelEngine, load_role
from orchestrator.pool.records import RoleLoad
from orchestrator.signals.cut import joined, trimmed
from orchestrator.signals.encodings import decode, head_from_record
from orchestrator.signals.layouts import layout
from orchestrator.signals.records import (
    AttentionAsk,
    FullAsk,
    HiddenAsk,
    LayersAsk,
    Reply,
    Request,
    SampledAsk,
    SignalAsk,
    TopKAsk,
)
from orchestrator.spec.models import RoleSpec

TINY = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
ROLE = RoleSpec.model_validate({"architecture": TINY, "attention": "eager"})
LAYERS = ("model.layers.0", "model.layers.1.mlp")
ATTENTION = ("model.layers.0.self_attn", "model.layers.1.self_attn")
ASKS: list[SignalAsk] = [
    HiddenAsk("float32"),
    HiddenAsk("bfloat16"),
    FullAsk("float32"),
    TopKAsk(5, "float32", (1.0, 2.0)),
    TopKAsk(5, "int8", (1.0,)),
    SampledAsk(7, 1.0, "int8", seed=2),
    SampledAsk(7, 1.5, "float32", seed=2),
    LayersAsk(LAYERS, "float32"),
    LayersAsk(LAYERS, "float16", project=8),
    AttentionAsk(ATTENTION, "float32"),
]


def load(role: RoleSpec = ROLE, *, deterministic: bool = False) -> ModelEngine:
    try:
        return load_role(RoleLoad("teacher", role, deterministic, seed=3))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def engines():
    threads = torch.get_num_threads()
    loaded = {False: load(), True: load(deterministic=True)}
    for engine in loaded.values():
        enlarge(engine._loaded.module)
    yield loaded
    torch.set_num_threads(threads)


Sample = tuple[np.ndarray, np.ndarray]
"""(tokens [n] int32, wanted [n] bool)."""


def samples(*lengths: int, seed: int = 0) -> list[Sample]:
    """Some positions wanted; of every third sample none."""
    draw = np.random.default_rng(seed)
    return [
        (
            draw.integers(0, 64, length).astype(np.int32),
            (draw.random(length) < 0.6) & (index % 3 != 2),
        )
        for index, length in enumerate(lengths)
    ]


def request(ask: SignalAsk, content: list[Sample]) -> Request:
    return Request(
        "r",
        "teacher",
        "test",
        ask,
        np.concatenate([tokens for tokens, _ in content]),
        np.array([len(tokens) for tokens, _ in content], np.int32),
        np.concatenate([wanted for _, wanted in content]),
    )


MIXED = samples(9, 4, 6, 0, 30, 8, 31, 1, 12, 9)


def local_hidden(engine: ModelEngine, content: list[Sample]) -> np.ndarray:
    """Each sample alone, by the one forward there is."""
    parts = []
    for tokens, wanted in content:
        if wanted.any():
            ids = torch.from_numpy(tokens).long()[None]
            with torch.inference_mode():
                hidden = forward_hidden(engine._loaded.module, ids, torch.arange(len(tokens))[None])
            parts.append(hidden[0][torch.from_numpy(wanted)].numpy())
    return np.concatenate(parts)


def test_served_hidden_states_equal_local_ones(engines):
    asked = request(HiddenAsk("float32"), MIXED)
    local = local_hidden(engines[True], MIXED)
    np.testing.assert_array_equal(engines[True].forward(asked)["hidden"], local)
    np.testing.assert_allclose(engines[False].forward(asked)["hidden"], local, atol=1e-5)


def test_served_logits_equal_local_ones(engines):
    engine = engines[True]
    tokens, wanted = MIXED[4]
    served = engine.forward(request(FullAsk("float32"), [MIXED[4]]))["logits"]
    ids = torch.from_numpy(tokens).long()[None]
    with torch.inference_mode():
        local = forward_logits(engine._loaded.module, ids, torch.arange(len(tokens))[None])[0]
    np.testing.assert_allclose(served, local[torch.from_numpy(wanted)].numpy(), atol=1e-6)


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("deterministic", [True, False])
def test_answers_have_the_shapes_and_types_that_the_ask_declares(engines, ask, deterministic):
    engine, asked = engines[deterministic], request(ask, MIXED)
    declared = layout(ask, engine.describe(), longest=31)
    arrays = engine.forward(asked)
    positions = int(asked.wanted.sum())
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        name: ((positions, *shape), dtype) for name, (shape, dtype) in declared.items()
    }
    total = sum(array.nbytes for array in arrays.values())
    assert total == answer_bytes(ask, positions, engine.describe(), 31)


def by_sample(ask: SignalAsk, content: list[Sample], engine: ModelEngine) -> list[dict[str, Any]]:
    """The answer about several samples, cut into theirs."""
    arrays, parts, begin = engine.forward(request(ask, content)), [], 0
    for tokens, wanted in content:
        end = begin + int(wanted.sum())
        rows = {name: array[begin:end] for name, array in arrays.items()}
        parts.append(trimmed(ask, rows, len(tokens)))
        begin = end
    return parts


@pytest.mark.parametrize("ask", ASKS)
def test_an_answer_is_the_same_to_the_last_bit_whatever_shares_the_request(engines, ask):
    engine = engines[True]
    together = by_sample(ask, MIXED, engine)
    for sample, part in zip(MIXED, together, strict=True):
        if sample[1].any():
            (alone,) = by_sample(ask, [sample], engine)
            assert {n: a.tobytes() for n, a in alone.items()} == {
                n: a.tobytes() for n, a in part.items()
            }


@pytest.mark.parametrize("ask", [a for a in ASKS if not isinstance(a, SampledAsk)])
def test_an_answer_is_nearly_the_same_when_samples_share_forwards(engines, ask, monkeypatch):
    engine, shapes = engines[False], noted_shapes(monkeypatch)
    together = by_sample(ask, MIXED, engine)
    assert len(shapes) < sum(wanted.any() for _, wanted in MIXED), "nothing was shared"
    head = head_from_record(engine.head())
    for (tokens, wanted), part in zip(MIXED, together, strict=True):
        if wanted.any():
            alone = engine.forward(request(ask, [(tokens, wanted)]))
            for name, value in signal_fields(ask, alone, head).items():
                tolerance = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2, "int8": 5e-2}
                near = tolerance[ask.dtype]
                torch.testing.assert_close(
                    value, signal_fields(ask, part, head)[name], rtol=near, atol=near
                )


def noted_shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """[R, T] of each forward to come."""
    shapes: list[tuple[int, int]] = []

    def noted(*given: Any) -> forwards.Rows:
        rows = forwards.lay_out(*given)
        shapes.append(rows.ids.shape)
        return rows

    monkeypatch.setattr(engine_module, "lay_out", noted)
    return shapes


def signal_fields(ask: SignalAsk, arrays: dict[str, Any], head: Any) -> dict[str, torch.Tensor]:
    """Tensors of the decoded signal; kept ids are left out, for near ties may change places."""
    signal = decode(Reply("r", "teacher", ask, arrays, 64, "f"), head)
    fields: dict[str, Any] = {n: getattr(signal, n) for n in signal.__dataclass_fields__}
    for name in ("outputs", "probabilities"):
        fields.update(fields.pop(name, {}))
    return {n: v for n, v in fields.items() if isinstance(v, torch.Tensor) and n != "ids"}


@pytest.mark.parametrize("ask", ASKS)
def test_answers_cut_by_sample_and_joined_are_the_answers_of_another_batch(engines, ask):
    engine = engines[True]
    mixed = [sample for sample in MIXED if sample[1].any()]
    others = samples(20, 3, seed=5)[:2]
    pieces = by_sample(ask, mixed, engine)
    more = by_sample(ask, others, engine)
    order = [3, 0, 5]
    wanted = [mixed[i] for i in order[:2]] + [others[0]] + [mixed[order[2]]]
    ours = joined([pieces[3], pieces[0], more[0], pieces[5]])
    theirs = engine.forward(request(ask, wanted))
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_draws_are_the_same_in_every_request(engines):
    """Shared forwards differ in their last bits: only a tooth on a border may change."""
    ask = SampledAsk(7, 1.0, "int8", seed=2)
    counted = differing = 0
    together = by_sample(ask, MIXED, engines[False])
    for sample, part in zip(MIXED, together, strict=True):
        if sample[1].any():
            (alone,) = by_sample(ask, [sample], engines[False])
            differing += int((alone["ids"] != part["ids"]).any(1).sum())
            counted += len(part["ids"])
    assert counted > 40 and differing <= 1


def test_samples_of_which_nothing_is_wanted_are_not_run(engines, monkeypatch):
    ran: list[int] = []
    lay_out = forwards.lay_out
    monkeypatch.setattr(engine_module, "lay_out", lambda r, s: (ran.extend(s), lay_out(r, s))[1])
    engines[False].forward(request(HiddenAsk("float32"), MIXED))
    assert sorted(ran) == [i for i, (_, wanted) in enumerate(MIXED) if wanted.any()]


def test_a_forward_is_bounded_and_a_long_sample_runs_alone(engines, monkeypatch):
    monkeypatch.setattr(engines[False], "_tokens", 20)
    shapes = noted_shapes(monkeypatch)
    engines[False].forward(request(HiddenAsk("float32"), MIXED))
    assert all(rows == 1 or rows * length <= 20 for rows, length in shapes)
    assert (1, 31) in shapes and any(rows > 1 for rows, _ in shapes)


def test_layers_are_what_the_modules_gave(engines):
    engine, (tokens, wanted) = engines[True], MIXED[0]
    seen: dict[str, torch.Tensor] = {}

    def see(path: str, output: Any) -> None:
        tensor = attention_of(output) if path in ATTENTION else output_of(output)
        assert tensor is not None
        seen[path] = tensor[0].clone()

    module, ids = engine._loaded.module, torch.from_numpy(tokens).long()[None]
    with torch.inference_mode(), watching(module, (*LAYERS, *ATTENTION), see):
        forward_hidden(module, ids, torch.arange(len(tokens))[None])
    layers = engine.forward(request(LayersAsk(LAYERS, "float32"), [MIXED[0]]))
    for path in LAYERS:
        np.testing.assert_array_equal(layers[path], seen[path][torch.from_numpy(wanted)].numpy())
    heads = engine.forward(request(AttentionAsk(ATTENTION, "float32"), [MIXED[0]]))
    for path in ATTENTION:
        local = seen[path].transpose(0, 1)[torch.from_numpy(wanted)].numpy()
        np.testing.assert_array_equal(heads[path], local)
        assert heads[path].sum(-1) == pytest.approx(np.ones(heads[path].shape[:2]), abs=1e-5)
    assert not module.model.layers[0]._forward_hooks


def test_a_description_names_the_layers_of_the_model(engines):
    role = engines[False].describe()
    assert role.layers["model.layers.0"] == 16 and role.layers["model.layers.0.mlp.up_proj"] == 32
    assert dict(role.attention) == dict.fromkeys(ATTENTION, 2)


def test_what_the_role_cannot_answer_is_refused_with_a_remedy(engines):
    with pytest.raises(SpecError, match=r"roles\.teacher: has no layer model\.layers\.7; it"):
        engines[False].forward(request(LayersAsk(("model.layers.7",), "float32"), MIXED))
    with pytest.raises(SpecError, match=r"encoding\.k: is 65, .* 64"):
        engines[False].forward(request(TopKAsk(65, "float32", (1.0,)), MIXED))
    sdpa = load(RoleSpec.model_validate({"architecture": TINY}))
    assert not sdpa.describe().attention
    with pytest.raises(SpecError, match=r"roles\.teacher\.attention.*Set it to eager"):
        sdpa.forward(request(AttentionAsk(ATTENTION, "float32"), MIXED))


def test_a_malformed_request_is_refused(engines):
    asked = request(HiddenAsk("float32"), MIXED)
    broken = Request("r", "teacher", "t", asked.ask, asked.tokens, asked.lengths[1:], asked.wanted)
    with pytest.raises(ValueError, match="lengths add up to 101"):
        engines[False].forward(broken)


@pytest.mark.parametrize(
    "ask", [TopKAsk(5, "float32", (1.0,)), FullAsk("float32"), SampledAsk(4, 2.0, "float32", 1)]
)
def test_an_imported_model_is_served_sample_by_sample(ask, monkeypatch):
    role = RoleSpec.model_validate(
        {"import": "word_model:build", "arguments": {"vocabulary": 64, "positions": 40}}
    )
    engine = load(role)
    assert engine.head() is None
    shapes = noted_shapes(monkeypatch)
    together = by_sample(ask, MIXED, engine)
    assert len(shapes) > 4 and all(rows == 1 for rows, _ in shapes)
    for sample, part in zip(MIXED, together, strict=True):
        if sample[1].any():
            (alone,) = by_sample(ask, [sample], engine)
            assert all(np.array_equal(alone[name], part[name]) for name in alone)
    with pytest.raises(ValueError, match="model with a head"):
        engine.forward(request(HiddenAsk("float32"), MIXED))


def test_the_head_and_the_description_are_of_the_same_weights(engines):
    role, head = engines[False].describe(), engines[False].head()
    assert head is not None and head.weight.shape == (role.vocabulary, role.width) == (64, 16)
    assert head.fingerprint == role.fingerprint
    assert role.parameters == sum(p.numel() for p in load_model(ROLE, seed=3).module.parameters())


def test_a_model_that_is_not_there_is_a_spec_error_that_names_the_role():
    role = RoleSpec.model_validate({"path": "/nowhere/at/all"})
    desk = Desk("teacher", lambda: load_role(RoleLoad("teacher", role)), max_queue=1)
    with pytest.raises(SpecError, match=r"roles\.teacher\.path"):
        desk.head().result(60.0)
