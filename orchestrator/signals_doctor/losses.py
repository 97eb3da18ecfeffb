"""The losses under test, called as a training step calls them. Imports torch.

N positions, d width of the student's hidden state, V its vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.data import Order, SampleStore
from orchestrator.spec import JobSpec
from strategies.contract import Batch, Head, LogitSignal, Outputs
from strategies.objective import Objective, VocabularyTerm, build_objective
from strategies.progress import Progress
from strategies.schedules import value
from strategies.specs import AdaptiveSchedule, Number, extremes


@dataclass(frozen=True, slots=True)
class Moment:
    """A term with its numbers at one step."""

    term: VocabularyTerm
    when: str  # `start`, `end`, or empty where they are the same
    numbers: dict[str, float]

    @property
    def title(self) -> str:
        """For the table: name, moment, temperature."""
        temperature = self.numbers.get("temperature", 1.0)
        softened = "" if temperature == 1.0 else f" T={temperature:g}"
        return f"{self.term.name}{softened}{f' ({self.when})' if self.when else ''}"

    @property
    def temperature(self) -> float:
        """1 for a term without one."""
        return self.numbers.get("temperature", 1.0)


def moments(job: JobSpec, train: SampleStore) -> list[Moment]:
    """Each term of the objective at its first step, and at its last if its numbers change."""
    found: list[Moment] = []
    first, last = _ends(job, train)
    for term in build_objective(job.objective).vocabulary:
        moving = term.numbers().items()
        start = {name: _at(number, first, 0) for name, number in moving}
        end = {name: _at(number, last, 1) for name, number in moving}
        for numbers in (start, end):
            del numbers["weight"]  # the loss is linear in it
        if start == end:
            found.append(Moment(term, "", start))
        else:
            found += [Moment(term, "start", start), Moment(term, "end", end)]
    return found


def _at(number: Number, at: Progress, side: int) -> float:
    """A number at a step; one that follows what is measured, at one of its extremes."""
    if isinstance(number, AdaptiveSchedule):
        return extremes(number)[side]
    return value(number, at)


def _ends(job: JobSpec, train: SampleStore) -> tuple[Progress, Progress]:
    """The first and the last optimiser step of a job."""
    training = job.training
    if training.steps is not None:
        steps = training.steps
        return Progress(0, steps), Progress(steps - 1, steps)
    order = Order(train, job.data.context, training.global_batch, job.seed, job.data.packing)
    epochs = training.epochs or 0
    steps = sum(order.steps_per_epoch(epoch) for epoch in range(epochs))
    return Progress(0, steps, 0, epochs), Progress(steps - 1, steps, epochs - 1, epochs)


def loss_of(
    moment: Moment, student: Outputs, signal: LogitSignal | None, targets: Tensor
) -> tuple[float, Tensor]:
    """A term's mean value, and the gradient of its sum by the student's hidden states or logits.

    Args:
        moment: the term and its numbers.
        student: N positions.
        signal: of the term's role; None for a term without one.
        targets: [N].

    Returns:
        Nats a position; [N, d] or [N, V] float64 on the CPU.
    """
    term, name = moment.term, moment.term.name
    source = student.logits if student.hidden is None else student.hidden
    assert source is not None
    leaf = source.detach().clone().requires_grad_()
    outputs = Outputs(logits=leaf) if student.hidden is None else Outputs(leaf, _fixed(student))
    roles = term.spec.served_roles
    loss, totals = Objective((term,)).loss(
        outputs,
        _bare(targets),
        {role: signal for role in roles if signal is not None},
        {f"{name}.{field}": number for field, number in moment.numbers.items()},
        {name: 1.0},
    )
    loss.backward()
    assert leaf.grad is not None
    return float(totals[name]) / max(1, len(targets)), leaf.grad.cpu().double()


def _fixed(student: Outputs) -> Head:
    """The head without gradients: those of the matrix would be as large as itself."""
    head = student.head
    assert head is not None
    bias = None if head.bias is None else head.bias.detach()
    return Head(head.weight.detach(), bias, head.scale, head.softcap)


def _bare(targets: Tensor) -> Batch:
    """A batch that knows its targets."""
    row = targets[None]
    return Batch({}, row, torch.zeros_like(row))
