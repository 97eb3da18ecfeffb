"""Gradients of a classifier by its input, for the student and for served roles alike.

Of its confidence, by its input or by what named modules gave; and of any number of its output, by
features that may be new. The confidence is log max p. Its gradient points where that of max p does,
and does not vanish where the classifier is sure. Samples do not see each other, so the gradient of
the sum over a batch is each sample's own. Imports torch; never ray, deepspeed or mlflow.

Shape letters: R samples, T tokens, d width, V classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .capture import first_of
from .forward import classify, embedding_of, unwrapped

Places = dict[str, Tensor]
"""By path: what gradients are taken by, as the forward saw it, [R, ...]."""


@contextmanager
def placing(module: nn.Module, paths: Sequence[str], entry: str, *, text: bool) -> Iterator[Places]:
    """Inside, one forward of a classifier puts what gradients may be taken by into `Places`.

    Args:
        module: the classifier; its forward must build a graph.
        paths: of modules, or `entry`.
        entry: what stands for the model's input.
        text: whether its input is a text's tokens, which are then seen once embedded.

    Raises:
        KeyError: there is no such module.
    """
    places: Places = {}

    def by(path: str, tensor: Tensor) -> Tensor:
        # What is frozen or given has no graph yet: it begins here.
        places[path] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        return places[path]

    def features(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        floats = [name for name, value in named.items() if value.is_floating_point()]
        return arguments, {**named, floats[0]: by(entry, named[floats[0]])}

    def given(path: str) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> Any:
            first = first_of(output)
            if first is None:
                raise ValueError(f"{path} gave {type(output).__name__}, and no tensor")
            placed = by(path, first)
            return (placed, *output[1:]) if isinstance(output, tuple) else placed

        return hook

    modules = dict(unwrapped(module).named_modules())
    with ExitStack() as hooks:
        for path in paths:
            if path != entry:
                handle = modules[path].register_forward_hook(given(path))
            elif text:
                embedding = embedding_of(module)
                assert embedding is not None  # `Inside.input_width` has said so
                handle = embedding.register_forward_hook(given(entry))
            else:
                handle = module.register_forward_pre_hook(features, with_kwargs=True)
            hooks.callback(handle.remove)
        yield places


def confidence_gradients(logits: Tensor, places: Places, *, create_graph: bool) -> Places:
    """Gradients of each sample's log max p, by path, in the shapes of `places`.

    Args:
        logits: [R, V] of the forward that filled `places`.
        places: from `placing`.
        create_graph: whether the gradients shall be differentiable themselves.
    """
    score = torch.log_softmax(logits.float(), -1).amax(-1).sum()
    found = torch.autograd.grad(score, tuple(places.values()), create_graph=create_graph)
    return dict(zip(places, found, strict=True))


def run_from(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One forward of a classifier, from where gradients are to be taken.

    Args:
        module: in evaluation mode, if the gradients of a sample are to depend on it alone.
        inputs: its features, or a text with what is added to its embedded tokens: one of them is
            not whole numbers.

    Returns:
        That one as a leaf, [R, ...], and the logits, [R, V] float32.
    """
    ((name, moves),) = ((name, x) for name, x in inputs.items() if x.is_floating_point())
    with torch.enable_grad():
        leaf = moves.detach().requires_grad_()
        return leaf, classify(module, {**inputs, name: leaf}).float()


def gradient_by(leaf: Tensor, numbers: Tensor) -> Tensor:
    """[R, d]: of each sample's number by its own features. No parameter's gradient is touched.

    Args:
        leaf: of `run_from`; its graph is used up.
        numbers: [R], each of its own sample's logits.

    Raises:
        ValueError: the model's operations are not torch's, or cannot be differentiated.
    """
    if not numbers.requires_grad:
        raise ValueError(
            "the model's output does not depend on its input in a way torch can follow"
        )
    (found,) = torch.autograd.grad(numbers.sum(), leaf)
    return found.flatten(1)


def by_sample(gradient: Tensor, mask: Tensor | None) -> Tensor:
    """[R, d], or [R, d, T] of a text: where it is padded there are zeros.

    Args:
        gradient: [R, T, d] of a text, else [R, ...].
        mask: [R, T] of a text: 1 where it has tokens; None: features.
    """
    if mask is None:
        return gradient.flatten(1)
    return (gradient * mask.to(gradient.dtype).unsqueeze(-1)).transpose(1, 2)
