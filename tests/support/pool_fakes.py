"""A fake engine behind the pool's port: answers that a test can compute, and gates to stage races.

A role's `arguments` choose its behaviour:
    width, vocabulary: sizes (default 4 and 100).
    weights: stands in the fingerprint (default "w"); `$NAME` takes an environment variable.
    gate: a folder. A forward leaves `started-<pid>` there and waits until `open` exists.
    raises_on: a token; a request that holds it raises ValueError.
    load_raises: "spec" or "value"; loading raises SpecError or ValueError.
    delay_s: time of a forward.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import SpecError
from orchestrator.pool.records import RoleLoad
from orchestrator.signals.records import HeadRecord, HiddenAsk, Request, RoleDescription
from orchestrator.spec.models import RoleSpec


def wait_until(seen: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """What `seen` returns, once that is true; another process changes it, so it is looked at."""
    give_up = time.monotonic() + timeout_s
    while not (found := seen()):
        if time.monotonic() > give_up:
            raise TimeoutError(f"not seen in {timeout_s:g} s: {seen}")
        time.sleep(0.01)
    return found


class FakeEngine:
    """hidden[n] = token * 1000 + position, in every column."""

    def __init__(self, role: str, arguments: dict[str, Any]) -> None:
        self.role, self.arguments = role, arguments
        self.forwards = 0

    def describe(self) -> RoleDescription:
        arguments = self.arguments
        weights = os.path.expandvars(arguments.get("weights", "w"))
        return RoleDescription(
            self.role,
            fingerprint=f"{self.role}-{weights}",
            vocabulary=arguments.get("vocabulary", 100),
            width=arguments.get("width", 4),
            parameters=7,
        )

    def head(self) -> HeadRecord | None:
        role = self.describe()
        weight = np.arange(role.vocabulary * role.width, dtype=np.float32)
        weight = weight.reshape(role.vocabulary, role.width)
        return HeadRecord(self.role, role.fingerprint, weight, None, 1.0, None)

    def forward(self, request: Request) -> dict[str, np.ndarray]:
        self.forwards += 1
        gate = self.arguments.get("gate")
        if gate is not None:
            Path(gate, f"started-{os.getpid()}").touch()
            wait_until(Path(gate, "open").exists, 120.0)
        time.sleep(self.arguments.get("delay_s", 0.0))
        if (request.tokens == self.arguments.get("raises_on", -1)).any():
            raise ValueError("token of ill omen")
        return {"hidden": expected_hidden(request, self.describe().width)}


def expected_hidden(request: Request, width: int = 4) -> np.ndarray:
    """[N, width] float32: what the fake answers."""
    positions = np.concatenate([np.arange(length) for length in request.lengths])[request.wanted]
    column = request.tokens[request.wanted].astype(np.float32) * 1000 + positions
    return np.repeat(column[:, None], width, axis=1)


def load(what: RoleLoad) -> FakeEngine:
    """A `Loader`."""
    match what.spec.arguments.get("load_raises"):
        case "spec":
            raise SpecError(f"roles.{what.role}.path", "holds no model", "Name another folder")
        case "value":
            raise ValueError("the shelf is empty")
    return FakeEngine(what.role, what.spec.arguments)


def fake_role(replicas: int = 1, max_queue: int = 64, **arguments: Any) -> RoleSpec:
    """A role that the fake serves; it takes no CPU of the cluster's count."""
    return RoleSpec.model_validate(
        {
            "import": "pool_fakes:load",
            "arguments": arguments,
            "replicas": replicas,
            "max_queue": max_queue,
            "resources": {"cpus": 0},
        }
    )


def fake_request(
    request_id: str,
    *,
    role: str = "teacher",
    tenant: str = "test",
    samples: int = 2,
    length: int = 3,
    token: int = 5,
    wanted: bool = True,
    fingerprint: str | None = None,
) -> Request:
    """A request of one token repeated; all positions wanted, or none."""
    tokens = samples * length
    return Request(
        request_id,
        role,
        tenant,
        HiddenAsk("float32"),
        np.full(tokens, token, dtype=np.int32),
        np.full(samples, length, dtype=np.int32),
        np.full(tokens, wanted),
        fingerprint,
    )
