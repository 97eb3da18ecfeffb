"""A model's source -> a torch module: a folder, the hub, a fresh architecture, an import.

Promises: those of `load`, which is the only caller. Imports torch and transformers; never ray,
deepspeed or mlflow.
"""

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_model as load_weights
from torch import nn

from orchestrator.errors import SpecError
from orchestrator.spec.explain import nearest
from orchestrator.spec.models import ModelSpec

from .architecture import fresh_config
from .folder import check_folder, is_adapter
from .hub import snapshot
from .made import Made, is_made, made_by, read_made

logger = logging.getLogger(__name__)

MODEL_ERRORS = (
    ValueError, TypeError, RuntimeError, ImportError, LookupError, AttributeError, AssertionError
)  # fmt: skip
"""What a model's own code raises when its config or weights make no sense."""

Resolve = Callable[[str, str], str]
"""(kind, value) of a `registry` or `job` source -> folder."""


def build_module(
    spec: ModelSpec,
    device: str,
    tokenizer: str | None,
    seed: int,
    resolve: Resolve | None,
    field: str,
) -> tuple[nn.Module, Made | None]:
    """The module of a spec's one source, and how it was made if by an import path.

    Arguments and errors as in `load.load_model`.
    """
    kind, value = spec.source
    match kind:
        case "path":
            return _from_folder(value, spec, device, f"{field}.path")
        case "hub":
            folder = snapshot(value, spec, f"{field}.hub")
            return _from_folder(folder, spec, device, f"{field}.hub")
        case "registry" | "job":
            if resolve is None:
                raise ValueError(f"{field}.{kind} needs `resolve` to find its folder; pass it")
            return _from_folder(resolve(kind, value), spec, device, f"{field}.{kind}")
        case "architecture":
            return _fresh(value, spec, tokenizer, seed, field), None
        case _:
            made = made_by(value, spec.arguments, field)
            return _imported(made, spec, seed, f"{field}.import"), made


def _from_folder(
    folder: str, spec: ModelSpec, device: str, field: str
) -> tuple[nn.Module, Made | None]:
    found = check_folder(folder, spec, field)
    if is_made(folder):
        made = read_made(folder, field).edited(spec.edit)
        return _with_weights(_imported(made, spec, 0, field), folder, spec, field), made
    if is_adapter(folder):
        if spec.edit:
            raise SpecError(
                f"{field.rpartition('.')[0]}.edit",
                f"is of {folder}, an adapter, whose base lies elsewhere",
                "Export with lora.export: merged, and edit that",
            )
        return _from_adapter(folder, found, spec, device, field), None
    return _pretrained(folder, spec, device, field), None


def _pretrained(folder: str, spec: ModelSpec, device: str, field: str) -> nn.Module:
    arguments: dict[str, Any] = {
        "dtype": getattr(torch, spec.dtype),
        "attn_implementation": spec.attention,
        "trust_remote_code": spec.allow_remote_code,
        "use_safetensors": None if spec.allow_pickle else True,
        "output_loading_info": True,
        "local_files_only": True,
    }
    if device == "auto":
        arguments["device_map"] = "auto"
    config = _load_config(folder, spec, field)
    if spec.edit:
        _edit(config, spec.edit, f"{field.rpartition('.')[0]}.edit")
    try:
        module, info = _auto_class(config, spec, field).from_pretrained(
            folder, config=config, **arguments
        )
    except (OSError, *MODEL_ERRORS) as error:
        _blame_attention(error, spec, field.rpartition(".")[0])
        raise SpecError(
            field, f"{folder} does not load as a {spec.task} ({error})", "Mend it, or use another"
        ) from error
    _check_complete(info, folder, field)
    return module


def _from_adapter(
    folder: str, found: Mapping[str, Any], spec: ModelSpec, device: str, field: str
) -> nn.Module:
    """The base with the adapter merged into it."""
    from peft import PeftModel

    base = found.get("base_model_name_or_path")
    if not base or not Path(base).is_dir():
        raise SpecError(
            field,
            f"{folder} is an adapter of {base!r}, which is no folder on this machine",
            "Put the base there, or export the student with lora.export: merged",
        )
    check_folder(base, spec, field)
    module = _pretrained(base, spec, device, field)
    merged: nn.Module = PeftModel.from_pretrained(module, folder).merge_and_unload()  # type: ignore[arg-type, operator]
    return merged


def _check_complete(info: Mapping[str, Any], folder: str, field: str) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        raise SpecError(
            field,
            f"{folder} lacks {len(missing)} weights ({', '.join(missing[:3])}), which would be "
            "drawn at random",
            "Use a folder with all of them, or another task",
        )
    mismatched = sorted(str(entry) for entry in info["mismatched_keys"])
    if mismatched:
        raise SpecError(
            field,
            f"{folder} has weights of another shape than its config ({', '.join(mismatched[:3])})",
            "Mend the config, or the weights",
        )
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        logger.warning(
            "%s: %d weights of %s are not used: %s",
            field,
            len(unexpected),
            folder,
            ", ".join(unexpected[:3]),
        )


def _load_config(folder: str, spec: ModelSpec, field: str) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=spec.allow_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise SpecError(
            field, f"{folder}/config.json is not understood ({error})", "Mend it"
        ) from error


def _edit(config: Any, edit: Mapping[str, Any], field: str) -> None:
    for name, value in edit.items():
        if name not in config.to_dict():
            remedy = nearest(name, list(config.to_dict()))
            raise SpecError(f"{field}.{name}", f"is nothing a {config.model_type} has", remedy)
        setattr(config, name, value)


def _auto_class(config: Any, spec: ModelSpec, field: str) -> Any:
    """The transformers auto class for a task; a classifier reads tokens or images."""
    if spec.task == "causal_lm":
        return transformers.AutoModelForCausalLM
    named = " ".join(getattr(config, "architectures", None) or [])
    classes = (
        transformers.AutoModelForSequenceClassification,
        transformers.AutoModelForImageClassification,
    )
    for auto in classes:
        if auto.__name__.removeprefix("AutoModel") in named:
            return auto
    for auto in classes:
        if type(config) in auto._model_mapping:
            return auto
    raise SpecError(
        f"{field}.task",
        f"is classifier, and transformers has none of model type {config.model_type!r}",
        "Use another model type, or an import source",
    )


def _fresh(
    fields: dict[str, Any], spec: ModelSpec, tokenizer: str | None, seed: int, field: str
) -> nn.Module:
    text = spec.task == "causal_lm"
    config = fresh_config(fields, tokenizer, field, text=text)
    auto = _auto_class(config, spec, field)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            # Drawn in float32 and then rounded, so that dtypes of one seed are one model.
            module = auto.from_config(
                config, dtype=torch.float32, attn_implementation=spec.attention
            )
        except MODEL_ERRORS as error:
            _blame_attention(error, spec, field)
            raise SpecError(
                f"{field}.architecture", f"cannot be built ({error})", "Mend its fields"
            ) from error
    return module.to(getattr(torch, spec.dtype))


def _blame_attention(error: Exception, spec: ModelSpec, field: str) -> None:
    """Transformers refuses an attention by message only."""
    if "attention implementation" in str(error) or "FlashAttention" in str(error):
        raise SpecError(
            f"{field}.attention",
            f"is {spec.attention}, which this model or machine does not have ({error})",
            "Use eager",
        ) from error


def _imported(source: Made, spec: ModelSpec, seed: int, field: str) -> nn.Module:
    target = source.target
    where, _, name = target.partition(":")
    try:
        made: Any = importlib.import_module(where)
        for part in name.split("."):
            made = getattr(made, part)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            field, f"is {target!r}, which does not import ({error})", "Name module:function"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = made(**source.arguments)
        except (TypeError, ValueError) as error:
            raise SpecError(
                field, f"{target} refuses its arguments ({error})", "Mend arguments"
            ) from error
    if not isinstance(module, nn.Module):
        raise SpecError(
            field, f"{target} returned {type(module).__name__}", "Return a torch.nn.Module"
        )
    return module.to(getattr(torch, spec.dtype))


def _with_weights(module: nn.Module, folder: str, spec: ModelSpec, field: str) -> nn.Module:
    """The module with the weights of its export."""
    file = Path(folder) / "model.safetensors"
    try:
        # A copy may do without some of the weights, and have none that are not there.
        missing, _ = load_weights(module, file, strict=not spec.edit)
        if missing:
            raise RuntimeError(f"{', '.join(sorted(missing)[:3])} are not there")
    except (RuntimeError, OSError) as error:
        raise SpecError(
            field,
            f"{file} does not hold the weights of {type(module).__name__} ({error})",
            "Use the code that it was trained with, or train it again",
        ) from error
    return module.to(getattr(torch, spec.dtype))
