"""What a search tells whoever watches it, beside the events of its jobs. Standard library only."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.events import Event


@dataclass(frozen=True, slots=True)
class TrialLine:
    """Where one trial is."""

    number: int
    status: str  # waiting, running, paused, done, stopped, failed
    values: tuple[tuple[str, str], ...]  # what is tried, as people read it
    step: int
    steps: int | None  # None: known once it runs
    metric: float | None  # the latest
    computed: int  # answers that the pool computed for it; others were known
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SearchProgress:
    """Where a search stands, after each change."""

    metric: str
    total: int | None  # trials; None: the budget has no number
    trials: tuple[TrialLine, ...]
    best: int | None  # number of a trial
    spent: tuple[tuple[str, float, float], ...]  # (name, spent, limit) of each limit
    life_s: float


OnEvent = Callable[[Event | SearchProgress], None]
