"""Hashes that name a model by its content, and what makes two tokenizers one."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import tiny, write_tokenizer
from torch import nn

from orchestrator.errors import SpecError
from orchestrator.models.export import export_folder
from orchestrator.models.fingerprint import role_fingerprint, weights_sha256
from orchestrator.models.load import load_model
from orchestrator.models.lora import apply_lora
from orchestrator.models.tokenizer import (
    special_ids,
    tokenizer_fingerprint,
    tokenizer_folder,
    vocabulary_size,
)
from orchestrator.spec.models import LoraSpec, ModelSpec


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_bit_changes_the_hash(dtype: str):
    module = tiny("llama", dtype=dtype).module
    before = weights_sha256(module)
    assert before == weights_sha256(tiny("llama", dtype=dtype).module)
    weight = module.model.layers[1].mlp.up_proj.weight
    integers = weight.data.view(torch.int32 if dtype == "float32" else torch.int16)
    integers[3, 5] ^= 1
    assert weights_sha256(module) != before


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_and_its_module_have_one_hash(tmp_path: Path, family: str, dtype: str):
    module = tiny(family, dtype=dtype).module
    assert weights_sha256(export_folder(module, None, tmp_path / "a")) == weights_sha256(module)


def test_shards_do_not_change_the_hash(tmp_path: Path):
    module = tiny("llama").module
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert weights_sha256(tmp_path) == weights_sha256(module)


class Two(nn.Module):
    """Two tensors whose names, shapes and dtypes a test chooses."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def test_names_shapes_and_dtypes_are_part_of_the_hash():
    ones, twos = torch.ones(4), torch.full((4,), 2.0)
    modules = [
        Two(a=ones, b=twos),
        Two(a=twos, b=ones),
        Two(a=ones, c=twos),
        Two(a=ones.view(2, 2), b=twos),
        Two(a=ones.view(torch.int32), b=twos),
        Two(a=ones, b=twos, c=torch.empty(0)),
    ]
    assert len({weights_sha256(module) for module in modules}) == len(modules)
    assert weights_sha256(Two(b=twos, a=ones)) == weights_sha256(modules[0])


def test_all_that_decides_outputs_is_in_a_roles_fingerprint():
    loaded = tiny("gemma3")
    prints = {loaded.fingerprint}
    prints.add(role_fingerprint(loaded.module, attention="eager"))
    prints.add(role_fingerprint(loaded.module, attention="sdpa", edits="swap"))
    loaded.config.final_logit_softcapping = 6.0
    prints.add(role_fingerprint(loaded.module, attention="sdpa"))
    assert len(prints) == 4


def test_what_changes_no_output_is_not_in_a_roles_fingerprint(tmp_path: Path):
    fresh = tiny("llama", trained=False)
    folder = export_folder(fresh.module, None, tmp_path / "somewhere")
    assert load_model(ModelSpec(path=str(folder))).fingerprint == fresh.fingerprint


def test_a_served_roles_fingerprint_is_of_the_weights_as_loaded():
    loaded = tiny("llama", trained=False)
    before = role_fingerprint(loaded.module, attention="sdpa")
    loaded.module.lm_head.weight.data.zero_()
    assert loaded.fingerprint == before != role_fingerprint(loaded.module, attention="sdpa")


def test_adapters_change_the_fingerprint():
    loaded = tiny("llama", for_training=True)
    before = loaded.fingerprint
    assert apply_lora(loaded, LoraSpec(rank=2)).fingerprint != before


def test_a_tokenizer_is_what_its_ids_mean_not_its_files(tmp_path: Path):
    one, other = write_tokenizer(tmp_path / "one"), write_tokenizer(tmp_path / "other")
    text = json.loads((other / "tokenizer.json").read_text())
    text["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<end>",
    }  # fmt: skip
    (other / "tokenizer.json").write_text(json.dumps(text, indent=4))
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizer_fingerprint(str(one)) == tokenizer_fingerprint(str(other))


@pytest.mark.parametrize("change", ["token", "normaliser", "width"])
def test_another_meaning_or_normalisation_is_another_tokenizer(tmp_path: Path, change: str):
    folder = write_tokenizer(tmp_path / "one")
    before = tokenizer_fingerprint(str(folder))
    text = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    if change == "token":
        vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    elif change == "width":
        vocabulary["w97"] = 97
    else:
        text["normalizer"] = {"type": "Lowercase"}
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "tokenizer.json").write_text(json.dumps(text))
    assert tokenizer_fingerprint(str(changed)) != before


def test_vocabulary_and_end_token_are_read_from_the_folder(tmp_path: Path):
    folder = str(write_tokenizer(tmp_path / "t", words=12))
    assert vocabulary_size(folder) == 12 and special_ids(folder) == {"eos_token_id": 0}


def test_a_torn_tokenizer_is_an_error_of_ours(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(SpecError, match="holds no tokenizer that can be read"):
        vocabulary_size(str(tmp_path))


def architecture(**fields: object) -> ModelSpec:
    return ModelSpec.model_validate({"architecture": {"model_type": "llama"}, **fields})


def test_the_students_tokenizer_comes_first_then_named_ones(tmp_path: Path):
    named, own = write_tokenizer(tmp_path / "named"), write_tokenizer(tmp_path / "own")
    student, role = ("student", ModelSpec(path=str(own))), ("roles.first", ModelSpec(path=str(own)))
    naming = ("roles.teacher", architecture(tokenizer=str(named)))
    assert tokenizer_folder([student, naming]) == (str(own), "student.path")
    fresh = ("student", architecture())
    assert tokenizer_folder([fresh, role, naming]) == (str(named), "roles.teacher.tokenizer")


def test_else_the_first_model_that_brings_one_gives_it(tmp_path: Path):
    own = write_tokenizer(tmp_path / "own")
    models = [
        ("student", architecture()),
        ("roles.first", ModelSpec(job="earlier")),
        ("roles.second", ModelSpec(path=str(own))),
    ]
    assert tokenizer_folder(models) == (str(own), "roles.second.path")
    resolved = write_tokenizer(tmp_path / "job")
    assert tokenizer_folder(models, lambda *_: str(resolved))[1] == "roles.first.job"


@pytest.mark.parametrize("named", [None, "./absent", ""])
def test_a_job_without_a_tokenizer_is_refused(tmp_path: Path, named: str | None):
    named = str(tmp_path) if named == "" else named
    with pytest.raises(SpecError, match=r"student.tokenizer"):
        tokenizer_folder([("student", architecture(tokenizer=named))])
