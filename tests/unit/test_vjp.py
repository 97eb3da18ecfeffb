"""A classifier's output and gradients by inputs that are new: what a role serves of them."""

from dataclasses import replace
from typing import Any

import digits
import numpy as np
import pytest
import tiny
import torch
from classifiers import answered, engine_of, features, request
from fake_cache import MemoryLink
from served import EnginePool, asking
from torch import Tensor, nn

from orchestrator.data import Flat, Reading
from orchestrator.errors import SpecError
from orchestrator.models.capture import differentiable
from orchestrator.models.forward import classify
from orchestrator.models.gradients import gradient_by, run_from
from orchestrator.pool.classifier import _check
from orchestrator.pool.engine import ModelEngine, load_role
from orchestrator.pool.records import RoleLoad
from orchestrator.signals.cache.ask_json import ask_from_json, ask_json
from orchestrator.signals.cache.keys import record_key
from orchestrator.signals.encodings import decode
from orchestrator.signals.layouts import layout, position_bytes
from orchestrator.signals.records import Reply, VjpAsk
from orchestrator.spec.models import RoleSpec
from strategies.contract import VjpSignal

FLAT = Reading("features", (64,))
PRODUCT = VjpAsk("product", "logits", 1.0, "float32")
DISTANCE = VjpAsk("distance", "logits", 1.0, "float32")
SOFT = VjpAsk("distance", "probabilities", 3.0, "float32")


def cotangents(count: int) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((count, 10)).astype(np.float32)


def behind(samples: list[np.ndarray], c: np.ndarray) -> list[np.ndarray]:
    """The samples as they are sent: c behind the features."""
    return [np.concatenate([s, row.view(np.int32)]) for s, row in zip(samples, c, strict=True)]


def number(ask: VjpAsk, module: nn.Module, x: Tensor, c: Tensor) -> Tensor:
    """[R] float64: what is differentiated, by a formula of its own."""
    z = classify(module, {"features": x}).double()
    if ask.output == "probabilities":
        e = (z / ask.temperature - (z / ask.temperature).max(1, keepdim=True).values).exp()
        z = e / e.sum(1, keepdim=True)
    if ask.of == "product":
        return torch.einsum("rv,rv->r", z, c)
    return torch.einsum("rv,rv->r", z - c, z - c)


@pytest.mark.parametrize("ask", [PRODUCT, DISTANCE, SOFT], ids=["product", "distance", "soft"])
def test_a_served_gradient_equals_finite_differences_at_inputs_no_data_hold(ask: VjpAsk) -> None:
    engine = engine_of(digits.student(depth=1, activation="tanh"), FLAT)
    samples, c = features(5), cotangents(5)
    got = answered(engine, ask, behind(samples, c))
    assert isinstance(got, VjpSignal) and got.gradient.shape == (5, 64)
    module = engine._loaded.module.double()
    x = torch.from_numpy(np.stack(samples).view(np.float32)).double()
    wide, step = torch.from_numpy(c).double(), 1e-5
    for column in range(0, 64, 5):
        move = torch.zeros(64, dtype=torch.float64)
        move[column] = step
        both = [number(ask, module, x + sign * move, wide) for sign in (1, -1)]
        wanted = (both[0] - both[1]) / (2 * step)
        torch.testing.assert_close(got.gradient[:, column].double(), wanted, rtol=1e-4, atol=1e-5)
    z = classify(module, {"features": x})
    output = z if ask.output == "logits" else torch.softmax(z / ask.temperature, 1)
    torch.testing.assert_close(got.output.double(), output, rtol=1e-5, atol=1e-5)


def test_the_pools_gradient_is_the_local_one() -> None:
    engine = engine_of(digits.student(depth=2), FLAT, deterministic=True)
    samples, c = features(4), cotangents(4)
    pool = EnginePool(engine)
    rows = np.concatenate(behind(samples, c))
    wanted = np.tile(np.arange(74) == 73, 4)
    questions = asking(pool)
    name = questions.ask("teacher.vjp", "q", Flat(rows, np.full(4, 74, np.int32), wanted), DISTANCE)
    served: Any = questions.answer("teacher.vjp", name, torch.device("cpu"))
    for row, sample in enumerate(samples):
        x = torch.from_numpy(sample.view(np.float32).copy())[None]
        leaf, logits = run_from(engine._loaded.module, {"features": x})
        distance = (logits - torch.from_numpy(c[row])).square().sum(1)
        assert torch.equal(served.gradient[row], gradient_by(leaf, distance)[0])
        assert torch.equal(served.output[row], logits.detach()[0])


def test_samples_share_forwards_and_do_not_see_each_other() -> None:
    engine = engine_of(digits.student(depth=1), FLAT)
    sent = behind(features(6), cotangents(6))
    whole = answered(engine, DISTANCE, sent)
    for row, one in enumerate(sent):
        alone = answered(engine, DISTANCE, [one])
        torch.testing.assert_close(whole.gradient[row], alone.gradient[0], rtol=1e-5, atol=1e-6)


def test_memory_is_bounded_by_the_samples_of_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, sizes = engine_of(digits.student(), FLAT), list[int]()
    monkeypatch.setattr(engine, "_words", 4 * 74)
    engine._loaded.module.register_forward_pre_hook(
        lambda _m, _a, named: sizes.append(len(named["features"])), with_kwargs=True
    )
    engine.forward(request(PRODUCT, behind(features(10), cotangents(10))))
    assert sorted(sizes) == [2, 4, 4]


def test_images_are_differentiated_by_all_their_numbers() -> None:
    image = {**digits.student(), "import": "orchestrator.models.reference:conv"}
    image["arguments"] = {"channels": 1, "size": 8, "classes": 10, "activation": "tanh"}
    engine = engine_of(image, Reading("pixel_values", (1, 8, 8)))
    found = answered(engine, PRODUCT, behind(features(2), cotangents(2)))
    assert found.gradient.shape == (2, 64) and (found.gradient.abs().sum(1) > 0).all()


def test_no_weight_of_the_role_gets_a_gradient() -> None:
    engine = engine_of(digits.student(), FLAT)
    engine.forward(request(PRODUCT, behind(features(2), cotangents(2))))
    assert all(parameter.grad is None for parameter in engine._loaded.module.parameters())


# --- the cache -----------------------------------------------------------------------------------


def test_a_key_covers_input_cotangent_and_what_is_differentiated() -> None:
    (sample,), c = features(1), cotangents(2)
    other = sample.copy()
    other[3] += 1
    sent = [
        (PRODUCT, behind([sample], c[:1])[0]),
        (PRODUCT, behind([sample], c[1:])[0]),
        (PRODUCT, behind([other], c[:1])[0]),
        (DISTANCE, behind([sample], c[:1])[0]),
        (VjpAsk("distance", "probabilities", 1.0, "float32"), behind([sample], c[:1])[0]),
        (SOFT, behind([sample], c[:1])[0]),
    ]
    keys = {record_key("f", words, ask, 0) for ask, words in sent}
    assert len(keys) == len(sent)
    assert all(ask_from_json(ask_json(ask)) == ask for ask, _ in sent)


def test_what_was_asked_once_is_read_and_what_differs_is_computed() -> None:
    pool, cache = EnginePool(engine_of(digits.student(), FLAT, deterministic=True)), MemoryLink()
    sent = behind(features(3), cotangents(3))
    changed = behind(features(3), cotangents(3) * np.float32([[1], [2], [1]]))
    found = []
    for number_, samples in enumerate((sent, sent, changed)):
        questions = asking(pool, cache)
        wanted = np.tile(np.arange(74) == 73, 3)
        flat = Flat(np.concatenate(samples), np.full(3, 74, np.int32), wanted)
        name = questions.ask("teacher.vjp", str(number_), flat, PRODUCT)
        found.append(questions.answer("teacher.vjp", name, torch.device("cpu")))
        questions.source.close()
    first, second, third = found
    assert pool.samples == 4  # three, none, one
    assert torch.equal(first.gradient, second.gradient)
    assert torch.equal(first.output, third.output)
    torch.testing.assert_close(third.gradient[1], 2 * first.gradient[1], rtol=1e-5, atol=1e-6)


def test_bytes_are_told_before_they_are_there() -> None:
    engine = engine_of(digits.student(), FLAT)
    arrays = engine.forward(request(PRODUCT, behind(features(2), cotangents(2))))
    assert sum(a.nbytes for a in arrays.values()) == 2 * position_bytes(PRODUCT, engine.describe())
    assert set(arrays) == set(layout(PRODUCT, engine.describe()))


# --- refusals ------------------------------------------------------------------------------------


class Opaque(nn.Module):
    """A classifier whose forward leaves torch, as one of trees would."""

    num_labels = 10

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 10))

    def forward(self, features: Tensor) -> Tensor:
        """[R, 64] -> [R, 10]."""
        rounded = torch.from_numpy(np.sign(features.detach().numpy()))
        return rounded @ self.weight


def test_a_role_of_features_without_a_shape_is_refused() -> None:
    engine = engine_of(digits.student(), Reading("features"))
    with pytest.raises(SpecError, match=r"no gradient by its input.*a shape"):
        engine.forward(request(PRODUCT, behind(features(1), cotangents(1))))


def test_users_do_not_move() -> None:
    with pytest.raises(SpecError, match=r"roles\.teacher: reads interactions, which do not move"):
        _check(PRODUCT, "teacher", Reading(ranks_items=True))


@pytest.mark.parametrize("reading", [Reading(), FLAT], ids=["text", "features"])
def test_a_gradient_of_the_other_form_is_refused(reading: Reading) -> None:
    ask = PRODUCT if reading.input is None else replace(PRODUCT, by_word=True)
    with pytest.raises(ValueError, match="texts are by word"):
        _check(ask, "teacher", reading)


def test_a_model_whose_forward_leaves_torch_is_found_out() -> None:
    x = {"features": torch.randn(2, 64)}
    assert not differentiable(Opaque(), x)
    assert differentiable(engine_of(digits.student(), FLAT)._loaded.module, x)
    assert not differentiable(Opaque(), {"users": torch.zeros(2, dtype=torch.int64)})


def test_what_a_model_says_of_its_inputs_is_not_taken_for_a_forward_without_gradient() -> None:
    class Particular(Opaque):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            raise ValueError(f"{len(features)} rows are not what I take")

    with pytest.raises(ValueError, match="2 rows are not what I take"):
        differentiable(Particular(), {"features": torch.randn(2, 64)})


def test_a_causal_role_is_refused() -> None:
    spec = RoleSpec.model_validate({"architecture": tiny.architecture(),
                                    "tokenizer": str(tiny.TOKENIZER)})  # fmt: skip
    engine = load_role(RoleLoad("teacher", spec, False, 3, None))
    assert isinstance(engine, ModelEngine)
    with pytest.raises(SpecError, match=r"roles\.teacher: has no gradient by its input"):
        engine.forward(request(PRODUCT, [np.arange(5, dtype=np.int32)]))


def test_samples_without_their_cotangent_are_refused() -> None:
    engine = engine_of(digits.student(), FLAT)
    with pytest.raises(ValueError, match=r"sample of 64 words.*64 numbers and 10"):
        engine.forward(request(PRODUCT, features(2)))


@pytest.mark.parametrize("name", ["output", "gradient"])
def test_an_answer_that_is_not_finite_or_of_other_sizes_is_refused(name: str) -> None:
    arrays = {"output": np.zeros((1, 10), np.float32), "gradient": np.zeros((1, 64), np.float32)}
    whole = Reply("r", "teacher", PRODUCT, arrays, 10, "f")
    assert isinstance(decode(whole, None, positions=1), VjpSignal)
    with pytest.raises(ValueError, match="expected"):
        decode(whole, None, positions=2)
    arrays[name][0, 0] = np.nan
    with pytest.raises(ValueError, match=f"{name} that is not finite"):
        decode(whole, None, positions=1)
