"""Graphs of roles (arXiv:1912.13179): known techniques as configurations, without code.

Each is a list of jobs that parses, runs, and changes its students alone. Two members of one
beginning stay one; an edge of weight 0 is no edge.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import digits
import graphs
import pytest
import torch
from graph_files import CE, KL, LAYERS, ROLE, SMALL, after, members, raw

from orchestrator.spec import JobSpec, load_jobs, resolved_yaml
from orchestrator.spec.load import validate_jobs

BRANCHES = ["branch_0", "branch_1", "ensemble"]


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A process group of one: what ranks tell each other, one tells itself."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


OTHERS = digits.data()
OTHERS["sources"][0] |= {
    "format": {"kind": "features", "shape": [64], "label": None},
    "arguments": {"offset": 900, "limit": 100},
}
GRAPHS: dict[str, list[dict[str, Any]]] = {
    "one teacher, one student": [
        raw("teacher"),
        raw("student", [CE, KL], SMALL, {"teacher": after("teacher")}),
    ],
    "several teachers": [
        raw("first"),
        raw("second", seed=5),
        raw(
            "student",
            [KL, {**KL, "role": "other", "weight": 0.3}],
            SMALL,
            {"teacher": after("first"), "other": after("second")},
        ),
    ],
    "teacher, assistant, student": [
        raw("teacher"),
        raw("assistant", [KL], digits.student(width=10), {"teacher": after("teacher")}),
        raw("student", [KL], SMALL, {"teacher": after("assistant")}),
    ],
    "mutual learning": [
        raw(
            "pair",
            student=members(a=SMALL, b=ROLE),
            objective={"recipe": {"kind": "mutual_learning"}},
        )
    ],
    "branches": [
        raw(
            "one",
            student={
                "import": "orchestrator.models.reference:branches",
                "task": "classifier",
                "arguments": {"inputs": 64, "classes": 10, "branches": 2, "width": 8},
                "outputs": BRANCHES,
            },
            objective={"recipe": {"kind": "one", "branches": BRANCHES[:2]}},
        )
    ],
    "self-distillation": [
        raw("first"),
        raw("again", [CE, KL], roles={"teacher": after("first")}),
        raw("on", [KL], after("again"), {"teacher": after("first")}),
    ],
    "features and logits": [
        raw("teacher"),
        raw(
            "student",
            [CE, KL, {"kind": "hidden_states", "projector": "linear", **LAYERS}],
            SMALL,
            {"teacher": after("teacher")},
        ),
    ],
    "other data than the teacher's": [
        raw("teacher"),
        raw("student", [KL], SMALL, {"teacher": after("teacher")}, data=OTHERS),
    ],
    "a teacher of two that teach each other": [
        raw("teacher"),
        raw(
            "pair",
            [
                {**CE, "member": "a"},
                {**KL, "member": "a", "role": "student.b", "weight": 0.5},
                {"kind": "hidden_states", "member": "a", "projector": "linear", **LAYERS},
                {**CE, "member": "b"},
                {"kind": "hidden_states", "member": "b", "role": "student.a", "projector": "linear",
                 **LAYERS},
            ],
            members(a=SMALL, b=ROLE),
            {"teacher": after("teacher")},
        ),
        raw("last", [KL], after("pair", member="b"), {"teacher": after("pair")}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_a_file(name: str, tmp_path: Path) -> None:
    jobs = validate_jobs(GRAPHS[name])
    (tmp_path / "graph.yaml").write_text(resolved_yaml(jobs))
    assert load_jobs(tmp_path / "graph.yaml") == jobs


@pytest.mark.parametrize("name", GRAPHS)
def test_a_step_of_each_job_changes_its_students_and_nobody_else(name: str, tmp_path: Path) -> None:
    jobs = validate_jobs(GRAPHS[name])
    for job, learned in zip(jobs, graphs.learn_all(jobs, tmp_path), strict=True):
        assert all(loss > 0 for loss in learned.steps[0].losses.values())
        heads = {weight for weight in learned.before if weight.endswith("head.weight")}
        several = len(job.student.members or job.student.outputs[:2]) or 1
        assert len(heads) == several and heads <= learned.changed
        for role in learned.roles.values():
            assert all(parameter.grad is None for parameter in role.module.parameters())


def test_what_a_role_learned_is_what_it_teaches(tmp_path: Path) -> None:
    """The chain's last teacher is the assistant as it was exported, not as it was drawn."""
    jobs = validate_jobs(GRAPHS["teacher, assistant, student"])
    _, assistant, student = graphs.learn_all(jobs, tmp_path)
    served = student.roles["teacher"].module.state_dict()
    assert served.keys() == assistant.after.keys()
    assert all(weight.equal(served[name]) for name, weight in assistant.after.items())


def mutual(a: dict[str, Any], b: dict[str, Any], **changes: Any) -> JobSpec:
    """Two members that learn from each other."""
    recipe = {"recipe": {"kind": "mutual_learning", "temperature": 2.0}}
    return validate_jobs([raw("pair", student=members(a=a, b=b), objective=recipe, **changes)])[0]


def _each(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], ...]:
    return tuple(
        {k.removeprefix(p): w for k, w in weights.items() if k.startswith(p)}
        for p in ("members.a.", "members.b.")
    )


def test_two_of_one_beginning_stay_one_to_the_bit(tmp_path: Path) -> None:
    learned = graphs.learn(mutual({**ROLE, "seed": 3}, {**ROLE, "seed": 3}), tmp_path, steps=4)
    a, b = _each(learned.after)
    assert len(learned.changed) == len(learned.before) and a.keys() == b.keys()
    assert all(weight.equal(b[name]) for name, weight in a.items())
    assert all(step.losses["a_from_b"] == pytest.approx(0, abs=1e-6) for step in learned.steps)


def test_two_that_begin_apart_do_not(tmp_path: Path) -> None:
    learned = graphs.learn(mutual(ROLE, ROLE), tmp_path, steps=2)
    for weights in (learned.before, learned.after):
        a, b = _each(weights)
        assert not any(weight.equal(b[name]) for name, weight in a.items() if "weight" in name)


EDGES: dict[str, dict[str, Any]] = {
    **{
        kind: {"kind": kind, "temperature": 2.0}
        for kind in (
            "forward_kl", "reverse_kl", "jensen_shannon", "skewed_forward_kl", "skewed_reverse_kl",
            "total_variation", "alpha_beta", "adaptive_kl", "decoupled", "universal",
        )
    },
    "logits_distance": {"kind": "logits_distance"},
    "another label term": {"kind": "cross_entropy", "label_smoothing": 0.3},
    "weighed": {**KL, "weigh_by": {"measure": "student_entropy"}, "target": [{"kind": "swap"}]},
    "hidden_states": {"kind": "hidden_states", "projector": "linear", **LAYERS},
    "input_gradients": {"kind": "input_gradients"},
    "similarity_preserving": {"kind": "similarity_preserving", "group": 4, **LAYERS},
    "relational": {"kind": "relational", "relation": "angle", "group": 4, **LAYERS},
    "attention_transfer": {"kind": "attention_transfer", **LAYERS},
    "fsp": {
        "kind": "fsp",
        "flows": [{"student": ["stages.0", "stages.1"], "role": ["stages.0", "stages.1"]}],
    },
}  # fmt: skip
OF_MAPS = ("attention_transfer", "fsp")


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_of_weight_0_is_no_edge_to_the_bit(name: str, tmp_path: Path) -> None:
    edge = {**EDGES[name], "weight": 0.0}
    role = {"teacher": {**ROLE, "arguments": {**ROLE["arguments"], "width": 10}}}
    job_of: dict[str, Any] = {"roles": role}
    if name in OF_MAPS:
        arguments = {"channels": 1, "size": 8, "classes": 10, "width": 4, "depth": 1}
        conv = {"import": "orchestrator.models.reference:conv", "arguments": arguments}
        conv |= {"task": "classifier"}
        job_of = {"student": conv, "roles": {"teacher": conv}, "data": raw("x")["data"]}
        job_of["data"]["sources"][0]["format"]["shape"] = [1, 8, 8]
    found = []
    for terms in ([CE], [CE, edge], [CE, {**edge, "weight": 0.7}]):
        (job,) = validate_jobs([raw("student", terms, **job_of)])
        found.append(graphs.learn(job, tmp_path, steps=3).after)
    without, weightless, with_it = found
    assert all(weight.equal(weightless[k]) for k, weight in without.items())
    assert not all(weight.equal(with_it[k]) for k, weight in without.items())


def test_learning_a_peers_layers_moves_the_learner_alone(tmp_path: Path) -> None:
    training = {**raw("x")["training"], "clip": None}  # which would couple them
    apart = [{**CE, "member": "a"}, {**CE, "member": "b"}]
    hint = {"kind": "hidden_states", "member": "a", "role": "student.b", **LAYERS}
    found = []
    for terms in (apart, [*apart, {**hint, "projector": "linear", "weight": 5.0}]):
        (job,) = validate_jobs([raw("pair", terms, members(a=SMALL, b=ROLE), training=training)])
        found.append(_each(graphs.learn(job, tmp_path, steps=2).after))
    (a, b), (taught, peer) = found
    assert all(weight.equal(peer[name]) for name, weight in b.items())
    assert not a["first.weight"].equal(taught["first.weight"])


def test_an_edge_of_weight_0_between_members_is_none_either(tmp_path: Path) -> None:
    apart = [{**CE, "member": "a"}, {**CE, "member": "b"}]
    edge = {**KL, "member": "a", "role": "student.b"}
    found = []
    for terms in (apart, [*apart, {**edge, "weight": 0.0}], [*apart, edge]):
        (job,) = validate_jobs([raw("pair", terms, members(a=SMALL, b=ROLE))])
        found.append(graphs.learn(job, tmp_path, steps=3).after)
    without, weightless, with_it = found
    assert all(weight.equal(weightless[k]) for k, weight in without.items())
    changed = {k for k, weight in without.items() if not weight.equal(with_it[k])}
    assert changed and any(k.startswith("members.a.") for k in changed)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_members_that_learn_apart_share_nothing_but_the_norm_that_is_clipped(
    clip: float | None, tmp_path: Path
) -> None:
    training = {**raw("x")["training"], "clip": clip}
    apart = [{**CE, "member": "a"}, {**CE, "member": "b"}]
    (both,) = validate_jobs([raw("both", apart, members(a=SMALL, b=ROLE), training=training)])
    (single,) = validate_jobs([raw("single", [CE], SMALL, training=training)])
    together, alone = (graphs.learn(job, tmp_path, steps=3) for job in (both, single))
    a, _ = _each(together.after)
    same = all(weight.equal(alone.after[name]) for name, weight in a.items())
    assert same == (clip is None)
    assert together.steps[0].gradient_norm > alone.steps[0].gradient_norm
