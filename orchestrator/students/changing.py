"""Data that change between epochs, whichever way: what the training loop sees of them."""

import json
from collections.abc import Callable
from typing import Any, Protocol

import torch

from orchestrator.data import SampleStore, TokenData
from orchestrator.data.membership import Membership
from orchestrator.errors import CheckpointError
from orchestrator.spec import JobSpec
from strategies.contract import Batch, Outputs
from strategies.specs import MovedSpec

from .condensing import Changing
from .engine import Engine
from .moves import mover_of
from .moving import Moving
from .questions import Questions


class ChangingData(Protocol):
    """The samples and the members of each epoch. Collective where it says so."""

    @property
    def membership(self) -> Membership:
        """Which samples each epoch holds, as far as that is decided."""
        ...

    @property
    def store(self) -> SampleStore:
        """The samples as they are now."""
        ...

    @property
    def watch(self) -> Callable[[Batch, Outputs], None] | None:
        """What is to be shown of every micro-batch; None: nothing."""
        ...

    def epoch_over(self, epochs: int, device: torch.device) -> bool:
        """Decide what the next epochs hold, if it is time; whether it was. Collective."""
        ...

    def state(self) -> dict[str, Any]:
        """Of this rank, as JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. Collective."""
        ...


def changing_data(
    job: JobSpec,
    data: TokenData,
    engine: Engine,
    questions: Questions | None,
    rank: int,
    world: int,
) -> ChangingData | None:
    """How a job's data change between epochs; None: they do not."""
    between = job.objective.between_epochs
    if between is None:
        return None
    if not isinstance(between, MovedSpec):
        served = questions is not None and questions.source.pool is not None
        blendable = job.data.has_features and served
        outside = [
            name
            for name, term in zip(job.objective.names, job.objective.terms, strict=True)
            if not term.weighs_samples
        ]
        unweighable = outside[0] if outside else None
        return Changing(between, data.train, blendable=blendable, unweighable=unweighable)
    assert questions is not None  # a term asks the role, as `ObjectiveSpec` demands
    return Moving(between, data.train, mover_of(job, engine, questions, data.train), rank, world)


def kept(changing: ChangingData | None, job: JobSpec) -> dict[str, Any] | None:
    """What a checkpoint of this rank knows of the data, as JSON; None: they do not change."""
    return None if changing is None else {"by": _by(job), "state": changing.state()}


def take_up(
    changing: ChangingData | None, job: JobSpec, known: dict[str, Any] | None, folder: str
) -> None:
    """Go on with data as a checkpoint knows them. Collective.

    Args:
        changing: of the job; None: its data stay as they are.
        job: the job.
        known: what `kept` said for the checkpoint.
        folder: where the checkpoint lies, for the error.

    Raises:
        CheckpointError: that run's data change in another way, so that a step would not mean the
            same samples.
    """
    theirs, ours = None if known is None else known["by"], _by(job)
    if theirs != ours:
        raise CheckpointError(
            f"{folder}: objective.between_epochs of that run is {json.dumps(theirs)}, and of this "
            f"job {json.dumps(ours)}; start from a run with the same, or from its export "
            "(student.path)"
        )
    if changing is not None and known is not None:
        changing.restore(known["state"])


def _by(job: JobSpec) -> dict[str, Any] | None:
    between = job.objective.between_epochs
    return None if between is None else between.model_dump(mode="json")
