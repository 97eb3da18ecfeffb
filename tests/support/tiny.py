"""Small jobs on real text for tests that run the whole system."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.spec import JobSpec

TOKENIZER = Path(__file__).parents[2] / "docs/examples/teacher"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def architecture(width: int = 32, layers: int = 1, tied: bool = True) -> dict[str, Any]:
    """Config fields of a small Llama without its vocabulary, which the tokenizer gives."""
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
    }


def save_teacher(folder: Path, seed: int = 0, width: int = 48) -> Path:
    """A small random teacher in Hugging Face layout, with a peaked distribution."""
    torch.manual_seed(seed)
    fields = {k: v for k, v in architecture(width, 2).items() if k != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4096, **fields))
    with torch.no_grad():
        model.lm_head.weight.mul_(8.0)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder


def save_text(folder: Path, documents: int = 40) -> Path:
    """Documents of a few lines each, all different."""
    folder.mkdir(parents=True)
    for i in range(documents):
        lines = [f"def function_{i}_{j}(x):\n    return x * {i} + {j}\n" for j in range(1 + i % 7)]
        (folder / f"{i:03d}.txt").write_text("\n".join(lines))
    return folder


def job(teacher: Path, text: Path, storage: Path, **changes: Any) -> JobSpec:
    """A deterministic distillation of a minute or less; `changes` replace top-level sections."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "student": {"architecture": architecture(), "tokenizer": str(TOKENIZER)},
        "roles": {"teacher": {"path": str(teacher), "replicas": 2, "resources": {"cpus": 0.5}}},
        "data": {"sources": [{"kind": "text", "path": str(text)}], "context": 64, "held_out": 0.1},
        "objective": {"terms": [{"kind": "forward_kl", "temperature": 2.0}]},
        "training": {
            "steps": 24,
            "global_batch": 4,
            "micro_batch": 2,
            "resources": {"cpus": 0.5},
            "optimizer": {"kind": "adamw", "lr": 3e-3},
            "checkpoint": {"every_steps": 4},
        },
        "evaluation": {"before": False, "rows": 8, "generate": None},
        "cache": {"enabled": False},  # a second run would ask nobody
        "storage": str(storage),
        "deterministic": True,
    }
    raw.update(changes)
    return JobSpec.model_validate(raw)
