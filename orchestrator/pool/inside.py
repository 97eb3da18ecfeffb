"""What a job's terms look at inside student and roles, found from the models themselves."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from orchestrator.data import TokenData, collation
from orchestrator.planner.layer_maps import LayerMaps, layer_maps
from orchestrator.signals.records import RoleDescription, SignalAsk
from orchestrator.spec import JobSpec

if TYPE_CHECKING:
    from orchestrator.models.load import Loaded


def inside_asks(
    job: JobSpec,
    data: TokenData,
    tokenizer: str | None,
    describe: Callable[[str], RoleDescription],
) -> Mapping[str, SignalAsk]:
    """What terms ask of roles beyond logits, by `Ask.key`: which layers, the student must say.

    It is loaded for it, on the CPU, where such terms are.

    Args:
        job: the job.
        data: as of `maps_of`.
        tokenizer: the job's.
        describe: a role, by name.

    Raises:
        SpecError: as of `maps_of`, or the student cannot be loaded.
    """
    if all(what in ("logits", "resident") for _, what in job.objective.asked):
        return {}
    from orchestrator.models.load import load_model

    student = load_model(job.student, tokenizer=tokenizer, seed=job.seed, field="student")
    return maps_of(job, data, student, describe).asks


def maps_of(
    job: JobSpec,
    data: TokenData,
    student: "Loaded",
    describe: Callable[[str], RoleDescription],
) -> LayerMaps:
    """Look into the student during one small forward, and pair its layers with those of roles.

    Args:
        job: the job.
        data: of which a classifier is shown two samples.
        student: before an engine wraps it.
        describe: a role, by name.

    Raises:
        SpecError: layers do not exist, or do not fit each other.
    """
    import torch

    from orchestrator.models.capture import inside, inside_classifier
    from orchestrator.models.forward import input_device

    if job.data.task == "causal_lm":
        return layer_maps(job, inside(student.module), describe)
    arrays = collation(job.data)(data.train, [(0,), (len(data.train) - 1,)]).inputs
    device = input_device(student.module)
    inputs = {name: torch.as_tensor(array).to(device) for name, array in arrays.items()}
    return layer_maps(job, inside_classifier(student.module, inputs), describe)
