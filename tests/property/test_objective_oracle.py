"""Targets, measures, weights and temperatures of whole terms against the float64 oracle."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from objective_oracle import term_sum
from tiny_objective import Scene, objective_of, result, scene

from strategies import heads
from strategies.contract import Batch, Head, HiddenSignal, Outputs
from strategies.specs import ObjectiveSpec

quick = settings(max_examples=120, deadline=None)
SHARES = st.sampled_from([0.0, 0.3, 1.0])
TRANSFORMS = st.one_of(
    st.sampled_from(["swap", "rectify", "keep_label", "uniform", "likeliest"]).map(
        lambda kind: {"kind": kind}
    ),
    st.just({"kind": "smooth_wrong", "confidence": 0.8}),
    st.sampled_from([0.2, 0.6, 1.0]).map(lambda share: {"kind": "keep_top", "share": share}),
    SHARES.map(lambda alpha: {"kind": "delta", "alpha": alpha}),
    SHARES.map(lambda share: {"kind": "towards_student", "share": share}),
    st.sampled_from(["weights", "entropy"]).map(
        lambda by: {
            "kind": "mix",
            "roles": ["second_teacher", "assistant"],
            "weights": [1.0, 0.5, 2.0],
            "by": by,
        }
    ),
)
TIES = ("keep_label", "uniform", "likeliest", "smooth_wrong", "keep_top")
"""What leaves equal probabilities: which of them are then the largest is a matter of rounding."""
KINDS = st.sampled_from(
    [
        {"kind": "forward_kl"},
        {"kind": "jensen_shannon", "beta": 0.3},
        {"kind": "total_variation"},
        {"kind": "reverse_kl"},
        {"kind": "adaptive_kl"},
        {"kind": "decoupled", "others_weight": 2.0},
        {"kind": "logits_distance", "logit_scale": 0.5, "margin": 2.0},
    ]
)
MEASURES = (
    *("student_entropy", "student_confidence", "student_margin", "student_doubt", "student_loss"),
    *("role_entropy", "role_confidence", "role_right", "dissimilarity", "gap"),
)
BOUNDED = ("student_entropy", "student_confidence", "student_margin", "role_entropy")
WEIGHTS = st.one_of(
    st.none(),
    st.sampled_from(MEASURES).map(lambda measure: {"measure": measure, "power": 1.5}),
    st.sampled_from(BOUNDED).map(lambda measure: {"measure": measure, "complement": True}),
    st.sampled_from(MEASURES).map(lambda measure: {"measure": measure, "mean": True, "group": 2}),
    st.tuples(st.sampled_from(MEASURES), st.booleans()).map(
        lambda drawn: {"measure": drawn[0], "top": 0.5, "complement": drawn[1], "group": 4}
    ),
)
TEMPERATURES = st.one_of(
    st.none(),
    st.sampled_from(["dissimilarity", "student_doubt"]).map(
        lambda measure: {"measure": measure, "beta": 3.0, "power": 0.5, "group": 2}
    ),
)


@st.composite
def terms(draw) -> dict[str, Any]:
    term: dict[str, Any] = {**draw(KINDS), "weigh_by": draw(WEIGHTS)}
    term["where"] = draw(st.sampled_from([None, None, "role_right", "role_wrong"]))
    term["target"] = draw(st.lists(TRANSFORMS, max_size=2))
    if term["target"][1:] and term["target"][0]["kind"] in TIES:
        first, *others = term["target"]
        term["target"] = [first, *(t for t in others if t["kind"] != "keep_top")]
    if term["kind"] == "logits_distance":
        # A distance to a logit of -inf is left out, so what makes such logits has no meaning.
        term["target"] = [t for t in term["target"] if t["kind"] != "likeliest"]
        return term
    return term | {
        "temperature": draw(st.sampled_from([1.0, 2.5])),
        "temperature_by": draw(TEMPERATURES),
    }


@pytest.fixture(autouse=True, scope="module")
def several_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "LEAST_ROWS", 3)
        patch.setattr(heads, "CPU_CHUNK_BYTES", 1)
        patch.setattr(heads, "CPU_BLOCK_BYTES", 80)
        yield


def _wanted(term: dict[str, Any], seen: Scene) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean, its gradient and the count, by the oracle."""
    spec = ObjectiveSpec.model_validate({"terms": [term]}).terms[0]
    total, count = term_sum(spec.model_dump(), seen.hidden, seen.roles, seen.labels, seen.rows)
    mean = total / max(count, 1.0)
    (gradient,) = torch.autograd.grad(mean, seen.hidden)
    return mean.detach(), gradient, count


@quick
@given(terms(), st.integers(0, 2**31), st.booleans(), st.booleans())
def test_a_term_in_double_precision_is_the_oracles(
    term: dict[str, Any], seed: int, through_head: bool, holes: bool
) -> None:
    seen = scene(seed)
    if holes and term["kind"] != "logits_distance":
        for logits in seen.roles.values():
            logits[:, 6] = -torch.inf
        seen.batch.targets[seen.batch.targets == 6] = 5
    mean, gradient, _ = _wanted(term, seen)
    loss, got, _ = result(objective_of(term), seen, through_head=through_head)
    torch.testing.assert_close(loss, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got, gradient, rtol=1e-10, atol=1e-10)


@quick
@given(terms(), st.integers(0, 2**31), st.booleans())
def test_a_term_in_single_precision_is_the_oracles(
    term: dict[str, Any], seed: int, through_head: bool
) -> None:
    seen = scene(seed, dtype=torch.float32)
    mean, gradient, count = _wanted(term, seen)
    loss, got, _ = result(objective_of(term), seen, through_head=through_head, hidden_roles=True)
    assert abs(float(loss - mean)) <= 1e-5 * abs(float(mean)) + 1e-6
    assert (got - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6
    assert loss.isfinite() and (count > 0 or loss == 0)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_similarities_of_the_roles_head_are_the_oracles(power: float, temperature: float) -> None:
    seen = scene(1)
    # The identity as a head has no likeness: another basis of the same logits has.
    make = torch.Generator().manual_seed(2)
    weight = torch.randn(7, 7, generator=make, dtype=torch.float64)
    term = {
        "kind": "forward_kl",
        "temperature": temperature,
        "target": [{"kind": "similarity", "power": power}],
    }
    spec = ObjectiveSpec.model_validate({"terms": [term]}).terms[0]
    total, _ = term_sum(spec.model_dump(), seen.hidden, seen.roles, seen.labels, seen.rows, weight)
    objective = objective_of(term)
    signals = {"teacher": HiddenSignal(seen.roles["teacher"], Head(weight))}
    numbers = {"forward_kl.weight": 1.0, "forward_kl.temperature": temperature}
    outputs = Outputs(logits=seen.hidden)
    loss, _ = objective.loss(outputs, seen.batch, signals, numbers, {"forward_kl": 1.0})
    torch.testing.assert_close(loss, total, rtol=1e-10, atol=1e-10)
    (got,) = torch.autograd.grad(loss, seen.hidden)
    (wanted,) = torch.autograd.grad(total, seen.hidden)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@quick
@given(terms(), st.integers(0, 100))
def test_a_batch_without_positions_costs_nothing(term: dict[str, Any], seed: int) -> None:
    whole = scene(seed)
    empty = Batch(
        whole.batch.inputs, torch.full_like(whole.batch.targets, -100), whole.batch.sample_index
    )
    nothing = Scene(
        whole.hidden.detach()[:0].requires_grad_(),
        {name: logits[:0] for name, logits in whole.roles.items()},
        empty,
    )
    for through_head in (True, False):
        loss, gradient, means = result(objective_of(term), nothing, through_head=through_head)
        assert loss == 0 and gradient.shape == (0, 7)
        assert set(means.values()) == {0.0}


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_a_batch_without_such_positions_gives_zero_and_no_nan(right: float) -> None:
    seen = scene(3, right=1.0)
    if right == 0.0:
        wrong = (seen.roles["teacher"].argmax(1) + 1) % 7
        seen.batch.targets[seen.batch.mask] = wrong
    absent = "role_wrong" if right else "role_right"
    term = {"kind": "forward_kl", "where": absent}
    loss, gradient, means = result(objective_of(term), seen)
    assert loss == 0 and gradient.abs().max() == 0 and means == {"forward_kl": 0.0}
    other = {"kind": "forward_kl", "where": "role_right" if right else "role_wrong"}
    everywhere, _, _ = result(objective_of({"kind": "forward_kl"}), seen)
    there, _, _ = result(objective_of(other), seen)
    assert torch.equal(there, everywhere)
