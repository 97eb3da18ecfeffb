"""What a run tells whoever watches it: small frozen records, in the order things happen.

Promises: no tensor, no reference into a room; everything is picklable and cheap. Imports nothing
but the standard library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Used:
    """What a run has used so far, over all its workers and all that its checkpoint knows of."""

    tokens: int = 0  # of committed steps
    student_s: float = 0.0  # device-seconds of its training loop
    teacher_s: float = 0.0  # device-seconds that roles worked for its answers
    computed: int = 0  # records that the pool computed for it and the cache did not know


@dataclass(frozen=True, slots=True)
class JobStarted:
    """A job began, or goes on after a resume."""

    job: str
    run_id: str
    steps: int  # optimiser steps in all, those of an earlier attempt included
    used: Used = Used()  # before: by an earlier attempt, or by the run that it starts from


@dataclass(frozen=True, slots=True)
class Phase:
    """What the job does now, in a few words: "loading teacher", "evaluating"."""

    job: str
    text: str


@dataclass(frozen=True, slots=True)
class StepDone:
    """One optimiser step is done.

    `metrics` are those that tracking records: `loss/total` and `loss/<term>`, `schedule/<number>`,
    `throughput/tokens_per_s`, `student/wait_share` (0 to 1) and, with a pool, `pool/busy_share` (0
    to 1).
    """

    job: str
    step: int  # 1 after the first
    steps: int
    metrics: Mapping[str, float]
    used: Used = Used()


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A held-out measurement ended. `evaluation` has the shape of the result's `evaluation`."""

    job: str
    step: int
    evaluation: Mapping[str, Any]
    metrics: Mapping[str, float]  # the same numbers by metric name


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """A checkpoint was published: its manifest is in place."""

    job: str
    step: int
    path: str
    used: Used = Used()


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should know and that did not stop the job."""

    job: str
    text: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """How far the labelling of one role's answers is. The first one comes before the work."""

    job: str
    part: int  # of the labelling: one for each role and encoding
    role: str
    encoding: str
    samples: int  # asked about in all
    missing: int  # of them, not in the cache when the labelling began
    done: int  # of the missing
    tokens: int  # of the missing
    nbytes: int  # their signals will take
    seconds_left: float | None  # None: nothing is measured yet


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job is over. `summary` is this job's entry of `RunResult.to_dict()["jobs"]`."""

    job: str
    status: str  # "done", "paused", "failed" or "interrupted"
    summary: Mapping[str, Any] = field(default_factory=dict)


Event = JobStarted | Phase | StepDone | Evaluated | CheckpointWritten | Labelled | Warned | JobEnded
