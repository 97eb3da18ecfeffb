"""Mutual learning and ONE (arXiv:2007.01922 compares them): values, gradients, exports.

The oracles are written from the papers' equations in float64 and share no code with the terms.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import digits
import pytest
import torch
from torch import Tensor

from orchestrator.models.exported import MEMBERS, Export, may_import
from orchestrator.models.forward import NamedLogits, classify, classify_all
from orchestrator.models.load import load_model
from orchestrator.models.made import MADE_FILE
from orchestrator.models.reference import branches, conv, conv_branches
from orchestrator.spec import JobSpec
from orchestrator.spec.models import ModelSpec, StudentSpec
from orchestrator.students.export import _write  # pyright: ignore[reportPrivateUsage]
from orchestrator.students.module import StudentModule
from orchestrator.students.records import StudentJob
from strategies.contract import IGNORED, Batch, DenseSignal, Head, HiddenSignal, Outputs
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.specs import ObjectiveSpec

NAMES = ("a", "b", "c")
V = 6


def batch_of(rows: int, silent: int = 1) -> Batch:
    """A classifier's samples, of which the last bear no loss."""
    make = torch.Generator().manual_seed(rows)
    targets = torch.randint(V, (rows, 1), generator=make)
    targets[rows - silent :] = IGNORED
    inputs = {"features": torch.randn(rows, 5, generator=make, dtype=torch.float64)}
    return Batch(inputs, targets, torch.arange(rows)[:, None])


def leaves(names: tuple[str, ...], rows: int) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(7)
    return {
        name: (2 * torch.randn(rows, V, generator=make, dtype=torch.float64)).requires_grad_()
        for name in names
    }


def learned(recipe: dict[str, Any], outputs: Outputs, batch: Batch) -> tuple[Tensor, Any]:
    """The loss of an objective, every term over its own count; and the totals by term."""
    objective = build_objective(ObjectiveSpec.model_validate({"recipe": recipe}))
    numbers = objective.numbers(Progress(0, 10), {})
    counts = objective.counts(batch, {})
    scales = {name: numbers[f"{name}.weight"] / float(count) for name, count in counts.items()}
    return objective.loss(outputs, batch, {}, numbers, scales)


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Mean over samples of T^2 sum_v p_v (log p_v - log q_v), the teacher a constant."""
    total = torch.zeros((), dtype=torch.float64)
    for theirs, ours in zip(teacher.detach() / temperature, student / temperature, strict=True):
        p = theirs.exp() / theirs.exp().sum()
        q = ours.exp() / ours.exp().sum()
        total = total + temperature**2 * (p * (p.log() - q.log())).sum()
    return total / len(teacher)


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples of -log p_y."""
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -sum(
        (p[i, y].log() for i, y in enumerate(labels.tolist())), start=p.new_zeros(())
    ) / len(labels)


@pytest.mark.parametrize("names", [NAMES[:2], NAMES])
@pytest.mark.parametrize(("c", "w", "temperature"), [(1.0, 1.0, 1.0), (0.3, 2.0, 3.0)])
def test_mutual_learning_is_the_papers_for_each_member(
    names: tuple[str, ...], c: float, w: float, temperature: float
) -> None:
    batch = batch_of(5)
    z = leaves(names, 4)
    outputs = Outputs(logits=z["a"], members={k: Outputs(logits=v) for k, v in z.items()})
    recipe = {"kind": "mutual_learning", "members": list(names), "labels": c, "weight": w}
    loss, _ = learned({**recipe, "temperature": temperature}, outputs, batch)
    expected = torch.zeros((), dtype=torch.float64)
    for name in names:
        peers = [kl(z[peer], z[name], temperature) for peer in names if peer != name]
        expected = expected + c * ce(z[name], batch.kept_targets)
        expected = expected + w * torch.stack(peers).mean()
    torch.testing.assert_close(loss, expected, check_dtype=False)
    ours, theirs = (torch.autograd.grad(x, list(z.values())) for x in (loss, expected))
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted)


def test_what_a_member_learns_moves_no_other() -> None:
    batch, z = batch_of(5), leaves(NAMES, 4)
    outputs = Outputs(logits=z["a"], members={k: Outputs(logits=v) for k, v in z.items()})
    terms = [{"kind": "forward_kl", "member": "a", "role": "student.b"}]
    objective = build_objective(ObjectiveSpec.model_validate({"terms": terms}))
    loss, _ = objective.loss(
        outputs, batch, {}, objective.numbers(Progress(0, 1), {}), {"forward_kl": 1.0}
    )
    a, *others = torch.autograd.grad(loss, list(z.values()), allow_unused=True)
    assert a is not None and a.abs().max() > 0 and others == [None, None]
    head = Head(torch.ones(V, 3, requires_grad=True), torch.ones(V, requires_grad=True))
    told = (
        outputs.members["b"].as_signal(),
        Outputs(hidden=torch.ones(4, 3, requires_grad=True), head=head).as_signal(),
    )
    assert isinstance(told[0], DenseSignal) and isinstance(told[1], HiddenSignal)
    fixed = (told[0].logits, told[1].hidden, told[1].head.weight, told[1].head.bias)
    assert not any(tensor is None or tensor.requires_grad for tensor in fixed)


def test_a_mixture_of_peers_and_a_role_is_as_if_all_were_roles() -> None:
    """A member is a role to whatever looks at roles: targets and measures as well."""
    batch, z = batch_of(5), leaves(NAMES, 4)
    told = torch.randn(4, V, dtype=torch.float64)
    mixed = {"kind": "mix", "weights": [1.0, 0.5, 2.0], "by": "entropy"}
    term = {"kind": "reverse_kl", "temperature": 2.0, "weigh_by": {"measure": "role_confidence"}}
    answers = []
    for member, first, others in (
        ("a", "student.b", ["student.c", "teacher"]),
        (None, "first", ["second", "teacher"]),
    ):
        spec = {**term, "member": member, "role": first, "target": [{**mixed, "roles": others}]}
        objective = build_objective(ObjectiveSpec.model_validate({"terms": [spec]}))
        assert [ask.role for ask in objective.asks()] == [
            role for role in (first, *others) if not role.startswith("student.")
        ]
        signals = {"teacher": DenseSignal(told), "first": DenseSignal(z["b"].detach())}
        signals["second"] = DenseSignal(z["c"].detach())
        outputs = Outputs(logits=z["a"], members={k: Outputs(logits=v) for k, v in z.items()})
        loss, _ = objective.loss(
            outputs, batch, signals, objective.numbers(Progress(0, 1), {}), {"reverse_kl": 1.0}
        )
        answers.append((loss, torch.autograd.grad(loss, z["a"])[0]))
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0)


def by_hand(module: Any, x: Tensor) -> dict[str, Tensor]:
    """What ONE's module gives, from its weights alone: trunk, branches, gate, sum of logits."""
    state = dict(module.named_parameters())

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    h = linear("first", x).clamp_min(0)
    h = h + linear("trunk.0", h).clamp_min(0)
    found, shares = {}, linear("gate", h).clamp_min(0).exp()
    for index in range(3):
        name = f"branch_{index}"
        own = h + linear(f"branches.{name}.blocks.0", h).clamp_min(0)
        found[name] = linear(f"branches.{name}.head", own)
    shares = shares / shares.sum(1, keepdim=True)
    found["ensemble"] = sum(
        (shares[:, i : i + 1] * found[f"branch_{i}"] for i in range(3)), start=x.new_zeros(())
    )
    return found


@pytest.mark.parametrize(("c", "w", "temperature"), [(1.0, 1.0, 3.0), (0.5, 0.2, 1.0)])
def test_one_is_the_papers_from_trunk_to_gate(c: float, w: float, temperature: float) -> None:
    torch.manual_seed(2)
    module, batch = branches(5, V, width=7).double(), batch_of(9)
    recipe = {"kind": "one", "labels": c, "weight": w, "temperature": temperature}
    found: list[Tensor] = []

    def consume(outputs: Outputs) -> Tensor:
        found.append(learned(recipe, outputs, batch)[0])
        return found[0]

    loss = StudentModule(module, None)(batch, consume)
    z = by_hand(module, batch.inputs["features"][batch.mask[:, 0]])
    expected = torch.zeros((), dtype=torch.float64)
    for name, logits in z.items():
        expected = expected + c * ce(logits, batch.kept_targets)
        if name != "ensemble":
            expected = expected + w * kl(z["ensemble"], logits, temperature)
    torch.testing.assert_close(loss, expected, check_dtype=False)
    weights = list(module.parameters())
    for mine, theirs in zip(
        *(torch.autograd.grad(x, weights) for x in (loss, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_branch_alone_gives_what_it_gave_beside_the_others() -> None:
    whole = branches(5, V, width=7)
    x = torch.randn(4, 5)
    assert classify(whole, {"features": x}).equal(whole(x)["ensemble"])
    for name in ("branch_0", "branch_2"):
        single = branches(5, V, width=7, only=name)
        state = whole.state_dict()
        single.load_state_dict({key: state[key] for key in single.state_dict()})
        assert single(x).keys() == {name}
        torch.testing.assert_close(single(x).logits, whole(x)[name], rtol=0, atol=0)
    with pytest.raises(ValueError, match="only is 'branch_3'"):
        branches(5, V, only="branch_3")


def test_a_branch_of_images_is_a_plain_net() -> None:
    """Each path from the image on has the blocks, the pooling and the head of `conv`."""
    whole: Any = conv_branches(2, 8, V, width=6, trunk=1, depth=2)
    images = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    named = whole(pixel_values=images)
    share = torch.softmax(torch.relu(whole.gate(_pooled_trunk(whole, images))), 1)
    mixed = sum((share[:, [k]] * named[f"branch_{k}"] for k in range(3)), torch.zeros(4, V))
    assert torch.allclose(named["ensemble"], mixed, atol=1e-6)
    for k in range(3):
        plain: Any = conv(2, 8, V, width=6, depth=3)
        branch = whole.branches[f"branch_{k}"]
        for mine, theirs in zip(
            [plain.first, *plain.blocks, plain.head],
            [whole.first, *whole.trunk, *branch["blocks"], branch["head"]],
            strict=True,
        ):
            mine.load_state_dict(theirs.state_dict())
        assert torch.equal(plain(images), named[f"branch_{k}"])
    with pytest.raises(ValueError, match="4 blocks need 8"):
        conv_branches(2, 7, V, trunk=2, depth=2)


def _pooled_trunk(module: Any, images: torch.Tensor) -> torch.Tensor:
    x = module.first(images).relu()
    y = x
    for layer in module.trunk[0]:
        y = layer(y).relu()
    return (x + y).mean((2, 3))


# --- the student that is several -----------------------------------------------------------------


def pair(**changes: Any) -> StudentSpec:
    """Two perceptrons of digits."""
    each = {"a": digits.student(width=8), "b": digits.student(width=12, depth=0)}
    return StudentSpec.model_validate({"task": "classifier", "members": each, **changes})


def job_of(student: StudentSpec, objective: dict[str, Any]) -> JobSpec:
    raw = student.model_dump(mode="json", by_alias=True, exclude_none=True)
    return digits.job(student=raw, objective=objective)


def run_of(job: JobSpec, folder: Path) -> StudentJob:
    return StudentJob(job, "run", str(folder), None, str(folder / "data"))


def test_members_of_one_architecture_begin_apart_and_seeds_say_otherwise() -> None:
    mlp = digits.student(width=8)
    for seeds, same in (((None, None), False), ((4, 4), True), ((4, 5), False)):
        given = {
            name: {**mlp, **({} if seed is None else {"seed": seed})}
            for name, seed in zip("ab", seeds, strict=True)
        }
        loaded = load_model(pair(members=given), seed=3)
        a, b = (loaded.members[name].module.state_dict() for name in "ab")
        assert a["first.weight"].equal(b["first.weight"]) == same
    alone = load_model(pair().model_of("a"), seed=3).module.state_dict()
    first = load_model(pair(), seed=3).members["a"].module.state_dict()
    assert all(weight.equal(alone[name]) for name, weight in first.items())


def test_a_member_is_exported_as_a_model_of_its_own(tmp_path: Path) -> None:
    job = job_of(pair(export="b"), {"recipe": {"kind": "mutual_learning"}})
    loaded = load_model(job.student, seed=9)
    x = torch.rand(5, 64)
    main, named = classify_all(loaded.module, {"features": x})
    assert main.equal(named["b"]) and not main.equal(named["a"])
    done = _write(run_of(job, tmp_path), loaded.module.state_dict())
    assert done.folder == str(tmp_path / "export")
    assert done.members == {"a": str(tmp_path / MEMBERS / "a")}
    exports = {job.name: Export(done.folder, job.student)}
    for name, logits in named.items():
        folder = exports[job.name].of(name)
        assert sorted(file.name for file in Path(folder).iterdir()) == [
            "model.safetensors",
            MADE_FILE,
        ]
        assert may_import(folder, job.name, exports, "student", name)
        spec = ModelSpec(path=folder, task="classifier", allow_remote_code=True)
        torch.testing.assert_close(classify(load_model(spec).module, {"features": x}), logits)
    assert exports[job.name].of(None) == exports[job.name].of("b") == done.folder
    assert _write(run_of(job, tmp_path), loaded.module.state_dict()) == done  # once more, in place


@pytest.mark.parametrize("export", [None, "branch_1"])
def test_of_outputs_the_module_is_exported_or_one_alone(export: str | None, tmp_path: Path) -> None:
    student = StudentSpec.model_validate(
        {
            "import": "orchestrator.models.reference:branches",
            "task": "classifier",
            "arguments": {"inputs": 64, "classes": 10, "width": 8},
            "outputs": ["branch_0", "branch_1", "branch_2", "ensemble"],
            "export": export,
        }
    )
    job = job_of(student, {"recipe": {"kind": "one"}})
    loaded, x = load_model(student, seed=9), torch.rand(5, 64)
    done = _write(run_of(job, tmp_path), loaded.module.state_dict())
    exports = {job.name: Export(done.folder, student)}
    assert may_import(done.folder, job.name, exports, "student")
    again = load_model(ModelSpec(path=done.folder, task="classifier", allow_remote_code=True))
    wanted = loaded.module(x)[export or "ensemble"]
    torch.testing.assert_close(classify(again.module, {"features": x}), wanted)
    fewer = sum(w.numel() for w in again.module.parameters())
    assert (fewer < sum(w.numel() for w in loaded.module.parameters())) == (export is not None)


class Two(torch.nn.Module):
    """Two outputs, the second with other classes where it is told."""

    def __init__(self, make: Callable[[Tensor], NamedLogits]) -> None:
        super().__init__()
        self.weight, self.make = torch.nn.Parameter(torch.ones(3)), make

    def forward(self, features: Tensor) -> NamedLogits:
        return self.make(features)


def test_outputs_of_other_shapes_are_no_classifier() -> None:
    wrong = Two(
        lambda x: NamedLogits({"a": x.new_zeros(len(x), 3), "b": x.new_zeros(len(x), 4)}, "a")
    )
    with pytest.raises(TypeError, match=r"shape \[2, 4\] for 2 samples"):
        classify(wrong, {"features": torch.ones(2, 5)})


def test_members_tell_each_other_of_samples_without_labels() -> None:
    given = batch_of(5)
    labelled = torch.tensor([[True], [False], [True], [False], [True]])
    batch = Batch(given.inputs, given.targets, given.sample_index, labelled=labelled)
    terms = [
        {"kind": "cross_entropy", "member": "b"},
        {"kind": "forward_kl", "member": "a", "role": "student.b", "name": "mutual"},
        {"kind": "decoupled", "member": "a", "role": "student.b"},
    ]
    objective = build_objective(ObjectiveSpec.model_validate({"terms": terms}))
    own = leaves(("a", "b"), 4)
    members = {name: Outputs(logits=z) for name, z in own.items()}
    outputs = Outputs(logits=own["a"], members=members)
    counts = {name: float(count) for name, count in objective.counts(batch, {}).items()}
    assert counts == {"cross_entropy": 2.0, "mutual": 4.0, "decoupled": 2.0}
    numbers = objective.numbers(Progress(0, 10), {})
    loss, totals = objective.loss(outputs, batch, {}, numbers, dict.fromkeys(counts, 1.0))
    log_a, log_b = (torch.log_softmax(own[name].detach(), 1) for name in "ab")
    wanted = float((log_b.exp() * (log_b - log_a)).sum())
    assert float(totals["mutual"]) == pytest.approx(wanted, rel=1e-5)
    kept, right = torch.tensor([0, 2]), given.targets[[0, 2], 0]
    assert float(totals["cross_entropy"]) == pytest.approx(
        -float(log_b[kept, right].sum()), rel=1e-5
    )
    loss.backward()
    assert own["b"].grad is not None and bool((own["b"].grad[[1, 3]] == 0).all())
