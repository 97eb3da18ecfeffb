"""Ray Tune, set up for a search."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.stopper import Stopper

from .exchange import Message, News
from .spec import SearchSpec, goal_name
from .stopping import MANY, Stopping
from .suggest import Suggestions
from .trainable import Trial

CALL_S = 120.0
"""Deadline of one call to the exchange."""
START_S = 600.0
"""Deadline of its start."""
DEATHS = 3
"""Times that the driver of one trial is started anew."""


class RayExchange:
    """The crew's end of the exchange."""

    def __init__(self, actor: Any) -> None:
        """Waits until the actor is up."""
        self._actor, self._seen = actor, 0
        ray.get(actor.messages.remote(0, 0.0), timeout=START_S)

    def messages(self, timeout_s: float) -> Sequence[tuple[str, int]]:
        found: list[Message] = ray.get(
            self._actor.messages.remote(self._seen, timeout_s), timeout=CALL_S
        )
        self._seen += len(found)
        return [(message.kind, message.trial) for message in found]

    def post(self, trial: int, numbers: Any, *, last: bool = False) -> None:
        ray.get(self._actor.post.remote(trial, News(dict(numbers), last)), timeout=CALL_S)

    def fail(self, trial: int, error: str) -> None:
        # Not an exception over there: Ray Tune would take it for a driver that died.
        ray.get(self._actor.post.remote(trial, News({}, True, failed=True)), timeout=CALL_S)

    def close(self) -> None:
        """Let go of every trial that waits."""
        ray.get(self._actor.close.remote(), timeout=CALL_S)


class _Stopped(Stopper):
    """Ends the search when it is asked to."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._asked()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune writes a copy that nobody reads


def tuner_of(
    spec: SearchSpec,
    suggestions: Suggestions,
    scheduler: Stopping | None,
    stopping: Callable[[], bool],
    lanes: int,
    storage: str,
) -> Callable[[], None]:
    """Ray Tune, ready; the call runs it to the search's end.

    Args:
        spec: of the search.
        suggestions: what is tried.
        scheduler: what stops trials.
        stopping: whether the search is asked to end.
        lanes: trials side by side.
        storage: local folder for Ray Tune's own state, which nobody reads again.
    """
    several = len(spec.goals) > 1
    tuner = tune.Tuner(
        Trial,
        tune_config=tune.TuneConfig(
            metric=None if several else goal_name(0),
            mode=None if several else spec.mode,
            search_alg=suggestions,
            scheduler=scheduler,
            num_samples=MANY,
            max_concurrent_trials=lanes,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage,
            stop=_Stopped(stopping),
            failure_config=tune.FailureConfig(max_failures=DEATHS),
            verbose=0,
        ),
    )

    def fit() -> None:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's failure is told by us
        # Its reporter prints to standard output, and its loggers write what nobody reads.
        os.environ.update(RAY_AIR_NEW_OUTPUT="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1")
        if suggestions.left:
            tuner.fit()

    return fit
