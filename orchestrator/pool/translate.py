"""Ray's errors become ours here, and nowhere else in the pool. Ray room."""

from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayError, RayTaskError

from orchestrator.errors import StillhouseError, WorkerLost, WorkerRaised, WorkerStalled


def translated(error: BaseException, role: str, request_id: str) -> StillhouseError:
    """Our error for what a call to an actor raised.

    Death comes first, then the task's own error, then the deadline: Ray raises a task's error as a
    class that is also the user's class, so a worker's own TimeoutError must not pass for ours.

    Raises:
        BaseException: the error itself, if it is not one of Ray's.
    """
    if isinstance(error, RayActorError):
        return WorkerLost(role, request_id, _short(error))
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, StillhouseError):
            return cause
        return WorkerRaised(role, request_id, f"{type(cause).__name__}: {cause}")
    if isinstance(error, GetTimeoutError):
        return WorkerStalled(role, request_id, _short(error))
    if isinstance(error, RayError):  # object lost, node died, out of memory: infrastructure
        return WorkerLost(role, request_id, _short(error))
    raise error


def is_dead(error: BaseException) -> bool:
    """Whether the actor is gone for good, not only out of reach."""
    return isinstance(error, ActorDiedError)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
