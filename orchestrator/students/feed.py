"""Batches and signals of coming steps, asked for ahead of the student.

The sequence of work depends on the order alone, so a rank knows every request it will make; it
keeps the client's window full and takes answers in order. Counts follow promise 1 of the design:
per epoch, samples asked = delivered = consumed.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from orchestrator.data import Collate, NumpyBatch, Order, Row, SampleStore, share
from strategies.contract import Batch, Signal

from .batches import to_device
from .ledger import Ledger
from .questions import Questions

AHEAD_WITHOUT_POOL = 2
"""Micro-batches collated ahead when no signal bounds the window, be it that none is asked for."""


@dataclass(frozen=True, slots=True)
class Micro:
    """One micro-batch of this rank, its signals decoded."""

    batch: Batch
    signals: dict[str, Signal]  # by `Ask.key`
    samples: int
    tokens: int  # tokens of samples, padding not counted; samples, for a classifier
    rows: Sequence[Row] = ()
    asked: Mapping[str, Batch] | None = None  # by role, the part asked about; None: all of it
    roles_samples: int | None = None  # samples of that part; None: all

    @property
    def answered(self) -> int:
        """Samples that each role answered."""
        return self.samples if self.roles_samples is None else self.roles_samples


@dataclass(frozen=True, slots=True)
class _Pending:
    step: int
    epoch: int
    batch: NumpyBatch
    samples: int
    tokens: int
    questions: dict[str, str]
    rows: Sequence[Row]


class Feed:
    """This rank's micro-batches, step by step, from `start` on."""

    def __init__(
        self,
        store: SampleStore,
        order: Order,
        collate: Collate,
        micro_batch: int,
        rank: int,
        world: int,
        start: int,
        end: int,
        device: torch.device,
        questions: Questions | None,
        ledger: Ledger,
        *,
        asks_ahead: bool = True,
    ) -> None:
        """`asks_ahead` is False where somebody else asks, once the student has answered."""
        self.store, self._asks_ahead = store, asks_ahead
        self._order, self._collate = order, collate
        self._micro_batch, self._rank, self._world = micro_batch, rank, world
        self._device, self._questions, self.ledger = device, questions, ledger
        self._coming = self._plan(start, end)
        self._ahead: deque[_Pending] = deque()
        self.wait_s = 0.0

    def _plan(self, start: int, end: int) -> Iterator[_Pending | None]:
        for step in range(start, end):
            while not self._order.knows(step):
                yield None  # what the next epoch holds is decided when this one is over
            epoch, _ = self._order.locate(step)
            parts = share(self._order.rows(step), self._rank, self._world, self._micro_batch)
            for index, rows in enumerate(parts):
                batch = self._collate(self.store, rows)
                samples = sum(len(row) for row in rows)
                tokens = int((batch.sample_index >= 0).sum())
                ids: dict[str, str] = {}
                if self._questions is not None and self._asks_ahead:
                    ids = self._questions.ask_all(f"{step}.{index}", self.store, rows)
                for _ in ids:
                    self.ledger.count("asked", epoch, samples)
                yield _Pending(step, epoch, batch, samples, tokens, ids, rows)

    def fill(self) -> None:
        """Ask ahead while the window has room. Never waits for an answer."""
        while self._room():
            coming = next(self._coming, None)
            if coming is None:
                return
            self._ahead.append(coming)

    def _room(self) -> bool:
        if self._questions is None or not self._asks_ahead or not self._questions.asks:
            return len(self._ahead) < AHEAD_WITHOUT_POOL
        return self._questions.source.room()

    def step(self, step: int) -> list[Micro]:
        """All micro-batches of a step; waits for their signals."""
        taken: list[Micro] = []
        self.fill()
        while pending := self._next_of(step):
            began = time.monotonic()
            signals = {
                key: self._questions.answer(key, name, self._device)
                for key, name in pending.questions.items()
                if self._questions is not None
            }
            self.wait_s += time.monotonic() - began
            for _ in signals:
                self.ledger.count("delivered", pending.epoch, pending.samples)
            batch = to_device(pending.batch, self._device, pending.epoch)
            asked = None
            if self._questions is not None and self._asks_ahead:
                asked = self._questions.asked(batch, self.store, pending.rows)
            counted = pending.samples, pending.tokens
            taken.append(Micro(batch, signals, *counted, pending.rows, asked))
            self.fill()
        return taken

    def _next_of(self, step: int) -> _Pending | None:
        if not self._ahead:
            # Nothing asked ahead fits the window: the step's own work is asked all the same.
            coming = next(self._coming, None)
            if coming is None:
                return None
            self._ahead.append(coming)
        return self._ahead.popleft() if self._ahead[0].step == step else None

    def commit(self, step: int, micros: list[Micro]) -> None:
        """The step's update is done: what it used is consumed."""
        epoch, _ = self._order.locate(step)
        for micro in micros:
            for _ in micro.signals:
                self.ledger.count("consumed", epoch, micro.answered)
