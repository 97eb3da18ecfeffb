"""Which checks run for a job file, in what order, with what in memory. Starts no Ray.

One job after the other, one role after the other: the student stays, a role's engine is asked and
let go before the role is loaded again.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from orchestrator.data import TokenData, prepare
from orchestrator.errors import SpecError
from orchestrator.models.forward import input_device
from orchestrator.models.load import Loaded
from orchestrator.models.tokenizer import tokenizer_folder
from orchestrator.session import CACHE
from orchestrator.spec import JobSpec
from strategies.contract import Outputs

from . import agreement, alignment, encodings, vocabulary, zero
from .findings import Finding
from .losses import Moment, moments
from .specimen import specimen
from .subject import Subject
from .subjects import engine_of, local_outputs, role_of, served, settled, student_of

POSITIONS = 256
ELEMENTS = 1 << 24
"""Positions times vocabulary at most: 64 MiB for an encoding that carries all of it."""

Say = Callable[[str], None]


def examine(
    jobs: Sequence[JobSpec], say: Say, cache_folder: Path | None = None
) -> Iterator[Finding]:
    """Check the signals of every job that asks a role, on a sample of its own data.

    Args:
        jobs: the jobs of a file; their files and plans are taken as checked.
        say: hears what is being done.
        cache_folder: where prepared data are kept; None: where this user's jobs keep them.

    Raises:
        SpecError: a model is not there yet or is a classifier, or no job asks a role.
    """
    asking = [job for job in jobs if job.used_roles]
    if not asking:
        raise SpecError("objective.terms", "ask no role", "Only what roles say can be checked")
    for job in asking:
        _refuse_classifiers(job)
        _refuse_absent_models(job)
    for job in asking:
        yield from _job(settled(job), cache_folder or CACHE / "data", say)


def _refuse_classifiers(job: JobSpec) -> None:
    if job.data.task == "classifier":
        raise SpecError(
            f"{job.name}.student.task",
            "is classifier, and the checks are made of next-token targets",
            "Check jobs of causal models; a classifier's answers are compared in its evaluation",
        )


def _refuse_absent_models(job: JobSpec) -> None:
    named = [("student", job.student), *((f"roles.{r}", job.roles[r]) for r in job.used_roles)]
    for field, model in named:
        kind, value = model.source
        if kind in ("job", "registry"):
            raise SpecError(
                f"{job.name}.{field}.{kind}",
                f"is {value!r}, and signals are checked before any job runs and any server is "
                "asked",
                "Give its export as path",
            )


def _job(job: JobSpec, cache_folder: Path, say: Say) -> Iterator[Finding]:
    say(f"{job.name}: reading data")
    named = [("student", job.student), *((f"roles.{n}", role) for n, role in job.roles.items())]
    tokenizer, _ = tokenizer_folder(named)
    data = prepare(job.data, tokenizer, str(cache_folder))
    yield from alignment.check_data(job, data.train, tokenizer)
    say(f"{job.name}: loading student")
    student = student_of(job, tokenizer)
    when = moments(job, data.train)
    for number, role in enumerate(job.used_roles):
        yield from _role(job, role, tokenizer, data, student, when, say, first=number == 0)


def _role(
    job: JobSpec,
    role: str,
    tokenizer: str,
    data: TokenData,
    student: Loaded,
    when: Sequence[Moment],
    say: Say,
    *,
    first: bool,
) -> Iterator[Finding]:
    device = input_device(student.module)
    say(f"{job.name}: asking {role}")
    with engine_of(job, role) as engine:
        widest = max(student.vocabulary, engine.describe().vocabulary)
        found = specimen(job, data.train, max(1, min(POSITIONS, ELEMENTS // widest)))
        answer = served(engine, job, role, found.flat(), device)
        del engine
    gc.collect()  # the engine's model, before the role is loaded again
    batch = found.batch(device)
    ours: Outputs = local_outputs(student, batch, device)
    subject = Subject(
        job,
        role,
        found,
        batch.kept_targets,
        ours,
        answer,
        tuple(moment for moment in when if role in moment.term.spec.served_roles),
    )
    say(f"{job.name}: {role}, served against local")
    loaded = role_of(job, role)
    yield from agreement.check(subject, loaded)
    say(f"{job.name}: {role}, alignment")
    yield alignment.check_role(subject, loaded)
    if first:
        yield alignment.check_student(subject, student)
        yield alignment.check_planted_signal(job, found, ours, subject.targets)
    del loaded
    gc.collect()
    say(f"{job.name}: {role}, losses")
    yield from zero.check(subject)
    yield from encodings.check(subject)
    if first:
        for moment in when:
            if not moment.term.spec.served_roles:
                yield from encodings.check_labels(subject, moment)
    yield from vocabulary.check(subject, student.vocabulary, tokenizer)
