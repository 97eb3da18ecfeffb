"""The exchange: a small actor between Ray Tune's trials and the lanes that run their jobs.

A trial says that it begins and that it is over, and waits for results; the driver hears of that and
posts them. Only small records pass.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAMESPACE = "stillhouse"


@dataclass(frozen=True, slots=True)
class Message:
    """What a trial says: it wants its job run, or no longer."""

    kind: Literal["begin", "leave"]
    trial: int


@dataclass(frozen=True, slots=True)
class News:
    """What a trial hears: numbers by name, or that there will be none."""

    numbers: dict[str, float]
    last: bool = False
    failed: bool = False


@ray.remote(num_cpus=0, max_restarts=0, max_concurrency=1000)  # type: ignore[call-overload]
class ExchangeActor:
    """State of one search. All methods run on one event loop."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._news: dict[int, list[News]] = {}
        self._closed = False
        self._changed = asyncio.Condition()

    async def say(self, kind: Literal["begin", "leave"], trial: int) -> None:
        """A trial's message."""
        async with self._changed:
            self._messages.append(Message(kind, trial))
            self._changed.notify_all()

    async def messages(self, seen: int, timeout_s: float) -> list[Message]:
        """Messages after the first `seen`; waits up to `timeout_s` for one."""
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: len(self._messages) > seen), timeout_s
                )
            except TimeoutError:
                return []
            return self._messages[seen:]

    async def post(self, trial: int, news: News) -> None:
        """Something for a trial."""
        async with self._changed:
            self._news.setdefault(trial, []).append(news)
            self._changed.notify_all()

    async def news(self, trial: int, index: int) -> News | None:
        """A trial's news number `index`, once it is there; None when the exchange closes first."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._closed or len(self._news.get(trial, ())) > index
            )
            found = self._news.get(trial, [])
            return found[index] if len(found) > index else None

    async def close(self) -> None:
        """No more news: whoever waits is let go."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()


def start_exchange(name: str) -> Any:
    """The actor, on the driver's node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ExchangeActor.options(  # type: ignore[attr-defined]
        name=name, namespace=NAMESPACE, scheduling_strategy=here
    ).remote()
