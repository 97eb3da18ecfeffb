"""A student and a role whose own weights lie beside it, joined as a worker joins them, no Ray."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.models.load import Loaded, load_model
from orchestrator.models.resident import ResidentRole
from orchestrator.planner.layer_maps import LayerMaps, Projector
from orchestrator.spec.models import ModelSpec
from orchestrator.students.inside import Inside
from orchestrator.students.module import StudentModule
from strategies.contract import IGNORED, Batch, Outputs, Signals
from strategies.objective import Objective, build_objective
from strategies.pairs import Pair
from strategies.progress import Progress
from strategies.specs import ObjectiveSpec


def numbers(rows: int = 6, inputs: int = 8, classes: int = 4, seed: int = 0) -> Batch:
    """Samples of numbers; the last bears no loss."""
    make = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (rows, 1), generator=make)
    targets[-1] = IGNORED
    given = {"features": torch.randn(rows, inputs, generator=make)}
    return Batch(given, targets, torch.arange(rows)[:, None])


def images(rows: int = 4, classes: int = 4, size: int = 8) -> Batch:
    """The same of images of two channels."""
    seen = numbers(rows, 2 * size * size, classes)
    return Batch(
        {"pixel_values": seen.inputs["features"].reshape(rows, 2, size, size)},
        seen.targets,
        seen.sample_index,
    )


def sentences(rows: int = 3, length: int = 7, classes: int = 3, words: int = 90) -> Batch:
    """Texts of unequal lengths with a class each, padded on the right."""
    make = torch.Generator().manual_seed(1)
    ids = torch.randint(1, words, (rows, length), generator=make)
    mask = (torch.arange(length) < torch.arange(length, length - rows, -1)[:, None]).long()
    targets = torch.randint(classes, (rows, 1), generator=make)
    return Batch({"input_ids": ids * mask, "attention_mask": mask}, targets, targets * 0)


def classifier(source: str, seed: int, dtype: str = "float32", **arguments: Any) -> Loaded:
    """A reference model, for training; of a role use it as it is."""
    named = f"orchestrator.models.reference:{source}"
    spec = ModelSpec.model_validate(
        {"import": named, "task": "classifier", "arguments": arguments, "dtype": dtype}
    )
    return load_model(spec, for_training=True, seed=seed)


def mlp(seed: int, dtype: str = "float32", **arguments: Any) -> Loaded:
    """A perceptron of 8 numbers and 4 classes."""
    named = {"inputs": 8, "classes": 4, "width": 6, "depth": 2, **arguments}
    return classifier("mlp", seed, dtype, **named)


class Linear(nn.Module):
    """Softmax-linear."""

    def __init__(self, inputs: int, classes: int, seed: int) -> None:
        super().__init__()
        make = torch.Generator().manual_seed(seed)
        self.head = nn.Linear(inputs, classes)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=make)

    def forward(self, features: Tensor) -> Tensor:
        """[R, inputs] -> [R, classes]."""
        return self.head(features)


def linear(seed: int, inputs: int = 8, classes: int = 4) -> Loaded:
    """A softmax-linear classifier."""
    module = Linear(inputs, classes, seed)
    return Loaded(module, "classifier", classes, inputs, "none", None, "sdpa")


def in_float64(loaded: Loaded) -> Loaded:
    """The same model, in place."""
    loaded.module.double()
    return loaded


def resident(loaded: Loaded) -> ResidentRole:
    """The role as a worker has it: frozen, in evaluation mode."""
    loaded.module.requires_grad_(False).eval()
    return ResidentRole(loaded)


def joined(
    student: Loaded,
    role: ResidentRole,
    *terms: dict[str, Any],
    pairs: Mapping[str, list[Pair]] | None = None,
    projectors: tuple[Projector, ...] = (),
) -> tuple[StudentModule, Objective]:
    """A student's module and an objective of terms, beside a role `teacher`."""
    found = {name: tuple(many) for name, many in (pairs or {}).items()}
    whole = tuple(dict.fromkeys(p.student for many in found.values() for p in many))
    maps = LayerMaps(found, whole=whole, projectors=projectors)
    inside = Inside(maps, seed=1, parameters=True)
    inside.to(next(student.module.parameters()).dtype)
    module = StudentModule(student.module, student.head(), None, inside)
    spec = ObjectiveSpec.model_validate({"terms": list(terms)})
    return module, build_objective(spec, found, residents={"teacher": role})


def loss_of(
    module: nn.Module,
    objective: Objective,
    batch: Batch,
    positions: float | None = None,
    at: Progress | None = None,
    signals: Signals | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a micro-batch, and each term's sum.

    Args:
        module: the student's.
        objective: of the job.
        batch: a micro-batch.
        positions: what sums are divided by; None: those of the batch.
        at: the step.
        signals: of roles that are served.
    """
    served = signals or {}
    plain = objective.numbers(at or Progress(0, 10), objective.start())
    counts = objective.counts(batch, served)
    scales = {
        name: plain[f"{name}.weight"] / (positions or max(float(count), 1.0))
        for name, count in counts.items()
    }
    sums: dict[str, float] = {}

    def consume(outputs: Outputs) -> Tensor:
        loss, totals = objective.loss(outputs, batch, served, plain, scales)
        sums.update({name: float(total) for name, total in totals.items()})
        return loss

    return module(batch, consume), sums


def gradients_of(loss: Tensor, student: Loaded) -> dict[str, Tensor]:
    """By the student's parameters; zeros where the loss does not reach one."""
    parameters = dict(student.module.named_parameters())
    found = torch.autograd.grad(loss, tuple(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, found, strict=True))
