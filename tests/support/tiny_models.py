"""Architectures small enough for a test: under 30 thousand weights, milliseconds to build."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.models.load import Loaded, load_model
from orchestrator.spec.models import ModelSpec

VOCABULARY = 97
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_LLAMA},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True, **_LLAMA},
    "qwen3": {"model_type": "qwen3", "head_dim": 8, **_LLAMA},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 8,
        "final_logit_softcapping": 5.0,
        **_LLAMA,
    },
    "cohere": {"model_type": "cohere", **_LLAMA},
    "granite": {"model_type": "granite", "logits_scaling": 7.0, **_LLAMA},
    "phi": {"model_type": "phi", **_LLAMA},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, **_LLAMA},
    "bloom": {
        "model_type": "bloom",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 4,
    },
    "mamba": {
        "model_type": "mamba",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
    },
}


def tiny(name: str = "llama", *, trained: bool = True, seed: int = 0, **arguments: Any) -> Loaded:
    """A tiny model of a family, by default with weights large enough to tell tokens apart.

    Fresh weights of so small a model give nearly equal logits, in which many faults would hide.
    """
    spec = {key: arguments.pop(key) for key in ("dtype", "attention") if key in arguments}
    loaded = load_model(ModelSpec(architecture=ARCHITECTURES[name], **spec), seed=seed, **arguments)
    if trained:
        enlarge(loaded.module, seed)
    return loaded


@torch.no_grad()
def enlarge(module: nn.Module, seed: int = 0) -> None:
    """Draw matrices anew with a spread of one over the square root of their width."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(draw * parameter.shape[-1] ** -0.5)


def write_tokenizer(folder: Path, words: int = VOCABULARY) -> Path:
    """A tokenizer of single words w0, w1, ..., with an end token, as two JSON files."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<end>": 0, **{f"w{i}": i for i in range(1, words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.add_special_tokens(["<end>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"})
    )
    return folder
