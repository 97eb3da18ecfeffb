"""A measure as a term: a number of every position, summed, reported and never trained on.

Schedules may follow its mean. Imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Ask, Batch, Signals
from .measuring import Wanted, wanted
from .specs import MeasureTerm, Number


@dataclass(frozen=True, slots=True)
class WatchedMeasure:
    """A term that the objective sums from the measures it takes for all its terms at once."""

    name: str
    spec: MeasureTerm

    def asks(self) -> tuple[Ask, ...]:
        """Logits of the role that the measure looks at, if any."""
        return tuple(Ask(role) for role in self.spec.served_roles)

    def numbers(self) -> Mapping[str, Number]:
        """The weight, which is 0."""
        return self.spec.numbers()

    def count(self, batch: Batch, signals: Signals) -> Tensor:
        """Positions, scalar float32."""
        return batch.mask.sum().to(torch.float32)

    def measures(self) -> list[Wanted]:
        """The one measure."""
        return [wanted(self.spec.measure, self.spec.looked_at)]

    def total(self, known: Mapping[Wanted, Tensor]) -> Tensor:
        """Scalar: the sum over positions, 0 for none."""
        return known[self.measures()[0]].sum()
