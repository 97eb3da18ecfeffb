"""What a rank asks of the served roles with each batch, and how it reads the answers."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from orchestrator.data import CrossedStore, Crossing, Flat, Row, SampleStore, end_to_end
from orchestrator.errors import SpecError
from orchestrator.planner.layer_maps import logit_asks
from orchestrator.pool import PoolClient
from orchestrator.pool.cache import CacheLink
from orchestrator.pool.source import Question, SignalSource
from orchestrator.signals.asks import exact_ask
from orchestrator.signals.cache.records import RoleCard
from orchestrator.signals.cache.roles import read_role
from orchestrator.signals.encodings import decode, head_from_record
from orchestrator.signals.records import RoleDescription, SignalAsk
from orchestrator.spec.models import HiddenEncoding
from strategies.contract import Batch, Head, LayersSignal, LogitSignal, Signal, role_of
from strategies.samples import only

from .records import StudentJob


@dataclass(slots=True)
class Questions:
    """One rank's way to its signals."""

    source: SignalSource
    asks: dict[str, SignalAsk]  # what the objective asks, by `Ask.key`
    heads: dict[str, Head | None]  # None: the role's head cannot be told apart
    replicas: int
    tokenizer: str | None = None  # the job's, where a role has another
    crossings: Mapping[str, Crossing] = field(default_factory=dict)  # roles that have another
    forward_s: float = 0.0
    received_bytes: int = 0
    began: float = field(default_factory=time.monotonic)
    tables: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """By role: [I] token ids and [I, e] what it embeds them as, once asked."""
    _crossed: dict[str, CrossedStore] = field(default_factory=dict)

    def ask_all(self, work: str, store: SampleStore, rows: Sequence[Row]) -> dict[str, str]:
        """Ask all that the objective asks about some rows; the questions' names by `Ask.key`."""
        plain = end_to_end(store.as_asked, rows)
        names: dict[str, str] = {}
        for key in self.asks:
            flat, role = plain, role_of(key)
            if role in self.crossings:
                flat = end_to_end(self._crossed_store(role, store), rows)
            names[key] = self.ask(key, work, flat)
        return names

    def asked(
        self, batch: Batch, store: SampleStore, rows: Sequence[Row]
    ) -> dict[str, Batch] | None:
        """What `ask_all` asked each role about: all of a batch, or the positions that pair.

        Args:
            batch: bears loss where the samples of `rows` do, and nowhere else.
            store: of the rows.
            rows: in the order of the batch's rows.

        Returns:
            By role; None where all were asked about all.
        """
        if not self.crossings:
            return None
        found = dict.fromkeys(map(role_of, self.asks), batch)
        for role in self.crossings:
            kept = torch.from_numpy(self._crossed_store(role, store).kept(rows))
            found[role] = only(batch, kept.to(batch.targets.device))
        return found

    def _crossed_store(self, role: str, store: SampleStore) -> CrossedStore:
        known = self._crossed.get(role)
        if known is None or known.store is not store:
            assert self.tokenizer is not None  # a role has another than the job's
            known = CrossedStore.open(store, self.tokenizer, self.crossings[role])
            self._crossed[role] = known
        return known

    def ask(self, key: str, work: str, flat: Flat, ask: SignalAsk | None = None) -> str:
        """Ask about some samples; the question's name. `work` names them, unique on this rank."""
        question = Question(f"{work}/{key}", role_of(key), ask or self.asks[key], flat)
        self.source.submit(question)
        return question.name

    def answer(self, key: str, name: str, device: torch.device) -> Signal:
        """Wait for one answer and decode it onto `device`."""
        reply = self.source.result(name)
        self.forward_s += reply.forward_s
        self.received_bytes += reply.nbytes
        role = role_of(key)
        signal = decode(reply, self.heads[role], device=device)
        if isinstance(signal, LayersSignal):
            return shaped(signal, self.source.describe(role))
        return signal

    def logits(self, role: str, name: str, device: torch.device) -> LogitSignal:
        """The same, of a question about logits."""
        signal = self.answer(role, name, device)
        assert isinstance(signal, LogitSignal)  # it was asked for
        return signal

    def vocabulary(self, role: str) -> int:
        """How many ids a role knows."""
        return self.source.describe(role).vocabulary

    def exact_ask(self, role: str) -> SignalAsk:
        """An ask that loses nothing, for evaluation."""
        return exact_ask(has_head=self.heads[role] is not None)

    def pool_counts(self) -> dict[str, int]:
        """Requests of this rank to the pool, by what became of them."""
        pool = self.source.pool
        return {} if pool is None else dataclasses.asdict(pool.counts())

    def cache_counts(self) -> dict[str, int]:
        """Records of this rank, by where they came from."""
        link = self.source.link
        if link is None:
            return {}
        counts = {**dataclasses.asdict(self.source.counts), **dataclasses.asdict(link.counts)}
        return {name: count for name, count in counts.items() if name != "worked_s"}

    def metrics(self) -> dict[str, float]:
        """Gauges of this rank for the step's metrics."""
        elapsed = max(time.monotonic() - self.began, 1e-9)
        busy = self.forward_s / (elapsed * self.replicas) if self.replicas else 0.0
        return {
            "pool/busy_share": min(1.0, busy),
            "pool/bytes": float(self.received_bytes),
            **{f"pool/{name}": float(value) for name, value in self.pool_counts().items()},
            **{f"cache/{name}": float(value) for name, value in self.cache_counts().items()},
        }


def shaped(signal: LayersSignal, role: RoleDescription) -> LayersSignal:
    """With feature maps as maps: on the wire they lie flat."""
    return LayersSignal(
        {
            path: x.reshape(len(x), *role.shapes[path]) if path in role.shapes else x
            for path, x in signal.outputs.items()
        }
    )


def open_questions(job: StudentJob, rank: int, device: torch.device) -> Questions | None:
    """Connect to pool and cache; None when the job asks nobody.

    Raises:
        SpecError: a role asked for hidden states has no head that can be told apart.
    """
    if not job.spec.used_roles:
        return None
    spec = job.spec
    training = spec.training
    micro_batches = training.global_batch // (training.workers * training.micro_batch)
    roles = spec.objective.served_roles
    # All signals of a step are needed before its first backward, so less than two steps' requests
    # would leave the teacher idle while the student works.
    window = max(spec.pool.window_requests, 2 * micro_batches * max(1, len(roles)))
    client = f"{job.run_id}/{rank}"
    pool = job.pool and PoolClient(
        job.pool, job.run_id, spec.pool.window_bytes, window, spec.pool.deadline_s
    )
    source = SignalSource(
        pool,
        job.cache and CacheLink(job.cache, client),
        client,
        job.run_id,
        job.fingerprints,
        spec.pool.window_bytes,
        window,
        _cards(job) if pool is None else {},
        spec.cache.memory_bytes,
        spec.pool.weight,
    )
    try:
        return _connected(job, source, device)
    except BaseException:
        source.close()
        raise


def _connected(job: StudentJob, source: SignalSource, device: torch.device) -> Questions:
    """Questions with the heads of all roles at hand."""
    spec, roles = job.spec, job.spec.objective.logit_roles
    heads: dict[str, Head | None] = {}
    for role in spec.used_roles:
        record = source.head(role)
        heads[role] = None if record is None else head_from_record(record, device)
    for role in roles:
        if heads[role] is None and isinstance(spec.roles[role].encoding, HiddenEncoding):
            raise SpecError(
                f"roles.{role}.encoding",
                "is hidden, but the model's output head cannot be told apart from its body",
                "Use encoding {kind: topk}",
            )
    return Questions(
        source,
        logit_asks(spec),
        heads,
        sum(spec.roles[role].replicas for role in spec.used_roles) if source.pool else 0,
        job.tokenizer,
        job.crossings,
    )


def _cards(job: StudentJob) -> dict[str, RoleCard]:
    """What the cache knows of roles that nobody serves."""
    path = "" if job.cache is None else job.cache.path
    cards = {role: read_role(path, fingerprint) for role, fingerprint in job.fingerprints.items()}
    return {role: card for role, card in cards.items() if card is not None}
