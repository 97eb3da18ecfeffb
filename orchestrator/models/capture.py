"""What the modules inside a model give: which there are, and taking it during a forward.

Promises: nothing of a model is changed, and hooks are gone when the forward is done, whether it
failed or not. Imports torch; never ray, deepspeed or mlflow.

Shape letters: R rows, T positions, d width of a module's output, H heads.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .forward import backbone, evaluating, forward_hidden, forward_logits, input_device

_PROBED = 4  # tokens of the probe


@dataclass(frozen=True, slots=True)
class Inside:
    """The modules whose outputs can be asked for, by path."""

    layers: dict[str, int] = field(default_factory=dict)  # width of what gives [R, T, d]
    attention: dict[str, int] = field(default_factory=dict)  # heads of what tells its attention


def inside(module: nn.Module) -> Inside:
    """Look at every module during one forward of four tokens.

    A module that runs several times in a forward is left out: its output has no single meaning.
    """
    runs: Counter[str] = Counter()
    found = Inside()

    def note(path: str, output: Any) -> None:
        runs[path] += 1
        hidden, attention = output_of(output), attention_of(output)
        if hidden is not None and hidden.shape[:-1] == (1, _PROBED):
            found.layers[path] = hidden.shape[-1]
        if attention is not None and attention.shape[2:] == (_PROBED, _PROBED):
            found.attention[path] = attention.shape[1]

    device = input_device(module)
    ids = torch.tensor([[0, 1, 0, 1]], device=device)
    positions = torch.arange(_PROBED, device=device)[None]
    paths = [path for path, _ in module.named_modules() if path]
    with torch.no_grad(), evaluating(module), watching(module, paths, note):
        (forward_logits if backbone(module) is None else forward_hidden)(module, ids, positions)
    for path, times in runs.items():
        if times > 1:
            found.layers.pop(path, None)
            found.attention.pop(path, None)
    return found


@contextmanager
def watching(
    module: nn.Module, paths: Sequence[str], see: Callable[[str, Any], None]
) -> Iterator[None]:
    """Inside, `see(path, output)` is called when a module of these paths has run.

    Raises:
        KeyError: there is no such module.
    """
    modules = dict(module.named_modules())

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _inputs, output: see(path, output)

    handles = [modules[path].register_forward_hook(hook(path)) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def output_of(output: Any) -> Tensor | None:
    """[R, T, d]: what a module returned, or the first part of it; None for anything else."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) and first.ndim == 3 else None


def attention_of(output: Any) -> Tensor | None:
    """[R, H, T, T]: the attention probabilities that a module returned beside its output."""
    second = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    return second if isinstance(second, Tensor) and second.ndim == 4 else None
