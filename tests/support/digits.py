"""Small jobs on handwritten digits for tests of classifiers."""

from typing import Any

from orchestrator.spec import JobSpec

SOURCE = "orchestrator.data.digits:documents"
MLP = "orchestrator.models.reference:mlp"


def data(limit: int | None = None, **changes: Any) -> dict[str, Any]:
    """A data section; `changes` replace its fields."""
    arguments = {} if limit is None else {"limit": limit}
    source = {"kind": "import", "target": SOURCE, "arguments": arguments}
    return {"sources": [{**source, "format": {"kind": "features"}}], "held_out": 0.2, **changes}


def student(**arguments: Any) -> dict[str, Any]:
    """A perceptron of 64 numbers and ten classes."""
    named = {"inputs": 64, "classes": 10, "width": 32, **arguments}
    return {"import": MLP, "task": "classifier", "arguments": named}


def raw_job(name: str = "digits", **changes: Any) -> dict[str, Any]:
    """Cross entropy on all digits, seconds of work; `changes` replace top-level sections."""
    return {
        "name": name,
        "student": student(),
        "data": data(),
        "objective": {"terms": [{"kind": "cross_entropy"}]},
        "training": {
            "epochs": 3,
            "global_batch": 32,
            "micro_batch": 16,
            "resources": {"cpus": 0.5},
            "optimizer": {"kind": "adamw", "lr": 1e-2},
            "checkpoint": {"every_steps": 100},
        },
        "evaluation": {"before": False, "rows": None},
        "deterministic": True,
        **changes,
    }


def job(**changes: Any) -> JobSpec:
    """The same, validated."""
    return JobSpec.model_validate(raw_job(**changes))
