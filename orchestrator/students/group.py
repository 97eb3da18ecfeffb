"""The driver's side of a resident worker group: start it once, give it jobs, hear of them."""

import logging
import os
import threading
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import BudgetExhausted
from orchestrator.events import Event

from .desk import DeskActor, Outcome
from .records import GroupPlan, StudentJob
from .worker import work

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

log = logging.getLogger(__name__)

NAMESPACE = "stillhouse"


class Group:
    """A Ray Train worker group that takes jobs from a desk until it is stopped."""

    def __init__(self, plan: GroupPlan) -> None:
        self._plan = plan
        self._name = f"desk-{uuid.uuid4().hex[:8]}"
        # On the driver's node: it lives as long as the driver; no dead or cut-off node takes it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk: Any = DeskActor.options(  # type: ignore[attr-defined]
            name=self._name, namespace=NAMESPACE, scheduling_strategy=here
        ).remote()
        self._seen = 0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(
            target=self._fit, args=(_trainer(plan, self._name),), daemon=True
        )
        self._thread.start()

    def _fit(self, trainer: "TorchTrainer") -> None:
        try:
            trainer.fit()
        except BaseException as error:
            # Kept, not swallowed: `run` raises it with the job's name.
            self._failure = error

    @property
    def plan(self) -> GroupPlan:
        """What the group was started with."""
        return self._plan

    def run(self, job: StudentJob) -> Iterator[Event | Outcome]:
        """Train one student: events as they come, then one `Outcome`.

        Raises:
            BudgetExhausted: the group died more often than its budget allows.
        """
        self._index = ray.get(self._desk.submit.remote(job))
        self._job = job.spec.name
        return self.watch()

    def watch(self) -> Iterator[Event | Outcome]:
        """Go on listening to the job that runs, after an interruption of the listener."""
        while True:
            events, outcome = ray.get(self._desk.watch.remote(self._index, self._seen, 0.5))
            for event in events:
                self._seen += 1  # one by one: a listener that is interrupted loses none
                yield event
            if outcome is not None:
                yield outcome
                return
            if not self._thread.is_alive():
                cause = self._failure
                raise BudgetExhausted(
                    f"job {self._job!r}: its workers died more than "
                    f"{self._plan.max_failures} times (training.max_failures); last cause: {cause}"
                ) from cause

    def request_stop(self) -> None:
        """Stop the running job at its next step, with a checkpoint."""
        self._desk.request_stop.remote()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Let the workers return, and end the group; one that does not even start is left."""
        try:
            ray.get(self._desk.close.remote(), timeout=timeout_s)
            self._thread.join(timeout_s)
        except GetTimeoutError:
            log.warning("the workers' desk has not answered for %g s; ending it", timeout_s)
        ray.kill(self._desk)


def _trainer(plan: GroupPlan, name: str) -> "TorchTrainer":
    # Here, not above: the desk's process imports this package too, and Ray Train brings torch, for
    # 3 s of a core and 300 MiB.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    if len(ray.nodes()) == 1:
        # A process that hears when nodes are about to be taken away: here it would go with them.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    return TorchTrainer(
        work,
        train_loop_config={"desk": name, "namespace": NAMESPACE},
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=plan.gpus > 0,
            resources_per_worker={
                "CPU": plan.cpus,
                **({"GPU": plan.gpus} if plan.gpus else {}),
                **plan.custom,
            },
        ),
        run_config=RunConfig(
            name=name,
            storage_path=plan.storage,
            failure_config=FailureConfig(
                max_failures=plan.max_failures, controller_failure_limit=0
            ),
        ),
    )
