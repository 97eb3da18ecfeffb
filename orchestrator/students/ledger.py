"""Promise 1 of the design in numbers: per epoch, samples asked = delivered = consumed."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from orchestrator.errors import CountsDiffer

from .collective import sum_over_ranks


@dataclass(slots=True)
class Ledger:
    """(sample, role) pairs of this rank by epoch; `consumed` counts committed steps only."""

    asked: dict[int, int] = field(default_factory=dict)
    delivered: dict[int, int] = field(default_factory=dict)
    consumed: dict[int, int] = field(default_factory=dict)

    def count(self, book: Literal["asked", "delivered", "consumed"], epoch: int, more: int) -> None:
        """Add to one of the three."""
        counts: dict[int, int] = getattr(self, book)
        counts[epoch] = counts.get(epoch, 0) + more

    def committed(self) -> dict[str, int]:
        """What a checkpoint keeps: at a step's end all three are equal for what was consumed."""
        return {str(epoch): count for epoch, count in self.consumed.items()}

    @classmethod
    def restored(cls, committed: dict[str, int]) -> "Ledger":
        """The ledger at a checkpoint: work asked ahead of it will be asked again."""
        counts = {int(epoch): count for epoch, count in committed.items()}
        return cls(dict(counts), dict(counts), dict(counts))

    def of_epoch(self, epoch: int, device: torch.device) -> dict[str, int]:
        """An epoch's three sums over ranks. Collective."""
        return self._sum({name: book.get(epoch, 0) for name, book in self._books()}, device)

    def whole(self, device: torch.device) -> dict[str, int]:
        """The three sums over epochs and ranks. Collective."""
        return self._sum({name: sum(book.values()) for name, book in self._books()}, device)

    def _books(self) -> list[tuple[str, dict[int, int]]]:
        return [
            ("asked", self.asked), ("delivered", self.delivered), ("consumed", self.consumed)
        ]  # fmt: skip

    @staticmethod
    def _sum(mine: dict[str, int], device: torch.device) -> dict[str, int]:
        summed = sum_over_ranks({name: float(value) for name, value in mine.items()}, device)
        return {name: int(value) for name, value in summed.items()}


def check(epoch: int, found: dict[str, int], expected: int | None) -> None:
    """Compare an epoch's three sums with each other, and with what the whole epoch holds.

    `expected` is None for an epoch that ended early.

    Raises:
        CountsDiffer: they are not equal.
    """
    wanted = found["consumed"] if expected is None else expected
    if any(value != wanted for value in found.values()):
        raise CountsDiffer(
            f"epoch {epoch} does not balance: {found['asked']} samples asked, "
            f"{found['delivered']} delivered, {found['consumed']} consumed, {wanted} expected"
        )
