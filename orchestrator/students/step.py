"""One optimiser step over the global batch, whatever it was cut into.

Promises: every term's sum is divided by its count over all ranks and micro-batches, so the update
does not depend on the cut; a loss that is not finite stops every rank before the optimiser moves.
Knows nothing of Ray, of the pool or of files: what feeds it and what becomes of its result is the
caller's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from orchestrator.errors import NonFiniteLoss
from orchestrator.models.families import OwedLoss
from orchestrator.spec.job import TrainingSpec
from strategies.contract import Batch, Outputs
from strategies.objective import Known, Objective
from strategies.progress import Progress

from .collective import sum_over_ranks
from .engine import Engine, rate_at
from .feed import Micro

BALANCE = "router_balance"
Told = Callable[[], Mapping[str, float]]
"""Numbers of this rank that are to be summed over ranks, read just before the sum."""
Watch = Callable[[Batch, Outputs], None]


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step did, equal on every rank."""

    losses: dict[str, float]  # per term: sum over global count, not weighted
    numbers: dict[str, float]  # values of the objective's schedules
    learning_rate: float
    gradient_norm: float  # before clipping
    told: dict[str, float]  # sums over ranks of what they told
    balance: float | None = None  # of the routers: mean over micro-batches; None: dense
    owed: float = 0.0  # what the balance adds to the loss

    @property
    def loss(self) -> float:
        """What was minimised: the weighted sum of the terms, and what the model owes."""
        terms = (self.numbers[f"{term}.weight"] * loss for term, loss in self.losses.items())
        return sum(terms) + self.owed

    def metrics(self) -> dict[str, float]:
        """Under the names that tracking records."""
        return {
            "loss/total": self.loss,
            **{f"loss/{term}": loss for term, loss in self.losses.items()},
            **({} if self.balance is None else {"loss/router_balance": self.balance}),
            **{f"schedule/{name}": value for name, value in self.numbers.items()},
            "train/learning_rate": self.learning_rate,
            "train/gradient_norm": self.gradient_norm,
        }


class Stepper:
    """Steps an engine towards an objective. All calls are collective."""

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        training: TrainingSpec,
        owed: OwedLoss | None = None,
        watch: Watch | None = None,
    ) -> None:
        """`owed` is the student's.

        `watch` is shown the outputs of every micro-batch, without gradients.

        The balance of a mixture of experts is taken in each micro-batch and its mean is minimised,
        so that part of the loss, and no other, does depend on the cut.
        """
        self._owed, self._watch = owed, watch
        self._engine, self._objective = engine, objective
        self._training = training
        self.schedules = objective.start()
        """State of the objective's adaptive schedules: a checkpoint's part, equal on all ranks."""

    def step(self, at: Progress, micros: Sequence[Micro], tell: Told = dict) -> Stepped:
        """One update from this rank's micro-batches, of which every rank has equally many.

        `at` says which step it is; schedules and the learning rate end with the job.

        Raises:
            NonFiniteLoss: on every rank alike, if any rank's loss is not a number.
        """
        numbers = self._objective.numbers(at, self.schedules)
        known = [self._objective.known(micro.batch, micro.signals, micro.asked) for micro in micros]
        counts = self._global_counts(micros, known)
        scales = {
            term: numbers[f"{term}.weight"] * self._engine.gradient_factor / (count or 1.0)
            for term, count in counts.items()
        }
        totals: dict[str, float] = dict.fromkeys(counts, 0.0)
        if self._owed is not None:
            totals[BALANCE] = 0.0
        shared: dict[str, float] = {}

        def agree() -> None:
            shared.update(self._agree(at.step, totals, tell()))

        rate = rate_at(self._training, at)
        self._engine.set_learning_rate(rate)
        for index, micro in enumerate(micros):
            last = index == len(micros) - 1
            agreed = agree if last else None
            self._backward(micro, known[index], numbers, scales, totals, agreed)
        norm = self._engine.gradient_norm()
        if not math.isfinite(norm):
            raise NonFiniteLoss(
                at.step, f"gradient norm is {norm}; resume from the last checkpoint"
            )
        losses = {term: shared.pop(f"total/{term}") / (counts[term] or 1.0) for term in counts}
        means = {term: loss for term, loss in losses.items() if counts[term] > 0}
        self.schedules = self._objective.observe(self.schedules, means, at)
        if self._owed is None:
            return Stepped(losses, numbers, rate, norm, shared)
        balance = shared.pop(f"total/{BALANCE}") / self._engine.gradient_factor
        owed = self._owed.coefficient * balance
        return Stepped(losses, numbers, rate, norm, shared, balance, owed)

    def _backward(
        self,
        micro: Micro,
        known: Known,
        numbers: Mapping[str, float],
        scales: Mapping[str, float],
        totals: dict[str, float],
        before_step: Callable[[], None] | None,
    ) -> None:
        def consume(outputs: Outputs) -> Tensor:
            if self._watch is not None:
                self._watch(micro.batch, outputs)
            loss, sums = self._objective.loss(
                outputs, micro.batch, micro.signals, numbers, scales, micro.asked, known
            )
            for term, total in sums.items():
                totals[term] += float(total)
            return loss

        def owe(balance: Tensor) -> Tensor:
            assert self._owed is not None
            totals[BALANCE] += float(balance)
            return self._owed.coefficient * balance

        self._engine.backward(micro.batch, consume, before_step, owe if self._owed else None)

    def _global_counts(self, micros: Sequence[Micro], known: Sequence[Known]) -> dict[str, float]:
        """Per term, the count over all ranks and micro-batches of the step."""
        counts = {term.name: 0.0 for term in self._objective.terms}
        for micro, of_micro in zip(micros, known, strict=True):
            found = self._objective.counts(micro.batch, micro.signals, micro.asked, of_micro)
            for term, count in found.items():
                counts[term] += float(count)
        return sum_over_ranks(counts, self._engine.device)

    def _agree(
        self, step: int, totals: Mapping[str, float], told: Mapping[str, float]
    ) -> dict[str, float]:
        """Sum what ranks must share, and stop them all before the optimiser moves."""
        mine = {**{f"total/{term}": total for term, total in totals.items()}, **told}
        summed = sum_over_ranks(mine, self._engine.device)
        bad = {term: summed[f"total/{term}"] for term in totals}
        bad = {term: value for term, value in bad.items() if not math.isfinite(value)}
        if bad:
            detail = ", ".join(f"{term} = {value}" for term, value in bad.items())
            raise NonFiniteLoss(step, f"{detail}; the weights are those of the step before")
        return summed
