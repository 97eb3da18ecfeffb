"""Check: every row of a signal, a target and a loss is about the position it should be about.

Four proofs, none of which uses the code it checks. Targets and wanted positions are read off the
store token by token. A planted document of each format of the job has known words to learn, and
others not to. A planted signal says the token that follows, in the wire's order: the student's
divergence from it must be its cross entropy. And the rows of a role's answer, as well as the
student's own, are compared with forwards of the sample cut off at the position, which can match
one row only. Imports numpy and torch.

N positions of the specimen, n of them looked at.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from orchestrator.data import Flat, Order, Row, SampleStore, collate, end_to_end
from orchestrator.data.collate import NumpyBatch
from orchestrator.data.format import encode
from orchestrator.data.read import Content, Document
from orchestrator.data.tokenise import Sample
from orchestrator.data.tokenizer import TextTokenizer, load_tokenizer
from orchestrator.models.load import Loaded
from orchestrator.signals.records import FullAsk, HiddenAsk, TopKAsk
from orchestrator.spec import JobSpec
from orchestrator.spec.data import Format, Messages, PlainText
from strategies.contract import (
    IGNORED,
    DenseSignal,
    HiddenSignal,
    LogitSignal,
    Outputs,
    SampledSignal,
    TopKSignal,
)
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.schedules import value
from strategies.specs import CrossEntropySpec, ForwardKLSpec, ObjectiveSpec

from .bounds import SERVED_KL, SERVED_SHARE, UNIT, VALUE_SHARE
from .findings import Finding
from .losses import Moment, loss_of
from .specimen import Place, Specimen
from .subject import Subject
from .subjects import cut_forward, encoded

ROWS = 8
"""Rows of the job's first step whose targets are read."""
RUNS, RUN = 4, 4
"""Runs of neighbouring positions that are computed again, and their length."""
QUESTION, ANSWER = "where do the seven oaks stand", "behind the old mill"


# --- targets and masks ---------------------------------------------------------------------------


def check_data(job: JobSpec, train: SampleStore, tokenizer: str) -> Iterator[Finding]:
    """Targets of the job's first step, and a planted document of each format."""
    order = Order(train, job.data.context, job.training.global_batch, job.seed, job.data.packing)
    rows = order.rows(0)[:ROWS]
    batch, flat = collate(train, rows, job.data.context), end_to_end(train, rows)
    for what, off in (
        ("targets that are not the next token", _wrong_targets(train, rows, batch)),
        ("wanted positions that bear no loss", _wrong_wanted(train, rows, batch, flat)),
    ):
        yield Finding(job.name, "alignment", what, "data", float(len(off)), 0.0, _first(off))
    loaded = load_tokenizer(tokenizer)
    formats = {format.kind: format for format in job.data.formats}
    for kind, format in formats.items():
        off = _wrong_words(loaded, format, job.data.context)
        what = f"planted {kind}: what is learned is not what was planted"
        yield Finding(job.name, "alignment", what, "data", float(len(off)), 0.0, _first(off))


def _wrong_targets(store: SampleStore, rows: Sequence[Row], batch: NumpyBatch) -> list[str]:
    """Positions whose target is not the token after, or that bear loss where they should not."""
    off = []
    for r, row in enumerate(rows):
        column = 0
        for sample in row:
            tokens, mask = store.tokens(sample).tolist(), store.loss_mask(sample).tolist()
            for position, token in enumerate(tokens):
                last = position + 1 == len(tokens)
                learned = not last and mask[position + 1]
                wanted = tokens[position + 1] if learned else IGNORED
                found = int(batch.targets[r, column])
                if int(batch.inputs["input_ids"][r, column]) != token or found != wanted:
                    off.append(
                        f"sample {store.id(sample)!r}, position {position}: target {found}, "
                        f"not {wanted}"
                    )
                column += 1
        for rest in np.flatnonzero(batch.targets[r, column:] != IGNORED):
            off.append(f"row {r}, padding {column + int(rest)}: bears loss")
    return off


def _wrong_wanted(
    store: SampleStore, rows: Sequence[Row], batch: NumpyBatch, flat: Flat
) -> list[str]:
    """Signal rows whose next token is not the student's target of the same rank."""
    at = np.flatnonzero(flat.wanted)
    followed = flat.tokens[np.minimum(at + 1, len(flat.tokens) - 1)]
    targets = batch.targets[batch.targets != IGNORED]
    if len(followed) != len(targets):
        return [f"{len(followed)} positions are wanted, and {len(targets)} bear loss"]
    owners = np.repeat([sample for row in rows for sample in row], flat.lengths)
    starts = np.repeat(np.cumsum(flat.lengths) - flat.lengths, flat.lengths)
    return [
        f"sample {store.id(int(owners[at[n]]))!r}, position {at[n] - starts[at[n]]}: "
        f"followed by {followed[n]}, target {targets[n]}"
        for n in np.flatnonzero(followed != targets)
    ]


def _wrong_words(tokenizer: TextTokenizer, format: Format, context: int) -> list[str]:
    """What is wrong with what a planted document teaches, as text."""
    content: Content
    match format:
        case PlainText():
            content = f"{QUESTION} {ANSWER}"
        case Messages():
            content = [
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": ANSWER},
            ]
        case _:
            content = (f"{QUESTION}? ", ANSWER)
    [encoded] = encode(tokenizer, [Document("planted", content, 0)], format)
    store = SampleStore.of([Sample("planted", encoded.tokens, encoded.loss_mask)])
    targets = collate(store, [(0,)], max(context, len(encoded.tokens))).targets[0]
    learned = _text(tokenizer, targets[targets != IGNORED].tolist())
    whole = _text(tokenizer, encoded.tokens.tolist())
    question, answer = (
        _text(tokenizer, tokenizer.backend.encode(text, add_special_tokens=False).ids)
        for text in (QUESTION, ANSWER)
    )
    match format:
        case PlainText():
            right = learned == _text(tokenizer, encoded.tokens[1:].tolist())
        case Messages():
            right = answer in learned and (question not in learned or question in answer)
        case _:
            right = learned == answer
    return [] if right else [f"learned {learned!r} of {whole!r}"]


def _text(tokenizer: TextTokenizer, ids: list[int]) -> str:
    """Without special tokens and blanks, which decoders place as they like."""
    return "".join(tokenizer.backend.decode(ids, skip_special_tokens=True).split())


# --- rows of signals and of the student ----------------------------------------------------------


def check_planted_signal(
    job: JobSpec, specimen: Specimen, student: Outputs, targets: Tensor
) -> Finding:
    """A signal that names the token after each position: its divergence is the cross entropy."""
    follows = [
        int(specimen.store.tokens(place.sample)[place.position + 1]) for place in specimen.places
    ]
    ids = torch.tensor(follows, device=targets.device)[:, None]
    sure, nothing = torch.zeros(ids.shape), torch.full(ids.shape, -torch.inf)
    signal = TopKSignal(ids, sure.to(ids.device), nothing.to(ids.device), (1.0,), _width(student))
    kl, _ = loss_of(_moment(ForwardKLSpec(kind="forward_kl")), student, signal, targets)
    own, _ = loss_of(_moment(CrossEntropySpec(kind="cross_entropy")), student, None, targets)
    off = [
        _where(specimen, place)
        for place, follow, target in zip(specimen.places, follows, targets.tolist(), strict=True)
        if follow != target
    ]
    return Finding(
        job.name,
        "alignment",
        "planted signal: KL against cross entropy",
        "student",
        abs(kl - own) / max(abs(own), 1e-30),
        VALUE_SHARE,
        _first(off) or "relative",
    )


def check_role(subject: Subject, loaded: Loaded) -> Finding:
    """The rows of the role's own answer against forwards of samples cut off there."""
    signal, dtype = subject.served.own, subject.job.roles[subject.role].dtype
    match subject.served.ask:
        case HiddenAsk() | FullAsk() as ask:
            limit = SERVED_SHARE[dtype] + 4 * UNIT[ask.dtype]
        case TopKAsk() as ask:
            limit = _kept_error(signal, ask) + math.sqrt(2 * SERVED_KL[dtype])
        case _:
            limit = 0.5  # of the draws
    return _cut_off(
        subject,
        loaded,
        subject.role,
        f"{subject.served.ask.kind} rows of another position",
        lambda row, other, here: _distance(subject, row, other, here),
        limit,
        logits=not isinstance(signal, HiddenSignal),
    )


def check_student(subject: Subject, loaded: Loaded) -> Finding:
    """The student's packed rows against forwards of samples cut off there."""
    half = subject.job.training.precision == "bf16"
    rows = subject.student.hidden
    rows = subject.student.logits if rows is None else rows
    assert rows is not None
    return _cut_off(
        subject,
        loaded,
        "student",
        "packed rows of another position",
        lambda row, _, here: _share(rows[row], here),
        SERVED_SHARE["bfloat16" if half else "float32"],
        logits=subject.student.hidden is None,
    )


def _cut_off(
    subject: Subject,
    loaded: Loaded,
    who: str,
    what: str,
    distance: Callable[[int, int, Tensor], float],
    limit: float,
    *,
    logits: bool,
) -> Finding:
    """How many rows are another position's: far from their own, and nearer to another.

    A row that fits several positions proves nothing; if most are such, they count as off. A row
    that is far but nearest to its own is for the other checks.
    """
    specimen = subject.specimen
    looked_at = _looked_at(len(specimen.places))
    here = [
        cut_forward(
            loaded,
            specimen.store.tokens(specimen.places[n].sample)[: specimen.places[n].position + 1],
            logits=logits,
        )
        for n in looked_at
    ]
    off, alike = [], 0
    for i, n in enumerate(looked_at):
        distances = [distance(n, j, other) for j, other in zip(looked_at, here, strict=True)]
        nearest = int(np.argmin(distances))
        alike += sum(d <= limit for d in distances) > 1
        if not distances[i] <= limit + distances[nearest]:  # samples may begin alike
            off.append(
                f"{_where(specimen, specimen.places[n])} (row {n}): {distances[i]:.3g} off, "
                f"nearest to {_where(specimen, specimen.places[looked_at[nearest]])}"
            )
    measured, note = float(len(off)), _first(off)
    if not off and 2 * alike > len(looked_at):
        measured = float(alike)
        note = "fit several positions, which are alike to the model: proves nothing"
    note = note or f"{len(looked_at) - alike} of {len(looked_at)} fit one position alone"
    return Finding(subject.job.name, "alignment", what, who, measured, 0.0, note)


def _looked_at(count: int) -> list[int]:
    """[n] indices: runs of neighbours, the first and the last among them."""
    starts = np.linspace(0, max(0, count - RUN), RUNS).round().astype(int).tolist()
    return sorted({n for start in starts for n in range(start, min(start + RUN, count))})


def _distance(subject: Subject, row: int, other: int, here: Tensor) -> float:
    """Between a signal's row and what was computed at another: a share, nats, or draws.

    Args:
        subject: whose signal.
        row: of the signal.
        other: the index of the position computed.
        here: its hidden state or logits.
    """
    signal = subject.served.own
    match signal:
        case HiddenSignal():
            return _share(signal.hidden[row], here)
        case DenseSignal():
            return _share(signal.logits[row], here)
        case TopKSignal():
            log_p = here.double().log_softmax(0)
            kept = signal.logprobs[row].cpu().double()
            off = kept - log_p[signal.ids[row].cpu()]
            return float(((kept.exp() * off**2).sum() / kept.exp().sum()).sqrt())
        case SampledSignal():
            outputs = Outputs(logits=here[None])
            anew = encoded(subject.served.ask, subject.served, outputs, subject.specimen, [other])
            assert isinstance(anew, SampledSignal)
            drawn, expected = Counter(signal.ids[row].tolist()), Counter(anew.ids[0].tolist())
            return 1 - (drawn & expected).total() / drawn.total()


def _kept_error(signal: LogitSignal, ask: TopKAsk) -> float:
    """Largest error of a kept log-probability by the wire."""
    assert isinstance(signal, TopKSignal)
    likely, unlikely = signal.logprobs.amax(1), signal.logprobs.amin(1)
    return UNIT[ask.dtype] * float((likely - unlikely if ask.dtype == "int8" else -unlikely).max())


def _share(row: Tensor, here: Tensor) -> float:
    """Largest difference as a share of the largest entry."""
    return float((row.float().cpu() - here).abs().max() / here.abs().max().clamp_min(1e-30))


def _width(student: Outputs) -> int:
    if student.head is not None:
        return student.head.weight.shape[0]
    assert student.logits is not None
    return student.logits.shape[1]


def _moment(spec: ForwardKLSpec | CrossEntropySpec) -> Moment:
    [term] = build_objective(ObjectiveSpec(terms=[spec])).vocabulary
    return Moment(term, "", {name: value(n, Progress(0, 1)) for name, n in term.numbers().items()})


def _where(specimen: Specimen, place: Place) -> str:
    return f"sample {specimen.store.id(place.sample)!r} position {place.position}"


def _first(off: Sequence[str]) -> str:
    return f"first: {off[0]}" if off else ""
