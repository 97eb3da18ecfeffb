"""What every diagnostic works with on one rank, and the sums over ranks they share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from orchestrator.data import Row, SampleStore, TokenData, held_out_rows, share
from orchestrator.evaluation.diagnostics.positions import Compared, compared
from orchestrator.signals.records import SignalAsk
from orchestrator.spec import JobSpec
from strategies.contract import Outputs
from strategies.statistics import position_statistics

from ..asked import Answered, Asker
from ..collective import sum_over_ranks
from ..engine import Engine
from ..held_out import HeldOut
from ..module import no_gradient
from ..questions import Questions
from ..residents import Residents
from .writing import Prompt, prompts_of

Parts = Sequence[Sequence[Row]]
"""Rows of each micro-batch of a rank; every rank has as many."""


@dataclass(frozen=True, slots=True)
class Site:
    """One rank of a job: student, data, and the way to its roles."""

    engine: Engine
    data: TokenData
    job: JobSpec
    rank: int
    world: int
    asker: Asker
    held_out: HeldOut
    compared: str | None  # the role that evaluation compares with
    vocabulary: int  # of the student's head
    end: int | None  # the end token; None: there is none, or nothing is written
    residents: Residents = field(default_factory=dict)  # roles beside the student

    @property
    def questions(self) -> Questions:
        """The way to the roles, of a job that has some."""
        assert self.asker.questions is not None
        return self.asker.questions

    def role(self, named: str | None) -> str:
        """The role of a diagnostic."""
        role = named or self.compared
        assert role is not None  # `check_diagnostics` has seen to it
        return role

    def exactly(self, role: str) -> dict[str, SignalAsk]:
        """An ask that loses nothing, by role."""
        return {role: self.questions.exact_ask(role)}

    def training_parts(self, batches: int) -> Parts:
        """This rank's part of some micro-batches of training rows, the same at every step."""
        rows = training_rows(self.job, self.data, batches)
        return share(rows, self.rank, self.world, self.job.training.micro_batch)

    def prompts(self, count: int, tokens: int) -> list[list[Prompt]]:
        """This rank's held-out prompts by forward; every rank does as many forwards."""
        prompts = prompts_of(self.data.held_out, count, tokens)
        size = self.job.training.micro_batch
        forwards = -(-len(prompts) // (size * self.world))
        own = prompts[self.rank :: self.world]
        return [own[i * size : (i + 1) * size] for i in range(forwards)]

    def compare(self, role: str, work: str, look: Callable[[Compared], None]) -> None:
        """Show `look` this rank's held-out positions beside a role, chunk by chunk."""
        store, parts = self.held_out.store, self.held_out.parts
        for answered in self.asker.answered(store, parts, self.exactly(role), work):

            def consume(outputs: Outputs, at: Answered = answered) -> Tensor:
                for seen in compared(outputs, at.batch, at.logits(role)):
                    look(seen)
                return torch.zeros(())

            no_gradient(self.engine.module, answered.batch, consume)

    def log_likelihoods(
        self, store: SampleStore, parts: Parts, role: str | None, work: str
    ) -> dict[str, float]:
        """Sums over the loss-bearing positions of all ranks.

        Returns:
            `nll` (nats, the student's), `count`, and with a role `teacher_nll`.
        """
        names = ("nll", "count", *(() if role is None else ("teacher_nll",)))
        sums = dict.fromkeys(names, 0.0)
        asks = {} if role is None else self.exactly(role)
        for answered in self.asker.answered(store, parts, asks, work):

            def consume(outputs: Outputs, at: Answered = answered) -> Tensor:
                signal = None if role is None else at.logits(role)
                found = position_statistics(outputs, at.batch, signal)
                for name in names:
                    sums[name] += float(found[name])
                return torch.zeros(())

            no_gradient(self.engine.module, answered.batch, consume)
        return self.sum_numbers(sums)

    def sum_numbers(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each number summed over ranks."""
        return sum_over_ranks(values, self.engine.device)

    def sum_tensor(self, tensor: Tensor) -> None:
        """Sum a tensor over ranks, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)


def training_rows(job: JobSpec, data: TokenData, batches: int) -> list[Row]:
    """Training rows for some micro-batches: a fair sample, fewer where the data are few."""
    limit = batches * job.training.micro_batch
    return held_out_rows(data.train, job.data.row_tokens, limit, packing=job.data.packing)
