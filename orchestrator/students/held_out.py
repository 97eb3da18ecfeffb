"""Held-out measurements of the student, beside a served role where the job names one."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator.data import (
    NumpyBatch,
    Row,
    SampleStore,
    collation,
    end_to_end,
    held_out_rows,
    share,
)
from orchestrator.evaluation.measure import Evaluation
from orchestrator.spec.job import JobSpec
from strategies.contract import Outputs
from strategies.statistics import position_statistics

from .batches import to_device
from .engine import Engine
from .module import no_gradient
from .questions import Questions


class HeldOut:
    """Measures the same held-out rows each time; every rank takes its share."""

    def __init__(
        self,
        engine: Engine,
        store: SampleStore,
        spec: JobSpec,
        rank: int,
        world: int,
        questions: Questions | None,
        compared_role: str | None,
    ) -> None:
        self._engine, self._store, self._questions = engine, store, questions
        self._collate, data = collation(spec.data), spec.data
        rows = held_out_rows(store, data.row_tokens, spec.evaluation.rows, packing=data.packing)
        unit = world * spec.training.micro_batch
        rows += [()] * (-len(rows) % unit)
        self._parts = share(rows, rank, world, spec.training.micro_batch) if rows else []
        self._role = compared_role if questions is not None else None
        self._world = world
        self._times = 0

    def measure(self) -> Evaluation | None:
        """Summed over ranks. Collective; None without held-out data."""
        if not self._parts:
            return None
        self._times += 1
        sums: dict[str, Tensor] = {}
        for batch, question in self._asked_ahead():
            self._add(sums, batch, question)
        if self._world > 1:
            for name in sorted(sums):
                torch.distributed.all_reduce(sums[name])
        return Evaluation.from_sums({name: value.tolist() for name, value in sums.items()})

    def _asked_ahead(self) -> Any:
        """(batch, request id) pairs, asking as far ahead as the window allows."""
        asked: deque[tuple[NumpyBatch, str | None]] = deque()
        for index, rows in enumerate(self._parts):
            batch = self._collate(self._store, rows)
            asked.append((batch, self._ask(rows, index)))
            while asked and not (self._questions and self._questions.source.room()):
                yield asked.popleft()
        yield from asked

    def _ask(self, rows: Sequence[Row], index: int) -> str | None:
        if self._questions is None or self._role is None:
            return None
        ask, flat = self._questions.exact_ask(self._role), end_to_end(self._store, rows)
        return self._questions.ask(self._role, f"held-out-{self._times}.{index}", flat, ask)

    def _add(self, sums: dict[str, Tensor], arrays: NumpyBatch, question: str | None) -> None:
        batch = to_device(arrays, self._engine.device)
        signal = None
        if question is not None and self._questions is not None and self._role is not None:
            signal = self._questions.answer(self._role, question, self._engine.device)

        def consume(outputs: Outputs) -> Tensor:
            for name, value in position_statistics(outputs, batch, signal).items():
                sums[name] = sums.get(name, torch.zeros_like(value, dtype=torch.float64)) + value
            return torch.zeros(())

        no_gradient(self._engine.module, batch, consume)
