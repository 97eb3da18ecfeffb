"""Do stages that go on with each other make a whole student? Pure."""

from collections.abc import Sequence

from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec
from strategies.specs import FeatureTermSpec, MeasureTerm

FRESH = ("architecture", "import")
"""Sources whose weights mean nothing yet."""


def check_head(jobs: Sequence[JobSpec], index: int, prefix: str) -> None:
    """Refuse a last stage before and in which nothing has trained a fresh student's head.

    Args:
        jobs: of one file.
        index: of the job looked at.
        prefix: what precedes a field of this job in messages.

    Raises:
        SpecError: names the stages.
    """
    stages = _stages(jobs, index)
    goes_on = any(job.student.source == ("job", jobs[index].name) for job in jobs[index + 1 :])
    if len(stages) == 1 or goes_on or stages[-1].student.source[0] not in FRESH:
        return
    if not any(_learns_logits(job) for job in stages):
        names = ", ".join(job.name for job in reversed(stages))
        raise SpecError(
            f"{prefix}objective.terms",
            f"learn layers alone, as do all stages before ({names}), so the student's head stays "
            "as it was drawn",
            "Add a term on labels or logits, or a last stage with one",
        )


def _stages(jobs: Sequence[JobSpec], index: int) -> list[JobSpec]:
    """A job, the one whose student it goes on with, and so on."""
    found = [jobs[index]]
    for job in reversed(jobs[:index]):
        if found[-1].student.source == ("job", job.name):
            found.append(job)
    return found


def _learns_logits(job: JobSpec) -> bool:
    return any(not isinstance(t, FeatureTermSpec | MeasureTerm) for t in job.objective.terms)
