"""A trained student -> a plain Hugging Face folder, and a sample of what it writes.

Promises: the folder holds safetensors, config, generation config and tokenizer files, and loads
with `from_pretrained` anywhere; tied weights stay tied; it appears whole or not at all; the module
in hand is left as it was. Imports torch and transformers; never ray, deepspeed or mlflow.
"""

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .forward import evaluating, forward_logits, input_device, unwrapped
from .lora import has_lora, merged_state

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "chat_template.jinja", "chat_template.json", "*.tiktoken",
)  # fmt: skip


def export_folder(
    module: nn.Module,
    tokenizer_folder: str | None,
    target: str | Path,
    lora: Literal["adapter", "merged"] | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a student as a folder that `AutoModelForCausalLM.from_pretrained` loads.

    Args:
        module: a transformers model, with or without peft's wrapper.
        tokenizer_folder: whose tokenizer files are copied in; None for models without text.
        target: the folder to make; replaced if it exists.
        lora: how to write adapters: merged into the base, or alone; required with adapters.
        state: the module's full state dict where the module's own parameters are elsewhere (ZeRO
            stage 3); absent: the module's own.

    Returns:
        The folder.
    """
    if has_lora(module) and lora is None:
        raise ValueError("the module has adapters; say lora='adapter' or lora='merged'")
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        _save(module, draft, lora, state)
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
        tokenizer: a transformers tokenizer.
        prompt: not empty once tokenised.
        tokens: how many to add at most; generation stops early at the tokenizer's end token.
    """
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


def _save(
    module: nn.Module, folder: Path, lora: str | None, state: Mapping[str, Tensor] | None
) -> None:
    saved: Any = module
    if has_lora(module) and lora == "merged":
        state = merged_state(module, module.state_dict() if state is None else state)
        saved = unwrapped(module)
    saved.save_pretrained(folder, **({} if state is None else {"state_dict": dict(state)}))


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in _TOKENIZER_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
