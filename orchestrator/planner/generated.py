"""Can a role write texts as long as a source asks for? Reads configs only."""

from collections.abc import Sequence

from orchestrator.errors import SpecError
from orchestrator.models.positions import positions_of
from orchestrator.spec import JobSpec
from orchestrator.spec.data import GeneratedSource
from orchestrator.spec.models import ModelSpec


def check_lengths(job: JobSpec, earlier: Sequence[JobSpec], prefix: str) -> None:
    """Refuse texts beyond the positions of the role that is to write them.

    Args:
        job: the job.
        earlier: the jobs before it in its file.
        prefix: what precedes a field of this job in messages.

    Raises:
        SpecError: names the source, both numbers and the remedy.
    """
    for index, source in enumerate(job.data.sources):
        if not isinstance(source, GeneratedSource):
            continue
        positions = _positions(job.roles[source.role], earlier)
        if positions is not None and source.length >= positions:
            raise SpecError(
                f"{prefix}data.sources.{index}.length",
                f"is {source.length}, and role {source.role} reads {positions} positions, of which "
                "the prompt takes one at least",
                f"Set it to {positions - 1} or less",
            )


def _positions(model: ModelSpec, earlier: Sequence[JobSpec]) -> int | None:
    kind, value = model.source
    if kind != "job":
        return positions_of(model)
    for index, job in enumerate(earlier):
        if job.name == value:
            return _positions(job.student, earlier[:index])
    return None
