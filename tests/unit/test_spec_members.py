"""Students of several members, and graphs of jobs, that cannot be: refused with a remedy."""

from typing import Any

import digits
import pytest
from graph_files import CE, KL, LAYERS, ROLE, SMALL, after, members, raw

from orchestrator.errors import SpecError
from orchestrator.planner.capacity import job_model_size
from orchestrator.planner.stages import check_head
from orchestrator.spec.load import validate_jobs
from orchestrator.spec.paths import absolute_paths

PAIR = members(a=SMALL, b=ROLE)
APART: list[dict[str, Any]] = [{**CE, "member": "a"}, {**CE, "member": "b"}]
PEER = {**KL, "member": "a", "role": "student.b"}
WIDE = {"architecture": {"model_type": "llama"}, "tokenizer": "somewhere"}
OWN = {"kind": "import", "target": "own:term", "member": "a"}
TAUGHT = {"teacher": ROLE}
HINT = {"kind": "hidden_states", **LAYERS}


def pair(
    terms: list[dict[str, Any]],
    roles_: dict[str, Any] | None = None,
    objective_: dict[str, Any] | None = None,
    evaluation_: dict[str, Any] | None = None,
    **student: Any,
) -> dict[str, Any]:
    """A job of two members; what is absent is removed."""
    given = {k: v for k, v in {**PAIR, **student}.items() if v is not None}
    job = raw("pair", terms, given, roles_)
    job["objective"] |= objective_ or {}
    job["evaluation"] = {**job.get("evaluation", {}), **(evaluation_ or {})}
    return job


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a term without a member": (
        pair([CE, *APART]),
        r"objective\.terms\.0\.member: is absent, and the student has several \(a, b\)\. Say",
    ),
    "a member that is not there": (
        pair([*APART, {**CE, "member": "c"}]),
        r"objective\.terms\.2\.member: is 'c', which the student does not have \(a, b\)",
    ),
    "a member of one model": (
        raw("one", [{**CE, "member": "a"}]),
        r"objective\.terms\.0\.member: is 'a'.*none: it is one model.*or give student\.members",
    ),
    "a peer that is not there": (
        pair([*APART, {**PEER, "role": "student.c"}]),
        r"objective\.terms\.2\.role: is student\.c, and the student has no such member",
    ),
    "a peer of one model": (
        raw("one", [CE, {**KL, "role": "student.b"}]),
        r"objective\.terms\.1\.role: is student\.b.*Name a role",
    ),
    "oneself as a peer": (
        pair([*APART, {**PEER, "role": "student.a"}]),
        r"objective\.terms\.2\.role: is student\.a, the member that learns.*Name another",
    ),
    "oneself in a mixture": (
        pair(
            [
                *APART,
                {
                    **PEER,
                    "target": [{"kind": "mix", "roles": ["student.a"], "weights": [1.0, 1.0]}],
                },
            ]
        ),
        r"objective\.terms\.2\.role: is student\.a, the member that learns",
    ),
    "a role that is not there beside members": (
        pair([*APART, {**KL, "member": "a"}]),
        r"asks for role 'teacher', which is not defined",
    ),
    "positions that a peer chooses": (
        pair([*APART, {**PEER, "where": "role_right"}]),
        r"where is role_right of student\.b.*known before the student runs",
    ),
    "a peer's head": (
        pair([*APART, {**PEER, "target": [{"kind": "similarity"}]}]),
        r"objective\.terms\.2\.role: is student\.b, whose logits are told in full",
    ),
    "gradients of a member": (
        pair([*APART, {"kind": "input_gradients", "member": "a", "role": "student.b"}]),
        r"objective\.terms\.2\.member: is a, and input_gradients differentiates whole students",
    ),
    "a role's gradient for a member": (
        pair([*APART, {"kind": "role_gradient", "member": "a"}], roles_=TAUGHT),
        r"student\.members: are a, b, which have their weights together.*role teacher.*one of them",
    ),
    "a role's gradient for an output": (
        raw(
            "one",
            [{**CE, "member": "a"}, {"kind": "role_gradient", "member": "b"}],
            {**SMALL, "outputs": ["a", "b"]},
            TAUGHT,
        ),
        r"student\.outputs: are a, b, which have their weights together",
    ),
    "a modified gradient of members": (
        pair(
            APART,
            roles_=TAUGHT,
            evaluation_={
                "against": "teacher",
                "diagnostics": [{"kind": "modified_gradient", "batches": 2}],
            },
        ),
        r"student\.members: are a, b, which have their weights together",
    ),
    "the gradient of a peer": (
        pair([*APART, {"kind": "role_gradient", "member": "a", "role": "student.b"}]),
        r"objective\.terms\.2\.role: is student\.b, which is trained, and role_gradient wants",
    ),
    "the later layers of a peer": (
        pair([*APART, {"kind": "blockwise_logits", "member": "a", "role": "student.b", **LAYERS}]),
        r"objective\.terms\.2\.role: is student\.b, which is trained.*Name a served role",
    ),
    "a peer beside the student": (
        pair([*APART, {**OWN, "residents": ["student.b"]}]),
        r"residents name student\.b, a member of the student.*Name it in roles",
    ),
    "a role beside a member, for a term of one's own": (
        pair([*APART, {**OWN, "residents": ["teacher"]}], roles_=TAUGHT),
        r"objective\.terms\.2\.residents: are teacher.*\(a, b\) under other names",
    ),
    "moved samples for members": (
        pair(
            [*APART, {**KL, "member": "a"}],
            roles_=TAUGHT,
            objective_={
                "between_epochs": {"kind": "boundary", "every": 1, "rounds": 1, "steps": 1}
            },
        ),
        r"between_epochs\.kind: is boundary, which looks at whole students.*\(a, b\)",
    ),
    "the distance of an output that is exported alone": (
        raw(
            "one",
            [{**CE, "member": "a"}, {**KL, "member": "b"}],
            {**SMALL, "outputs": ["a", "b"], "export": "a"},
            TAUGHT,
            evaluation={"diagnostics": [{"kind": "logit_distance"}]},
        ),
        r"diagnostics\.0\.kind: is logit_distance, which differentiates whole students",
    ),
    "an export of a member that is not there": (
        pair(APART, export="c"),
        r"student\.export: is 'c', which is no member \(a, b\)",
    ),
    "an export of one model": (
        raw("one", student={**SMALL, "export": "a"}),
        r"student\.export: is 'a', which is no member \(none: the student is one model\)",
    ),
    "one member": (
        raw("pair", [{**CE, "member": "a"}], members(a=SMALL)),
        r"student\.members: are a, and members learn beside each other.*two or more",
    ),
    "members and a source": (
        pair(APART, path="somewhere"),
        r"has 2 sources \(path, members\)",
    ),
    "members and outputs": (
        pair(APART, outputs=["a", "b"]),
        r"student\.outputs: are a, b beside members",
    ),
    "an output twice": (
        raw("one", [{**CE, "member": "a"}], {**SMALL, "outputs": ["a", "a"]}),
        r"student\.outputs\.1: is 'a' again",
    ),
    "a member that learns nothing": (
        pair([APART[0], {**APART[1], "weight": 0.0}]),
        r"student\.members\.b: learns from no term of a weight above 0.*or make it a role",
    ),
    "a member of another task": (
        pair(APART, members={"a": SMALL, "b": {**ROLE, "task": "causal_lm"}}),
        r"student\.members\.b\.task: is causal_lm, and the student's is classifier",
    ),
    "causal models side by side": (
        digits.raw_job(
            student={"members": {"a": WIDE, "b": WIDE}},
            data={"sources": [{"kind": "text", "path": "x"}]},
            objective={"terms": APART},
        ),
        r"student\.members: are a, b, and task is causal_lm.*one causal model after the other",
    ),
    "adapters on members": (
        pair(APART, lora={"rank": 2}),
        r"student\.lora: is set",
    ),
    "a member of a model that is no earlier job's": (
        raw("one", roles={"teacher": {**ROLE, "member": "a"}}, terms=[KL]),
        r"member is only used with job",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_graph_that_cannot_be_is_refused(name: str) -> None:
    job, says = BAD[name]
    with pytest.raises(SpecError, match=says):
        validate_jobs([job])


def chain(**needs: str) -> list[dict[str, Any]]:
    """Jobs by name, each with the student of another as its teacher."""
    return [raw(name, [CE, KL], roles={"teacher": after(other)}) for name, other in needs.items()]


@pytest.mark.parametrize(
    ("jobs", "says"),
    [
        (chain(x="y", y="x"), r"jobs\.0\.roles\.teacher\.job: .*\(x -> y -> x\).*members of one"),
        (chain(x="y", y="z", z="x"), r"waits for the other's student.*\(x -> y -> z -> x\)"),
        (chain(x="x"), r"names 'x'.*\(x -> x\)"),
        ([*chain(x="y"), raw("y")], r"names 'y', which is not an earlier.*Put job y first"),
        (chain(x="q"), r"names 'q', which is not an earlier job of this file\. Earlier jobs: none"),
        (
            [raw("one"), *chain(x="one"), raw("on", student=after("x", member="a"))],
            r"jobs\.2\.student\.member: is 'a', which the student of job x does not have \(none",
        ),
        (
            [pair(APART), raw("x", [KL], roles={"teacher": after("pair", member="c")})],
            r"jobs\.1\.roles\.teacher\.member: is 'c'.*\(a, b\)\. Name one",
        ),
        (
            [raw("x", APART, members(a=after("y"), b=SMALL)), raw("y")],
            r"jobs\.0\.student\.members\.a\.job: names 'y'",
        ),
    ],
)
def test_a_cycle_of_frozen_roles_and_other_ways_to_nowhere(
    jobs: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(SpecError, match=says):
        validate_jobs(jobs)


def test_a_member_whose_head_no_stage_trains_is_refused() -> None:
    teach = {"teacher": {**ROLE}}
    first = raw("first", [{**HINT, "member": "a"}, APART[1]], PAIR, teach)
    on = members(a=after("first", member="a"), b=after("first", member="b"))
    bad = validate_jobs([first, raw("second", [{**HINT, "member": "a"}, APART[1]], on, teach)])
    check_head(bad, 0, "")  # a later stage goes on with both
    with pytest.raises(SpecError, match=r"\(first, second\).*the head of member a stays"):
        check_head(bad, 1, "jobs.1.")
    good = validate_jobs([first, raw("second", APART, on)])
    check_head(good, 1, "")
    lost = raw("second", [CE], after("first", member="b"))
    with pytest.raises(SpecError, match=r"\(first\).*the head of member a stays"):
        check_head(validate_jobs([first, lost]), 0, "")


def test_members_take_the_students_task_and_paths_become_absolute() -> None:
    each = {name: {"path": f"some/{name}"} for name in "ab"}
    (job,) = validate_jobs([raw("pair", APART, {"task": "classifier", "members": each})])
    assert job.student.members is not None
    assert {member.task for member in job.student.members.values()} == {"classifier"}
    found = absolute_paths(job).student.members
    assert found is not None and all(str(m.path).startswith("/") for m in found.values())


def test_the_size_of_a_student_is_that_of_all_its_members() -> None:
    config = {"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1}
    one = {"architecture": {**config, "num_attention_heads": 2}}
    (alone,) = validate_jobs([raw("one", student={**one, "task": "classifier"})])
    (both,) = validate_jobs([raw("pair", APART, members(a=one, b=one))])
    size = job_model_size(alone, alone.student, ()).parameters
    assert size is not None
    assert job_model_size(both, both.student, ()).parameters == 2 * size
