"""Sessions of distributed tests: jobs run one after another, stopped on the way if need be."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Interrupted
from orchestrator.events import Event, StepDone
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session
from orchestrator.spec import JobSpec


@dataclass
class Player:
    """One session of a number of workers, which a fixture opens."""

    root: Path
    workers: int
    session: Session | None = field(default=None, kw_only=True)
    hear: Callable[[Event], None] = field(default=lambda event: None, kw_only=True)
    played: int = field(default=0, kw_only=True)

    def play(
        self, spec: JobSpec, stop_after: int | None = None
    ) -> tuple[dict[str, Any], dict[int, dict[str, float]]]:
        """Summary and metrics by step; with `stop_after`, stopped there once and gone on with."""
        self.played += 1
        folder = RunFolder.at(spec.storage, f"run-{self.played}")
        folder.write([spec], 0, [folder.run_id])
        metrics: dict[int, dict[str, float]] = {}
        stopped = stop_after is None

        def listen(event: Event) -> None:
            nonlocal stopped
            if isinstance(event, StepDone):
                metrics[event.step] = dict(event.metrics)
                if not stopped and event.step >= (stop_after or 0):
                    stopped = True
                    raise KeyboardInterrupt  # as the user's Ctrl-C would

        self.hear = listen
        assert self.session is not None
        if stop_after is not None:
            with pytest.raises(Interrupted, match="stopped after step"):
                self.session.run_job(spec, folder, {}, resume=False)
        summary = self.session.run_job(spec, folder, {}, resume=stop_after is not None)
        return summary, metrics
