"""The elementwise part of the vocabulary pass through `torch.compile`: optional, the same numbers.

`compare_at` is `comparison.compare_at` compiled for whatever device its tensors are on. Numbers
go in as tensors, so that a schedule does not compile anew at every step; only the powers of
alpha-beta, which decide the formula, stay numbers. Where nothing can be built (no C++ compiler,
no Triton) it warns once in the process and computes eagerly from then on.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import comparison
from .comparison import Asked, Dense
from .parts import Part


def compare_at(
    logits: Tensor, temperature: float | Tensor, asked: Sequence[Asked]
) -> tuple[list[Tensor], Tensor | None]:
    """As `comparison.compare_at`."""
    if not _Build.failed:
        # Slow to import, so only where it is wanted.
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        try:
            return _compiled()(
                logits,
                _tensor(temperature, logits),
                _with_tensors(asked, logits),
            )
        except (TorchDynamoException, InductorError) as error:
            _Build.failed = True
            reason = str(error).strip().splitlines()[0]
            warnings.warn(
                f"the loss cannot be compiled here ({reason}); it is computed eagerly, which gives "
                f"the same numbers. Install a C++ compiler (CPU) or Triton (GPU), or turn "
                f"compilation off",
                stacklevel=2,
            )
    return comparison.compare_at(logits, temperature, asked)


class _Build:
    """Whether compilation failed in this process."""

    failed = False


@functools.cache
def _compiled() -> Callable[..., tuple[list[Tensor], Tensor | None]]:
    return torch.compile(comparison.compare_at, dynamic=True)


def _tensor(number: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(number, dtype=like.dtype, device=like.device)


def _with_tensors(asked: Sequence[Asked], like: Tensor) -> list[Asked]:
    """What is asked, with tensors for all that a schedule may move."""
    names: dict[str, str] = {}
    fixed = []
    for one in asked:
        answer = one.answer
        if isinstance(answer, Dense):
            # A target is another object at every step: compiled code may not depend on its name.
            name = names.setdefault(answer.name, f"{one.part.role} {len(names)}")
            answer = replace(answer, name=name)
        part, factor = _moving(one.part, like), _tensor(one.factor, like)
        fixed.append(replace(one, part=part, factor=factor, answer=answer))
    return fixed


MOVING = ("beta", "label_weight", "others_weight", "logit_scale", "margin", "skew")


def _moving(part: Part, like: Tensor) -> Part:
    """`part` with what a schedule may move as tensors, and without what only the sums need."""
    names = [name for name in MOVING if name != "beta" or part.kind != "alpha_beta"]
    numbers = {name: _tensor(getattr(part, name), like) for name in names}
    return replace(part, scale=1.0, temperature=1.0, position_weight=None, target=None, **numbers)
