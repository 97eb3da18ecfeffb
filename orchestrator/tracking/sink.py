"""What the uploader needs of a tracking store, and how a store says no.

No MLflow here: `mlflow_sink` is the real sink, and tests bring their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.errors import StillhouseError


class SinkDown(StillhouseError):
    """No answer, or not now: the same may succeed later. Never leaves the tracking room."""


class SinkRefused(StillhouseError):
    """The store will never take this: the same fails again. Never leaves the tracking room."""


@dataclass(frozen=True, slots=True)
class RunHeader:
    """Which run the records belong to."""

    run_id: str
    name: str
    experiment: str
    parent: str | None = None  # our id of the search this is a trial of; None: stands alone


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One value on its way."""

    key: str
    value: float
    step: int
    time_ms: int


class Sink(Protocol):
    """A tracking store. Every call raises `SinkDown` or `SinkRefused`, and nothing else.

    Every call can be repeated: done twice, it leaves what doing it once leaves.
    """

    def open(self, header: RunHeader) -> str:
        """Find the run by our id, or create it; returns its id over there."""
        ...

    def alive(self, run: str) -> bool:
        """Whether the run is still there and not deleted."""
        ...

    def metrics(self, run: str, values: Sequence[MetricValue]) -> None:
        """Any number; cut into requests as the store needs."""
        ...

    def params(self, run: str, values: Mapping[str, str]) -> None: ...

    def tags(self, run: str, values: Mapping[str, str]) -> None: ...

    def text(self, run: str, name: str, text: str) -> None: ...

    def artifact(self, run: str, path: Path, folder: str | None) -> None:
        """A file, or a folder's content, into the artifact folder `folder` (None: the top)."""
        ...

    def register(self, run: str, path: Path, name: str, key: str, tags: Mapping[str, str]) -> str:
        """An exported student as a new version of `name`; `key` makes it once only. Its URI."""
        ...

    def status(self, run: str, status: str, time_ms: int) -> None: ...
