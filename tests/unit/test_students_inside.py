"""What terms look at inside a student: the very tensors of its forward, projected, cut to loss."""

from typing import Any

import digits
import pytest
import tiny
import torch
from packed import batch_of
from tiny_models import tiny as model_of
from torch import Tensor

from orchestrator.models.capture import inside, inside_classifier
from orchestrator.models.load import Loaded, load_model
from orchestrator.planner.layer_maps import LayerMaps, Projector
from orchestrator.spec.models import ModelSpec
from orchestrator.students.inside import Inside, Orthogonal
from orchestrator.students.module import StudentModule, no_gradient
from strategies.contract import IGNORED, Batch, Outputs

ROWS = [[4, 5], [9], [3, 3]]


def outputs_of(loaded: Loaded, maps: LayerMaps, batch: Batch) -> tuple[StudentModule, Outputs]:
    module = StudentModule(loaded.module, loaded.head(), None, Inside(maps, seed=1))
    found: list[Outputs] = []

    def consume(outputs: Outputs) -> Tensor:
        found.append(outputs)
        return torch.zeros(())

    module(batch, consume)
    return module, found[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_are_those_of_the_models_own_forward(family: str) -> None:
    loaded, batch = model_of(family, attention="eager"), batch_of(ROWS)
    stem = "model.layers" if family == "llama" else "transformer.h"
    paths = (f"{stem}.0", f"{stem}.1")
    _, outputs = outputs_of(loaded, LayerMaps(layers=paths), batch)
    whole: Any = loaded.module(
        **batch.inputs, use_cache=False, output_hidden_states=True
    ).hidden_states
    torch.testing.assert_close(outputs.layers[paths[0]], whole[1][batch.mask])
    assert outputs.hidden is not None and outputs.layers[paths[1]].shape == outputs.hidden.shape


def test_attention_begins_at_the_querys_own_sample() -> None:
    loaded, batch = model_of("llama", attention="eager"), batch_of(ROWS)
    path = "model.layers.1.self_attn"
    _, outputs = outputs_of(loaded, LayerMaps(attention=(path,)), batch)
    got = outputs.attention[path]
    assert got.shape == (int(batch.mask.sum()), 4, 9)
    torch.testing.assert_close(got.sum(-1), torch.ones(got.shape[:2]))
    ids = batch.inputs["input_ids"]
    alone = Batch(
        {"input_ids": ids[:1, 4:9], "position_ids": torch.arange(5)[None]},
        batch.targets[:1, 4:9],
        batch.sample_index[:1, 4:9],
    )
    _, own = outputs_of(loaded, LayerMaps(attention=(path,)), alone)
    second = batch.sample_index[batch.mask] == 1
    torch.testing.assert_close(got[second][..., :5], own.attention[path])
    assert not got[second][..., 5:].any()


def _loss(outputs: Outputs) -> Tensor:
    """Reaches a layer, part of a layer, and what is projected."""
    parts = [x.square().sum() for x in (*outputs.layers.values(), *outputs.projected.values())]
    return sum(parts, start=torch.zeros(()))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    maps = LayerMaps(
        layers=("model.layers.0", "model.layers.1.mlp"),
        projectors=(
            Projector("a", "linear", "model.layers.0", 32, 5),
            Projector("b", "orthogonal", "model.layers.1.mlp", 32, 48),
        ),
    )
    batch, found = batch_of(ROWS), []
    for checkpointing in (False, True):
        loaded = model_of("llama", for_training=True)
        if checkpointing:
            enable: Any = loaded.module.gradient_checkpointing_enable
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module = StudentModule(loaded.module, loaded.head(), None, Inside(maps, seed=1))
        loss = module(batch, _loss)
        loss.backward()
        found.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    plain, saved = found
    assert plain.keys() == saved.keys() and "inside.projectors.a.weight" in plain
    assert "model.model.layers.1.mlp.up_proj.weight" in plain
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, rtol=0, atol=0)


def test_a_batch_without_loss_still_reaches_layers_and_projectors() -> None:
    maps = LayerMaps(
        layers=("model.layers.0",),
        projectors=(Projector("a", "linear", "model.layers.0", 32, 5),),
    )
    batch = batch_of(ROWS)
    batch.targets.fill_(IGNORED)
    loaded = model_of("llama", for_training=True)
    module = StudentModule(loaded.module, loaded.head(), None, Inside(maps, seed=1))
    module(batch, _loss).backward()
    assert module.inside is not None
    for parameter in (*module.inside.parameters(), *loaded.module.model.layers[0].parameters()):
        assert parameter.grad is not None and not parameter.grad.any()


def test_who_measures_the_models_end_does_not_look_inside() -> None:
    loaded = model_of("llama")
    module = StudentModule(
        loaded.module, loaded.head(), None, Inside(LayerMaps(layers=("model.layers.0",)), 1)
    )

    def consume(outputs: Outputs) -> Tensor:
        assert not outputs.layers
        return torch.zeros(())

    no_gradient(module, batch_of(ROWS), consume)
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 5), (3, 7), (7, 3)])
def test_an_orthogonal_projector_keeps_lengths_or_is_a_part_of_what_does(
    inputs: int, outputs: int
) -> None:
    torch.manual_seed(0)
    projector = Orthogonal(inputs, outputs)
    matrix = projector(torch.eye(inputs)).detach()
    fewer = matrix @ matrix.T if inputs <= outputs else matrix.T @ matrix
    torch.testing.assert_close(fewer, torch.eye(min(inputs, outputs)), atol=1e-5, rtol=0)
    projector(torch.ones(2, inputs)).square().sum().backward()
    assert projector.weight.grad is not None and projector.weight.grad.isfinite().all()
    half = Orthogonal(inputs, outputs).bfloat16()
    assert half(torch.ones(2, inputs, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_projectors_depend_on_the_seed_alone() -> None:
    maps = LayerMaps(projectors=(Projector("a", "linear", "x", 3, 4),))
    torch.manual_seed(1)
    first = Inside(maps, 7).projectors["a"].weight
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = Inside(maps, 7).projectors["a"].weight
    assert torch.equal(first, second) and torch.equal(state, torch.random.get_rng_state())


def _classifier(**raw: Any) -> Loaded:
    return load_model(ModelSpec.model_validate({"task": "classifier", **raw}), seed=2)


def test_a_perceptrons_stages_are_its_features() -> None:
    loaded = _classifier(**digits.student(width=6))
    features = torch.randn(3, 64)
    found = inside_classifier(loaded.module, {"features": features})
    assert found.layers == {
        **{"first": 6, "blocks.0": 6, "blocks.1": 6, "head": 10},
        **{"stages.0": 6, "stages.1": 6, "stages.2": 6},
    }
    assert not found.shapes
    targets = torch.tensor([[3], [IGNORED], [4]])
    batch = Batch({"features": features}, targets, torch.tensor([[0], [-1], [2]]))
    _, outputs = outputs_of(loaded, LayerMaps(layers=("stages.2",)), batch)
    head: Any = loaded.module.head
    torch.testing.assert_close(head(outputs.layers["stages.2"]), outputs.logits)


def test_maps_of_a_convolution_keep_their_shape() -> None:
    conv = "orchestrator.models.reference:conv"
    arguments = {"channels": 1, "size": 8, "classes": 10, "width": 4}
    loaded = _classifier(**{"import": conv, "arguments": arguments})
    images = torch.randn(3, 1, 8, 8)
    found = inside_classifier(loaded.module, {"pixel_values": images})
    assert found.shapes["stages.1"] == (4, 8, 8) and found.layers["stages.1"] == 256
    assert found.shapes["stages.2"] == (4, 4, 4) and "head" not in found.shapes
    batch = Batch({"pixel_values": images}, torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1))
    maps = LayerMaps(layers=("stages.2",), projectors=(Projector("a", "linear", "stages.2", 4, 6),))
    module, outputs = outputs_of(loaded, maps, batch)
    assert outputs.layers["stages.2"].shape == (3, 4, 4, 4)
    weight: Any = module.inside.projectors["a"].weight  # type: ignore[union-attr]
    bias: Any = module.inside.projectors["a"].bias  # type: ignore[union-attr]
    convolved = torch.nn.functional.conv2d(
        outputs.layers["stages.2"], weight[:, :, None, None], bias
    )
    torch.testing.assert_close(outputs.projected["a"], convolved)


def test_a_text_classifiers_tokens_are_averaged_without_padding() -> None:
    llama = {**tiny.architecture(), "num_labels": 2, "pad_token_id": 0, "vocab_size": 97}
    loaded = _classifier(architecture=llama)
    ids = torch.randint(1, 97, (2, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    short = {"input_ids": ids[1:, :3], "attention_mask": mask[1:, :3]}
    paths = inside_classifier(loaded.module, {"input_ids": ids, "attention_mask": mask})
    assert paths.layers["model.layers.0"] == 32 and not paths.shapes
    maps = LayerMaps(layers=("model.layers.0",))
    zeros, place = torch.zeros(2, 1, dtype=torch.int64), torch.arange(2)[:, None]
    both = Batch({"input_ids": ids, "attention_mask": mask}, zeros, place)
    _, padded = outputs_of(loaded, maps, both)
    _, alone = outputs_of(loaded, maps, Batch(short, zeros[:1], place[:1]))
    torch.testing.assert_close(
        padded.layers["model.layers.0"][1:], alone.layers["model.layers.0"], atol=1e-5, rtol=1e-5
    )


def test_paths_of_an_adapted_model_are_those_of_the_model() -> None:
    from orchestrator.models.lora import apply_lora
    from orchestrator.spec.models import LoraSpec

    loaded = model_of("llama", for_training=True)
    plain = inside(loaded.module).layers
    adapted = apply_lora(loaded, LoraSpec(rank=2), seed=0)
    found = inside(adapted.module).layers
    assert plain.keys() <= found.keys() and found["model.layers.1"] == 32
    _, outputs = outputs_of(adapted, LayerMaps(layers=("model.layers.1",)), batch_of(ROWS))
    assert outputs.layers["model.layers.1"].requires_grad
