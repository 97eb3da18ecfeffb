"""Recipes that look inside a role: what they compute, and their exact checks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from feature_scenes import Inside, gradients, images, texts

from strategies.contract import DenseSignal
from strategies.objective import Objective, build_objective
from strategies.pairs import Pair
from strategies.progress import Progress
from strategies.specs import FeatureTermSpec, ObjectiveSpec

KINDS = (
    *("fitnet", "attention_transfer", "similarity_preserving", "relational", "fsp"),
    "objective_adjustment",
)


def objective_of(**recipe: Any) -> Objective:
    """A recipe whose layers are `a` and `b` on both sides."""
    spec = ObjectiveSpec.model_validate({"recipe": recipe})
    layers = ("a", "b")
    pairs = {
        name: tuple(Pair(layers[i], layers[i]) for i, _ in enumerate(term.layer_pairs))
        for name, term in zip(spec.names, spec.terms, strict=True)
        if isinstance(term, FeatureTermSpec)
    }
    return build_objective(spec, pairs=pairs)


def result(
    objective: Objective, seen: Inside, theirs: torch.Tensor
) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """Loss, its gradient by the student's layers, and the mean of each term."""
    signals = {**seen.signals(), "teacher": DenseSignal(theirs)}
    numbers = objective.numbers(Progress(0, 10), objective.start())
    counts = {k: float(n) for k, n in objective.counts(seen.batch, signals).items()}
    scales = {k: numbers[f"{k}.weight"] / count for k, count in counts.items()}
    loss, totals = objective.loss(seen.outputs(), seen.batch, signals, numbers, scales)
    means = {name: float(total) / counts[name] for name, total in totals.items()}
    return float(loss.detach()), gradients(loss, seen), means


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_costs_nothing_where_both_are_one_and_pulls_elsewhere(kind: str) -> None:
    objective = objective_of(kind=kind, labels=0.0)
    same = texts(1, equal=True)
    loss, pulls, _ = result(objective, same, same.logits.detach())
    assert abs(loss) < 1e-10
    assert max(float(pull.abs().max()) for pull in pulls.values()) < 1e-9
    other = texts(1)
    loss, pulls, _ = result(objective, other, other.logits.detach())
    assert loss > 1e-3 and float(pulls["a"].abs().max()) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_asked_for_where_they_are_learned_from(kind: str) -> None:
    keys = {ask.key for ask in objective_of(kind=kind).asks()}
    assert keys == {"teacher.layers", *(["teacher"] if kind == "objective_adjustment" else [])}
    if kind != "objective_adjustment":
        keys = {ask.key for ask in objective_of(kind=kind, logits=0.5).asks()}
        assert keys == {"teacher.layers", "teacher"}


def test_attention_transfer_does_not_see_the_size_of_features() -> None:
    objective = objective_of(kind="attention_transfer", labels=0.0)
    seen = images(2)
    plain, _, _ = result(objective, seen, seen.logits.detach())
    larger = replace(seen, role={path: 3 * x for path, x in seen.role.items()})
    assert result(objective, larger, seen.logits.detach())[0] == pytest.approx(plain, rel=1e-12)


def test_doubt_shares_each_position_between_logits_and_hidden_states() -> None:
    objective = objective_of(kind="objective_adjustment", labels=0.0)
    seen = texts(3)
    theirs = torch.randn_like(seen.logits)
    _, _, means = result(objective, seen, theirs)
    q = seen.logits.detach().softmax(1)
    doubt = -(q * q.log()).sum(1) / torch.log(torch.tensor(7.0, dtype=torch.float64))
    apart = (seen.logits.detach() - theirs).square().mean(1)
    unit = torch.nn.functional.normalize
    hidden = (unit(seen.student["a"].detach()) - unit(seen.role["a"])).square().mean(1)
    assert ((doubt > 0) & (doubt < 1)).all()
    assert means["logits_distance"] == pytest.approx(float(((1 - doubt) * apart).mean()))
    assert means["hidden_states"] == pytest.approx(float((doubt * hidden).mean()))


def test_a_flow_leads_from_each_layer_to_the_next() -> None:
    layers = {"a": "x", "b": "y", "c": "z"}
    (term,) = ObjectiveSpec.model_validate({"recipe": {"kind": "fsp", "layers": layers}}).terms
    assert isinstance(term, FeatureTermSpec)
    assert [(ours, theirs) for _, ours, theirs in term.layer_pairs] == [
        *(("a", "x"), ("b", "y")),
        *(("b", "y"), ("c", "z")),
    ]
