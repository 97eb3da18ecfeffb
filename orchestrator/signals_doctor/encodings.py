"""Check: each encoding's loss and gradient on the job's student against float64. Imports torch.

The job's own encoding is held to what it defines: `topk` to the divergence over its K + 1 outcomes,
`sampled` to the estimate its draws stand for and, on average over seeds, to the whole distribution.
What that definition differs from the whole distribution, and what the other encodings would, is
told for information.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from orchestrator.signals.asks import ask_of
from orchestrator.signals.records import FullAsk, SampledAsk, SignalAsk, TopKAsk
from orchestrator.spec.models import (
    EncodingSpec,
    FullEncoding,
    HiddenEncoding,
    SampledEncoding,
    TopKEncoding,
)
from strategies.contract import SampledSignal, TopKSignal
from strategies.specs import CrossEntropySpec

from . import expectation, oracle
from .bounds import (
    ALLOWED,
    BF16_GRADIENT_SHARE,
    GRADIENT_SHARE,
    STANDARD_ERRORS,
    UNIT,
    wire_value,
)
from .findings import Finding
from .losses import Moment, loss_of
from .oracle import Truth
from .subject import Subject, peak
from .subjects import encoded

KEPT = 64
"""k of `topk` where the job has another encoding."""


def check(subject: Subject) -> Iterator[Finding]:
    """Value and gradient of each term, moment and encoding; relative errors."""
    served, everywhere = subject.served, range(len(subject.specimen.places))
    for moment in subject.moments:
        spec, numbers = moment.term.spec, moment.numbers
        whole = oracle.dense(spec, numbers, subject.student, served.outputs)
        mine = loss_of(moment, subject.student, served.own, subject.targets)
        truth = whole
        if isinstance(served.own, SampledSignal):
            truth = oracle.drawn(subject.student, served.own)
        elif isinstance(served.own, TopKSignal):
            truth = oracle.coarse(spec, numbers, subject.student, served.outputs, served.own)
        title = f"{moment.title}, {_name(served.ask)}"
        bounds = _bounds(subject, moment, truth)
        yield from _compared(subject, title, mine, truth, bounds)
        if truth is not whole:
            yield from _compared(subject, f"{title} to all {served.own.vocabulary}", mine, whole)  # type: ignore[union-attr]
        if isinstance(served.ask, SampledAsk):
            yield from _on_average(subject, moment, served.ask)
        for ask in _others(subject, moment):
            signal = encoded(ask, served, served.outputs, subject.specimen, everywhere)
            other = loss_of(moment, subject.student, signal, subject.targets)
            yield from _compared(subject, f"{moment.title}, {_name(ask)}", other, whole)
    if isinstance(served.own, TopKSignal):
        yield _kept_are_the_likeliest(subject, served.own)


def check_labels(subject: Subject, moment: Moment) -> Iterator[Finding]:
    """Cross entropy against the data's labels; it has no role."""
    assert isinstance(moment.term.spec, CrossEntropySpec)
    mine = loss_of(moment, subject.student, None, subject.targets)
    truth = oracle.labels(moment.term.spec, subject.student, subject.targets)
    allowed = subject.float32.value(1.0, truth.size)
    bounds = (allowed / max(truth.size, _TINY), _gradient_share(subject))
    for finding in _compared(subject, moment.title, mine, truth, bounds):
        yield replace(finding, role="data")


def _bounds(subject: Subject, moment: Moment, truth: Truth) -> tuple[float, float]:
    """Of the relative errors of value and gradient."""
    served, rounding = subject.served, subject.float32
    spec, numbers = moment.term.spec, moment.numbers
    value = rounding.value(moment.temperature, truth.size)
    pull = rounding.gradient * len(truth.gradient) ** 0.5
    if not isinstance(served.own, SampledSignal):  # whose truth is made of the same draws
        role, off = served.outputs, subject.jittered
        apart = oracle.defined(spec, numbers, role, off, served.own)
        value += wire_value(spec.kind, truth.value, apart.value)
        moved = oracle.defined(spec, numbers, subject.student, off, served.own)
        pull += ALLOWED * float((moved.gradient - truth.gradient).norm())
    return (
        value / max(truth.size, _TINY),
        _gradient_share(subject) + pull / max(float(truth.gradient.norm()), _TINY),
    )


_TINY = 1e-30


def _gradient_share(subject: Subject) -> float:
    half = subject.job.training.precision == "bf16"
    return GRADIENT_SHARE + (BF16_GRADIENT_SHARE if half else 0.0)


def _compared(
    subject: Subject,
    title: str,
    mine: tuple[float, Tensor],
    truth: Truth,
    bounds: tuple[float, float] | None = None,
) -> Iterator[Finding]:
    value, gradient = mine
    off = abs(value - truth.value) / max(abs(truth.size), _TINY)
    pull = float((gradient - truth.gradient).norm()) / max(float(truth.gradient.norm()), _TINY)
    for index, (what, measured) in enumerate((("value", off), ("gradient", pull))):
        bound = None if bounds is None else bounds[index]
        yield Finding(
            subject.job.name,
            "oracle",
            f"{title}, {what}",
            subject.role,
            measured,
            bound,
            "relative",
        )


def _on_average(subject: Subject, moment: Moment, ask: SampledAsk) -> Iterator[Finding]:
    at = expectation.some_positions(subject)
    student = expectation.part_of(subject.student, at)
    role = expectation.part_of(subject.served.outputs, at)
    truth = oracle.dense(moment.term.spec, moment.numbers, student, role)
    off = expectation.deviation(subject, moment, ask, student, at, truth)
    for what, measured in zip(("value", "gradient"), off, strict=True):
        yield Finding(
            subject.job.name,
            "oracle",
            f"{moment.title}, {_name(ask)} on average, {what}",
            subject.role,
            measured,
            STANDARD_ERRORS,
            f"standard errors over {expectation.SEEDS} seeds",
        )


def _others(subject: Subject, moment: Moment) -> Iterator[SignalAsk]:
    """The encodings that the job does not use and the term could."""
    vocabulary = subject.served.description.vocabulary
    ladder = sorted({1.0, moment.temperature})
    specs: list[EncodingSpec] = [
        FullEncoding(kind="full"),
        HiddenEncoding(kind="hidden", dtype="bfloat16"),
        TopKEncoding(kind="topk", k=min(KEPT, max(1, vocabulary // 2)), temperatures=ladder),
        SampledEncoding(kind="sampled"),
    ]
    for spec in specs:
        usable = spec.kind in moment.term.spec.encodings and (
            spec.kind != "sampled" or moment.temperature == 1.0
        )
        headless = spec.kind == "hidden" and subject.served.head is None
        if usable and not headless and spec.kind != subject.served.ask.kind:
            yield ask_of(spec)


def _kept_are_the_likeliest(subject: Subject, signal: TopKSignal) -> Finding:
    """By how much an entry that was left out beats one that was kept, in float64."""
    worst, ids = 0.0, signal.ids.cpu()
    own = 0.0 if subject.role_dtype == "float32" else 2 * UNIT[subject.role_dtype]
    for rows, z in oracle.logits_in_chunks(subject.served.outputs):
        least = z.gather(1, ids[rows]).amin(1)
        most = z.scatter(1, ids[rows], -torch.inf).amax(1)
        worst = max(worst, float((most - least).max()))
    return Finding(
        subject.job.name,
        "oracle",
        "entries left out above entries kept",
        subject.role,
        worst,
        2 * subject.float32.logarithm + 2 * own * peak(subject.served.outputs),
        "nats",
    )


def _name(ask: SignalAsk) -> str:
    match ask:
        case TopKAsk():
            return f"topk {ask.k} {ask.dtype}"
        case SampledAsk():
            return f"sampled {ask.draws}"
        case FullAsk():
            return f"full {ask.dtype}"
        case _:
            return f"{ask.kind} {ask.dtype}"
