"""Where a rank's signals come from: the cache where they are known, the pool where they are not.

A question names samples and positions; it becomes wants, one for each record that could answer it.
A thread per question takes what the client remembers, claims the rest, reads what is there, asks
the pool for what it has to compute, hands that to the cache, and only then waits for what others
compute. So nobody who computes waits for anybody, and questions cannot wait in a circle. Ray room.

Shape letters: S samples, M tokens of all samples, N wanted positions.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.data import Flat
from orchestrator.errors import CacheLacks, SpecError, WorkerLost
from orchestrator.signals.cache.keys import RANGE, record_keys
from orchestrator.signals.cache.records import CacheRecord, RoleCard
from orchestrator.signals.cut import joined, trimmed
from orchestrator.signals.records import HeadRecord, Reply, Request, SignalAsk

from .answers import answer_bytes, empty_answer, tokens_read
from .cache import CacheLink
from .cache_records import Lead, Want, from_bitmap, to_bitmap
from .client import PoolClient
from .memory import Memory
from .records import RoleDescription

WAIT_S = 20.0
"""One wait for what others compute; then the owner is asked again."""
MOST_THREADS = 32


@dataclass(frozen=True, slots=True)
class Question:
    """What a role is asked about some samples."""

    name: str  # unique among the client's open questions
    role: str
    ask: SignalAsk
    flat: Flat

    def request(
        self, client: str, tenant: str, fingerprint: str | None, weight: float = 1.0
    ) -> Request:
        """The same, to a replica; `weight` is the tenant's."""
        return Request(
            f"{client}/{self.name}",
            self.role,
            tenant,
            self.ask,
            self.flat.tokens,
            self.flat.lengths,
            self.flat.wanted,
            fingerprint,
            weight=weight,
        )


@dataclass(slots=True)
class SourceCounts:
    """Records by where they came from. At rest they add up to the records wanted."""

    hits: int = 0  # remembered, or in the store when first asked
    shared: int = 0  # computed by another client meanwhile
    misses: int = 0  # computed by the pool for this client
    computed_tokens: int = 0  # of samples that the pool ran for this client
    saved_tokens: int = 0  # of samples that it did not have to run
    worked_s: float = 0.0  # device-seconds that roles worked for this client's answers


@dataclass(frozen=True, slots=True)
class Piece:
    """One record that is needed: a range of a sample's positions."""

    sample: int  # its place among those asked about
    start: int  # first position of the range
    want: Want


@dataclass(slots=True)
class _Open:
    future: "Future[Reply]"
    nbytes: int


class SignalSource:
    """Asks for signals. Safe to use from several threads.

    Args:
        pool: who computes; None: everything must be in the cache.
        link: the cache; None: everything is computed.
        client: who asks, one rank of a job; begins the ids of its requests.
        tenant: the job, among which replicas share their time.
        fingerprints: of the roles; needed for whatever is cached.
        window_bytes: of answers asked for and not yet taken by `result`.
        window_requests: the same, in questions.
        cards: of roles that nobody serves.
        memory_bytes: of records, kept here for later epochs.
        weight: of the tenant, its share of a busy replica.
    """

    def __init__(
        self,
        pool: PoolClient | None,
        link: CacheLink | None,
        client: str,
        tenant: str,
        fingerprints: dict[str, str],
        window_bytes: int,
        window_requests: int,
        cards: dict[str, RoleCard] | None = None,
        memory_bytes: int = 0,
        weight: float = 1.0,
    ) -> None:
        self.pool, self.link = pool, link
        self._memory = Memory(memory_bytes)
        self._client, self._tenant, self._weight = client, tenant, weight
        self._fingerprints, self._cards = fingerprints, cards or {}
        self._window_bytes, self._window_requests = window_bytes, window_requests
        self.counts = SourceCounts()
        self._closed = False
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        self._threads = ThreadPoolExecutor(
            min(window_requests, MOST_THREADS), thread_name_prefix="signals"
        )

    def describe(self, role: str) -> RoleDescription:
        """What answers as `role`. See `PoolClient.describe`."""
        if self.pool is not None:
            return self.pool.describe(role)
        return self._card(role).description

    def head(self, role: str) -> HeadRecord | None:
        """The role's output head; None if it has none that can be told apart."""
        if self.pool is not None:
            return self.pool.head(role)
        return self._card(role).head

    def room(self) -> bool:
        """Whether another question fits the window."""
        if self.link is None and self.pool is not None:
            return self.pool.room()
        with self._lock:
            held = sum(entry.nbytes for entry in self._open.values())
            return len(self._open) < self._window_requests and held < self._window_bytes

    def submit(self, question: Question) -> None:
        """Ask. Returns at once; the answer is fetched or computed ahead of `result`."""
        if self.link is None and self.pool is not None:
            fingerprint = self._fingerprints.get(question.role)
            asked = question.request(self._client, self._tenant, fingerprint, self._weight)
            self.pool.submit(asked)
            return
        flat = question.flat
        nbytes = answer_bytes(
            question.ask,
            int(flat.wanted.sum()),
            self.describe(question.role),
            int(flat.lengths.max(initial=0)),
        )
        with self._lock:
            if question.name in self._open:
                raise ValueError(f"question {question.name} is open; use a new name")
            self._open[question.name] = _Open(self._threads.submit(self._answer, question), nbytes)

    def result(self, name: str) -> Reply:
        """Wait for an answer and take it. Its place in the window is free then.

        Raises:
            StillhouseError: the pool could not answer. See `PoolClient.result`.
            SpecError: nobody computes and the cache lacks it.
        """
        if self.link is None and self.pool is not None:
            reply = self.pool.result(f"{self._client}/{name}")
            self._count(worked_s=reply.forward_s)
            return reply
        try:
            return self._open[name].future.result()
        finally:
            with self._lock:
                del self._open[name]

    def close(self) -> None:
        """Stop. Answers still on their way are dropped, and `counts` changes no more."""
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self.pool is not None:
            self.pool.close()
        if self.link is not None:
            self.link.close()

    # --- one question, on a thread of its own ----------------------------------------------------

    def _answer(self, question: Question) -> Reply:
        assert self.link is not None  # without a cache the pool is asked directly
        pieces = pieces_of(question.flat, self._fingerprints[question.role], question.ask)
        held: dict[bytes, CacheRecord] = {}
        open_wants = self._remember(_distinct(pieces), held)
        forward_s, computed, rounds = 0.0, 0, 0
        while open_wants:
            if self._closed:
                raise WorkerLost(question.role, question.name, "the source is closed")
            wants = list(open_wants.values())
            verdicts = self.link.claim(question.name, wants, WAIT_S if rounds else 0.0)
            leads = [
                replace(want, positions=verdict.positions)
                for want, verdict in zip(wants, verdicts, strict=True)
                if isinstance(verdict, Lead)
            ]
            found = [verdict for verdict in verdicts if isinstance(verdict, CacheRecord)]
            self._count(hits=0 if rounds else len(found), shared=len(found) if rounds else 0)
            if leads:
                records, tokens, took_s = self._compute(question, pieces, leads, rounds)
                found += records
                computed += tokens
                forward_s += took_s
            for record in found:
                held[record.key] = record
                self._memory.keep(record)
                del open_wants[record.key]
            rounds += 1
        reads = self.describe(question.role).reads
        asked = tokens_read(reads, question.flat.tokens, question.flat.lengths)
        self._count(saved_tokens=max(0, asked - computed))
        arrays = joined([_rows(held[piece.want.key], piece) for piece in pieces])
        description = self.describe(question.role)
        return Reply(
            question.name,
            question.role,
            question.ask,
            arrays or empty_answer(question.ask, description),
            description.vocabulary,
            description.fingerprint,
            forward_s=forward_s,
        )

    def _remember(
        self, wants: dict[bytes, Want], held: dict[bytes, CacheRecord]
    ) -> dict[bytes, Want]:
        """Put what is remembered into `held`; the wants that are left."""
        left: dict[bytes, Want] = {}
        for key, want in wants.items():
            record = self._memory.find(want)
            if record is None:
                left[key] = want
            else:
                held[key] = record
        self._count(hits=len(held))
        return left

    def _compute(
        self, question: Question, pieces: Sequence[Piece], leads: Sequence[Want], round_: int
    ) -> tuple[list[CacheRecord], int, float]:
        """Ask the pool for what this question leads, and hand it to the cache.

        Returns:
            The records, the tokens of their samples, and the seconds that the role worked.
        """
        assert self.link is not None
        keys = [want.key for want in leads]
        try:
            if self.pool is None:
                raise CacheLacks(
                    f"pool is none, and the cache lacks {len(leads)} of the records asked of "
                    f"{question.role}; run `stillhouse label` on the job, then resume it"
                )
            flat, places = _led(question.flat, pieces, leads)
            led = replace(question, name=f"{question.name}/{round_}", flat=flat)
            fingerprint = self._fingerprints[question.role]
            request = led.request(self._client, self._tenant, fingerprint, self._weight)
            self.pool.submit(request)
            reply = self.pool.result(request.request_id)
            records = list(_records(reply, request, places))
            with self._lock:  # what is handed to the cache is counted, also while a run stops
                if self._closed:
                    raise WorkerLost(question.role, question.name, "the source is closed")
                self.counts.misses += len(records)
                reads = self.describe(question.role).reads
                tokens = tokens_read(reads, request.tokens, request.lengths)
                self.counts.computed_tokens += tokens
                self.counts.worked_s += reply.forward_s
        except BaseException:
            self.link.give_up(question.name, keys)
            raise
        self.link.put(records)
        return records, tokens, reply.forward_s

    def _count(self, **more: float) -> None:
        with self._lock:
            if self._closed:
                return
            for name, value in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + value)

    def _card(self, role: str) -> RoleCard:
        if role not in self._cards:
            raise SpecError(
                "pool",
                f"is none, and the cache knows nothing of role {role}",
                "Run `stillhouse label` on the job first, or give it a pool",
            )
        return self._cards[role]


def pieces_of(flat: Flat, fingerprint: str, ask: SignalAsk) -> list[Piece]:
    """The records that hold what is wanted of some samples, in their order. Keys may repeat."""
    starts = np.concatenate([[0], np.cumsum(flat.lengths)])
    pieces: list[Piece] = []
    for sample, start, key in record_keys(fingerprint, flat.tokens, flat.lengths, ask):
        first = starts[sample] + start
        wanted = to_bitmap(flat.wanted[first : min(first + RANGE, starts[sample + 1])])
        if wanted:
            pieces.append(Piece(sample, start, Want(key, wanted)))
    return pieces


def _distinct(pieces: Sequence[Piece]) -> dict[bytes, Want]:
    """One want for each key, with the positions of all pieces of equal content."""
    wants: dict[bytes, Want] = {}
    for piece in pieces:
        want = wants.setdefault(piece.want.key, piece.want)
        if want.positions | piece.want.positions != want.positions:
            wants[want.key] = Want(want.key, want.positions | piece.want.positions)
    return wants


_Place = tuple[bytes, int, np.ndarray]
"""(key, tokens of the sample, [n] int32 positions in the sample): what a run of rows is."""


def _led(flat: Flat, pieces: Sequence[Piece], leads: Sequence[Want]) -> tuple[Flat, list[_Place]]:
    """The samples and positions that are led, and what the rows of their answer are."""
    starts = np.concatenate([[0], np.cumsum(flat.lengths)])
    positions = {want.key: want.positions for want in leads}
    first_use = {}
    for piece in pieces:
        if piece.want.key in positions:
            first_use.setdefault(piece.want.key, piece)
    by_sample: dict[int, list[Piece]] = {}
    for piece in first_use.values():
        by_sample.setdefault(piece.sample, []).append(piece)
    tokens: list[np.ndarray] = []
    wanted: list[np.ndarray] = []
    places: list[_Place] = []
    for sample, of_sample in by_sample.items():
        content = flat.tokens[starts[sample] : starts[sample + 1]]
        mask = np.zeros(len(content), bool)
        for piece in of_sample:
            rows = piece.start + from_bitmap(positions[piece.want.key])
            mask[rows] = True
            places.append((piece.want.key, len(content), rows))
        tokens.append(content)
        wanted.append(mask)
    lengths = np.array([len(content) for content in tokens], np.int32)
    return Flat(np.concatenate(tokens), lengths, np.concatenate(wanted)), places


def _records(reply: Reply, request: Request, places: Sequence[_Place]) -> Iterator[CacheRecord]:
    """An answer cut into records."""
    begin = 0
    for key, length, positions in places:
        end = begin + len(positions)
        arrays = trimmed(reply.ask, {n: a[begin:end] for n, a in reply.arrays.items()}, length)
        yield CacheRecord(key, reply.fingerprint, request.ask, length, positions, arrays)
        begin = end


def _rows(record: CacheRecord, piece: Piece) -> dict[str, np.ndarray]:
    """The rows of a record that a piece wants; all of them without a copy."""
    if piece.want.positions.bit_count() == len(record.positions):
        return record.arrays
    wanted = piece.start + from_bitmap(piece.want.positions)
    rows = np.searchsorted(record.positions, wanted)
    return {name: array[rows] for name, array in record.arrays.items()}
