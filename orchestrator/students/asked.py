"""Micro-batches outside the training loop, with what roles say of them, asked ahead."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from orchestrator.data import Collate, NumpyBatch, Row, SampleStore, end_to_end
from orchestrator.signals.records import SignalAsk
from strategies.contract import Batch, LogitSignal, Signal

from .batches import to_device
from .questions import Questions


@dataclass(frozen=True, slots=True)
class Answered:
    """A micro-batch, and what roles say of it."""

    batch: Batch
    signals: dict[str, Signal]  # by `Ask.key`
    asked: Mapping[str, Batch] | None  # by role, the part asked about; None: all of it

    def logits(self, role: str) -> LogitSignal:
        """What a role says of logits."""
        signal = self.signals[role]
        assert isinstance(signal, LogitSignal)  # what is under a role's own name
        return signal


@dataclass(frozen=True, slots=True)
class Asker:
    """One rank's way from rows to micro-batches with signals."""

    collate: Collate
    questions: Questions | None
    device: torch.device

    def answered(
        self,
        store: SampleStore,
        parts: Sequence[Sequence[Row]],
        asks: Mapping[str, SignalAsk] | None,
        work: str,
    ) -> Iterator[Answered]:
        """Each part's batch and signals, asking as far ahead as the window allows.

        Args:
            store: that the rows are of.
            parts: rows of each micro-batch.
            asks: by role; None: what the objective asks of its roles.
            work: begins the questions' names; unique on this rank.
        """
        waiting: deque[tuple[Sequence[Row], NumpyBatch, dict[str, str]]] = deque()

        def answer() -> Answered:
            rows, arrays, names = waiting.popleft()
            batch, asked = to_device(arrays, self.device), None
            if asks is None and self.questions is not None:
                asked = self.questions.asked(batch, store, rows)
            return Answered(batch, self._signals(names), asked)

        for index, rows in enumerate(parts):
            names = self._ask(store, rows, asks, f"{work}.{index}")
            waiting.append((rows, self.collate(store, rows), names))
            while waiting and not (self.questions and self.questions.source.room()):
                yield answer()
        while waiting:
            yield answer()

    def _ask(
        self,
        store: SampleStore,
        rows: Sequence[Row],
        asks: Mapping[str, SignalAsk] | None,
        work: str,
    ) -> dict[str, str]:
        if self.questions is None:
            return {}
        if asks is None:
            return self.questions.ask_all(work, store, rows)
        flat = end_to_end(store, rows)
        return {role: self.questions.ask(role, work, flat, ask) for role, ask in asks.items()}

    def _signals(self, names: Mapping[str, str]) -> dict[str, Signal]:
        if self.questions is None:
            return {}
        answer = self.questions.answer
        return {key: answer(key, name, self.device) for key, name in names.items()}
