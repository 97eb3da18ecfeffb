"""Small searches for tests: digits taught by labels, as plain data."""

from typing import Any

import digits

from orchestrator.search.load import search_of
from orchestrator.search.plan import Search

LR = "training.optimizer.lr"
SMOOTHING = "objective.terms.0.weight"


def raw_search(**changes: Any) -> dict[str, Any]:
    """Learning rate and the kind of a weight's schedule; `changes` replace parts of it."""
    return {
        "space": {
            LR: {"loguniform": [1e-3, 1e-1]},
            SMOOTHING: {
                "choice": [
                    1.0,
                    {"kind": "linear", "start": {"uniform": [0.5, 2.0]}, "end": 1.0},
                    {"kind": "cosine", "start": {"uniform": [0.5, 2.0]}, "end": 1.0},
                ]
            },
        },
        "budget": {"trials": 4},
        **changes,
    }


def raw_job(**changes: Any) -> dict[str, Any]:
    """A job of digits that is measured every five of its twenty steps."""
    raw = digits.raw_job("small", **changes)
    training = {**raw["training"], "steps": 20, "checkpoint": {"every_steps": 5}}
    training.pop("epochs")
    evaluation = {"before": False, "rows": 64, "every_steps": 5}
    return {**raw, "training": training, "evaluation": evaluation}


def search(job: dict[str, Any] | None = None, **changes: Any) -> Search:
    """The same, validated as far as a file's search is."""
    return search_of(raw_job() if job is None else job, raw_search(**changes))
