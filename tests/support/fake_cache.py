"""A cache in memory behind the port of `CacheLink`, and a pool that answers at once."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.pool.cache_records import Lead, Theirs, Verdict, Want
from orchestrator.pool.claims import Claims, Holder
from orchestrator.signals.cache.records import CacheRecord
from orchestrator.signals.records import Reply, Request, RoleDescription

FINGERPRINT, VOCABULARY, WIDTH = "f" * 64, 50, 2


def hidden_of(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[M, 2] float32: (token, sum of the sample's tokens up to here)."""
    sums = [np.cumsum(part) for part in np.split(tokens, np.cumsum(lengths)[:-1])]
    return np.stack([tokens, np.concatenate([np.zeros(0), *sums])], axis=1).astype(np.float32)


@dataclass
class MemoryLink:
    """Claims and records of any number of clients, under one lock."""

    records: dict[bytes, CacheRecord] = field(default_factory=dict)
    claims: Claims = field(default_factory=lambda: Claims(1000.0))
    changed: threading.Condition = field(default_factory=threading.Condition)

    def link(self, client: str) -> "ClientLink":
        """One client's view."""
        return ClientLink(self, client)


@dataclass
class ClientLink:
    """`CacheLink` of one client."""

    cache: MemoryLink
    client: str

    def claim(self, question: str, wants: Sequence[Want], wait_s: float) -> list[Verdict]:
        with self.cache.changed:
            self.cache.claims.heard(self.client, "1", 0.0)
            verdicts = self._judge(question, wants)
            if all(isinstance(verdict, Theirs) for verdict in verdicts):
                self.cache.changed.wait(wait_s)
                verdicts = self._judge(question, wants)
            return verdicts

    def _judge(self, question: str, wants: Sequence[Want]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for want in wants:
            found = self.cache.records.get(want.key)
            if found is not None and want.covered_by(found):
                verdicts.append(found)
            elif self.cache.claims.take(want.key, Holder(self.client, "1", question), 0.0):
                verdicts.append(Lead(want.joined_with(found)))
            else:
                verdicts.append(Theirs())
        return verdicts

    def put(self, records: Sequence[CacheRecord]) -> None:
        with self.cache.changed:
            self.cache.records |= {record.key: record for record in records}
            self.cache.claims.settle([record.key for record in records])
            self.cache.changed.notify_all()

    def give_up(self, question: str, keys: Sequence[bytes]) -> None:
        with self.cache.changed:
            self.cache.claims.give_up(keys, Holder(self.client, "1", question))
            self.cache.changed.notify_all()

    def close(self) -> None:
        pass


@dataclass
class InstantPool:
    """`PoolClient` whose answers say what was asked; `gate` holds them back while it is cleared."""

    asked: list[Request] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    token_s: float = 0.0  # seconds that a token of a forward takes

    def __post_init__(self) -> None:
        self.gate.set()

    def submit(self, request: Request) -> None:
        self.asked.append(request)

    def result(self, request_id: str) -> Reply:
        self.gate.wait(10)
        if self.error is not None:
            raise self.error
        request = next(r for r in reversed(self.asked) if r.request_id == request_id)
        rows = hidden_of(request.tokens, request.lengths)[request.wanted]
        worked_s = self.token_s * len(request.tokens)
        answer = {"hidden": rows}
        return Reply(
            request_id,
            request.role,
            request.ask,
            answer,
            VOCABULARY,
            FINGERPRINT,
            forward_s=worked_s,
        )

    def describe(self, role: str) -> RoleDescription:
        return RoleDescription(role, FINGERPRINT, VOCABULARY, WIDTH, 1)

    def close(self) -> None:
        pass

    @property
    def samples(self) -> int:
        """Samples asked about so far."""
        return sum(len(request.lengths) for request in self.asked)
