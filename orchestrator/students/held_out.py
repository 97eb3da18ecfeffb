"""Held-out measurements of the student, beside a served role where the job names one."""

import torch
from torch import Tensor

from orchestrator.data import SampleStore, held_out_rows, share
from orchestrator.evaluation.measure import Evaluation, Measured
from orchestrator.spec.job import JobSpec
from strategies.contract import Outputs
from strategies.statistics import position_statistics

from .asked import Answered, Asker
from .engine import Engine
from .module import no_gradient

WITHOUT_LABELS = ("count", "agreement", "kl")
"""Sums over positions that say something where the data have no labels."""


class HeldOut:
    """Measures the same held-out rows each time; every rank takes its share."""

    def __init__(
        self,
        engine: Engine,
        store: SampleStore,
        spec: JobSpec,
        rank: int,
        world: int,
        asker: Asker,
        compared_role: str | None,
    ) -> None:
        self._engine, self.store, self._asker = engine, store, asker
        data = spec.data
        rows = held_out_rows(store, data.row_tokens, spec.evaluation.rows, packing=data.packing)
        unit = world * spec.training.micro_batch
        rows += [()] * (-len(rows) % unit)
        self.parts = share(rows, rank, world, spec.training.micro_batch) if rows else []
        """Rows of this rank's micro-batches; every rank has as many."""
        self._role = compared_role if asker.questions is not None else None
        self._labelled = data.has_labels
        self._members, self._main = spec.student.parts, spec.student.main
        self._world = world
        self._times = 0

    def measure(self) -> Measured | None:
        """Summed over ranks. Collective; None without held-out data."""
        if not self.parts:
            return None
        self._times += 1
        sums: dict[str | None, dict[str, Tensor]] = {
            member: {} for member in (*self._members, *([] if self._main else [None]))
        }
        asks = {}
        if self._role is not None and self._asker.questions is not None:
            asks = {self._role: self._asker.questions.exact_ask(self._role)}
        work = f"held-out-{self._times}"
        for answered in self._asker.answered(self.store, self.parts, asks, work):
            self._add(sums, answered)
        if self._world > 1:
            for each in sums.values():
                for name in sorted(each):
                    torch.distributed.all_reduce(each[name])
        found = {
            member: Evaluation.from_sums({name: value.tolist() for name, value in each.items()})
            for member, each in sums.items()
        }
        return Measured(found[self._main], {member: found[member] for member in self._members})

    def _add(self, sums: dict[str | None, dict[str, Tensor]], answered: Answered) -> None:
        batch = answered.batch
        signal = None if self._role is None else answered.logits(self._role)

        def consume(outputs: Outputs) -> Tensor:
            for member, each in sums.items():
                found = position_statistics(outputs.of(member), batch, signal)
                for name, value in found.items():
                    if not self._labelled and name not in WITHOUT_LABELS:
                        continue
                    before = each.get(name, torch.zeros_like(value, dtype=torch.float64))
                    each[name] = before + value
            return torch.zeros(())

        no_gradient(self._engine.module, batch, consume)
