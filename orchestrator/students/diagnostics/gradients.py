"""Gradients of single micro-batches, of which the optimiser sees nothing.

They are taken by `torch.autograd.grad`, which calls none of the hooks by which DeepSpeed gathers
gradients, so weights must be whole on each rank: ZeRO 2 or less. Dropout is off.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from orchestrator.models.forward import evaluating
from strategies.contract import Batch, Outputs
from strategies.objective import Objective

from ..asked import Answered
from ..inside import trained

Loss = Callable[[Outputs], Tensor]
"""Outputs of a micro-batch -> a scalar to differentiate, once."""


def batch_gradients(module: nn.Module, batch: Batch, losses: Sequence[Loss]) -> list[list[Tensor]]:
    """For each loss, its gradient by every trained parameter; one forward.

    Args:
        module: a `StudentModule`.
        batch: a micro-batch.
        losses: of the same outputs.

    Returns:
        By loss, tensors like `trained(module)`, float32 or better; zeros where a loss does not
        reach a parameter.
    """
    parameters = list(trained(module).values())
    scalars: list[Tensor] = []

    def consume(outputs: Outputs) -> Tensor:
        scalars.extend(loss(outputs) for loss in losses)
        return scalars[0]

    with torch.enable_grad(), evaluating(module):
        module(batch, consume)
    found = []
    for index, scalar in enumerate(scalars):
        kept = index < len(scalars) - 1
        gradients = torch.autograd.grad(scalar, parameters, retain_graph=kept, allow_unused=True)
        found.append([_at_least_float32(g, p) for g, p in zip(gradients, parameters, strict=True)])
    return found


def _at_least_float32(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    if gradient is None:
        return torch.zeros_like(parameter, dtype=dtype)
    return gradient.to(dtype, copy=True)


def mean_loss(
    objective: Objective, answered: Answered, numbers: Mapping[str, float], outputs: Outputs
) -> Tensor:
    """An objective's loss of one micro-batch by itself: each term divided by its own count."""
    batch, signals, asked = answered.batch, answered.signals, answered.asked
    counts = objective.counts(batch, signals, asked)
    scales = {
        term: numbers[f"{term}.weight"] / max(float(count), 1.0) for term, count in counts.items()
    }
    loss, _ = objective.loss(outputs, batch, signals, numbers, scales, asked)
    return loss
