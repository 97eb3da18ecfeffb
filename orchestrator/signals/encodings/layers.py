"""Encoding `layers`: what named modules gave, optionally projected to fewer columns.

The projection is a matrix of fair signs over sqrt(columns), a function of (seed, width, columns)
alone: it keeps squared norms and inner products in expectation, and a student can apply the same.
Imports torch and numpy; never ray, deepspeed or mlflow.

Letters: N wanted positions, d width of a module's output.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from orchestrator.signals.layouts import Sizes, layout
from orchestrator.signals.records import LayersAsk, Reply
from strategies.contract import LayersSignal

from .outputs import RoleOutputs
from .uniforms import signs
from .wire import bad, check_arrays, check_names, from_wire, largest_value, to_wire


def encode(ask: LayersAsk, outputs: RoleOutputs) -> dict[str, np.ndarray]:
    """By module path: [N, d], or [N, project].

    Raises:
        ValueError: a value is not finite or overflows float16.
    """
    return {
        path: to_wire(_projected(ask, outputs.captured[path]), ask.dtype) for path in ask.layers
    }


def decode(
    reply: Reply, ask: LayersAsk, positions: int | None, device: torch.device | str
) -> LayersSignal:
    """Outputs in the wire's dtype."""
    check_names(reply, ask.layers)
    # What is no matrix is refused below: no such module has width 0.
    widths = {name: a.shape[1] if a.ndim == 2 else 0 for name, a in reply.arrays.items()}
    check_arrays(reply, layout(ask, Sizes(reply.role, layers=widths)), positions)
    found = {path: from_wire(reply.arrays[path], ask.dtype) for path in ask.layers}
    for path, tensor in found.items():
        if not np.isfinite(largest_value(tensor)):
            raise bad(reply, f"holds a value of {path} that is not finite")
    return LayersSignal({path: tensor.to(device) for path, tensor in found.items()})


@lru_cache(maxsize=64)
def projection(seed: int, width: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """[width, columns] float32; E |x @ projection|^2 = |x|^2. Kept, and not to be written to.

    Source:
        Achlioptas. "Database-friendly random projections." JCSS 66(4), 2003, theorem 1.1.
    """
    with torch.inference_mode(False):  # it outlives the forward that asks for it first
        return torch.from_numpy(signs(seed, width, columns)).to(device) * columns**-0.5


def _projected(ask: LayersAsk, output: Tensor) -> Tensor:
    if ask.project is None:
        return output.detach()
    matrix = projection(ask.seed, output.shape[-1], ask.project, output.device)
    return output.detach().float() @ matrix
