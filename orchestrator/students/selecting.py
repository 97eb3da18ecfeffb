"""The student answers first, and then roles are asked about a part of each batch.

The answers cannot be asked for ahead, as they depend on the weights of the moment; the questions of
all micro-batches of a step are out before the first answer is waited for.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from orchestrator.data import SampleStore
from strategies.contract import Batch, Outputs, Signal, role_of
from strategies.measuring import measure
from strategies.samples import narrowed, random_scores
from strategies.specs.samples import SelectSpec

from .engine import Engine
from .feed import Micro
from .ledger import Ledger
from .module import no_gradient
from .questions import Questions


class Selector:
    """Chooses samples of a step's micro-batches and asks about them. Calls are collective."""

    def __init__(
        self,
        spec: SelectSpec,
        engine: Engine,
        store: SampleStore,
        questions: Questions,
        ledger: Ledger,
    ) -> None:
        self._spec, self._engine, self._store = spec, engine, store
        self._questions, self._ledger = questions, ledger
        self.wait_s = 0.0

    def choose(self, step: int, epoch: int, micros: Sequence[Micro]) -> list[Micro]:
        """The same micro-batches with `asked` and the signals of what was chosen."""
        asked = [self._ask(step, index, epoch, micro) for index, micro in enumerate(micros)]
        began = time.monotonic()
        answered = [
            replace(micro, signals=self._answers(epoch, micro, names)) for micro, names in asked
        ]
        self.wait_s += time.monotonic() - began
        return answered

    def _ask(self, step: int, index: int, epoch: int, micro: Micro) -> tuple[Micro, dict[str, str]]:
        batch = narrowed(self._spec, self._scores(micro.batch, step), micro.batch)
        chosen = set(batch.sample_index[batch.mask].tolist())
        rows = [tuple(sample for sample in row if sample in chosen) for row in micro.rows]
        names = self._questions.ask_all(f"{step}.{index}", self._store, rows)
        for _ in names:
            self._ledger.count("asked", epoch, len(chosen))
        asked = self._questions.asked(batch, self._store, rows)
        asked = dict.fromkeys(map(role_of, names), batch) if asked is None else asked
        return replace(micro, asked=asked, roles_samples=len(chosen)), names

    def _answers(self, epoch: int, micro: Micro, names: dict[str, str]) -> dict[str, Signal]:
        device = self._engine.device
        signals = {key: self._questions.answer(key, n, device) for key, n in names.items()}
        for _ in names:
            self._ledger.count("delivered", epoch, micro.answered)
        return signals

    def _scores(self, batch: Batch, step: int) -> Tensor:
        """[N] of what the student says now."""
        if self._spec.measure == "random":
            return random_scores(batch, step)
        name = self._spec.measure
        found: list[Tensor] = []

        def consume(outputs: Outputs) -> Tensor:
            found.append(measure([(name, None)], batch.kept_targets, {}, outputs)[name, None])
            return torch.zeros(())

        no_gradient(self._engine.module, batch, consume)
        return found[0]
