"""What a session stops before a role of its next job writes."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import tiny

from orchestrator.generation import Task
from orchestrator.session import Session, _group_plan
from orchestrator.spec import JobSpec


def _job(workers: int, **changes: Any) -> JobSpec:
    role = {"architecture": tiny.architecture(), "resources": {"cpus": 1}}
    source = {"kind": "generated", "prompts": {"text": ["a"]}, "count": 4, "length": 4}
    raw = {
        "name": "seq",
        "student": {"architecture": tiny.architecture(), "tokenizer": str(tiny.TOKENIZER)},
        "roles": {"teacher": role},
        "data": {"sources": [source], "context": 32},
        "objective": {"recipe": {"kind": "sequence_kd"}},
        "training": {"steps": 100, "workers": workers, "global_batch": 4, "micro_batch": 1},
    }
    return JobSpec.model_validate({**raw, **changes})


@pytest.mark.parametrize(
    ("left_by", "evaluation", "stays"),
    [(1, {"against": "teacher"}, True), (2, {"against": "teacher"}, False), (1, {}, False)],
    ids=["its own", "those of a larger job", "no pool will be in the writer's place"],
)
def test_workers_stay_where_writer_and_they_take_what_the_job_will(
    left_by: int, evaluation: dict[str, Any], stays: bool
) -> None:
    stopped: list[str] = []
    job = _job(1, evaluation=evaluation)
    session = object.__new__(Session)  # without a cluster
    session.pools = cast(Any, {"p": SimpleNamespace(down=lambda: stopped.append("pool"))})
    group = SimpleNamespace(plan=_group_plan(_job(left_by)), stop=lambda: stopped.append("group"))
    session._group = cast(Any, group)
    task = cast(Task, SimpleNamespace(spec=job.roles["teacher"]))
    session._make_room(job, task)
    assert stopped == (["pool"] if stays else ["pool", "group"])
    assert (session._group is not None) == stays and not session.pools
