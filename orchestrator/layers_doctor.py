"""`stillhouse doctor --layers FILE`: the modules inside a job's models, with their sizes.

Loads each model once on the CPU and runs it on a few tokens or on two empty samples. Starts no Ray.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from orchestrator.data import inputs_of, reading_of
from orchestrator.errors import SpecError
from orchestrator.models.capture import Inside, inside, inside_classifier
from orchestrator.models.load import Loaded, load_model
from orchestrator.planner.tokenizers import job_tokenizer
from orchestrator.spec import JobSpec
from orchestrator.spec.models import ModelSpec, StudentSpec


@dataclass(frozen=True, slots=True)
class Modules:
    """Modules of a model that have one size; numbers in their paths are written `*`."""

    job: str
    model: str  # student, or a role
    pattern: str
    count: int
    size: str  # "width 48", or "16 x 8 x 8" of feature maps
    heads: int | None  # of those that tell their attention

    def to_dict(self) -> dict[str, object]:
        """Plain, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def look(jobs: Sequence[JobSpec]) -> Iterator[Modules]:
    """The modules of every student and role, in the order in which they run.

    Raises:
        SpecError: a model is not there yet, or its data do not say what it reads.
    """
    for index, job in enumerate(jobs):
        tokenizer = job_tokenizer(job, jobs[:index])
        models: dict[str, ModelSpec] = {"student": job.student, **job.roles}
        for name, spec in models.items():
            field = "student" if name == "student" else f"roles.{name}"
            sources = [spec]
            if isinstance(spec, StudentSpec):
                sources = list(spec.member_models().values())
            if any(one.source[0] in ("job", "registry") for one in sources):
                continue  # not there before the job has run; its own job shows an earlier student
            yield from _modules(job, name, _inside(job, spec, tokenizer, field))


def _inside(job: JobSpec, spec: ModelSpec, tokenizer: str | None, field: str) -> Inside:
    loaded = load_model(spec, tokenizer=tokenizer, seed=job.seed, field=field)
    return inside(loaded.module) if job.data.task == "causal_lm" else _of_classifier(job, loaded)


def _of_classifier(job: JobSpec, loaded: Loaded) -> Inside:
    reading = reading_of(job.data)
    assert reading is not None  # of a classifier's data
    if reading.probe is None:
        raise SpecError(
            "data.sources.*.format.shape",
            "is absent, so nobody knows how many numbers a sample has",
            "Give it, for numbers in a row as [n]",
        )
    arrays = inputs_of(reading, [reading.probe] * 2, len(reading.probe))
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return inside_classifier(loaded.module, inputs)


def _modules(job: JobSpec, model: str, found: Inside) -> Iterator[Modules]:
    counts: dict[tuple[str, str, int | None], int] = {}
    for path in dict.fromkeys((*found.layers, *found.attention)):
        pattern = ".".join("*" if part.isdigit() else part for part in path.split("."))
        shape = found.shapes.get(path)
        width = found.layers.get(path, 0)
        size = f"width {width}" if shape is None else " x ".join(map(str, shape))
        key = pattern, size, found.attention.get(path)
        counts[key] = counts.get(key, 0) + 1
    for (pattern, size, heads), count in counts.items():
        yield Modules(job.name, model, pattern, count, size, heads)
