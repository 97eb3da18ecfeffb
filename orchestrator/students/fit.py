"""Do a classifier's data, student and roles fit one another?

What a job file does not show is known here: labels once the data are read, classes and arguments
once models are loaded. Every rank finds the same, before an engine wraps the student.
"""

import torch

from orchestrator.data import TokenData, collation, reading_of
from orchestrator.errors import SpecError
from orchestrator.models.build import MODEL_ERRORS
from orchestrator.models.capture import differentiable
from orchestrator.models.forward import classify_all, evaluating, input_device
from orchestrator.models.load import Loaded
from orchestrator.models.ranking import LightGCN
from orchestrator.signals.layouts import check_differentiable
from orchestrator.spec import JobSpec
from orchestrator.spec.diagnostics import LogitDistanceSpec
from strategies.specs import AscendSpec, MovedSpec, StratifiedPairsSpec

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
    if spec.data.ranks_items:
        _check_items(spec, data, loaded)
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
    _check_moves(spec, data, loaded, questions)


def _check_moves(spec: JobSpec, data: TokenData, loaded: Loaded, questions: Questions) -> None:
    """What samples are moved by can be differentiated."""
    movers: dict[str, str | None] = {}  # by field, the role
    by_student = spec.data.reads_text  # whose embeddings are the place
    between = spec.objective.between_epochs
    if isinstance(between, MovedSpec):
        movers["objective.between_epochs"] = between.role
        by_student |= isinstance(between, AscendSpec)
    for index, diagnostic in enumerate(spec.evaluation.diagnostics):
        if isinstance(diagnostic, LogitDistanceSpec):
            movers[f"evaluation.diagnostics.{index}"] = diagnostic.role or spec.compared_role
            by_student = True
    for role in movers.values():
        check_differentiable(questions.source.describe(role or ""))
    if not movers or not by_student:
        return
    field = next(iter(movers))
    batch = to_device(collation(spec.data)(data.train, [(0,)]), input_device(loaded.module))
    if not differentiable(loaded.module, batch.inputs):
        raise SpecError(
            "student",
            f"has no gradient by its input that torch can tell, and {field} moves samples along it",
            "Use a model of torch's own operations, whose get_input_embeddings embeds its texts; "
            "for features kind boundary asks the role alone",
        )


def _check_items(spec: JobSpec, data: TokenData, loaded: Loaded) -> None:
    """The student scores the data's items and no others, and they are enough for the strata."""
    if loaded.vocabulary != data.classes:
        raise SpecError(
            "student",
            f"scores {loaded.vocabulary} items, and the data have {data.classes}",
            f"Give it {data.classes}",
        )
    edges = torch.from_numpy(data.edges)
    for one in (*loaded.members.values(), loaded):
        graph = one.module
        if not isinstance(graph, LightGCN) or torch.equal(graph.edges.cpu(), edges):
            continue
        raise SpecError(
            "student.arguments",
            f"make a graph of {graph.edges.shape[1]} interactions, and the data train on "
            f"{edges.shape[1]}, which are not the same",
            "Give it path, format and held_out of the data",
        )
    for index, term in enumerate(spec.objective.terms):
        if isinstance(term, StratifiedPairsSpec) and term.strata > data.classes:
            raise SpecError(
                f"objective.terms.{index}.strata",
                f"is {term.strata}, and the data have {data.classes} items, of which each stratum "
                "needs one",
                f"Set it to {data.classes} or less",
            )


def _check_runs(spec: JobSpec, data: TokenData, loaded: Loaded) -> None:
    """The student gives logits of its classes for two samples of the data in one forward."""
    rows = [(0,), (len(data.train) - 1,)]
    batch = to_device(collation(spec.data)(data.train, rows), input_device(loaded.module))
    given = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in batch.inputs.items())
    try:
        with torch.no_grad(), evaluating(loaded.module):
            logits, named = classify_all(loaded.module, batch.inputs)
    except MODEL_ERRORS as error:
        raise SpecError(
            "student",
            f"does not run on two samples of the data, {given} ({error})",
            "Give it what it takes: shape and input of data.sources.*.format, data.context, or "
            "another model",
        ) from error
    if logits.shape[1] != loaded.vocabulary:
        raise SpecError(
            "student",
            f"says that it has {loaded.vocabulary} classes, and gives {logits.shape[1]} logits a "
            "sample",
            "Correct num_labels, or the model",
        )
    wanted = spec.student.outputs
    if wanted and set(wanted) != set(named):
        raise SpecError(
            "student.outputs",
            f"are {', '.join(wanted)}, and {type(loaded.module).__name__} gives "
            f"{', '.join(named) or 'one, without a name'}",
            "Name those that it gives, or use a module that returns NamedLogits",
        )
    if spec.student.alone is not None and loaded.made is None:
        raise SpecError(
            "student.export",
            f"is {spec.student.alone}, and {type(loaded.module).__name__} came by no import path, "
            "which alone could make it without the others",
            "Remove it, so that the module is exported whole",
        )
