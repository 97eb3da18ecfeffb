"""What only a student needs: adapters, trainable paths, families, export."""

from pathlib import Path

import pytest
import torch
from tiny_models import VOCABULARY, enlarge, tiny, write_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.errors import SpecError
from orchestrator.models.export import export_folder, generate
from orchestrator.models.families import (
    OwedLoss,
    balance_loss,
    owed_loss,
    unknown_experts,
    zero3_leaves,
)
from orchestrator.models.forward import forward_hidden, forward_logits
from orchestrator.models.load import Loaded, load_model
from orchestrator.models.lora import apply_lora, merged_state
from orchestrator.models.trainable import apply_trainable
from orchestrator.spec.models import LoraSpec, ModelSpec

IDS = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(5))
POSITIONS = torch.arange(9).expand(2, 9)


def logits(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return forward_logits(module, IDS, POSITIONS)


def adapted(family: str = "llama", export: str = "merged") -> tuple[Loaded, LoraSpec]:
    """A model whose adapters have learned something."""
    spec = LoraSpec.model_validate({"rank": 2, "export": export})
    loaded = apply_lora(tiny(family, for_training=True), spec)
    with torch.no_grad():
        for name, parameter in loaded.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    loaded.module.eval()
    return loaded, spec


def test_fresh_adapters_change_nothing_and_are_all_that_learns():
    base = logits(tiny("llama").module)
    loaded = apply_lora(tiny("llama", for_training=True), LoraSpec(rank=2))
    assert torch.equal(logits(loaded.module), base)
    learning = {n for n, p in loaded.module.named_parameters() if p.requires_grad}
    assert learning and all("lora_" in name for name in learning)


def test_fresh_adapters_depend_on_the_seed_alone():
    one, other = (
        apply_lora(tiny("llama"), LoraSpec(rank=2), seed=seed).module.state_dict()
        for seed in (4, 4)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_hidden_states_and_head_see_through_adapters(family: str):
    loaded, _ = adapted(family)
    head = loaded.head()
    assert head is not None
    with torch.no_grad():
        hidden = forward_hidden(loaded.module, IDS, POSITIONS)
    assert torch.allclose(head.logits(hidden), logits(loaded.module), atol=1e-5)
    assert not torch.allclose(logits(loaded.module), logits(tiny(family).module), atol=1e-2)


@pytest.mark.parametrize("targets", [["q_prj"], ["lm_head"]])
def test_targets_that_do_not_fit_are_refused(targets: list[str]):
    with pytest.raises(SpecError, match=r"student\.lora\.targets"):
        apply_lora(tiny("llama"), LoraSpec(targets=targets))


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2"])
def test_merging_equals_peft_and_leaves_the_student_as_it_was(family: str):
    loaded, _ = adapted(family)
    before = logits(loaded.module)
    ours = merged_state(loaded.module)
    assert torch.equal(logits(loaded.module), before)
    theirs = adapted(family)[0].module.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "mixtral", "gemma3"])
def test_an_exported_folder_loads_anywhere(tmp_path: Path, family: str):
    module = tiny(family).module
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    folder = export_folder(module, str(tokenizer), tmp_path / "out" / "student")
    assert not list(folder.glob("*.bin")) and (folder / "generation_config.json").is_file()
    again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    assert torch.equal(logits(again.eval()), logits(module))
    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied is (family in ("llama_tied", "gpt2", "gemma3"))
    assert AutoTokenizer.from_pretrained(folder)("w3 w1")["input_ids"] == [3, 1]
    assert [entry.name for entry in folder.parent.iterdir()] == ["student"]


def test_an_export_replaces_the_folder_before_it(tmp_path: Path):
    target = tmp_path / "student"
    target.mkdir()
    (target / "stale.txt").write_text("old")
    export_folder(tiny("llama").module, None, target)
    assert not (target / "stale.txt").exists() and (target / "config.json").exists()


def test_an_export_that_fails_leaves_the_folder_before_it(tmp_path: Path):
    target = tmp_path / "student"
    target.mkdir()
    (target / "config.json").write_text("old")
    broken = tiny("llama").module
    broken.save_pretrained = lambda *_a, **_k: (_ for _ in ()).throw(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        export_folder(broken, None, target)
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    assert (target / "config.json").read_text() == "old"


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2"])
def test_a_merged_export_needs_no_peft(tmp_path: Path, family: str):
    loaded, spec = adapted(family)
    folder = export_folder(loaded.module, None, tmp_path / "student", spec)
    assert not (folder / "adapter_config.json").exists()
    again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    assert torch.allclose(logits(again), logits(loaded.module), atol=1e-5)


def test_an_adapter_export_loads_on_its_base(tmp_path: Path):
    base = export_folder(tiny("llama").module, None, tmp_path / "base")
    spec = LoraSpec(rank=2, export="adapter")
    loaded = apply_lora(load_model(ModelSpec(path=str(base)), for_training=True), spec)
    enlarge(loaded.module.base_model.model.model.layers[0].self_attn.q_proj.lora_B)
    folder = export_folder(loaded.module.eval(), None, tmp_path / "adapter", spec)
    assert not (folder / "config.json").exists()
    again = load_model(ModelSpec(path=str(folder)))
    assert torch.allclose(logits(again.module), logits(loaded.module), atol=1e-5)
    assert again.head() is not None


def test_an_adapter_without_its_base_is_refused(tmp_path: Path):
    loaded, spec = adapted(export="adapter")
    folder = export_folder(loaded.module, None, tmp_path / "adapter", spec)
    with pytest.raises(SpecError, match=r"adapter of .* no folder .* lora.export: merged"):
        load_model(ModelSpec(path=str(folder)))


def test_adapters_are_never_exported_unasked(tmp_path: Path):
    with pytest.raises(ValueError, match="LoraSpec"):
        export_folder(adapted()[0].module, None, tmp_path / "x")


def test_a_plain_module_is_exported_as_its_weights(tmp_path: Path):
    folder = export_folder(nn.Linear(2, 3), None, tmp_path / "plain")
    assert [file.name for file in folder.iterdir()] == ["model.safetensors"]


def test_greedy_text_is_the_models_own(tmp_path: Path):
    folder = write_tokenizer(tmp_path / "tokenizer")
    module = tiny("llama").module
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("w5 w6", return_tensors="pt")["input_ids"]
    theirs = module.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=0, pad_token_id=0)
    expected = tokenizer.decode(theirs[0], skip_special_tokens=True)
    assert generate(module, str(folder), "w5 w6", 6) == expected


def test_text_may_grow_past_the_models_positions(tmp_path: Path):
    folder = str(write_tokenizer(tmp_path / "tokenizer"))
    text = generate(tiny("gpt2").module, folder, " ".join(["w5"] * 62), 6)
    assert 62 < len(text.split()) <= 68


def test_an_empty_prompt_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no tokens"):
        generate(tiny("llama").module, str(write_tokenizer(tmp_path / "t")), "", 3)


def test_only_named_paths_may_change():
    module = tiny("llama", for_training=True).module
    changing = apply_trainable(module, ["model.layers.*.mlp", "model.norm.weight"])
    names = {n for n, p in module.named_parameters() if p.requires_grad}
    assert names == {
        "model.norm.weight",
        *(f"model.layers.{i}.mlp.{p}_proj.weight" for i in (0, 1) for p in ("up", "down", "gate")),
    }
    assert changing == 32 + 2 * 3 * 32 * 48


def test_a_tied_weight_is_reached_by_either_name():
    module = tiny("llama_tied", for_training=True).module
    assert apply_trainable(module, ["lm_head"]) == VOCABULARY * 32
    assert module.model.embed_tokens.weight.requires_grad


def test_a_pattern_that_matches_nothing_names_the_nearest():
    with pytest.raises(SpecError, match=r"student.trainable.1: is 'model.layer.0'.*model.layers.0"):
        apply_trainable(tiny("llama").module, ["lm_head", "model.layer.0"])


def test_a_family_with_experts_names_its_leaves_and_what_it_owes():
    module = tiny("mixtral").module
    assert [leaf.__name__ for leaf in zero3_leaves(module)] == ["MixtralSparseMoeBlock"]
    assert owed_loss(module) == OwedLoss(coefficient=0.001, experts=4, per_token=2)
    assert unknown_experts(module) == []


def test_a_dense_family_has_no_leaves_and_owes_nothing():
    module = tiny("llama").module
    assert (zero3_leaves(module), owed_loss(module), unknown_experts(module)) == ([], None, [])


def test_experts_of_a_family_not_in_the_table_are_found():
    class RareMoeBlock(nn.Module):
        pass

    module = tiny("llama").module
    module.model.layers[0].mlp = RareMoeBlock()
    assert unknown_experts(module) == ["RareMoeBlock"]


def test_the_balance_loss_is_the_familys_own():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    generator = torch.Generator().manual_seed(2)
    routers = [torch.randn(10, 4, generator=generator) for _ in range(3)]
    keep = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1, 0, 0]).bool()
    ours = balance_loss(routers, keep, OwedLoss(0.01, 4, 2))
    theirs = load_balancing_loss_func(tuple(routers), 4, 2, keep.view(2, 5).long())
    assert torch.allclose(ours, torch.as_tensor(theirs), rtol=1e-5)
    even = [torch.zeros(4, 4)]
    assert balance_loss(even, torch.ones(4).bool(), OwedLoss(0.01, 4, 2)) == pytest.approx(2.0)
