"""A trained student -> a folder that loads anywhere, and a sample of what it writes.

Promises: of a transformers model the folder holds safetensors, config, generation config and
tokenizer files, and loads with `from_pretrained`; of an imported module safetensors and
`stillhouse.json`, and loads where its code does. Tied weights stay tied; the folder appears whole
or not at all; the module in hand is left as it was. Imports torch and transformers; never ray,
deepspeed or mlflow.
"""

import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn
from transformers import AutoTokenizer

from orchestrator.spec.models import LoraSpec

from .forward import evaluating, forward_logits, input_device, unwrapped
from .lora import has_lora, merged_state
from .made import Made, write_made

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "chat_template.jinja", "chat_template.json", "*.tiktoken",
)  # fmt: skip


def export_folder(
    module: nn.Module,
    tokenizer_folder: str | None,
    target: str | Path,
    lora: LoraSpec | None = None,
    made: Made | None = None,
) -> Path:
    """Write a student as a folder that `AutoModelForCausalLM.from_pretrained` loads.

    Args:
        module: a transformers model, with or without peft's wrapper. Of any other module only
            `model.safetensors` is written, and what `made` says: its own code is what builds it.
        tokenizer_folder: whose tokenizer files are copied in; None for models without text.
        target: the folder to make; replaced if it exists.
        lora: of a wrapped module; its `export` says whether adapters are merged into the base or
            written alone.
        made: how the module is made, if by an import path.

    Returns:
        The folder.
    """
    if has_lora(module) and lora is None:
        raise ValueError("the module has adapters; pass their LoraSpec")
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        _save(module, draft, lora, made)
        if tokenizer_folder is not None:
            _copy_tokenizer(Path(tokenizer_folder), draft)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def generate(module: nn.Module, tokenizer: Any, prompt: str, tokens: int) -> str:
    """The prompt and its greedy continuation.

    Args:
        module: a causal model on any device.
        tokenizer: a transformers tokenizer, or its folder.
        prompt: not empty once tokenised.
        tokens: how many to add at most; generation stops early at the tokenizer's end token.
    """
    if isinstance(tokenizer, str | Path):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(input_device(module))
    if not ids.shape[1]:
        raise ValueError("the prompt has no tokens; give one that has")
    config = getattr(module, "config", None)
    longest = getattr(config, "max_position_embeddings", None) or 1 << 30
    with torch.no_grad(), evaluating(module):
        for _ in range(tokens):
            # Without a cache: the whole text again for each token, as plain as it can be.
            seen = ids[:, -longest:]
            positions = torch.arange(seen.shape[1], device=ids.device)[None]
            logits = forward_logits(module, seen, positions)[:, -1]
            following = logits.argmax(dim=-1, keepdim=True)
            if following.item() == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, following], dim=1)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def _save(module: nn.Module, folder: Path, lora: LoraSpec | None, made: Made | None) -> None:
    saved: Any = module
    if lora is not None and lora.export == "merged":
        saved = unwrapped(module)
        saved.save_pretrained(folder, state_dict=merged_state(module))
    elif hasattr(module, "save_pretrained"):
        saved.save_pretrained(folder)
    else:
        folder.mkdir()
        save_model(module, str(folder / "model.safetensors"))
        if made is not None:
            write_made(folder, made)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in _TOKENIZER_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
