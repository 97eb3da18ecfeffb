"""Do a classifier's data, student and roles fit one another?

What a job file does not show is known here: labels once the data are read, classes and arguments
once models are loaded. Every rank finds the same, before an engine wraps the student.
"""

import torch

from orchestrator.data import TokenData, collation, reading_of
from orchestrator.errors import SpecError
from orchestrator.models.build import MODEL_ERRORS
from orchestrator.models.forward import classify, evaluating, input_device
from orchestrator.models.load import Loaded
from orchestrator.spec import JobSpec

from .batches import to_device
from .questions import Questions


def check_classifier(
    spec: JobSpec, data: TokenData, loaded: Loaded, questions: Questions | None
) -> None:
    """Refuse labels beyond the student's classes, a student that does not run on the data, and
    roles of other classes or inputs. Nothing is checked of causal models.

    Raises:
        SpecError: names what does not fit.
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
    _check_runs(spec, data, loaded)
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


def _check_runs(spec: JobSpec, data: TokenData, loaded: Loaded) -> None:
    """The student gives logits of its classes for two samples of the data in one forward."""
    rows = [(0,), (len(data.train) - 1,)]
    batch = to_device(collation(spec.data)(data.train, rows), input_device(loaded.module))
    given = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in batch.inputs.items())
    try:
        with torch.no_grad(), evaluating(loaded.module):
            classes = classify(loaded.module, batch.inputs).shape[1]
    except MODEL_ERRORS as error:
        raise SpecError(
            "student",
            f"does not run on two samples of the data, {given} ({error})",
            "Give it what it takes: shape and input of data.sources.*.format, data.context, or "
            "another model",
        ) from error
    if classes != loaded.vocabulary:
        raise SpecError(
            "student",
            f"says that it has {loaded.vocabulary} classes, and gives {classes} logits a sample",
            "Correct num_labels, or the model",
        )
