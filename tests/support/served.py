"""A role that one engine in this process answers for, behind the ports of pool and cache."""

from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from fake_cache import MemoryLink

from orchestrator.pool.classifier import ClassifierEngine
from orchestrator.pool.source import SignalSource
from orchestrator.signals.records import Reply, Request, RoleDescription
from orchestrator.students.questions import Questions


@dataclass
class EnginePool:
    """The port of `PoolClient`. Answers when it is asked for them."""

    engine: ClassifierEngine
    window: int = 4
    open: dict[str, Request] = field(default_factory=dict)
    samples: int = 0  # that the engine ran
    most_open: int = 0
    one_at_a_time: Lock = field(default_factory=Lock)

    def describe(self, role: str) -> RoleDescription:
        return self.engine.describe()

    def head(self, role: str) -> None:
        return None

    def room(self) -> bool:
        return len(self.open) < self.window

    def submit(self, request: Request) -> None:
        assert request.request_id not in self.open
        self.open[request.request_id] = request
        self.most_open = max(self.most_open, len(self.open))

    def result(self, request_id: str) -> Reply:
        request = self.open.pop(request_id)
        self.samples += len(request.lengths)
        described = self.engine.describe()
        with self.one_at_a_time:  # as a replica runs them
            arrays = self.engine.forward(request)
        return Reply(
            request_id,
            request.role,
            request.ask,
            arrays,
            described.vocabulary,
            described.fingerprint,
        )

    def close(self) -> None:
        """Nothing to close."""


def asking(pool: EnginePool, cache: MemoryLink | None = None) -> Questions:
    """One rank's questions to role `teacher`; without a cache everything is computed."""
    ports: Any = (pool, None if cache is None else cache.link("a"))
    fingerprints = {"teacher": pool.engine.describe().fingerprint}
    source = SignalSource(*ports, "a", "run", fingerprints, 1 << 24, pool.window)
    return Questions(source, {}, {"teacher": None}, replicas=1)
