"""How far a training is. Pure; imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of a job, and the job's length."""

    step: int  # optimiser steps done before this one
    total_steps: int
    epoch: int = 0  # of the step, from 0
    total_epochs: int | None = None  # None: the job is given in steps

    def counted(self, per: Literal["step", "epoch"]) -> tuple[int, int]:
        """The count now, and that of the whole job.

        Raises:
            ValueError: epochs are counted, and the job is given in steps.
        """
        if per == "step":
            return self.step, self.total_steps
        if self.total_epochs is None:
            raise ValueError(
                "a schedule counts epochs (per: epoch), and the job is given in steps; give it in "
                "epochs, or count steps"
            )
        return self.epoch, self.total_epochs


def share_of_way(now: int, begin: int, end: int) -> float:
    """Share of the way from `begin` to `end`, in [0, 1]; 0 at `begin` even where it is empty."""
    if now <= begin:
        return 0.0
    return 1.0 if now >= end else (now - begin) / (end - begin)


def between(start: float, end: float, share: float) -> float:
    """Linear interpolation that is exact at both ends and never leaves [start, end]."""
    if share in (0.0, 1.0):
        return end if share else start
    return min(max(start + (end - start) * share, min(start, end)), max(start, end))
