"""A tokenizer unlike the shipped one, and a teacher that reads it."""

import json
from pathlib import Path

import tiny
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

LINES = ["def f(x):\n    return x\n", "über die Straße", "the the cat sat on"]


def save_other_tokenizer(folder: Path) -> Path:
    """Few pieces of bytes, learned from a few lines, so a text has many more tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<s>"})
    )
    return folder


def save_other_teacher(folder: Path, positions: int = 256) -> Path:
    """A small random teacher with that tokenizer."""
    torch.manual_seed(3)
    fields = {k: v for k, v in tiny.architecture(32, 1).items() if k != "model_type"}
    fields["max_position_embeddings"] = positions
    model = LlamaForCausalLM(LlamaConfig(vocab_size=290, **fields))
    with torch.no_grad():
        model.lm_head.weight.mul_(8.0)
    model.save_pretrained(folder)
    return save_other_tokenizer(folder)


def save_renamed_teacher(folder: Path) -> Path:
    """The teacher of `tiny` with a tokenizer that differs in a token nobody uses."""
    tiny.save_teacher(folder)
    file = folder / "tokenizer.json"
    described = json.loads(file.read_text())
    first = described["added_tokens"][0]
    described["added_tokens"].append({**first, "id": 4096, "content": "<|unused|>"})
    file.write_text(json.dumps(described))
    return folder
