"""What the pool's processes tell each other, and the port behind a replica.

Frozen dataclasses of plain values: picklable, no Ray types. Imports neither torch nor ray.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from orchestrator.data import Reading
from orchestrator.errors import StillhouseError
from orchestrator.signals.records import HeadRecord, Request, RoleDescription
from orchestrator.spec.models import RoleSpec

NAMESPACE = "stillhouse"
"""Ray namespace of every actor of every pool."""


class Engine(Protocol):
    """A loaded model. All calls come from one thread, one at a time."""

    def describe(self) -> RoleDescription:
        """What is loaded."""
        ...

    def head(self) -> HeadRecord | None:
        """The output head; None if it cannot be told apart from the model."""
        ...

    def forward(self, request: Request) -> dict[str, np.ndarray]:
        """Arrays as the request's ask declares them, for its N > 0 wanted positions."""
        ...


@dataclass(frozen=True, slots=True)
class RoleLoad:
    """What a replica is told to load."""

    role: str
    spec: RoleSpec
    deterministic: bool = False  # torch's deterministic kernels only
    seed: int = 0  # of fresh weights
    reading: Reading | None = None  # how a classifier reads its samples


Loader = Callable[[RoleLoad], Engine]
"""Runs inside the replica, so it must be importable there."""


@dataclass(frozen=True, slots=True)
class Membership:
    """Who serves what, as of `version`. A higher version replaces a lower one whole."""

    version: int
    replicas: Mapping[str, tuple[str, ...]]  # actor names by role
    failed: Mapping[str, StillhouseError] = field(default_factory=dict)  # roles given up, and why
    descriptions: Mapping[str, RoleDescription] = field(default_factory=dict)  # roles once ready


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A replica's answer to a ping."""

    state: Literal["loading", "ready", "failed"]
    pid: int
    node: str
    served: int = 0  # requests answered
    samples: int = 0  # run by the model
    busy_s: float = 0.0  # time spent in forwards
    ready_s: float = 0.0  # time since the load ended
    queued: int = 0  # requests waiting or running
    error: StillhouseError | None = None  # why the load failed
    description: RoleDescription | None = None  # once ready
    restarts: tuple[float, ...] = ()  # the controller's memo of restarts, kept for its successor


@dataclass(frozen=True, slots=True)
class PoolHandle:
    """How a process finds a pool. Small and picklable."""

    name: str


def controller_name(pool: str) -> str:
    """Actor name of a pool's controller."""
    return f"{pool}/controller"


def replica_name(pool: str, role: str, index: int, serial: int) -> str:
    """Actor name of one incarnation of a replica; `serial` never repeats in a pool."""
    return f"{pool}/{role}/{index}/{serial}"


def parse_replica_name(pool: str, name: str) -> tuple[str, int, int] | None:
    """(role, index, serial), or None if `name` is no replica of this pool."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != pool:
        return None
    return parts[1], int(parts[2]), int(parts[3])
