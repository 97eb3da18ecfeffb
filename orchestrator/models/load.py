"""A model of a job file -> a torch module, ready to train or to serve.

Promises: nothing from a model's files is run and no pickle is read unless the spec says so; a
weight that is missing or has another shape is an error, never a fresh one; fresh weights depend on
the seed alone, so every rank builds the same. Imports torch and transformers; never ray, deepspeed
or mlflow.
"""

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

from orchestrator.errors import SpecError
from orchestrator.spec.models import ModelSpec
from strategies.contract import Head

from .architecture import fresh_config
from .fingerprint import role_fingerprint
from .folder import check_folder, is_adapter
from .forward import packing_is_exact
from .head import HeadForm, find_head_form, head_of, output_layer
from .hub import snapshot

logger = logging.getLogger(__name__)

_MODEL_ERRORS = (
    ValueError, TypeError, RuntimeError, ImportError, LookupError, AttributeError, AssertionError
)  # fmt: skip
"""What a model's own code raises when its config or weights make no sense."""

Resolve = Callable[[str, str], str]
"""(kind, value) of a `registry` or `job` source -> folder."""


@dataclass(frozen=True)
class Loaded:
    """A model and what the other rooms need to know of it."""

    module: nn.Module
    task: Literal["causal_lm", "classifier"]
    vocabulary: int
    """Rows of the output head (padded vocabularies count), or classes."""
    width: int
    """Width of the last hidden state; 0 where the module does not say (an imported one)."""
    head_kind: Literal["linear", "none"]
    """`none`: the head cannot be told apart, so the role is served as topk or full."""
    config: Any
    """The transformers config; None for an imported module that has none."""
    attention: str
    head_form: HeadForm | None = None

    def head(self) -> Head | None:
        """The output head with the module's live parameters, or None; see `head.head_of`."""
        return None if self.head_form is None else head_of(self.module, self.head_form)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides the outputs; of the weights as they are when first read."""
        return role_fingerprint(self.module, attention=self.attention)

    @cached_property
    def packing_is_exact(self) -> bool:
        """Whether samples sharing a row are strangers; see `forward.packing_is_exact`."""
        return packing_is_exact(self.module)


def load_model(
    spec: ModelSpec,
    *,
    device: str = "cpu",
    tokenizer: str | None = None,
    for_training: bool = False,
    seed: int = 0,
    resolve: Resolve | None = None,
    packing: bool = False,
    field: str = "model",
) -> Loaded:
    """Load one role.

    Args:
        spec: where the model comes from and how it is run. An `import` source names a callable
            that returns an `nn.Module` when called with `arguments`. A causal one is called as
            `module(input_ids=[R, T] int64, position_ids=[R, T] int64)`, without `position_ids` if
            its forward does not take them; a classifier as `module(**inputs)`. Either returns
            logits, [R, T, V] or [R, V], or an object with `.logits`. An imported classifier has a
            `num_labels`.
        device: a torch device, or `auto` to lay the layers over all GPUs this process sees.
        tokenizer: folder of the job's tokenizer; gives a fresh architecture its vocabulary.
        for_training: the module is in training mode and its weights take gradients.
        seed: of fresh weights.
        resolve: turns a `registry` or `job` source into a folder.
        packing: refuse a causal model that does not keep packed samples apart.
        field: dotted path of `spec` in the job, for messages.

    Raises:
        SpecError: the model cannot be loaded as asked.
    """
    if spec.attention == "flash_attention_2" and device == "cpu":
        raise SpecError(
            f"{field}.attention",
            "is flash_attention_2, which needs a GPU, and this process has device cpu",
            "Use sdpa, or give the process a GPU",
        )
    module = _module(spec, device, tokenizer, seed, resolve, field)
    if device != "auto":
        module.to(device)
    module.requires_grad_(for_training).train(for_training)
    loaded = _describe(module, spec, field)
    if packing and spec.task == "causal_lm":
        _check_packing(loaded, field)
    if not for_training:
        _ = loaded.fingerprint  # of the weights as loaded: read before anyone can change them
    return loaded


def _module(
    spec: ModelSpec,
    device: str,
    tokenizer: str | None,
    seed: int,
    resolve: Resolve | None,
    field: str,
) -> nn.Module:
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
            return _fresh(value, spec, tokenizer, seed, field)
        case _:
            return _imported(value, spec, seed, field)


def _from_folder(folder: str, spec: ModelSpec, device: str, field: str) -> nn.Module:
    found = check_folder(folder, spec, field)
    if is_adapter(folder):
        return _from_adapter(folder, found, spec, device, field)
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
    try:
        module, info = _auto_class(config, spec, field).from_pretrained(folder, **arguments)
    except (OSError, *_MODEL_ERRORS) as error:
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
    module = _from_folder(base, spec, device, field)
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
    config = fresh_config(fields, tokenizer if text else None, field, text=text)
    auto = _auto_class(config, spec, field)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            # Drawn in float32 and then rounded, so that dtypes of one seed are one model.
            module = auto.from_config(
                config, dtype=torch.float32, attn_implementation=spec.attention
            )
        except _MODEL_ERRORS as error:
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


def _imported(target: str, spec: ModelSpec, seed: int, field: str) -> nn.Module:
    where, _, name = target.partition(":")
    field = f"{field}.import"
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
            module = made(**spec.arguments)
        except TypeError as error:
            raise SpecError(
                field, f"{target} refuses its arguments ({error})", "Mend arguments"
            ) from error
    if not isinstance(module, nn.Module):
        raise SpecError(
            field, f"{target} returned {type(module).__name__}", "Return a torch.nn.Module"
        )
    return module.to(getattr(torch, spec.dtype))


def _describe(module: nn.Module, spec: ModelSpec, field: str) -> Loaded:
    config: Any = getattr(module, "config", None)
    form = _head_form(module, field) if spec.task == "causal_lm" else None
    linear = output_layer(module) if spec.task == "causal_lm" else None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if linear is not None:
        vocabulary, width = linear.weight.shape
    else:
        name = "vocab_size" if spec.task == "causal_lm" else "num_labels"
        vocabulary = _number(name, module, config, text)
        width = _number("hidden_size", config, text)
        if not vocabulary:
            raise SpecError(
                field,
                f"{_name(module)} does not say how many logits it has",
                f"Give the module or its config an attribute {name}",
            )
    return Loaded(
        module=module,
        task=spec.task,
        vocabulary=vocabulary,
        width=width,
        head_kind="none" if form is None else "linear",
        config=config,
        attention=spec.attention,
        head_form=form,
    )


def _head_form(module: nn.Module, field: str) -> HeadForm | None:
    try:
        return find_head_form(module)
    except _MODEL_ERRORS as error:
        raise SpecError(
            field, f"{_name(module)} does not run forward ({error})", "Mend its config"
        ) from error


def _check_packing(loaded: Loaded, field: str) -> None:
    try:
        exact = loaded.packing_is_exact
    except _MODEL_ERRORS as error:
        raise SpecError(
            field,
            f"{_name(loaded.module)} does not run packed ({error})",
            "Set data.packing: false",
        ) from error
    if not exact:
        raise SpecError(
            field,
            f"{_name(loaded.module)} with attention {loaded.attention} lets packed samples see "
            "each other",
            "Set data.packing: false, or use another model or attention",
        )


def _number(name: str, *holders: Any) -> int:
    values = [getattr(holder, name, None) for holder in holders]
    return next((value for value in values if isinstance(value, int)), 0)


def _name(module: nn.Module) -> str:
    return type(module).__name__
