"""Labelling: a job's signals computed ahead of it, with no student. Ray room.

The cache is the state: what is there already is not asked again, so an interrupted labelling goes
on where it stopped by being started once more.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.data import (
    CrossedStore,
    Crossing,
    Flat,
    Samples,
    TokenData,
    end_to_end,
    held_out_rows,
    prepare,
)
from orchestrator.errors import SpecError, StillhouseError
from orchestrator.events import Labelled
from orchestrator.planner.layer_maps import logit_asks
from orchestrator.signals.asks import exact_ask
from orchestrator.signals.cache.records import RoleCard
from orchestrator.signals.layouts import position_bytes
from orchestrator.signals.records import SignalAsk
from orchestrator.spec import JobSpec

from .cache import CacheLink
from .cache_records import CacheHandle
from .client import PoolClient
from .inside import inside_asks
from .records import PoolHandle
from .source import Question, SignalSource, pieces_of
from .translate import translated

CHECKED_TOGETHER = 512
"""Samples whose keys are looked up in one call."""
TELL_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Needed:
    """Samples about which a job asks a role."""

    role: str
    ask: SignalAsk
    store: Samples
    samples: tuple[int, ...]


def needed(
    spec: JobSpec,
    data: TokenData,
    has_head: Mapping[str, bool],
    tokenizer: str | None = None,
    crossings: Mapping[str, Crossing] | None = None,
    inside: Mapping[str, SignalAsk] | None = None,
) -> list[Needed]:
    """All that a job will ever ask: its training samples, and the held-out rows it measures.

    Args:
        spec: the job.
        data: its samples.
        has_head: by role.
        tokenizer: the job's.
        crossings: roles that have another.
        inside: what is asked about layers and attention, by `Ask.key`.
    """
    crossings, every = crossings or {}, tuple(range(len(data.train)))
    asked: list[Needed] = []
    for key, ask in {**logit_asks(spec), **(inside or {})}.items():
        store: Samples = data.train
        role, _, _ = key.partition(".")
        if role in crossings and tokenizer is not None:
            store = CrossedStore.open(data.train, tokenizer, crossings[role])
        asked.append(Needed(role, ask, store, every))
    compared = spec.compared_with(crossings)
    if compared is not None and len(data.held_out):
        rows = held_out_rows(
            data.held_out, spec.data.row_tokens, spec.evaluation.rows, packing=spec.data.packing
        )
        samples = tuple(sample for row in rows for sample in row)
        ask = exact_ask(has_head=has_head[compared])
        asked.append(Needed(compared, ask, data.held_out, samples))
    return asked


def missing_samples(link: CacheLink, part: Needed, fingerprint: str) -> list[int]:
    """Which of the samples the cache does not answer whole."""
    missing: list[int] = []
    for begin in range(0, len(part.samples), CHECKED_TOGETHER):
        samples = part.samples[begin : begin + CHECKED_TOGETHER]
        flat = end_to_end(part.store, [samples])
        pieces = pieces_of(flat, fingerprint, part.ask)
        lacking = {pieces[at].sample for at in link.missing([piece.want for piece in pieces])}
        missing += [samples[i] for i in sorted(lacking)]
    return missing


def check_room(max_bytes: int, owners: int, parts: Sequence[tuple[str, int]]) -> None:
    """Refuse to label what could never be in the cache all at once.

    Args:
        max_bytes: the cache's limit on each node.
        owners: nodes over which records are spread.
        parts: what is to be labelled, and the bytes of its answers, those that are there included.

    Raises:
        SpecError: names each part with its bytes.
    """
    total, room = sum(nbytes for _, nbytes in parts), max_bytes * owners
    if total > room:
        told = ", ".join(f"{nbytes} for {what}" for what, nbytes in parts)
        nodes = "" if owners == 1 else f" on each of {owners} nodes"
        raise SpecError(
            "cache.max_bytes",
            f"is {max_bytes}{nodes}, and all that is to be labelled takes {total} bytes ({told})",
            f"Raise it to {-(-total // owners)} and some more, or choose a smaller encoding",
        )


@dataclass(frozen=True, slots=True)
class LabelJob:
    """What a labeller is told."""

    spec: JobSpec
    run_id: str
    tokenizer: str | None  # folder or hub id; None: the data are no text
    data_folder: str  # node-local folder for prepared data
    pool: PoolHandle
    cache: CacheHandle
    fingerprints: Mapping[str, str]
    crossings: Mapping[str, Crossing] = field(default_factory=dict)  # roles, another tokenizer


class Labeller:
    """Asks a pool for all that a job will ask and the cache lacks. One actor."""

    def __init__(self, job: LabelJob) -> None:
        self._job = job
        spec = job.spec
        replicas = sum(spec.roles[role].replicas for role in spec.used_roles)
        window = max(spec.pool.window_requests, 3 * replicas)
        self._link = CacheLink(job.cache, job.run_id)
        self._source = SignalSource(
            PoolClient(job.pool, job.run_id, spec.pool.window_bytes, window, spec.pool.deadline_s),
            self._link,
            job.run_id,
            job.run_id,
            dict(job.fingerprints),
            spec.pool.window_bytes,
            window,
        )
        self._replicas = replicas

    def label(self) -> Iterator[Labelled]:
        """Fill the cache; says how far it is about once a second.

        Raises:
            SpecError: the answers do not all fit the cache; nothing was asked then.
            StillhouseError: the pool could not answer.
        """
        job, spec = self._job, self._job.spec
        data = prepare(spec.data, job.tokenizer, job.data_folder)
        heads = {role: self._source.head(role) for role in spec.used_roles}
        for role in spec.used_roles:
            self._link.put_role(RoleCard(self._source.describe(role), heads[role]))
        has_head = {role: head is not None for role, head in heads.items()}
        inside = inside_asks(spec, data, job.tokenizer, self._source.describe)
        parts = needed(spec, data, has_head, job.tokenizer, job.crossings, inside)
        try:
            lacking = [missing_samples(self._link, p, job.fingerprints[p.role]) for p in parts]
            if any(lacking):
                sizes = [
                    (f"{p.role} on {len(p.samples)} samples", self._nbytes(p, p.samples))
                    for p in parts
                ]
                check_room(spec.cache.max_bytes, len(job.cache.owners), sizes)
            for index, (part, missing) in enumerate(zip(parts, lacking, strict=True)):
                yield from self._part(index, part, missing)
            self._link.flush()
            for part in parts:
                left = missing_samples(self._link, part, self._job.fingerprints[part.role])
                if left:
                    raise StillhouseError(
                        f"{len(left)} of {len(part.samples)} answers of {part.role} were not kept: "
                        "is cache.max_bytes too small, or the disk full? stillhouse cache stats"
                    )
        finally:
            self._source.close()

    def _nbytes(self, part: Needed, samples: Sequence[int]) -> int:
        """Bytes of the answers about some samples."""
        positions = sum(int(part.store.wanted(i).sum()) for i in samples)
        longest = int(part.store.lengths.max(initial=0))
        return positions * position_bytes(part.ask, self._source.describe(part.role), longest)

    def _part(self, index: int, part: Needed, missing: Sequence[int]) -> Iterator[Labelled]:
        tokens = int(part.store.lengths[missing].sum()) if missing else 0
        nbytes = self._nbytes(part, missing)
        began, done, done_tokens = time.monotonic(), 0, 0

        def told(seconds_left: float | None) -> Labelled:
            return Labelled(
                self._job.spec.name,
                index,
                part.role,
                part.ask.kind,
                len(part.samples),
                len(missing),
                done,
                tokens,
                nbytes,
                seconds_left,
            )

        yield told(None)
        last = began
        probe_s: float | None = None
        for count, flat_tokens in self._answers(index, part, self._batches(part, missing)):
            done, done_tokens = done + count, done_tokens + flat_tokens
            now = time.monotonic()
            probe_s = probe_s or now - began
            if now - last >= TELL_EVERY_S or done == len(missing) or done == count:
                last = now
                # The first answer comes from one replica alone; then all of them work.
                rate = (
                    done_tokens * self._replicas / probe_s
                    if done == count
                    else done_tokens / (now - began)
                )
                yield told((tokens - done_tokens) / rate)

    def _answers(
        self, index: int, part: Needed, batches: Iterator[tuple[int, Flat]]
    ) -> Iterator[tuple[int, int]]:
        """(samples, tokens) of each question as it is answered; the first one alone, as a probe."""
        open_: deque[tuple[str, int, int]] = deque()

        def taken() -> tuple[int, int]:
            name, count, tokens = open_.popleft()
            self._source.result(name)
            return count, tokens

        for number, (count, flat) in enumerate(batches):
            name = f"label/{index}/{number}"
            self._source.submit(Question(name, part.role, part.ask, flat))
            open_.append((name, count, len(flat.tokens)))
            while open_ and (number == 0 or not self._source.room()):
                yield taken()
        while open_:
            yield taken()

    def _batches(self, part: Needed, missing: Sequence[int]) -> Iterator[tuple[int, Flat]]:
        """Samples of like length together, about a micro-batch of tokens at a time."""
        spec = self._job.spec
        budget = spec.training.micro_batch * spec.data.context
        by_length = sorted(missing, key=lambda i: int(part.store.lengths[i]))
        group: list[int] = []
        size = 0
        for sample in by_length:
            length = int(part.store.lengths[sample])
            if group and size + length > budget:
                yield len(group), end_to_end(part.store, [tuple(group)])
                group, size = [], 0
            group.append(sample)
            size += length
        if group:
            yield len(group), end_to_end(part.store, [tuple(group)])


def labelled(job: LabelJob) -> Iterator[Labelled]:
    """Run a labeller on this node; what it tells."""
    here = ray.get_runtime_context().get_node_id()
    actor: Any = (
        ray.remote(Labeller)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote(job)
    )
    try:
        for ref in actor.label.options(num_returns="streaming").remote():
            try:
                told: Labelled = ray.get(ref)
            except RayError as error:
                raise translated(error, "cache", "label") from error
            yield told
    finally:
        ray.kill(actor)
