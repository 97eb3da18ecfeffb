"""A pool client without a pool: answers that say which request they answer, and a window."""

from dataclasses import dataclass, field

import numpy as np

from orchestrator.signals.records import Reply, Request


@dataclass
class FakeClient:
    """hidden[n] = input id at the n-th wanted position, in both columns."""

    window: int
    asked: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    most_open: int = 0
    open: dict[str, Request] = field(default_factory=dict)

    def room(self) -> bool:
        """Whether fewer requests are open than the window holds."""
        return len(self.open) < self.window

    def submit(self, request: Request) -> None:
        """Keep the request."""
        assert request.request_id not in self.open
        self.asked.append(request.request_id)
        self.open[request.request_id] = request
        self.most_open = max(self.most_open, len(self.open))

    def result(self, request_id: str) -> Reply:
        """Answer it."""
        request = self.open.pop(request_id)
        self.taken.append(request_id)
        column = request.tokens[request.wanted].astype(np.float32)
        hidden = np.repeat(column[:, None], 2, axis=1)
        return Reply(request_id, request.role, request.ask, {"hidden": hidden}, 50, "f")
