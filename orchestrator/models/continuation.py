"""Prompts of one length, continued by a causal model token by token.

Promises: no padding, so a text never meets another's; what is drawn is the caller's. Keys and
values are kept between tokens where the model can; others read the whole text again for each.
Imports torch; never ray.

R texts, P tokens of each prompt, V vocabulary.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .forward import evaluating, forward_logits, input_device, logits_of, unwrapped

Choose = Callable[[Tensor, int], Tensor]
"""(logits [R, V] float32, tokens written so far) -> [R] int64."""


@torch.inference_mode()
def continuations(
    module: nn.Module, prompts: Tensor, tokens: int, choose: Choose, end: int | None
) -> list[list[int]]:
    """What follows each prompt, without the end token.

    Args:
        module: a causal model on any device.
        prompts: [R, P] int64, P > 0.
        tokens: written at most.
        choose: draws the next tokens.
        end: the token that ends a text; None: none does.

    Returns:
        [R] lists of at most `tokens` ids.
    """
    ids = prompts.to(input_device(module))
    step = _cached(module) if keeps_keys(module) else _whole(module)
    written: list[list[int]] = [[] for _ in range(len(ids))]
    open_ = [True] * len(ids)
    with evaluating(module):
        new = ids
        for position in range(tokens):
            following = choose(step(new).float(), position)
            for row, token in enumerate(following.tolist()):
                open_[row] = open_[row] and token != end
                if open_[row]:
                    written[row].append(token)
            if not any(open_):
                break
            new = following.to(ids.device).unsqueeze(1)
    return written


def keeps_keys(module: nn.Module) -> bool:
    """Whether a model takes back the keys and values of what it has read."""
    names = inspect.signature(unwrapped(module).forward).parameters
    return "past_key_values" in names and "use_cache" in names


def _cached(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """[R, n] new ids -> [R, V] logits of the last; remembers what came before."""
    kept: list[Any] = [None]

    def step(new: Tensor) -> Tensor:
        output = module(input_ids=new, past_key_values=kept[0], use_cache=True)
        kept[0] = output.past_key_values
        return logits_of(output)[:, -1]

    return step


def _whole(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The same for a model that remembers nothing."""
    seen: list[Tensor] = []

    def step(new: Tensor) -> Tensor:
        seen.append(new)
        ids = torch.cat(seen, 1)
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        return forward_logits(module, ids, positions)[:, -1]

    return step
