"""Hashes that name a model by its content.

Promises: `weights_sha256` depends on names, dtypes, shapes and bytes of the tensors only, not on
paths, shards or order; a change of one bit changes it; tied tensors count once. A role's
fingerprint adds all else that decides its outputs. Imports torch; never ray, deepspeed or mlflow.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .folder import weight_files

# Config entries that do not change what a forward gives.
_COSMETIC = frozenset(
    {
        "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype",
        "use_cache", "id2label", "label2id", "return_dict", "output_attentions",
        "output_hidden_states", "bos_token_id", "eos_token_id", "problem_type", "auto_map",
        "initializer_range", "chunk_size_feed_forward",
    }
)  # fmt: skip


def weights_sha256(source: nn.Module | str | Path) -> str:
    """Hash of a module's or a folder's weights, tensor by tensor in order of name.

    A folder and the module loaded from it agree when the dtype is kept and the names are those of
    the file (transformers renames or fuses some families' weights on loading).

    Args:
        source: a module (before ZeRO stage 3 empties its parameters), or a folder of safetensors.
    """
    tensors = _of_module(source) if isinstance(source, nn.Module) else _of_folder(source)
    total = hashlib.sha256()
    for name, digest in sorted((name, _tensor_digest(name, t)) for name, t in tensors):
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def role_fingerprint(module: nn.Module, *, attention: str, edits: str = "") -> str:
    """Hash of all that decides a role's outputs.

    Args:
        module: as it will run: its dtype, adapters and quantised tensors are in its weights.
        attention: the attention implementation.
        edits: further changes to the model that its weights and config do not show.
    """
    config: Any = getattr(module, "config", None)
    fields = config.to_dict() if hasattr(config, "to_dict") else {}
    adapters = getattr(module, "peft_config", {})
    described = {
        "class": type(module).__qualname__,
        "config": _plain(fields),
        "adapters": {name: _plain(adapter.to_dict()) for name, adapter in adapters.items()},
        "attention": attention,
        "edits": edits,
        "engine": f"transformers-{transformers.__version__}",
        "weights": weights_sha256(module),
    }
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Without cosmetic entries, and with sets in order: `str(set)` differs between processes."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k not in _COSMETIC}
    if isinstance(value, set | frozenset):
        return sorted(_plain(v) for v in value)
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _of_module(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in module.state_dict().items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        yield name, tensor


def _of_folder(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                yield name, opened.get_tensor(name)


def _tensor_digest(name: str, tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # As bytes, because numpy has no bfloat16.
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()
