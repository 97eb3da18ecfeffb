"""Stillhouse: language models distilled from a pool of teachers on Ray, by DeepSpeed, with MLflow.

The public names. Nothing heavy is imported before one of them is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.errors import (
        BudgetExhausted,
        CheckpointError,
        Interrupted,
        NonFiniteLoss,
        SpecError,
        StillhouseError,
        WorkerBusy,
        WorkerError,
        WorkerLost,
        WorkerRaised,
        WorkerStalled,
    )
    from orchestrator.planner import plan
    from orchestrator.pool import Pool
    from orchestrator.runner import evaluate, label, resume, run
    from orchestrator.search.run import run_search as search
    from orchestrator.spec import JobSpec, load_jobs

_HOMES = {
    "BudgetExhausted": "errors",
    "CheckpointError": "errors",
    "Interrupted": "errors",
    "JobSpec": "spec",
    "NonFiniteLoss": "errors",
    "Pool": "pool",
    "SpecError": "errors",
    "StillhouseError": "errors",
    "WorkerBusy": "errors",
    "WorkerError": "errors",
    "WorkerLost": "errors",
    "WorkerRaised": "errors",
    "WorkerStalled": "errors",
    "evaluate": "runner",
    "label": "runner",
    "load_jobs": "spec",
    "plan": "planner",
    "resume": "runner",
    "run": "runner",
    "search": "search",
}

__all__ = [
    "BudgetExhausted",
    "CheckpointError",
    "Interrupted",
    "JobSpec",
    "NonFiniteLoss",
    "Pool",
    "SpecError",
    "StillhouseError",
    "WorkerBusy",
    "WorkerError",
    "WorkerLost",
    "WorkerRaised",
    "WorkerStalled",
    "evaluate",
    "label",
    "load_jobs",
    "plan",
    "resume",
    "run",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES[name]}")
    return home if name == _HOMES[name] else getattr(home, name)
