"""What the driver tells the workers. Small and picklable; no tensor, no handle but the pool's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.data import Crossing
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from orchestrator.pool import PoolHandle
    from orchestrator.pool.cache_records import CacheHandle


PROJECTORS = "projectors.safetensors"
"""In a run folder, beside the export: of use to a stage that goes on, and to nobody else."""


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """The worker group that a list of jobs shares: one size for its life."""

    workers: int
    cpus: float
    gpus: float
    custom: dict[str, float]
    max_failures: int
    storage: str  # where Ray Train keeps its own small state

    @classmethod
    def of(cls, job: JobSpec, storage: str) -> "GroupPlan":
        """The group a job needs; equal plans can share one group."""
        training = job.training
        return cls(
            training.workers,
            training.resources.cpus,
            training.resources.gpus,
            dict(training.resources.custom),
            training.max_failures,
            storage,
        )


@dataclass(frozen=True, slots=True)
class StudentJob:
    """One job as a worker needs it: paths absolute, `registry` and `job` sources made paths."""

    spec: JobSpec
    run_id: str
    run_folder: str  # folder or fsspec URI
    tokenizer: str | None  # folder or hub id; None: the data are no text
    cache_folder: str  # node-local folder for prepared data
    pool: "PoolHandle | None" = None  # None: nobody computes signals
    cache: "CacheHandle | None" = None  # None: signals are not kept
    fingerprints: dict[str, str] = field(default_factory=dict)  # role -> fingerprint expected
    resume: bool = False  # True: a checkpoint must exist; False: start fresh unless restarted
    crossings: Mapping[str, Crossing] = field(default_factory=dict)  # roles, another tokenizer
    evaluate_only: bool = False  # measure the student as it is, and stop
    pause_at: int | None = None  # steps after which to end, with a checkpoint; None: the job's end
    projectors: str | None = None  # URI of those of the stage before; None: there is none
