"""Loading a role: sources, refusals, and what a folder must hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, VOCABULARY, enlarge, tiny, write_tokenizer
from torch import nn

from orchestrator.errors import SpecError
from orchestrator.models.export import export_folder
from orchestrator.models.folder import check_folder
from orchestrator.models.forward import classify, forward_logits
from orchestrator.models.load import load_model
from orchestrator.planner.sizes import model_size
from orchestrator.spec.models import ModelSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return export_folder(tiny("llama_tied").module, None, tmp_path / "teacher")


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_fresh_weights_depend_on_the_seed_alone():
    one = tiny("llama", trained=False, seed=3).module
    torch.manual_seed(99)
    torch.randn(5)
    before = torch.get_rng_state()
    assert same(one, tiny("llama", trained=False, seed=3).module)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(one, tiny("llama", trained=False, seed=4).module)


def test_fresh_weights_of_one_seed_are_one_model_in_every_dtype():
    whole = tiny("llama", trained=False).module.state_dict()
    half = tiny("llama", trained=False, dtype="bfloat16").module.state_dict()
    assert all(torch.equal(whole[name].bfloat16(), half[name]) for name in half)


def test_a_loaded_model_says_what_other_rooms_need():
    loaded = tiny("llama", trained=False)
    assert (loaded.task, loaded.vocabulary, loaded.width) == ("causal_lm", VOCABULARY, 32)
    assert loaded.head_kind == "linear" and len(loaded.fingerprint) == 64
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())


def test_a_student_is_in_training_mode_with_gradients():
    module = tiny("llama", for_training=True).module
    assert module.training and all(p.requires_grad for p in module.parameters())


def test_a_folder_gives_back_the_exported_weights(folder: Path):
    loaded = load_model(ModelSpec(path=str(folder)))
    assert same(loaded.module, tiny("llama_tied").module)
    assert loaded.module.lm_head.weight is loaded.module.model.embed_tokens.weight


@pytest.mark.parametrize(("kind", "value"), [("job", "pretrain"), ("registry", "models:/a/1")])
def test_jobs_and_registry_are_resolved_to_folders(folder: Path, kind: str, value: str):
    asked = []

    def resolve(*source: str) -> str:
        asked.append(source)
        return str(folder)

    loaded = load_model(ModelSpec.model_validate({kind: value}), resolve=resolve)
    assert asked == [(kind, value)] and loaded.vocabulary == VOCABULARY


def test_the_vocabulary_of_a_fresh_model_is_the_tokenizers(tmp_path: Path):
    tokenizer = str(write_tokenizer(tmp_path / "tokenizer", words=51))
    fields = {k: v for k, v in ARCHITECTURES["llama"].items() if k != "vocab_size"}
    loaded = load_model(ModelSpec(architecture=fields), tokenizer=tokenizer)
    assert loaded.vocabulary == 51
    assert (loaded.config.eos_token_id, loaded.config.bos_token_id) == (0, None)


def test_a_vocabulary_below_the_tokenizers_is_refused(tmp_path: Path):
    tokenizer = str(write_tokenizer(tmp_path / "tokenizer", words=VOCABULARY + 1))
    with pytest.raises(SpecError, match=r"architecture.vocab_size: is 97, .* 98 ids"):
        load_model(ModelSpec(architecture=ARCHITECTURES["llama"]), tokenizer=tokenizer)


def test_no_token_of_a_fresh_model_is_padding_that_never_learns():
    fields = {**ARCHITECTURES["gemma3"]}  # a family whose default padding id is 0
    module = load_model(ModelSpec(architecture=fields)).module
    assert module.get_input_embeddings().padding_idx is None


def test_a_field_without_effect_is_refused_with_the_nearest():
    fields = {**ARCHITECTURES["llama"], "hiden_size": 8}
    with pytest.raises(SpecError, match=r"architecture.hiden_size: .* Did you mean 'hidden_size'"):
        load_model(ModelSpec(architecture=fields))


def test_a_field_that_a_family_reads_without_declaring_is_taken():
    fields = {"model_type": "qwen3_moe", **ARCHITECTURES["qwen3"], "num_experts": 2}
    fields |= {"model_type": "qwen3_moe", "num_experts_per_tok": 1, "head_dim": 16}
    fields |= {"rope_theta": 5000.0}
    module = load_model(ModelSpec(architecture=fields)).module
    assert module.model.layers[0].self_attn.q_proj.weight.shape == (64, 32)


def test_an_unknown_model_type_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="Did you mean 'llama'"):
        load_model(ModelSpec(architecture={"model_type": "lama"}))


def test_a_config_that_does_not_run_is_refused():
    fields = {**ARCHITECTURES["mixtral"], "num_experts_per_tok": 9}
    with pytest.raises(SpecError, match=r"student: MixtralForCausalLM does not run forward"):
        load_model(ModelSpec(architecture=fields), field="student")


def test_an_attention_that_a_family_lacks_is_named():
    with pytest.raises(SpecError, match=r"roles.teacher.attention: is sdpa"):
        load_model(ModelSpec(architecture=ARCHITECTURES["bloom"]), field="roles.teacher")


def test_flash_attention_on_a_cpu_is_refused():
    spec = ModelSpec(architecture=ARCHITECTURES["llama"], attention="flash_attention_2")
    with pytest.raises(SpecError, match="needs a GPU"):
        load_model(spec)


def test_a_model_that_leaks_between_packed_samples_is_refused_when_packing():
    spec = ModelSpec(architecture=ARCHITECTURES["bloom"], attention="eager")
    load_model(spec, packing=False)
    with pytest.raises(SpecError, match=r"see each other. Set data.packing: false"):
        load_model(spec, packing=True)


def test_missing_weights_are_refused_and_not_drawn(folder: Path):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SpecError, match=r"model.path: .* lacks 1 weights \(model.layers.1.mlp"):
        load_model(ModelSpec(path=str(folder)))


def test_weights_of_another_shape_are_refused(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(SpecError, match=r"model\.path"):
        load_model(ModelSpec(path=str(folder)))


def test_pickled_weights_are_refused_unless_allowed(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SpecError, match=r"only as pickles .* model.allow_pickle: true"):
        load_model(ModelSpec(path=str(folder)))
    loaded = load_model(ModelSpec(path=str(folder), allow_pickle=True))
    assert same(loaded.module, tiny("llama_tied").module)


def test_pickles_beside_safetensors_are_not_read(folder: Path):
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    assert same(load_model(ModelSpec(path=str(folder))).module, tiny("llama_tied").module)


def test_remote_code_is_refused_unless_allowed(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(
        SpecError, match=r"names Python files to run.* model.allow_remote_code: true"
    ):
        load_model(ModelSpec(path=str(folder)))
    check_folder(folder, ModelSpec(path=str(folder), allow_remote_code=True), "x")


def test_a_file_cut_short_is_refused_before_it_is_read(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SpecError, match="its header says"):
        check_folder(folder, ModelSpec(path=str(folder)), "student.path")


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x02" + b"\0" * 7 + b"{}x"])
def test_a_file_that_is_no_safetensors_is_refused(folder: Path, content: bytes):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(SpecError, match="Copy it again"):
        check_folder(folder, ModelSpec(path=str(folder)), "student.path")


def test_a_shard_that_is_missing_is_refused(folder: Path):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    with pytest.raises(SpecError, match=r"model-2.safetensors"):
        check_folder(folder, ModelSpec(path=str(folder)), "student.path")


def test_a_misspelt_folder_is_refused_with_the_nearest(folder: Path):
    wrong = str(folder).replace("teacher", "teecher")
    with pytest.raises(SpecError, match=r"Did you mean .*/teacher'"):
        check_folder(wrong, ModelSpec(path=wrong), "roles.teacher.path")


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_config_that_says_nothing_is_refused(folder: Path, content: str):
    (folder / "config.json").write_text(content)
    with pytest.raises(SpecError, match=r"config\.json"):
        check_folder(folder, ModelSpec(path=str(folder)), "student.path")


def test_checking_a_folder_imports_no_torch():
    code = (
        "import sys, orchestrator.models.folder, orchestrator.models.tokenizer;"
        "print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


class Counter(nn.Module):
    """An imported causal model: no config, no backbone, logits from a table."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.vocab_size = size
        self.table = nn.Embedding(size, size)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids)


def imported(name: str, **fields: object) -> ModelSpec:
    return ModelSpec.model_validate({"import": f"{__name__}:{name}", **fields})


def test_an_imported_module_is_served_without_a_head():
    loaded = load_model(imported("Counter", arguments={"size": 5}), seed=1, packing=True)
    assert (loaded.head_kind, loaded.vocabulary, loaded.head()) == ("none", 5, None)
    ids = torch.tensor([[1, 2]])
    assert forward_logits(loaded.module, ids, torch.arange(2)[None]).shape == (1, 2, 5)
    again = load_model(imported("Counter", arguments={"size": 5}), seed=1)
    assert same(loaded.module, again.module) and loaded.fingerprint == again.fingerprint


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("missing", {}, "does not import"),
        ("Counter", {"sise": 5}, "refuses its arguments"),
        ("imported", {"name": "Counter"}, "returned ModelSpec"),
    ],
)
def test_an_import_that_gives_no_module_is_refused(name: str, arguments: dict, problem: str):
    with pytest.raises(SpecError, match=problem):
        load_model(imported(name, arguments=arguments))


def test_a_classifier_has_as_many_logits_as_classes():
    fields = {**ARCHITECTURES["llama"], "num_labels": 4}
    loaded = load_model(ModelSpec(architecture=fields, task="classifier"))
    assert (loaded.vocabulary, loaded.head_kind) == (4, "none")


def test_an_image_classifier_is_built_from_its_config():
    fields = {
        "model_type": "vit",
        "image_size": 8,
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_labels": 3,
    }
    loaded = load_model(ModelSpec(architecture=fields, task="classifier"))
    logits = classify(loaded.module, {"pixel_values": torch.zeros(2, 3, 8, 8)})
    assert loaded.vocabulary == 3 and logits.shape == (2, 3)


def test_enlarging_changes_what_a_fresh_model_says():
    """Guards the other tests' helper: without it many faults would hide in equal logits."""
    module = tiny("llama", trained=False).module
    before = forward_logits(module, torch.tensor([[1, 2]]), torch.tensor([[0, 1]]))
    enlarge(module)
    after = forward_logits(module, torch.tensor([[1, 2]]), torch.tensor([[0, 1]]))
    assert after.std() > 3 * before.std()


def test_an_edited_copy_of_a_decoder_has_its_first_layers(tmp_path: Path) -> None:
    """What a student is often begun with; each layer's weights are those of the folder."""
    folder = str(tmp_path / "whole")
    whole = load_model(ModelSpec(architecture={**ARCHITECTURES["llama"], "num_hidden_layers": 3}))
    whole.module.save_pretrained(folder)
    short = load_model(ModelSpec(path=folder, edit={"num_hidden_layers": 2}))
    assert short.config.num_hidden_layers == 2
    kept, given = short.module.state_dict(), whole.module.state_dict()
    assert {name for name in given if name not in kept} == {
        name for name in given if ".layers.2." in name
    }
    assert all(torch.equal(kept[name], given[name]) for name in kept)
    assert short.fingerprint != load_model(ModelSpec(path=folder)).fingerprint
    spec = ModelSpec(path=folder, edit={"num_hidden_layers": 2})
    assert model_size(spec).parameters < model_size(ModelSpec(path=folder)).parameters
    with pytest.raises(SpecError, match=r"student.edit.hidden_layers.*num_hidden_layers"):
        load_model(ModelSpec(path=folder, edit={"hidden_layers": 2}), field="student")
    with pytest.raises(SpecError, match="lacks 9 weights"):
        load_model(ModelSpec(path=folder, edit={"num_hidden_layers": 4}), field="student")


def test_an_edit_of_the_config_alone_is_another_role(folder: Path) -> None:
    whole = load_model(ModelSpec(path=str(folder)))
    edited = load_model(ModelSpec(path=str(folder), edit={"hidden_act": "gelu"}))
    assert same(whole.module, edited.module)
    assert edited.config.hidden_act == "gelu" and edited.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"architecture": {"model_type": "llama"}, "edit": {"hidden_act": "gelu"}}, "say it there"),
        ({"path": "x", "edit": {"auto_map": {}}}, "edit changes auto_map"),
        ({"path": "x", "edit": {"model_type": "gpt2"}}, "edit changes model_type"),
    ],
)
def test_an_edit_that_says_what_model_it_is_is_refused(spec: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ModelSpec.model_validate(spec)
