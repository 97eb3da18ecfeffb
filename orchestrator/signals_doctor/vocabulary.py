"""Check: vocabularies of unequal, padded width. Imports torch.

Both heads are cut to the entries they share. Then 64 more rows on the role's side must change no
loss, for the student lacks them; and with 64 more on the student's side, which the role lacks, the
loss must be the oracle's, where an absent entry has probability 0.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from orchestrator.models.tokenizer import vocabulary_size
from strategies.contract import DenseSignal, Head, HiddenSignal, LogitSignal, Outputs

from . import oracle
from .findings import Finding
from .losses import loss_of
from .oracle import logits_in_chunks
from .subject import Subject

PADDING = 64


def check(subject: Subject, student_width: int, tokenizer: str) -> Iterator[Finding]:
    """Widths, mass beyond the tokenizer, and padding on either side."""
    name, role = subject.job.name, subject.role
    width, known = subject.served.description.vocabulary, vocabulary_size(tokenizer)
    yield Finding(
        name,
        "vocabulary",
        "ids of the tokenizer that a model lacks",
        role,
        float(max(0, known - min(width, student_width))),
        0.0,
        f"tokenizer {known}, {role} {width}, student {student_width}",
    )
    for limit, whose in ((known, "tokenizer"), (student_width, "student")):
        if width > limit:
            yield Finding(
                name,
                "vocabulary",
                f"mass on the {width - limit} entries beyond the {whose}'s",
                role,
                _mass_beyond(subject.served.outputs, limit),
                note="mean over positions",
            )
    yield from _padded(subject, min(width, student_width))


def _padded(subject: Subject, shared: int) -> Iterator[Finding]:
    student, role = (_cut(part, shared) for part in (subject.student, subject.served.outputs))
    rounding = subject.float32
    for moment in subject.moments:
        spec, numbers = moment.term.spec, moment.numbers
        finding = Finding(subject.job.name, "vocabulary", "", subject.role, 0.0)
        plain, _ = loss_of(moment, student, _signal(role), subject.targets)
        wide, _ = loss_of(moment, student, _signal(_widened(role)), subject.targets)
        yield replace(
            finding,
            what=f"{moment.title}, {PADDING} more entries of the role",
            measured=abs(wide - plain) / max(abs(plain), 1e-30),
            bound=rounding.value(moment.temperature, plain) / max(plain, 1e-30),
            note="relative change of the value",
        )
        wider = _widened(student)
        value, _ = loss_of(moment, wider, _signal(role), subject.targets)
        truth = oracle.dense(spec, numbers, wider, role)
        allowed = rounding.value(moment.temperature, truth.size)
        yield replace(
            finding,
            what=f"{moment.title}, {PADDING} more entries of the student",
            measured=abs(value - truth.value) / max(truth.size, 1e-30),
            bound=allowed / max(truth.size, 1e-30),
            note="relative, to an oracle without them in the role",
        )


def _mass_beyond(outputs: Outputs, limit: int) -> float:
    total, count = 0.0, 0
    for _, z in logits_in_chunks(outputs):
        total += float(z.softmax(1)[:, limit:].sum())
        count += len(z)
    return total / max(1, count)


def _signal(outputs: Outputs) -> LogitSignal:
    if outputs.hidden is not None and outputs.head is not None:
        return HiddenSignal(outputs.hidden, outputs.head)
    assert outputs.logits is not None
    return DenseSignal(outputs.logits)


def _cut(outputs: Outputs, width: int) -> Outputs:
    if outputs.hidden is None or outputs.head is None:
        assert outputs.logits is not None
        return Outputs(logits=outputs.logits[:, :width])
    head = outputs.head
    bias = None if head.bias is None else head.bias[:width]
    return Outputs(outputs.hidden, replace(head, weight=head.weight[:width], bias=bias))


def _widened(outputs: Outputs) -> Outputs:
    """With copies of the first entries at the end."""
    if outputs.hidden is None or outputs.head is None:
        assert outputs.logits is not None
        return Outputs(logits=torch.cat([outputs.logits, outputs.logits[:, :PADDING]], 1))
    head: Head = outputs.head
    bias = None if head.bias is None else torch.cat([head.bias, head.bias[:PADDING]])
    weight = torch.cat([head.weight, head.weight[:PADDING]])
    return Outputs(outputs.hidden, replace(head, weight=weight, bias=bias))
