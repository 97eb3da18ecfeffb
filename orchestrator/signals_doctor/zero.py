"""Check: a role that teaches itself has nothing to teach. Imports torch.

The role's own exact outputs are the student, its signal in the job's encoding the teacher. What is
left of each term's value and gradient is the rounding of the wire; for `topk` between rungs of its
ladder also what its definition leaves. In expectation for draws.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from orchestrator.signals.records import SampledAsk

from . import expectation, oracle
from .bounds import ALLOWED, STANDARD_ERRORS
from .findings import Finding
from .losses import Moment, loss_of
from .subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Two findings a term and moment: value, and gradient as a share of the head's longest row."""
    for moment in subject.moments:
        if isinstance(subject.served.ask, SampledAsk):
            yield from _on_average(subject, moment, subject.served.ask)
        else:
            yield from _exactly(subject, moment)


def _exactly(subject: Subject, moment: Moment) -> Iterator[Finding]:
    served, spec, numbers = subject.served, moment.term.spec, moment.numbers
    rounding = subject.float32_alone
    value, gradient = loss_of(moment, served.outputs, served.own, subject.targets)
    allowed = oracle.defined(spec, numbers, served.outputs, subject.jittered, served.own)
    finding = Finding(subject.job.name, "zero", "", subject.role, 0.0)
    yield replace(
        finding,
        what=f"{moment.title}, value",
        measured=value,
        bound=ALLOWED * allowed.value + rounding.value(moment.temperature, 0.0),
        note="nats a position",
    )
    yield replace(
        finding,
        what=f"{moment.title}, gradient",
        measured=_mean_norm(gradient) / rounding.longest_row,
        bound=(ALLOWED * _mean_norm(allowed.gradient) + rounding.gradient) / rounding.longest_row,
        note="of the head's longest row",
    )


def _mean_norm(gradient: Tensor) -> float:
    return float(gradient.norm(dim=1).mean())


def _on_average(subject: Subject, moment: Moment, ask: SampledAsk) -> Iterator[Finding]:
    at = expectation.some_positions(subject)
    itself = expectation.part_of(subject.served.outputs, at)
    truth = oracle.dense(moment.term.spec, moment.numbers, itself, itself)
    off = expectation.deviation(subject, moment, ask, itself, at, truth)
    for what, measured in zip(("value", "gradient"), off, strict=True):
        yield Finding(
            subject.job.name,
            "zero",
            f"{moment.title}, {what} on average",
            subject.role,
            measured,
            STANDARD_ERRORS,
            f"standard errors over {expectation.SEEDS} seeds",
        )
