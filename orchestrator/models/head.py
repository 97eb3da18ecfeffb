"""Find a model's output head: everything between the last hidden state and the logits.

Promises: a head is returned only when it reproduces the model's own logits, from hidden states of
several sizes, so that a soft cap or a scale cannot hide in small numbers. A model whose head
cannot be told apart gives None and is served as `topk` or `full`. Imports torch; never ray,
deepspeed or mlflow.

Shape letters: V vocabulary, d width.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from strategies.contract import Head

from .forward import (
    backbone,
    evaluating,
    forward_hidden,
    forward_logits,
    input_device,
    unwrapped,
)

# Where model families keep what is applied to the logits. The probe decides, so a name that means
# something else in some family is harmless.
_MULTIPLIERS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
_SOFTCAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")
_HIDDEN_SIZES = (1.0, 30.0, 300.0)


@dataclass(frozen=True, slots=True)
class HeadForm:
    """The numbers of a head; the matrix and bias stay in the module."""

    scale: float = 1.0
    softcap: float | None = None


def find_head_form(module: nn.Module) -> HeadForm | None:
    """The scale and soft cap that make `head_of` agree with the module's own logits.

    Run it once, at load, before any engine wraps the module.

    Returns:
        None if the head is not a plain linear layer, or no known form reproduces the logits.
    """
    decoder, linear = backbone(module), _output_layer(module)
    if decoder is None or linear is None:
        return None
    device = input_device(module)
    ids = torch.tensor([[0, 1, 0, 1]], device=device)
    positions = torch.arange(4, device=device)[None]
    with torch.no_grad(), evaluating(module):
        hidden = forward_hidden(module, ids, positions)
        if hidden.shape[-1] != linear.weight.shape[-1]:
            return None
        generator = torch.Generator().manual_seed(11)
        noise = torch.randn(hidden.shape, generator=generator).to(hidden)
        # A unit row of the matrix gives logits of about that row's norm: scale to order one first.
        unit = noise / linear.weight.float().norm(dim=-1).mean().clamp_min(1e-6).to(hidden)
        trials = [hidden, *(unit * size for size in _HIDDEN_SIZES)]
        answers = [
            forward_logits(module, ids, positions),
            *(_logits_from(module, decoder, trial, ids, positions) for trial in trials[1:]),
        ]
        for form in _candidates(module):
            head = _head(linear, form)
            if all(_same(head.logits(h), z) for h, z in zip(trials, answers, strict=True)):
                return form
    return None


def head_of(module: nn.Module, form: HeadForm) -> Head:
    """The head with the module's own live parameters: gradients reach them.

    Under ZeRO stage 3 the parameters are empty outside their module's forward; take the head where
    they are gathered.
    """
    linear = _output_layer(module)
    if linear is None:
        raise TypeError(f"{type(module).__name__} has no plain linear output head")
    return _head(linear, form)


def output_layer(module: nn.Module) -> nn.Linear | None:
    """The plain linear layer that makes the logits, if there is one."""
    return _output_layer(module)


def _output_layer(module: nn.Module) -> nn.Linear | None:
    model = unwrapped(module)
    if not hasattr(model, "get_output_embeddings"):
        return None
    layer: Any = model.get_output_embeddings()  # type: ignore[operator]
    # A LoRA layer on the head is not a plain matrix, and at its start would pass the probe.
    return layer if isinstance(layer, nn.Linear) and layer.weight.ndim == 2 else None


def _head(linear: nn.Linear, form: HeadForm) -> Head:
    return Head(linear.weight, linear.bias, form.scale, form.softcap)


def _candidates(module: nn.Module) -> list[HeadForm]:
    config: Any = getattr(unwrapped(module), "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()

    def numbers(names: tuple[str, ...]) -> list[float]:
        values = [getattr(config, name, None) for name in names]
        return [float(v) for v in values if isinstance(v, int | float) and v]

    scales = [1.0, *numbers(_MULTIPLIERS), *(1.0 / value for value in numbers(_DIVISORS))]
    softcaps = [None, *numbers(_SOFTCAPS)]
    return [HeadForm(scale, cap) for scale, cap in product(dict.fromkeys(scales), softcaps)]


def _logits_from(
    module: nn.Module, decoder: nn.Module, hidden: Tensor, ids: Tensor, positions: Tensor
) -> Tensor:
    """What the model makes of a hidden state of our choice."""

    def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output.last_hidden_state = hidden
        return output

    handle = decoder.register_forward_hook(replace)
    try:
        return forward_logits(module, ids, positions)
    finally:
        handle.remove()


def _same(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    # Half precision: the family may round after each step, or lift to float32 before the last.
    tolerance = max(1e-5, 4 * torch.finfo(ours.dtype).eps)
    ours, theirs = ours.float(), theirs.float()
    if not (torch.isfinite(ours).all() and torch.isfinite(theirs).all()):
        return False
    size = torch.maximum(ours.abs().max(), theirs.abs().max())
    return bool((ours - theirs).abs().max() <= tolerance * size)
