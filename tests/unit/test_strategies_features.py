"""Terms that look inside: against the oracle in float64, at equality, without positions, cut."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from feature_oracle import oracle
from feature_scenes import (
    Inside,
    gradients,
    images,
    objective_of,
    result,
    texts,
    without_loss,
)
from pydantic import ValidationError

from strategies.contract import Ask
from strategies.features import relational_angle, relational_distance, similarity_distance
from strategies.objective import build_objective
from strategies.specs import ObjectiveSpec

LAYERS = {"layers": [{"student": "x", "role": "y"}]}  # of the spec; scenes bring the pairs found
SAME, WIDE = (("a", "a"), ("b", "b")), (("a", "wide"), ("b", "wide"))
FLOW = {"flows": [{"student": ["x", "y"], "role": ["x", "y"]}]}
CASES: dict[str, tuple[dict[str, Any], tuple[tuple[str, str], ...]]] = {
    "mse": ({"kind": "hidden_states"}, SAME),
    "normalised mse": ({"kind": "hidden_states", "distance": "normalised_mse"}, SAME),
    "cosine": ({"kind": "hidden_states", "distance": "cosine"}, SAME),
    "attention transfer": ({"kind": "attention_transfer"}, (("a", "a"), ("b", "wide"))),
    "fsp": ({"kind": "fsp", **FLOW}, SAME),
    "similarity": ({"kind": "similarity_preserving", "group": 2}, WIDE),
    "distances": ({"kind": "relational", "relation": "distance", "group": 4}, WIDE),
    "angles": ({"kind": "relational", "relation": "angle", "group": 4}, WIDE),
}
ATTENTION: dict[str, tuple[dict[str, Any], str]] = {
    "kl, each": ({"distance": "kl", "heads": "each"}, "attention"),
    "kl, mean": ({"distance": "kl", "heads": "mean"}, "attention_wide"),
    "mse, each": ({"distance": "mse", "heads": "each"}, "attention"),
    "mse, mean": ({"distance": "mse", "heads": "mean"}, "attention_wide"),
}
SCENES: dict[str, Callable[..., Inside]] = {"texts": texts, "images": images}


def _term(fields: dict[str, Any]) -> dict[str, Any]:
    return fields if fields["kind"] == "fsp" else {**fields, **LAYERS}


def _wanted(
    term: dict[str, Any], pairs: tuple[tuple[str, str], ...], seen: Inside
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    spec = ObjectiveSpec.model_validate({"terms": [term]}).terms[0].model_dump()
    sides = [(seen.samples(seen.student[a]), seen.samples(seen.role[b])) for a, b in pairs]
    value = oracle(spec, sides, seen.groups(spec.get("group", 1)), seen.maps)
    return value.detach(), gradients(value, seen)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("where", SCENES)
@pytest.mark.parametrize("case", CASES)
def test_a_term_is_the_oracles(case: str, where: str, seed: int) -> None:
    fields, pairs = CASES[case]
    term = _term(fields)
    seen = SCENES[where](seed)
    value, gradient = _wanted(term, pairs, seen)
    got, of_got, _ = result(objective_of(term, *pairs), seen)
    assert float(value) > 1e-3
    torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(of_got, gradient, rtol=1e-9, atol=1e-12)
    single = SCENES[where](seed, dtype=torch.float32)
    got, of_got, _ = result(objective_of(term, *pairs), single)
    assert float(got) == pytest.approx(float(value), rel=1e-5)
    for path, mine in of_got.items():
        assert (mine - gradient[path]).norm() <= 1e-4 * gradient[path].norm() + 1e-7


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_is_compared_as_the_oracle_does(case: str, seed: int) -> None:
    fields, theirs = ATTENTION[case]
    term, pairs = {"kind": "attention_maps", **fields, **LAYERS}, (("attention", theirs),)
    seen = texts(seed)
    value, gradient = _wanted(term, pairs, seen)
    got, of_got, _ = result(objective_of(term, *pairs), seen)
    assert float(value) > 1e-3
    torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(of_got, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("where", SCENES)
@pytest.mark.parametrize("case", CASES)
def test_a_term_is_0_where_both_are_one_and_pulls_elsewhere(case: str, where: str) -> None:
    fields, pairs = CASES[case]
    term, same = _term(fields), tuple((a, a) for a, _ in pairs)
    got, of_got, _ = result(objective_of(term, *same), SCENES[where](5, equal=True))
    assert abs(float(got)) < 1e-12
    assert max(float(gradient.abs().max()) for gradient in of_got.values()) < 1e-12
    got, of_got, _ = result(objective_of(term, *same), SCENES[where](5))
    assert float(got) > 1e-3
    assert all(float(of_got[a].abs().max()) > 1e-6 for a, _ in same)


@pytest.mark.parametrize("case", ATTENTION)
def test_equal_attention_costs_nothing(case: str) -> None:
    fields, _ = ATTENTION[case]
    term = {"kind": "attention_maps", **fields, **LAYERS}
    seen = texts(6, equal=True)
    got, of_got, _ = result(objective_of(term, ("attention", "attention")), seen)
    assert abs(float(got)) < 1e-12
    if fields["distance"] == "mse":
        assert float(of_got["attention"].abs().max()) < 1e-12
    else:  # by probabilities the pull is even over the keys: by scores nothing
        held = seen.student["attention"] > 0
        pull = of_got["attention"]
        assert torch.allclose(pull[held], pull[held][0].expand(int(held.sum())))


@pytest.mark.parametrize("where", SCENES)
@pytest.mark.parametrize("case", CASES)
def test_a_batch_without_positions_costs_nothing_and_reaches_the_layers(
    case: str, where: str
) -> None:
    fields, pairs = CASES[case]
    seen = without_loss(SCENES[where]())
    objective = objective_of(_term(fields), *pairs)
    got, of_got, count = result(objective, seen)
    assert (float(got), count) == (0.0, 0.0)
    assert {len(gradient) for gradient in of_got.values()} == {0}


@pytest.mark.parametrize(
    ("case", "where", "count"),
    [
        ("mse", "images", 8),
        ("attention transfer", "images", 8),
        ("attention transfer", "texts", 6),  # a row of two samples bears no loss
        ("similarity", "texts", 2),
        ("similarity", "images", 5),  # the last row is a group of its own
        ("distances", "images", 2),  # and has no relations
        ("angles", "images", 2),
    ],
)
def test_what_is_counted_is_known_from_the_batch(case: str, where: str, count: int) -> None:
    fields, pairs = CASES[case]
    assert result(objective_of(_term(fields), *pairs), SCENES[where]())[2] == count


def test_rows_cut_between_groups_add_up() -> None:
    for case, (fields, pairs) in CASES.items():
        objective = objective_of(_term(fields), *pairs)
        whole, of_whole, count = result(objective, texts(7))
        total, parts, found = 0.0, 0.0, {path: [] for path in of_whole}
        for rows in (slice(0, 2), slice(2, 4)):
            if fields.get("group") == 4:
                continue
            seen = texts(7)
            kept = torch.zeros(4, 9, dtype=torch.bool)
            kept[rows] = True
            mine = kept[seen.batch.mask]
            batch = replace(
                seen.batch,
                inputs={k: v[rows] for k, v in seen.batch.inputs.items()},
                targets=seen.batch.targets[rows],
                sample_index=seen.batch.sample_index[rows],
            )
            cut = Inside(
                batch,
                {p: x.detach()[mine].requires_grad_() for p, x in seen.student.items()},
                {p: x[mine] for p, x in seen.role.items()},
                seen.logits[mine],
                False,
            )
            mean, of_mean, part = result(objective, cut)
            total, parts = total + float(mean) * part, parts + part
            for path, gradient in of_mean.items():
                found[path].append(gradient * part)
        if parts:
            assert parts == count and total / count == pytest.approx(float(whole), rel=1e-12), case
            for path, pieces in found.items():
                torch.testing.assert_close(torch.cat(pieces) / count, of_whole[path])


def test_positions_are_weighed_by_what_the_student_says() -> None:
    term = {"kind": "hidden_states", "weigh_by": {"measure": "student_entropy"}, **LAYERS}
    seen = texts(8)
    got, of_got, count = result(objective_of(term, ("a", "a")), seen)
    p = seen.logits.softmax(1)
    doubt = (-(p * p.log()).sum(1) / torch.tensor(7.0).log()).detach()
    apart = (seen.student["a"] - seen.role["a"]).square().mean(1)
    value = (doubt * apart).sum() / count
    torch.testing.assert_close(got, value.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(of_got["a"], gradients(value, seen)["a"], rtol=1e-6, atol=1e-12)


def test_samples_that_coincide_have_finite_gradients() -> None:
    ours = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    theirs = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 1.0]])
    dead = torch.zeros(3, 2, requires_grad=True)
    for distance in (similarity_distance, relational_distance, relational_angle):
        for leaf in (ours, dead):
            value = distance(leaf, theirs)
            (gradient,) = torch.autograd.grad(value, leaf)
            assert value.isfinite() and float(gradient.abs().max()) < 100


def test_a_term_asks_for_the_layers_it_was_given() -> None:
    objective = objective_of({"kind": "hidden_states", **LAYERS}, ("a", "m.1"), ("b", "m.1"))
    (ask,) = objective.asks()
    assert ask == Ask("teacher", "layers", ("m.1",)) and ask.key == "teacher.layers"


def test_a_term_without_layers_says_so() -> None:
    spec = ObjectiveSpec.model_validate({"terms": [{"kind": "hidden_states", **LAYERS}]})
    with pytest.raises(ValueError, match="hidden_states needs its layers"):
        result(build_objective(spec), texts())


def test_sides_that_cover_other_positions_are_refused() -> None:
    seen = texts()
    seen = replace(seen, role={path: x[:3] for path, x in seen.role.items()})
    with pytest.raises(ValueError, match=r"a covers \d+ positions and b of role 'teacher' 3"):
        result(objective_of({"kind": "hidden_states", **LAYERS}, ("a", "b")), seen)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"kind": "hidden_states", "layers": []}, "at least 1"),
        ({"kind": "hidden_states", "layers": [{"student": "a..b", "role": "c"}]}, "match pattern"),
        (
            {"kind": "hidden_states", "weigh_by": {"measure": "gap"}, **LAYERS},
            r"weigh_by\.measure is gap, which looks at a role's logits",
        ),
        (
            {"kind": "relational", "relation": "angle", "group": 2, **LAYERS},
            "greater than or equal to 3",
        ),
    ],
)
def test_terms_that_cannot_be_are_refused(term: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectiveSpec.model_validate({"terms": [term]})
