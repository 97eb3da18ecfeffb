"""What a role's forward gave at the wanted positions, before it is encoded. Imports torch.

Letters: N wanted positions, d width, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from strategies.contract import Head

CHUNK_ELEMENTS = 1 << 24
"""Logits alive at a time: 64 MiB in float32."""


@dataclass(frozen=True, slots=True)
class RoleOutputs:
    """Only what an ask needs is there: (`hidden`, `head`) or `logits`, or captured modules."""

    hidden: Tensor | None = None  # [N, d], any float dtype and device
    head: Head | None = None  # the role's own
    logits: Tensor | None = None  # [N, V], for models whose head cannot be told apart
    captured: Mapping[str, Tensor] = field(default_factory=dict)  # by module path: [N, ...]
    samples: np.ndarray | None = None  # [N] uint64: `uniforms.token_hash` of each one's sample
    positions: np.ndarray | None = None  # [N]: the position in its sample

    @property
    def shape(self) -> tuple[int, int]:
        """(N, V).

        Raises:
            ValueError: there is neither a head nor logits.
        """
        if self.logits is not None:
            return self.logits.shape[0], self.logits.shape[1]
        hidden, head = self._pair()
        return hidden.shape[0], head.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Of hidden states or logits."""
        return self.logits.device if self.logits is not None else self._pair()[0].device

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, their logits [n, V] float32, the caller's to overwrite): [N, V] never exists here.

        Raises:
            ValueError: a logit is nan or inf, or all logits of a position are -inf.
        """
        rows, vocabulary = self.shape
        step = max(1, CHUNK_ELEMENTS // vocabulary)
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            z = self._logits(part)
            highest = z.amax(-1)  # nan if there is one
            if not torch.isfinite(highest).all():
                raise ValueError("the role's logits are not finite; check its weights and dtype")
            yield part, z

    def _logits(self, part: slice) -> Tensor:
        if self.logits is not None:
            return self.logits[part].to(torch.float32, copy=True)
        hidden, head = self._pair()
        return head.logits(hidden[part]).float()

    def _pair(self) -> tuple[Tensor, Head]:
        if self.hidden is None or self.head is None:
            raise ValueError("the role gave neither logits nor hidden states with a head")
        return self.hidden, self.head
