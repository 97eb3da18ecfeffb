"""What a study tells whoever watches it, beside the events of its jobs. Standard library only."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.events import Event


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """Where a study stands, after each change."""

    total: int  # jobs
    done: int
    failed: int  # with those that needed one that failed
    running: tuple[str, ...]  # names of jobs, by lane
    left_s: float | None  # None: no job is done yet


OnEvent = Callable[[Event | StudyProgress], None]
