"""Every error that leaves Stillhouse.

    StillhouseError
    ├── SpecError            impossible as asked: never retried, says the remedy (exit code 2)
    ├── WorkerError          one call got no answer: carries role and request id
    │   ├── WorkerLost       process or node is gone: retried elsewhere within the budget
    │   ├── WorkerStalled    deadline passed: treated as lost
    │   ├── WorkerBusy       refused for now: try again after `retry_after_s`
    │   └── WorkerRaised     code in the worker raised: the same everywhere, small budget
    ├── CacheBusy            another process writes to the cache's directory
    ├── CheckpointError      missing, torn or foreign: never papered over by starting at zero
    ├── CacheLacks           nobody computes, and a record is not (or no longer) in the cache
    ├── CountsDiffer         a sample was lost or counted twice: nothing goes on
    ├── NonFiniteLoss        the loss is not a number: every rank stopped before the optimiser moved
    ├── BudgetExhausted      the retries ran out: terminal, carries the last cause
    └── Interrupted          stopped on request, with a checkpoint (exit code 130)

Each class passes all its arguments to `Exception.__init__`, so it survives pickling.
"""


class StillhouseError(Exception):
    """Root of the tree. `str()` is a message for the user."""


class SpecError(StillhouseError):
    """The job cannot run as written.

    Args:
        field: dotted path of the field, or the file, that is wrong.
        problem: what is wrong, with the value and the limit.
        remedy: what to do about it.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(field, problem, remedy)
        self.field, self.problem, self.remedy = field, problem, remedy

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}. {self.remedy}"


class WorkerError(StillhouseError):
    """One call to a worker got no usable answer."""

    def __init__(self, role: str, request_id: str, detail: str = "") -> None:
        super().__init__(role, request_id, detail)
        self.role, self.request_id, self.detail = role, request_id, detail

    def __str__(self) -> str:
        return f"{type(self).__name__}: {self.role}, request {self.request_id}: {self.detail}"


class WorkerLost(WorkerError):
    """The process or its node is gone."""


class WorkerStalled(WorkerError):
    """No answer before the deadline."""


class WorkerBusy(WorkerError):
    """The worker's queue is full for now."""

    def __init__(
        self, role: str, request_id: str, detail: str = "", retry_after_s: float = 0.1
    ) -> None:
        super().__init__(role, request_id, detail)
        self.args = (role, request_id, detail, retry_after_s)
        self.retry_after_s = retry_after_s


class WorkerRaised(WorkerError):
    """The worker's own code raised."""


class CacheBusy(StillhouseError):
    """Another process is the writer of a cache's directory.

    Args:
        path: the directory.
        holder: who writes, e.g. "pid 123 on host"; "unknown" in the moment it takes over.
    """

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(path, holder)
        self.path, self.holder = path, holder

    def __str__(self) -> str:
        return (
            f"the signal cache {self.path} has a writer already ({self.holder}). "
            "Wait until it ends, end it, or use another folder"
        )


class CheckpointError(StillhouseError):
    """A checkpoint is missing, torn, or belongs to something else."""


class CacheLacks(StillhouseError):
    """Without a pool, a record that is not in the cache. One rank may be alone in wanting it."""


class CountsDiffer(StillhouseError):
    """Samples asked, delivered and consumed in an epoch are not equal."""


class NonFiniteLoss(StillhouseError):
    """Some rank's loss is NaN or infinite; nothing was updated."""

    def __init__(self, step: int, detail: str) -> None:
        super().__init__(step, detail)
        self.step, self.detail = step, detail

    def __str__(self) -> str:
        return f"loss at step {self.step} is not finite: {self.detail}"


class BudgetExhausted(StillhouseError):
    """Retries ran out; the message carries the last cause."""


class Interrupted(StillhouseError):
    """The job was stopped on request after writing a checkpoint."""
