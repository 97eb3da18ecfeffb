"""What a rank asks of the served roles with each batch, and how it reads the answers."""

import dataclasses
import time
from dataclasses import dataclass, field

import torch

from orchestrator.data import NumpyBatch
from orchestrator.errors import SpecError
from orchestrator.pool import PoolClient
from orchestrator.signals.decode import decode, head_from_record
from orchestrator.signals.records import HiddenAsk, Request, SignalAsk, TopKAsk
from orchestrator.spec.models import HiddenEncoding, RoleSpec
from strategies.contract import Head, LogitSignal

from .records import StudentJob


def training_ask(role: RoleSpec) -> SignalAsk:
    """The ask that a role's encoding stands for."""
    encoding = role.encoding
    if isinstance(encoding, HiddenEncoding):
        return HiddenAsk(encoding.dtype)
    return TopKAsk(encoding.k, encoding.dtype, tuple(encoding.temperatures))


@dataclass(slots=True)
class Questions:
    """One rank's connection to the pool."""

    client: PoolClient
    tenant: str
    asks: dict[str, SignalAsk]  # per role of the objective
    heads: dict[str, Head | None]  # None: the role's head cannot be told apart
    vocabularies: dict[str, int]
    fingerprints: dict[str, str]
    rank: int
    replicas: int
    forward_s: float = 0.0
    received_bytes: int = 0
    began: float = field(default_factory=time.monotonic)

    def ask(self, role: str, work: str, batch: NumpyBatch, ask: SignalAsk | None = None) -> str:
        """Send one request; its id. `work` names the batch, unique on this rank."""
        request_id = f"{self.tenant}/{self.rank}/{work}/{role}"
        self.client.submit(
            Request(
                request_id,
                role,
                self.tenant,
                ask or self.asks[role],
                batch.input_ids.astype("int32"),
                batch.position_ids.astype("int32"),
                batch.targets != -100,
                self.fingerprints.get(role),
            )
        )
        return request_id

    def answer(self, role: str, request_id: str, device: torch.device) -> LogitSignal:
        """Wait for one answer and decode it onto `device`."""
        reply = self.client.result(request_id)
        self.forward_s += reply.forward_s
        self.received_bytes += reply.nbytes
        return decode(reply, self.heads[role], device=device)

    def exact_ask(self, role: str) -> SignalAsk:
        """An ask that loses nothing, for evaluation."""
        if self.heads[role] is not None:
            return HiddenAsk("float32")
        return TopKAsk(self.vocabularies[role], "float32", (1.0,))

    def counts(self) -> dict[str, int]:
        """Requests of this rank, by what became of them."""
        return dataclasses.asdict(self.client.counts())

    def metrics(self) -> dict[str, float]:
        """Gauges of this rank for the step's metrics."""
        elapsed = max(time.monotonic() - self.began, 1e-9)
        return {
            "pool/busy_share": min(1.0, self.forward_s / (elapsed * self.replicas)),
            "pool/bytes": float(self.received_bytes),
            **{f"pool/{name}": float(value) for name, value in self.counts().items()},
        }


def open_questions(job: StudentJob, rank: int, device: torch.device) -> Questions | None:
    """Connect to the pool; None when the job asks nobody.

    Raises:
        SpecError: a role asked for hidden states has no head that can be told apart.
    """
    if job.pool is None:
        return None
    spec = job.spec
    training = spec.training
    micro_batches = training.global_batch // (training.workers * training.micro_batch)
    roles = spec.objective.served_roles
    client = PoolClient(
        job.pool,
        job.run_id,
        spec.pool.window_bytes,
        # All signals of a step are needed before its first backward, so less than two steps'
        # requests would leave the teacher idle while the student works.
        max(spec.pool.window_requests, 2 * micro_batches * max(1, len(roles))),
        spec.pool.deadline_s,
    )
    heads: dict[str, Head | None] = {}
    vocabularies: dict[str, int] = {}
    for role in spec.used_roles:
        vocabularies[role] = client.describe(role).vocabulary
        record = client.head(role)
        heads[role] = None if record is None else head_from_record(record, device)
    for role in roles:
        if heads[role] is None and isinstance(spec.roles[role].encoding, HiddenEncoding):
            raise SpecError(
                f"roles.{role}.encoding",
                "is hidden, but the model's output head cannot be told apart from its body",
                "Use encoding {kind: topk}",
            )
    return Questions(
        client,
        job.run_id,
        {role: training_ask(spec.roles[role]) for role in roles},
        heads,
        vocabularies,
        job.fingerprints,
        rank,
        sum(spec.roles[role].replicas for role in spec.used_roles),
    )
