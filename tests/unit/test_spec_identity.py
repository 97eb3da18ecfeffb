"""spec -> JSON -> spec and spec -> YAML file -> spec are the identity, whatever the numbers."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from orchestrator.spec import JobSpec, load_jobs, resolved_yaml

finite = st.floats(min_value=1e-6, max_value=1e6, allow_nan=False)
temperatures = st.floats(min_value=0.01, max_value=100.0)
schedules = st.one_of(
    temperatures,
    st.builds(lambda a, b: {"kind": "cosine", "start": a, "end": b}, temperatures, temperatures),
    st.builds(lambda a: {"kind": "constant", "value": a}, temperatures),
)
terms = st.one_of(
    st.builds(lambda w: {"kind": "cross_entropy", "weight": w}, schedules),
    st.builds(
        lambda kind, t, role: {"kind": kind, "temperature": t, "role": role},
        st.sampled_from(["forward_kl", "reverse_kl"]),
        schedules,
        st.sampled_from(["teacher", "judge"]),
    ),
)
names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Plain data of a job."""
    micro, accumulation, workers = (draw(st.integers(1, 8)) for _ in range(3))
    steps = draw(st.integers(1, 10_000))
    return {
        "name": draw(names),
        "student": {"path": draw(st.text(min_size=1, max_size=20))},
        "roles": {"teacher": {"hub": "a/b"}, "judge": {"path": "c"}},
        "data": {
            "sources": [{"kind": "text", "path": draw(st.text(min_size=1, max_size=20))}],
            "context": draw(st.integers(8, 4096)),
            "held_out": draw(st.floats(0, 0.99)),
        },
        "objective": {"terms": draw(st.lists(terms, min_size=1, max_size=3))},
        "training": {
            "steps": steps,
            "global_batch": micro * accumulation * workers,
            "micro_batch": micro,
            "workers": workers,
            "optimizer": {"lr": draw(finite)},
            "checkpoint": {"every_steps": draw(st.integers(1, steps))},
        },
        "evaluation": {"generate": draw(st.sampled_from([None, {"prompt": "x"}]))},
        "seed": draw(st.integers(0, 2**40)),
    }


@given(raw=jobs())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_job_survives_json_and_its_own_resolved_file(
    raw: dict[str, Any], tmp_path_factory: Any
) -> None:
    job = JobSpec.model_validate(raw)
    assert JobSpec.model_validate_json(job.model_dump_json(by_alias=True)) == job
    path: Path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(resolved_yaml([job]), encoding="utf-8")
    assert load_jobs(path) == [job]
