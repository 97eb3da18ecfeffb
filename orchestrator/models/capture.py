"""What the modules inside a model give: which there are, and taking it during a forward.

Promises: nothing of a model is changed, and hooks are gone when the forward is done, whether it
failed or not. Imports torch; never ray, deepspeed or mlflow.

Shape letters: R rows (samples of a classifier), T positions, d width of a module's output, H heads.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .forward import (
    CannotMove,
    backbone,
    classify,
    embedding_of,
    evaluating,
    forward_hidden,
    forward_logits,
    input_device,
    unwrapped,
)

_PROBED = 4  # tokens of the probe


@dataclass(frozen=True, slots=True)
class Inside:
    """The modules whose outputs can be asked for, by path."""

    layers: dict[str, int] = field(default_factory=dict)  # width of a position or of a whole map
    attention: dict[str, int] = field(default_factory=dict)  # heads of what tells its attention
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of maps: channels first
    input_width: int = 0  # of a classifier: numbers of a sample or of an embedded token


def inside(module: nn.Module) -> Inside:
    """Look at every module of a causal model during one forward of four tokens.

    Paths are those of the model without peft's wrapper. A module that runs several times in a
    forward is left out: its output has no single meaning.
    """
    found, module = Inside(), unwrapped(module)

    def note(path: str, output: Any) -> None:
        hidden, attention = output_of(output), attention_of(output)
        if hidden is not None and hidden.shape[:-1] == (1, _PROBED):
            found.layers[path] = hidden.shape[-1]
        if attention is not None and attention.shape[2:] == (_PROBED, _PROBED):
            found.attention[path] = attention.shape[1]

    device = input_device(module)
    ids = torch.tensor([[0, 1, 0, 1]], device=device)
    positions = torch.arange(_PROBED, device=device)[None]
    run = forward_logits if backbone(module) is None else forward_hidden
    _look(module, note, lambda: run(module, ids, positions), found)
    return found


def inside_classifier(module: nn.Module, inputs: Mapping[str, Tensor]) -> Inside:
    """The same of a classifier, during one forward of two samples or more.

    Args:
        module: the classifier.
        inputs: as `forward.classify` takes them.
    """
    found = Inside(input_width=_input_width(module, inputs))
    rows = next(iter(inputs.values())).shape[0]

    def note(path: str, output: Any) -> None:
        first = first_of(output)
        if first is None or first.shape[:1] != (rows,):
            return
        shape = by_sample(first, inputs).shape[1:]
        if shape:
            found.layers[path] = shape.numel()
        if len(shape) > 1:
            found.shapes[path] = tuple(shape)

    _look(module, note, lambda: classify(module, inputs), found)
    return found


def _input_width(module: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """0 where features, or what embeds tokens, have no gradient."""
    if not differentiable(module, inputs):
        return 0
    if "attention_mask" not in inputs:
        return next(iter(inputs.values()))[0].numel()
    return int(embedding_of(module).embedding_dim)  # type: ignore[union-attr, arg-type]


def differentiable(module: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Whether torch can say how a classifier's logits change with its features, or with what is
    added to a text's embedded tokens.

    Args:
        module: the classifier.
        inputs: as `forward.classify` takes them, of features or of texts that have not moved.

    Raises:
        ValueError: the module's own, of inputs that it does not take.
    """
    embedding = embedding_of(module)
    if "attention_mask" in inputs and embedding is not None:
        shape = (*inputs["input_ids"].shape, int(embedding.embedding_dim))  # type: ignore[arg-type]
        inputs = {**inputs, "embedding_offset": torch.zeros(shape, device=input_device(module))}
    moves = {name: x for name, x in inputs.items() if x.is_floating_point()}
    if len(moves) != 1:
        return False
    ((name, features),) = moves.items()
    with torch.inference_mode(False), torch.enable_grad(), evaluating(module):
        leaf = features.detach().clone().requires_grad_()
        try:
            total = classify(module, {**inputs, name: leaf}).sum()
            if not total.requires_grad:
                return False
            (found,) = torch.autograd.grad(total, leaf, allow_unused=True)
        except (RuntimeError, CannotMove):  # no backward, none that is deterministic, no place
            return False
    return found is not None


def _look(
    module: nn.Module, note: Callable[[str, Any], None], run: Callable[[], Any], found: Inside
) -> None:
    """Fill `found` by `note` during one run."""
    runs: Counter[str] = Counter()

    def see(path: str, output: Any) -> None:
        runs[path] += 1
        note(path, output)

    paths = [path for path, _ in module.named_modules() if path]
    with torch.no_grad(), evaluating(module), watching(module, paths, see):
        run()
    for path, times in runs.items():
        if times > 1:
            for told in (found.layers, found.attention, found.shapes):
                told.pop(path, None)


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


@contextmanager
def replacing(module: nn.Module, given: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, modules of these paths give these tensors in place of what they make.

    A tensor takes the dtype and the outer form of what it replaces: flash attention runs all rows
    end to end as one.

    Raises:
        KeyError: there is no such module.
        ValueError: a module gave no tensor.
    """
    modules = dict(module.named_modules())

    def hook(path: str) -> Callable[[nn.Module, Any, Any], Any]:
        def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            own = first_of(output)
            if own is None:
                raise ValueError(f"{path} gave {type(output).__name__}, and no tensor")
            placed = given[path].to(own.dtype).reshape(own.shape)
            return (placed, *output[1:]) if isinstance(output, tuple) else placed

        return replace

    handles = [modules[path].register_forward_hook(hook(path)) for path in given]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_of(output: Any) -> Tensor | None:
    """What a module returned, or the first part of it; None if that is no tensor."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) else None


def output_of(output: Any) -> Tensor | None:
    """[R, T, d]: what a module returned, or the first part of it; None for anything else."""
    first = first_of(output)
    return first if first is not None and first.ndim == 3 else None


def by_sample(output: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """[R, d], or [R, channels, ...]: what a classifier's module says of each sample.

    A text's tokens are averaged, padding left out, wherever a module gives them one by one.
    """
    mask = inputs.get("attention_mask")
    if mask is None or output.ndim != 3 or output.shape[1] != mask.shape[1]:
        return output
    own = mask.to(output.dtype).unsqueeze(-1)
    return (output * own).sum(1) / own.sum(1)


def attention_of(output: Any) -> Tensor | None:
    """[R, H, T, T]: the attention probabilities that a module returned beside its output."""
    second = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    return second if isinstance(second, Tensor) and second.ndim == 4 else None
