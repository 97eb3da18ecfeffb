"""Lists of small jobs on digits, as data, for tests of graphs of roles."""

from typing import Any

import digits

CE = {"kind": "cross_entropy"}
KL = {"kind": "forward_kl", "temperature": 2.0}
LAYERS = {"layers": [{"student": "stages.*", "role": "stages.*"}]}


def after(name: str, **changes: Any) -> dict[str, Any]:
    """The student of an earlier job."""
    return {"job": name, "task": "classifier", **changes}


def members(**each: dict[str, Any]) -> dict[str, Any]:
    """A student of several."""
    return {"task": "classifier", "members": each}


def raw(
    name: str,
    terms: list[dict[str, Any]] | None = None,
    student: dict[str, Any] | None = None,
    roles: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A job of two steps on the first digits."""
    data = digits.data(200)
    data["sources"][0]["format"]["shape"] = [64]
    training = {"steps": 4, "global_batch": 16, "micro_batch": 8, "checkpoint": {"every_steps": 4}}
    training |= {"optimizer": {"lr": 1e-2}}
    return digits.raw_job(
        name,
        **{
            "student": student or digits.student(width=12, depth=1),
            "roles": roles or {},
            "objective": {"terms": terms or [CE]},
            "data": data,
            "training": training,
            **changes,
        },
    )


SMALL = digits.student(width=8, depth=1)
ROLE = digits.student(width=12, depth=1)
