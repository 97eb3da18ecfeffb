"""Low-rank adapters on a student, through peft.

Promises: the base takes no gradient, the adapters do; a target that matches nothing is an error;
the first forward is the base's, to the last bit. Imports peft and torch inside; never ray,
deepspeed or mlflow.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import SpecError
from orchestrator.spec.models import LoraSpec

from .head import output_layer
from .load import Loaded


def apply_lora(
    loaded: Loaded, spec: LoraSpec, *, seed: int = 0, field: str = "student.lora"
) -> Loaded:
    """Wrap a causal model with fresh adapters; its `forward_hidden` and head work as before.

    The module in `loaded` is changed in place, as peft does: use only what is returned.

    Args:
        loaded: a transformers causal model.
        spec: rank, alpha, dropout and target modules.
        seed: of the adapters' first weights, so that every rank draws the same.

    Raises:
        SpecError: the model takes no such adapters.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # peft divides it: a float is as good
        lora_dropout=spec.dropout,
        target_modules=spec.targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(loaded.module, config)  # type: ignore[arg-type]
        except (ValueError, TypeError, AttributeError) as error:
            raise SpecError(
                f"{field}.targets",
                f"{spec.targets!r} does not fit {type(loaded.module).__name__} ({error})",
                "Name linear modules of the model, or use all-linear",
            ) from error
    if output_layer(wrapped) is None and loaded.head_form is not None:
        raise SpecError(
            f"{field}.targets", "adapts the output head, which must stay plain", "Leave it out"
        )
    return replace(loaded, module=wrapped)


def has_lora(module: nn.Module) -> bool:
    """Whether a module is wrapped by peft."""
    return hasattr(module, "peft_config")


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The base model's state dict with the adapters added: weight + scaling * B @ A.

    The module stays as it is, adapters and all, where peft's own merge would change it.

    Args:
        module: a model wrapped by `apply_lora`.

    Source: Hu et al., "LoRA", arXiv:2106.09685, section 4.1.
    """
    prefix = "base_model.model."
    state: Mapping[str, Tensor] = module.state_dict()
    deltas: dict[str, Tensor] = {}
    for name, layer in module.named_modules():
        adapted: Any = layer
        for adapter in getattr(layer, "lora_A", {}):
            a = state[f"{name}.lora_A.{adapter}.weight"].float()
            b = state[f"{name}.lora_B.{adapter}.weight"].float()
            delta = (b @ a) * adapted.scaling[adapter]
            # GPT-2's Conv1D keeps its matrix the other way round.
            delta = delta.T if adapted.fan_in_fan_out else delta
            deltas[f"{name}.base_layer.weight"] = delta
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        if name in deltas:
            tensor = (tensor.float() + deltas[name]).to(tensor.dtype)
        merged[name.removeprefix(prefix).replace(".base_layer.", ".")] = tensor
    return merged
