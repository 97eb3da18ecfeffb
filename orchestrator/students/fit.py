"""Do a classifier's data, student and roles speak of the same classes?

What a job file does not show is known here: labels once the data are read, classes once models are
loaded. Every rank finds the same.
"""

from orchestrator.data import TokenData, reading_of
from orchestrator.errors import SpecError
from orchestrator.models.load import Loaded
from orchestrator.spec import JobSpec

from .questions import Questions


def check_classes(
    spec: JobSpec, data: TokenData, loaded: Loaded, questions: Questions | None
) -> None:
    """Refuse labels beyond the student's classes, and roles of other classes or inputs.

    Raises:
        SpecError: names what differs.
    """
    reading = reading_of(spec.data)
    if reading is None:
        return
    if data.classes > loaded.vocabulary:
        raise SpecError(
            "student",
            f"has {loaded.vocabulary} classes, and the data have {data.classes}",
            "Give the student as many (num_labels of an architecture), or correct the labels",
        )
    if questions is None:
        return
    for role in spec.used_roles:
        found = questions.source.describe(role)
        if found.vocabulary != loaded.vocabulary:
            raise SpecError(
                f"roles.{role}",
                f"has {found.vocabulary} classes, and the student {loaded.vocabulary}",
                "Use models of the same classes",
            )
        if found.reads != reading.label:
            raise SpecError(
                f"roles.{role}",
                f"reads samples as {found.reads}, and the data's format makes them {reading.label}",
                "Start the pool with a job of this format, or give the job a pool of its own",
            )
