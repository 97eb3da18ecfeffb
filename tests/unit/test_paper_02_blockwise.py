"""Block-wise logits (arXiv:2504.13825): a block of the student inside the role, against torch."""

from typing import Any

import pytest
import torch
from classifiers import BERT
from packed import batch_of
from residents import (
    classifier,
    gradients_of,
    images,
    in_float64,
    joined,
    loss_of,
    mlp,
    numbers,
    resident,
    sentences,
)
from tiny_models import enlarge, tiny
from torch import Tensor, nn

from orchestrator.models.load import Loaded, load_model
from orchestrator.planner.layer_maps import Projector
from orchestrator.spec.models import ModelSpec
from strategies.pairs import Pair
from strategies.progress import Progress

ROWS = [[4, 5], [9], [3, 3]]


def bert(seed: int, width: int = 16) -> Loaded:
    architecture = {**BERT, "vocab_size": 97, "hidden_size": width}
    spec = ModelSpec.model_validate({"architecture": architecture, "task": "classifier"})
    loaded = load_model(spec, seed=seed, for_training=True)
    enlarge(loaded.module, seed)
    return loaded


def conv(seed: int) -> Loaded:
    return classifier("conv", seed, channels=2, size=8, classes=4, width=3)


def llama(seed: int) -> Loaded:
    return tiny("llama", seed=seed, for_training=True)


def gpt2(seed: int) -> Loaded:
    return tiny("gpt2", seed=seed, for_training=True)


MODELS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "mlp": (mlp, numbers, ("stages.0", "stages.1", "stages.2")),
    "conv": (conv, images, ("stages.0", "stages.2")),
    "llama": (llama, lambda: batch_of(ROWS), ("model.layers.0", "model.layers.1")),
    "gpt2": (gpt2, lambda: batch_of(ROWS), ("transformer.h.0", "transformer.h.1")),
    "bert": (bert, sentences, ("bert.encoder.layer.0", "bert.encoder.layer.1")),
}


def term(layers: tuple[str, ...], **fields: Any) -> dict[str, Any]:
    pairs = [{"student": path, "role": path} for path in layers]
    return {"kind": "blockwise_logits", "layers": pairs, **fields}


def pairs(layers: tuple[str, ...]) -> dict[str, list[Pair]]:
    return {"blockwise_logits": [Pair(path, path) for path in layers]}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_0_where_both_are_one_and_pulls_at_the_students_block_elsewhere(name: str) -> None:
    make, batch_like, layers = MODELS[name]
    role, batch = resident(make(2)), batch_like()
    twin = make(2)
    twin.module.eval()  # nothing is dropped
    module, objective = joined(twin, role, term(layers), pairs=pairs(layers))
    loss, sums = loss_of(module, objective, batch)
    assert abs(sums["blockwise_logits"]) < 1e-6
    assert max(float(g.abs().max()) for g in gradients_of(loss, twin).values()) < 1e-6
    student = make(1)
    student.module.eval()
    module, objective = joined(student, role, term(layers), pairs=pairs(layers))
    loss, sums = loss_of(module, objective, batch)
    found = gradients_of(loss, student)
    assert sums["blockwise_logits"] > 1e-4
    below = [n for n, g in found.items() if float(g.abs().max()) > 0]
    assert below and not any("head" in n or "classifier" in n or "score" in n for n in below)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_hybrid_of_perceptrons_is_what_plain_torch_makes_of_it(temperature: float) -> None:
    student, role, batch = in_float64(mlp(1)), resident(in_float64(mlp(2))), numbers(9)
    layers = ("stages.0", "stages.1")
    spec = term(layers, temperature=temperature, weight=0.5)
    module, objective = joined(student, role, spec, pairs=pairs(layers))
    loss, _ = loss_of(module, objective, batch)
    got = gradients_of(loss, student)

    ours: Any = student.module
    theirs: Any = role.loaded.module
    x = batch.inputs["features"].double()

    def blocks(model: Any, h: Tensor, begin: int, end: int) -> Tensor:
        for block in model.blocks[begin:end]:
            h = h + torch.relu(block(h))
        return h

    def begin(model: Any) -> Tensor:
        return torch.relu(model.first(x))

    kept = batch.mask[:, 0]
    with torch.no_grad():
        p = (theirs.head(blocks(theirs, begin(theirs), 0, 2))[kept] / temperature).log_softmax(1)
    wanted = torch.zeros((), dtype=torch.float64)
    for done in (0, 1):
        hybrid = theirs.head(blocks(theirs, blocks(ours, begin(ours), 0, done), done, 2))[kept]
        q = (hybrid / temperature).log_softmax(1)
        wanted = wanted + temperature**2 * (p.exp() * (p - q)).sum() / kept.sum()
    assert float(loss.detach()) == pytest.approx(0.5 * float(wanted.detach()), rel=1e-12)
    plain = gradients_of(0.5 * wanted, student)
    for name, gradient in plain.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-12)
    assert plain["first.weight"].abs().max() > 1e-4 and not plain["head.weight"].any()


def test_a_hybrid_of_language_models_is_what_plain_torch_makes_of_it() -> None:
    student, role, batch = llama(1), resident(llama(2)), batch_of(ROWS)
    layers = ("model.layers.0",)
    module, objective = joined(student, role, term(layers), pairs=pairs(layers))
    loss, _ = loss_of(module, objective, batch)
    got = gradients_of(loss, student)
    ours: Any = student.module
    theirs: Any = role.loaded.module
    inputs = {**batch.inputs, "use_cache": False}
    with torch.no_grad():
        p = theirs(**inputs).logits[batch.mask].log_softmax(1)
    found: dict[str, Tensor] = {}
    first = ours.model.layers[0].register_forward_hook(
        lambda _m, _i, output: found.update(h=output[0] if isinstance(output, tuple) else output)
    )
    ours(**inputs)
    first.remove()
    plain = theirs.model.layers[0].forward
    theirs.model.layers[0].forward = lambda *_a, **_k: found["h"]
    q = theirs(**inputs).logits[batch.mask].log_softmax(1)
    theirs.model.layers[0].forward = plain
    wanted = (p.exp() * (p - q)).sum() / batch.mask.sum()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients_of(wanted, student).items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "orthogonal"])
@pytest.mark.parametrize(
    ("student", "role", "batch_like", "layers", "widths"),
    [
        (lambda: mlp(1, width=5), lambda: mlp(2), numbers, ("stages.0", "stages.1"), (5, 6)),
        (
            lambda: classifier("conv", 1, channels=2, size=8, classes=4, width=2),
            lambda: conv(2),
            images,
            ("stages.1", "stages.1"),
            (2, 3),
        ),
        (
            lambda: bert(1, 8),
            lambda: bert(2),
            sentences,
            ("bert.encoder.layer.0", "bert.encoder.layer.1"),
            (8, 16),
        ),
    ],
    ids=["numbers", "images", "text"],
)
def test_a_projector_maps_channels_and_learns(
    kind: Any, student: Any, role: Any, batch_like: Any, layers: Any, widths: Any
) -> None:
    made, projector = student(), Projector("map", kind, layers[0], *widths, whole=True)
    spec = term(layers[:1])
    module, objective = joined(
        made,
        resident(role()),
        spec,
        pairs={"blockwise_logits": [Pair(*layers, "map")]},
        projectors=(projector,),
    )
    loss_of(module, objective, batch_like())[0].backward()
    assert module.inside is not None
    assert all(float(p.grad.abs().max()) > 0 for p in module.inside.parameters())  # type: ignore[union-attr]
    assert any(p.grad is not None and p.grad.any() for p in made.module.parameters())


@pytest.mark.parametrize("name", ["mlp", "llama"])
def test_a_batch_without_loss_costs_nothing_and_reaches_the_student(name: str) -> None:
    make, batch_like, layers = MODELS[name]
    batch, student = batch_like(), make(1)
    batch.targets.fill_(-100)
    module, objective = joined(student, resident(make(2)), term(layers), pairs=pairs(layers))
    loss, _ = loss_of(module, objective, batch)
    loss.backward()
    assert float(loss.detach()) == 0
    touched = [p.grad for p in student.module.parameters() if p.grad is not None]
    assert touched and not any(g.any() for g in touched)


def test_weight_and_temperature_may_follow_schedules() -> None:
    falling = {"kind": "linear", "start": 4.0, "end": 2.0}
    student, role, batch = mlp(1), resident(mlp(2)), numbers()
    layers = ("stages.1",)
    values = []
    for temperature in (falling, 3.0):
        module, objective = joined(
            student, role, term(layers, temperature=temperature), pairs=pairs(layers)
        )
        values.append(loss_of(module, objective, batch, at=Progress(5, 10))[1])
    assert values[0] == pytest.approx(values[1])
    assert objective.asks()[0].key == "teacher.resident"
    assert objective.asks()[0].layers == layers


def test_without_layers_or_without_the_role_it_says_so() -> None:
    student, role = mlp(1), resident(mlp(2))
    module, objective = joined(student, role, term(("stages.1",)))
    with pytest.raises(ValueError, match="needs its layers"):
        loss_of(module, objective, numbers())
    module, objective = joined(student, role, term(("stages.1",)), pairs=pairs(("stages.1",)))
    bare = type(objective)(objective.vocabulary, objective.others)
    with pytest.raises(ValueError, match="weights of role 'teacher' are not beside the student"):
        loss_of(module, bare, numbers())


def test_student_and_labels_go_on_beside_it() -> None:
    student, role, batch = mlp(1), resident(mlp(2)), numbers(9)
    layers = ("stages.1",)
    module, objective = joined(
        student, role, {"kind": "cross_entropy"}, term(layers), pairs=pairs(layers)
    )
    both = loss_of(module, objective, batch)[0]
    alone = loss_of(*joined(student, role, term(layers), pairs=pairs(layers)), batch)[0]
    logits = student.module(batch.inputs["features"])[batch.mask[:, 0]]
    nll = nn.functional.cross_entropy(logits, batch.kept_targets)
    torch.testing.assert_close(both, alone + nll)
