"""Safaryan et al., arXiv:2305.17581: the role's own gradient is taken off the student's."""

import functools
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import digits
import pytest
import torch
from packed import batch_of
from residents import gradients_of, in_float64, joined, linear, loss_of, mlp, numbers, resident
from tiny_models import tiny
from torch import Tensor, nn

from orchestrator.data import collation, held_out_rows, prepare
from orchestrator.models.forward import classify, forward_logits
from orchestrator.models.load import Loaded, load_model
from orchestrator.models.resident import ResidentRole
from orchestrator.spec.diagnostics import ModifiedGradientSpec
from orchestrator.students.asked import Answered
from orchestrator.students.batches import to_device
from orchestrator.students.diagnostics.modified import measure_modified_gradient
from orchestrator.students.residents import find_mean_gradients
from strategies.contract import Batch, Outputs
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.recipes import RECIPES
from strategies.specs import ObjectiveSpec


def terms(kind: str = "modified_gradient", **fields: Any) -> list[dict[str, Any]]:
    recipe = RECIPES[kind].model_validate({"kind": kind, **fields})
    return [term.model_dump() for term in recipe.terms()]


def plain_gradient(loaded: Loaded, batch: Batch) -> dict[str, Tensor]:
    """Of the mean cross entropy, by plain torch."""
    frozen = [p for p in loaded.module.parameters() if not p.requires_grad]
    loaded.module.requires_grad_(True)
    if "position_ids" in batch.inputs:
        given = batch.inputs["input_ids"], batch.inputs["position_ids"]
        logits = forward_logits(loaded.module, *given)[batch.mask]
    else:
        logits = classify(loaded.module, batch.inputs)[batch.mask[:, 0]]
    found = gradients_of(nn.functional.cross_entropy(logits, batch.kept_targets), loaded)
    for parameter in frozen:
        parameter.requires_grad_(False)
    return found


def apart(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def batch64(seed: int = 0) -> Batch:
    seen = numbers(9, seed=seed)
    given = {name: x.double() for name, x in seen.inputs.items()}
    return Batch(given, seen.targets, seen.sample_index)


def rows_of(batch: Batch, rows: slice) -> Batch:
    inputs = {name: x[rows] for name, x in batch.inputs.items()}
    return Batch(inputs, batch.targets[rows], batch.sample_index[rows])


# --- exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_for_softmax_linear_models_it_is_the_gradient_of_distillation(share: float) -> None:
    student, role, batch = in_float64(linear(1)), resident(in_float64(linear(2))), batch64()
    module, objective = joined(student, role, *terms(role_share=share))
    modified = gradients_of(loss_of(module, objective, batch)[0], student)
    module, objective = joined(student, role, *terms("partial_variance", role_share=share))
    signals = {"teacher": role.signal(batch)}
    true = gradients_of(loss_of(module, objective, batch, signals=signals)[0], student)
    assert apart(modified, true) < 1e-12
    assert max(float(g.abs().max()) for g in true.values()) > 1e-2


DEEP: dict[str, tuple[Any, Any]] = {
    "mlp": (mlp, batch64),
    "llama": (lambda seed: tiny(seed=seed, for_training=True), lambda: batch_of([[4, 5], [9]])),
    "tied": (
        lambda seed: tiny("llama_tied", seed=seed, for_training=True),
        lambda: batch_of([[4, 5], [9]]),
    ),
    "gpt2": (
        lambda seed: tiny("gpt2", seed=seed, for_training=True),
        lambda: batch_of([[4, 5], [9]]),
    ),
}


@pytest.mark.parametrize("name", DEEP)
def test_for_deep_models_it_is_what_plain_torch_makes_of_both(name: str) -> None:
    make, batch_like = DEEP[name]
    student, role, batch = in_float64(make(1)), resident(in_float64(make(2))), batch_like()
    module, objective = joined(student, role, *terms(role_share=0.7))
    got = gradients_of(loss_of(module, objective, batch)[0], student)
    of_student = plain_gradient(student, batch)
    of_role = plain_gradient(role.loaded, batch)
    exact = 1e-12 if name in ("mlp", "gpt2") else 1e-6  # a Llama's norms compute in float32
    assert apart(got, {name: g - 0.7 * of_role[name] for name, g in of_student.items()}) < exact
    assert max(float(g.abs().max()) for g in of_role.values()) > 1e-3


def test_in_single_precision_and_for_parts_of_the_student_it_is_the_same() -> None:
    student, role, batch = mlp(1), resident(mlp(2)), numbers(9)
    student.module.first.requires_grad_(False)  # type: ignore[union-attr]
    module, objective = joined(student, role, *terms(role_share=0.4))
    loss, _ = loss_of(module, objective, batch)
    loss.backward()
    of_student, of_role = plain_gradient(student, batch), plain_gradient(role.loaded, batch)
    for name, parameter in student.module.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None
        wanted = of_student[name] - 0.4 * of_role[name]
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=1e-6)
    assert role.loaded.module.head.weight.grad is None  # type: ignore[union-attr]


def test_the_cut_into_micro_batches_changes_nothing() -> None:
    student, role, batch = in_float64(mlp(1)), resident(in_float64(mlp(2))), batch64()
    module, objective = joined(student, role, *terms())
    whole = gradients_of(loss_of(module, objective, batch)[0], student)
    positions = float(batch.mask.sum())
    added: dict[str, Tensor] = {}
    for rows in (slice(0, 2), slice(2, 3), slice(3, 9)):
        part = rows_of(batch, rows)
        found = gradients_of(loss_of(module, objective, part, positions)[0], student)
        added = {name: added.get(name, 0) + g for name, g in found.items()}
    assert apart(added, whole) < 1e-14


def test_lam_may_follow_a_schedule_and_the_value_is_0_at_the_role_itself() -> None:
    falling = {"kind": "linear", "start": 0.8, "end": 0.2}
    student, role, batch = in_float64(mlp(1)), resident(in_float64(mlp(2))), batch64()
    for step, share in ((0, 0.8), (5, 0.5), (10, 0.2)):
        both = []
        for lam in (falling, share):
            module, objective = joined(student, role, *terms(role_share=lam))
            loss, _ = loss_of(module, objective, batch, at=Progress(step, 10))
            both.append(gradients_of(loss, student))
        assert apart(*both) < 1e-12
    module, objective = joined(student, role, *terms())
    assert abs(loss_of(module, objective, batch)[1]["role_gradient"]) > 1e-3
    twin = in_float64(mlp(2))
    module, objective = joined(twin, role, *terms())
    assert loss_of(module, objective, batch)[1]["role_gradient"] == 0


def test_the_value_is_what_the_roles_loss_made_straight_loses() -> None:
    student, role, batch = in_float64(linear(1)), resident(in_float64(linear(2))), batch64()
    module, objective = joined(student, role, *terms())
    _, sums = loss_of(module, objective, batch)
    theta = {name: p.detach().clone() for name, p in role.weights.items()}
    ours = {name: p.detach() for name, p in student.module.named_parameters()}

    def summed(step: float) -> float:
        moved = {name: t + step * (ours[name] - t) for name, t in theta.items()}
        logits = torch.func.functional_call(role.loaded.module, moved, tuple(batch.inputs.values()))
        kept = logits.unsqueeze(1)[batch.mask]
        return float(nn.functional.cross_entropy(kept, batch.kept_targets, reduction="sum"))

    slope = (summed(1e-5) - summed(-1e-5)) / 2e-5
    assert sums["role_gradient"] == pytest.approx(-slope, rel=1e-6)


# --- unbiased ------------------------------------------------------------------------------------


def digits_job(**changes: Any) -> Any:
    objective = {"recipe": {"kind": "modified_gradient", "unbiased": True}}
    return digits.job(
        objective=objective,
        roles={"teacher": digits.student(width=8, depth=1)},
        student=digits.student(width=8, depth=1),
        data=digits.data(101),
        **changes,
    )


def test_what_is_taken_off_adds_up_to_nothing_over_all_data(tmp_path: Path) -> None:
    spec = digits_job()
    data = prepare(spec.data, None, str(tmp_path))
    student, teacher = (load_model(spec.student, seed=s, for_training=s == 1) for s in (1, 2))
    role = resident(teacher)
    find_mean_gradients(spec, data, {"teacher": role}, 0, 1)
    assert role.mean_gradient is not None
    parts = [term for term in terms(unbiased=True) if term["kind"] == "role_gradient"]
    module, objective = joined(student, role, *parts)
    rows = held_out_rows(data.train, None, None, packing=False)
    added: dict[str, Tensor] = {}
    largest = 0.0
    for begin in range(0, len(rows), 7):
        batch = to_device(
            collation(spec.data)(data.train, rows[begin : begin + 7]), torch.device("cpu")
        )
        found = gradients_of(loss_of(module, objective, batch, 1.0)[0], student)
        largest = max(largest, *(float(g.abs().max()) for g in found.values()))
        added = {name: added.get(name, 0) + g.double() for name, g in found.items()}
    left = max(float(g.abs().max()) for g in added.values())
    assert largest > 0.1 and left < 1e-4 * largest


def test_shares_of_ranks_are_the_whole(tmp_path: Path, monkeypatch: Any) -> None:
    spec = digits_job()
    data = prepare(spec.data, None, str(tmp_path))
    role = resident(load_model(spec.student, seed=2))
    find_mean_gradients(spec, data, {"teacher": role}, 0, 1)
    whole, told = role.mean_gradient, list[list[Tensor]]()
    assert whole is not None

    def note(tensor: Tensor) -> None:
        told[-1].append(tensor.clone())

    monkeypatch.setattr(torch.distributed, "all_reduce", note)
    for rank in (0, 1):
        told.append([])
        find_mean_gradients(spec, data, {"teacher": role}, rank, 2)
    (count, *first), (more, *second) = told
    assert float(count) and float(more) and int(count + more) == len(data.train)
    for (name, wanted), one, two in zip(whole.items(), first, second, strict=True):
        torch.testing.assert_close((one + two) / float(count + more), wanted, msg=name)


def test_unbiased_without_the_whole_gradient_says_so() -> None:
    student, role, batch = mlp(1), resident(mlp(2)), numbers()
    module, objective = joined(student, role, *terms(unbiased=True))
    with pytest.raises(ValueError, match="nobody has found the whole gradient"):
        loss_of(module, objective, batch)


# --- linear regression by SGD: the unbiased variant with a mediocre role -------------------------

SAMPLES, WIDTH, RUNS, STEPS, RATE, NOISE, GAP = 500, 20, 200, 300, 0.01, 1.17, 0.43


class Regression:
    """A role of squared loss; its weights are those of all runs, a run a row and an input."""

    def __init__(self, weights: Tensor, whole: Tensor) -> None:
        self.weights = {"weight": weights.expand(RUNS, -1)}
        self.mean_gradient = {"weight": whole.expand(RUNS, -1) / RUNS}
        self.labels = whole.new_zeros(RUNS)

    def gradient(self, batch: Batch) -> dict[str, Tensor]:
        seen = batch.inputs["features"]
        return {
            "weight": (self.weights["weight"] * seen).sum(1, True).sub(self.labels[:, None]) * seen
        }


@functools.cache
def scene() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, labels, the optimum and a role whose loss is `GAP` above it."""
    make = torch.Generator().manual_seed(0)
    double: Any = {"generator": make, "dtype": torch.float64}
    inputs = torch.randn(SAMPLES, WIDTH, **double)
    labels = inputs.sum(1) + NOISE * torch.randn(SAMPLES, **double)
    best = torch.linalg.lstsq(inputs, labels.unsqueeze(1)).solution.squeeze(1)
    away = torch.randn(WIDTH, **double)
    away *= (2 * GAP / (inputs @ away).square().mean()).sqrt()
    return inputs, labels, best, best + away


def pulls(weights: Tensor) -> Tensor:
    """[samples, width]: gradients of half the squared error, sample by sample."""
    inputs, labels, *_ = scene()
    return (inputs @ weights - labels)[:, None] * inputs


def noise_left(share: float) -> float:
    """E |g(x*) - share (g(theta) - its mean)|^2 over that without a role."""
    *_, best, theta = scene()
    own, theirs = pulls(best), pulls(theta)
    left = own - share * (theirs - theirs.mean(0))
    return float(left.square().sum() / own.square().sum())


@functools.cache
def at_rest(share: float, *, unbiased: bool) -> float:
    """Mean squared distance to the optimum that SGD ends with, all runs from the optimum."""
    make = torch.Generator().manual_seed(1)
    inputs, labels, best, theta = scene()
    role: Any = Regression(theta, pulls(theta).mean(0))
    spec = {"kind": "role_gradient", "weight": share, "unbiased": unbiased}
    objective = build_objective(
        ObjectiveSpec.model_validate({"terms": [{"kind": "cross_entropy"}, spec]}),
        residents={"teacher": role},
    )
    (term,) = objective.others
    students, total = best.repeat(RUNS, 1), 0.0
    targets = torch.zeros(RUNS, 1, dtype=torch.int64)
    for step in range(STEPS):
        rows = torch.randint(SAMPLES, (RUNS,), generator=make)
        seen, role.labels = inputs[rows], labels[rows]
        batch = Batch({"features": seen}, targets, targets)
        students.requires_grad_()
        own = ((students * seen).sum(1) - labels[rows]).square().sum() / 2
        outputs = Outputs(parameters={"weight": students})
        loss = own + share * term.total(outputs, batch, objective.residents, {})
        (gradient,) = torch.autograd.grad(loss, students)
        students = (students - RATE * gradient).detach()
        if step >= STEPS // 2:
            total += float((students - best).square().sum(1).mean())
    return total


def test_the_unbiased_variant_halves_the_error_where_the_biased_one_hurts() -> None:
    plain = at_rest(0.0, unbiased=False)
    unbiased = {share: at_rest(share, unbiased=True) / plain for share in (0.2, 0.6, 1.0)}
    for share, left in unbiased.items():
        assert left == pytest.approx(noise_left(share), rel=0.15)
    assert unbiased[0.6] == pytest.approx(0.44, abs=0.06)
    assert unbiased[0.2] > unbiased[0.6] < unbiased[1.0]
    assert at_rest(0.6, unbiased=False) / plain > 1.5


# --- the diagnostic ------------------------------------------------------------------------------


def site(student: Loaded, role: ResidentRole, batch: Batch) -> Any:
    """As much of a site as the diagnostic looks at."""
    module, _ = joined(student, role, *terms())
    parts = [rows_of(batch, slice(0, 4)), rows_of(batch, slice(4, 8))]
    return SimpleNamespace(
        role=lambda named: named or "teacher",
        residents={"teacher": role},
        engine=SimpleNamespace(whole_module=module),
        data=SimpleNamespace(train=None),
        training_parts=lambda batches: parts,
        asker=SimpleNamespace(
            answered=lambda store, parts, asks, work: [Answered(part, {}, None) for part in parts]
        ),
        sum_numbers=lambda numbers: numbers,
        sum_tensor=lambda tensor: None,
    )


def test_the_diagnostic_finds_both_alike_for_linear_models_and_not_quite_for_deep_ones() -> None:
    spec = ModifiedGradientSpec(kind="modified_gradient", lam=0.6)
    same = measure_modified_gradient(
        site(in_float64(linear(1)), resident(in_float64(linear(2))), batch64()), spec, "x"
    )
    assert same["cosine"] == pytest.approx(1.0, abs=1e-12) and same["distance"] < 1e-12
    assert same["batches"] == 2 and same["lam"] == 0.6
    assert same["norm_true"] == pytest.approx(same["norm_modified"]) and same["norm_true"] > 0
    deep = measure_modified_gradient(
        site(in_float64(mlp(1)), resident(in_float64(mlp(2))), batch64()), spec, "x"
    )
    assert -1 < deep["cosine"] < 1 - 1e-6 and deep["distance"] > 1e-3
    assert deep["cosine_of_means"] != deep["cosine"]
