"""The engine behind a classifier's replica, without Ray."""

from typing import Any

import digits
import numpy as np
import pytest
import tiny
import torch
from classifiers import BERT, LLAMA, NUMBERS, answered, engine_of, features, request

from orchestrator.data import Reading, inputs_of
from orchestrator.errors import SpecError
from orchestrator.models.forward import classify
from orchestrator.pool import classifier
from orchestrator.pool.classifier import ClassifierEngine
from orchestrator.signals.records import (
    AttentionAsk,
    FullAsk,
    HiddenAsk,
    LayersAsk,
    SampledAsk,
    SignalAsk,
    TopKAsk,
)
from orchestrator.students.questions import shaped
from strategies.contract import DenseSignal, LayersSignal, SampledSignal, TopKSignal


def local(engine: ClassifierEngine, reading: Reading, samples: list[np.ndarray]) -> torch.Tensor:
    """Each sample by itself through the plain module."""
    rows = []
    for sample in samples:
        arrays = inputs_of(reading, [sample], len(sample))
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        with torch.no_grad():
            rows.append(classify(engine._loaded.module, inputs))
    return torch.cat(rows)


@pytest.mark.parametrize("deterministic", [False, True])
def test_served_logits_are_the_models_own(deterministic: bool) -> None:
    engine, samples = engine_of(digits.student(), NUMBERS, deterministic=deterministic), features(9)
    signal = answered(engine, FullAsk("float32"), samples)
    assert isinstance(signal, DenseSignal)
    torch.testing.assert_close(signal.logits, local(engine, NUMBERS, samples))
    assert engine.head() is None


def test_deterministic_answers_are_about_their_sample_alone() -> None:
    engine, samples = engine_of(digits.student(), NUMBERS, deterministic=True), features(7)
    together = engine.forward(request(FullAsk("float32"), samples))["logits"]
    alone = [engine.forward(request(FullAsk("float32"), [s]))["logits"] for s in samples]
    assert np.array_equal(together, np.concatenate(alone))


def test_samples_share_forwards_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, samples = engine_of(digits.student(), NUMBERS), features(10)
    sizes: list[int] = []
    monkeypatch.setattr(engine, "_words", 4 * 64)
    engine._loaded.module.register_forward_pre_hook(
        lambda _m, _a, named: sizes.append(len(named["features"])), with_kwargs=True
    )
    engine.forward(request(FullAsk("float32"), samples))
    assert sorted(sizes) == [2, 4, 4]
    assert classifier.FEATURE_WORDS >= 1024 * 64


def test_samples_that_nobody_wants_are_left_out() -> None:
    engine, samples = engine_of(digits.student(), NUMBERS), features(4)
    part = engine.forward(request(FullAsk("float32"), samples, unwanted=(0, 2)))["logits"]
    whole = engine.forward(request(FullAsk("float32"), samples))["logits"]
    assert np.allclose(part, whole[[1, 3]], atol=1e-6)


def test_top_k_and_draws_are_of_the_same_logits() -> None:
    engine, samples = engine_of(digits.student(), NUMBERS), features(6)
    logits = torch.log_softmax(local(engine, NUMBERS, samples), -1)
    top = answered(engine, TopKAsk(10, "float32", (1.0,)), samples)
    assert isinstance(top, TopKSignal)
    torch.testing.assert_close(top.logprobs, logits.gather(1, top.ids))
    drawn = answered(engine, SampledAsk(4000, 1.0, "float32", 1), samples)
    assert isinstance(drawn, SampledSignal)
    share = torch.zeros(6, 10).scatter_add_(1, drawn.ids, drawn.weights)
    torch.testing.assert_close(share, logits.exp(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("fields", [BERT, LLAMA])
@pytest.mark.parametrize("deterministic", [False, True])
def test_texts_of_unequal_length_share_a_forward(
    fields: dict[str, Any], deterministic: bool
) -> None:
    role = {"architecture": fields, "tokenizer": str(tiny.TOKENIZER)}
    engine = engine_of(role, Reading(), deterministic=deterministic)
    assert engine.describe().vocabulary == 3
    make = np.random.default_rng(1)
    samples = [make.integers(1, 4096, n).astype(np.int32) for n in (9, 7, 8, 2, 10)]
    signal = answered(engine, FullAsk("float32"), samples)
    torch.testing.assert_close(signal.logits, local(engine, Reading(), samples), atol=1e-5, rtol=0)


def test_shapes_and_determinism_are_in_the_fingerprint() -> None:
    image = {**digits.student(), "import": "orchestrator.models.reference:conv"}
    image["arguments"] = {"channels": 1, "size": 8, "classes": 10}
    read = [Reading("pixel_values", (1, 8, 8)), Reading("pixel_values", (1, 4, 16))]
    engines = [engine_of(image, reading) for reading in read]
    engines.append(engine_of(image, read[0], deterministic=True))
    assert len({engine.describe().fingerprint for engine in engines}) == 3
    assert [engine.describe().reads for engine in engines[:2]] == [r.label for r in read]
    answers = [engine.forward(request(FullAsk("float32"), features(2))) for engine in engines]
    assert not np.allclose(answers[0]["logits"], answers[1]["logits"])


@pytest.mark.parametrize("ask", [HiddenAsk("float32"), AttentionAsk(("first",), "float32")])
def test_asks_about_neither_logits_nor_layers_are_refused(ask: SignalAsk) -> None:
    with pytest.raises(
        SpecError, match=r"logits or outputs of layers only\. Use full, topk or sampled"
    ):
        engine_of(digits.student(), NUMBERS).forward(request(ask, features(1)))


def test_layers_of_a_perceptron_are_served_where_the_shape_is_known() -> None:
    engine, samples = engine_of(digits.student(), Reading("features", (64,))), features(5)
    signal = answered(engine, LayersAsk(("stages.2",), "float32"), samples)
    assert isinstance(signal, LayersSignal)
    head = engine._loaded.module.head
    logits = local(engine, Reading("features", (64,)), samples)
    torch.testing.assert_close(head(signal.outputs["stages.2"]), logits)
    assert not engine_of(digits.student(), NUMBERS).describe().layers
    with pytest.raises(SpecError, match=r"has no layer stages\.9"):
        engine.forward(request(LayersAsk(("stages.9",), "float32"), samples))


def test_maps_cross_flat_and_are_maps_again() -> None:
    image = {**digits.student(), "import": "orchestrator.models.reference:conv"}
    image["arguments"] = {"channels": 1, "size": 8, "classes": 10, "width": 4}
    engine = engine_of(image, Reading("pixel_values", (1, 8, 8)))
    signal = answered(engine, LayersAsk(("stages.2",), "float32"), features(3))
    assert signal.outputs["stages.2"].shape == (3, 64)
    whole = shaped(signal, engine.describe()).outputs["stages.2"]
    assert whole.shape == (3, 4, 4, 4)
    head = engine._loaded.module.head
    logits = local(engine, Reading("pixel_values", (1, 8, 8)), features(3))
    torch.testing.assert_close(head(whole.mean((2, 3))), logits)


def test_a_texts_layers_are_means_over_its_own_tokens() -> None:
    engine = engine_of({"architecture": LLAMA, "tokenizer": str(tiny.TOKENIZER)}, Reading())
    make = np.random.default_rng(1)
    samples = [make.integers(1, 4096, n).astype(np.int32) for n in (9, 7, 8)]
    ask = LayersAsk(("model.layers.0",), "float32")
    together = answered(engine, ask, samples).outputs["model.layers.0"]
    alone = [answered(engine, ask, [s]).outputs["model.layers.0"] for s in samples]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_positions_inside_a_sample_are_refused() -> None:
    asked = request(FullAsk("float32"), features(2))
    asked.wanted[3] = True
    with pytest.raises(ValueError, match="at the last one"):
        engine_of(digits.student(), NUMBERS).forward(asked)


def test_samples_of_another_length_are_refused() -> None:
    engine = engine_of(digits.student(), Reading("features", (64,)))
    with pytest.raises(ValueError, match=r"samples of \[63\] numbers"):
        engine.forward(request(FullAsk("float32"), features(2, 63)))


def test_a_classifier_without_a_reading_does_not_start() -> None:
    with pytest.raises(SpecError, match="nothing says how it reads"):
        engine_of(digits.student(), None)
