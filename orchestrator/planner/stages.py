"""Do stages that go on with each other make a whole student? Pure."""

from collections.abc import Iterator, Sequence

from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec
from orchestrator.spec.models import ModelSpec
from strategies.specs import FeatureTermSpec, MeasureTerm

FRESH = ("architecture", "import")
"""Sources whose weights mean nothing yet."""

Stage = tuple[JobSpec, str | None]
"""A job, and which member of its student is looked at; None: the student is one."""


def check_head(jobs: Sequence[JobSpec], index: int, prefix: str) -> None:
    """Refuse a last stage before and in which nothing has trained a fresh student's head.

    Args:
        jobs: of one file.
        index: of the job looked at.
        prefix: what precedes a field of this job in messages.

    Raises:
        SpecError: names the stages.
    """
    job = jobs[index]
    for member in job.student.members or (None,):
        stages = list(_stages(jobs, index, member))
        if len(stages) == 1 and member is None:
            continue
        if _goes_on(jobs, index, member) or _model(stages[-1]).source[0] not in FRESH:
            continue
        if not any(_learns_logits(*stage) for stage in stages):
            names = ", ".join(stage.name for stage, _ in reversed(stages))
            whose = "the student" if member is None else f"member {member}"
            raise SpecError(
                f"{prefix}objective.terms",
                f"learn layers alone, as do all stages before ({names}), so the head of {whose} "
                "stays as it was drawn",
                "Add a term on labels or logits, or a last stage with one",
            )


def _stages(jobs: Sequence[JobSpec], index: int, member: str | None) -> Iterator[Stage]:
    """A job, the one whose student it goes on with, and so on."""
    stage = (jobs[index], member)
    yield stage
    for job in reversed(jobs[:index]):
        source = _model(stage)
        if source.job == job.name:
            stage = (job, source.member or (job.student.main if job.student.members else None))
            yield stage


def _goes_on(jobs: Sequence[JobSpec], index: int, member: str | None) -> bool:
    """Whether a later job trains what this one leaves."""
    job = jobs[index]
    later = (m for other in jobs[index + 1 :] for m in other.student.member_models().values())
    own = job.student.main if job.student.members else None
    return any(m.job == job.name and (m.member or own) == member for m in later)


def _model(stage: Stage) -> ModelSpec:
    job, member = stage
    return job.student.model_of(member)


def _learns_logits(job: JobSpec, member: str | None) -> bool:
    return any(
        not isinstance(term, FeatureTermSpec | MeasureTerm)
        for term in job.objective.terms
        if job.student.members is None or term.member == member
    )
