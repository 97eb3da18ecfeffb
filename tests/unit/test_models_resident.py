"""A role's weights beside a student: its own gradient, its rest after a cut, and who cannot be."""

from dataclasses import replace
from typing import Any

import pytest
import residents
import torch
from classifiers import BERT, LLAMA
from packed import batch_of
from residents import images, mlp, numbers, resident, sentences
from tiny_models import tiny
from torch import nn

from orchestrator.models.forward import forward_logits
from orchestrator.models.load import Loaded, load_model
from orchestrator.models.resident import ResidentRole, given_by
from orchestrator.spec.models import ModelSpec
from strategies.contract import IGNORED, Batch, DenseSignal, HiddenSignal, Outputs

ROWS = [[4, 5], [9], [3, 3]]


def text_classifier(architecture: dict[str, Any], attention: str = "sdpa") -> Loaded:
    spec = ModelSpec.model_validate(
        {"architecture": architecture, "task": "classifier", "attention": attention}
    )
    return load_model(spec, seed=3)


BERT_OF = {**BERT, "vocab_size": 97}
LLAMA_OF = {**LLAMA, "vocab_size": 97, "num_hidden_layers": 2}
CUTS: dict[str, tuple[Any, Any, str]] = {
    "mlp": (lambda: mlp(0), numbers, "stages.1"),
    "no skips": (lambda: mlp(0, residual=False), numbers, "blocks.0"),
    "conv": (
        lambda: residents.classifier("conv", 0, channels=2, size=8, classes=4, width=3),
        images,
        "stages.1",
    ),
    "llama": (lambda: tiny("llama"), lambda: batch_of(ROWS), "model.layers.0"),
    "llama_eager": (
        lambda: tiny("llama", attention="eager"),
        lambda: batch_of(ROWS),
        "model.layers.1",
    ),
    "gpt2": (lambda: tiny("gpt2"), lambda: batch_of(ROWS), "transformer.h.0"),
    "gemma3": (lambda: tiny("gemma3"), lambda: batch_of(ROWS), "model.layers.0"),
    "half": (
        lambda: tiny("llama", dtype="bfloat16"), lambda: batch_of(ROWS), "model.layers.0"
    ),
    "bert": (lambda: text_classifier(BERT_OF), sentences, "bert.encoder.layer.0"),
    "llama_classifier": (lambda: text_classifier(LLAMA_OF), sentences, "model.layers.0"),
}  # fmt: skip


def said(outputs: Outputs) -> torch.Tensor:
    found = outputs.logits if outputs.hidden is None else outputs.hidden
    assert found is not None
    return found


@pytest.mark.parametrize("name", CUTS)
def test_a_hybrid_of_the_roles_own_blocks_says_what_the_role_says_bit_for_bit(name: str) -> None:
    make, batch_like, path = CUTS[name]
    role, batch = resident(make()), batch_like()
    whole = said(role.outputs(batch))
    own = given_by(role.loaded, path, batch)
    assert torch.equal(said(role.outputs(batch, {path: own})), whole)
    assert not torch.equal(said(role.outputs(batch, {path: own + 1.0})), whole)
    assert role.can_be_cut(path, batch)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mlp", "blocks.0"),  # features pass it by
        ("conv", "blocks.0.0"),
        ("llama", "model.layers.0.mlp"),
        ("llama", "model.layers.1.self_attn"),
        ("gpt2", "transformer.h.0.attn"),
        ("bert", "bert.encoder.layer.0.attention.self"),
        ("llama_classifier", "model.layers.0.post_attention_layernorm"),
    ],
)
def test_what_features_pass_by_is_no_cut(name: str, path: str) -> None:
    make, batch_like, _ = CUTS[name]
    assert not resident(make()).can_be_cut(path, batch_like())


def test_gradients_go_through_the_rest_of_the_role_and_not_to_it() -> None:
    role, batch = resident(tiny("llama")), batch_of(ROWS)
    given = given_by(role.loaded, "model.layers.0", batch).requires_grad_()
    said(role.outputs(batch, {"model.layers.0": given})).square().sum().backward()
    assert given.grad is not None and given.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in role.loaded.module.parameters())
    assert not any(part._forward_hooks for part in role.loaded.module.modules())


@pytest.mark.parametrize("name", ["mlp", "conv", "llama", "gpt2", "bert", "llama_classifier"])
def test_the_roles_own_gradient_is_that_of_plain_torch(name: str) -> None:
    make, batch_like, _ = CUTS[name]
    role, batch = resident(make()), batch_like()
    with torch.no_grad():  # as a diagnostic may be asked
        got = role.gradient(batch)
    module = role.loaded.module
    assert not any(p.requires_grad for p in module.parameters())
    module.requires_grad_(True)
    if "position_ids" in batch.inputs:
        logits = forward_logits(module, batch.inputs["input_ids"], batch.inputs["position_ids"])
    else:
        output = module(**batch.inputs)
        logits = getattr(output, "logits", output).unsqueeze(1)
    nll = nn.functional.cross_entropy(logits[batch.mask], batch.kept_targets, reduction="sum")
    nll.backward()
    for key, parameter in module.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(got[key], wanted, rtol=1e-4, atol=1e-5)
    assert got.keys() == role.weights.keys()


def test_a_batch_without_loss_has_a_gradient_of_zeros() -> None:
    for role, batch in ((resident(mlp(0)), numbers()), (resident(tiny()), batch_of(ROWS))):
        empty = Batch(batch.inputs, torch.full_like(batch.targets, IGNORED), batch.sample_index)
        assert all(not g.any() for g in role.gradient(empty).values())


def test_what_it_says_is_what_a_replica_would_send() -> None:
    text = resident(tiny("llama")).signal(batch_of(ROWS))
    assert isinstance(text, HiddenSignal) and not text.hidden.requires_grad
    role, batch = resident(mlp(0)), numbers()
    signal = role.signal(batch)
    assert isinstance(signal, DenseSignal) and len(signal.logits) == int(batch.mask.sum())
    wanted = role.loaded.module(batch.inputs["features"])[:-1]
    assert torch.equal(signal.logits, wanted)


def test_other_tokens_leave_padding_alone() -> None:
    batch = sentences()
    loaded = text_classifier({**LLAMA_OF, "pad_token_id": 5})
    ids = batch.inputs["input_ids"].clone()
    ids[ids == 4], ids[0, 0] = 6, 4  # whose follower is the padding id
    other = replace(batch, inputs={**batch.inputs, "input_ids": ids})
    assert ResidentRole(loaded).can_be_cut("model.layers.0", other)
