"""Recipes: what they expand to and refuse, their pages, the command that explains them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from tiny_objective import objective_of, result, scene

from orchestrator.cli import exit_code
from orchestrator.cli_recipes import default_recipe, example
from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec, load_jobs, resolved_yaml
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.recipes import RECIPES
from strategies.recipes.numbers import product, rest_of
from strategies.schedules import value
from strategies.specs import ObjectiveSpec

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/recipes"
EVERY = sorted(RECIPES)
INSIDE = {k for k in EVERY if {what for _, what in default_recipe(k).asks} - {"logits"}}
"""Those that look at layers; `test_recipes_inside` has what they compute."""
RANKS = {kind for kind in EVERY if default_recipe(kind).ranks_items}
"""Those about the items of users; `test_paper_09_unbiased` has what they compute."""
MUTUAL = {"mutual_learning", "one"}
"""Those whose terms name members of the student; `test_paper_04_online` has what they compute."""


def _spec(**recipe: Any) -> ObjectiveSpec:
    return ObjectiveSpec.model_validate({"recipe": recipe})


def _load(tmp_path: Path, job: dict[str, Any]) -> JobSpec:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    return load_jobs(tmp_path / "job.yaml")[0]


# --- expanding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_a_recipe_expands_to_terms_that_say_the_same_without_it(kind: str) -> None:
    spec = _spec(kind=kind)
    written = spec.model_dump(mode="json")
    assert written["recipe"]["kind"] == kind and written["terms"]
    assert ObjectiveSpec.model_validate(written) == spec
    alone = ObjectiveSpec.model_validate({k: v for k, v in written.items() if k != "recipe"})
    assert alone == spec.model_copy(update={"recipe": None})
    assert build_objective(alone) == build_objective(spec)


@pytest.mark.parametrize("kind", EVERY)
def test_a_recipes_example_is_a_job_whose_resolved_file_loads_again(
    kind: str, tmp_path: Path
) -> None:
    job = _load(tmp_path, example(kind))
    assert job.used_roles == default_recipe(kind).roles
    (tmp_path / "job.yaml").write_text(resolved_yaml([job]))
    assert load_jobs(tmp_path / "job.yaml") == [job]


@pytest.mark.parametrize("kind", sorted(set(EVERY) - {"kd_sim"} - INSIDE - RANKS - MUTUAL))
def test_a_recipe_gives_a_finite_loss_and_gradient_from_head_or_logits(kind: str) -> None:
    seen, at = scene(3, dtype=torch.float32), Progress(3, 12, 1, 4)
    objective = objective_of(kind=kind)
    by_logits, by_head = (
        result(objective, seen, through_head=through, hidden_roles=through, at=at)
        for through in (False, True)
    )
    assert by_logits[0] > 0 and by_logits[1].isfinite().all()
    assert by_logits[1].abs().max() > 0
    torch.testing.assert_close(by_head, by_logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kind", [k for k in EVERY if not default_recipe(k).needs_labels and k not in INSIDE | RANKS]
)
def test_a_recipe_without_labels_reads_zero_where_student_and_roles_are_one(kind: str) -> None:
    seen = scene(4)
    for logits in seen.roles.values():
        logits.copy_(seen.hidden.detach())
    if kind == "top1_ce":  # an entry alone is not what the student says
        return
    loss, gradient, _ = result(objective_of(kind=kind), seen)
    assert 0 <= float(loss) < 1e-12
    assert gradient.abs().max() < 1e-12


def test_terms_given_beside_a_recipe_must_be_its_own() -> None:
    terms = [{"kind": "reverse_kl", "temperature": 2.0}]
    own = {"recipe": {"kind": "reverse_kl", "temperature": 2.0}, "terms": terms}
    assert ObjectiveSpec.model_validate(own).terms == _spec(**own["recipe"]).terms
    with pytest.raises(ValidationError, match=r"terms are given beside recipe reverse_kl.*remove"):
        ObjectiveSpec.model_validate({"recipe": {"kind": "reverse_kl"}, "terms": terms})
    selecting = {"recipe": {"kind": "dynamic_selection"}, "select": {"share": 0.9, "group": 4}}
    with pytest.raises(ValidationError, match="select are given beside recipe"):
        ObjectiveSpec.model_validate(selecting)


def test_an_objective_needs_terms_or_a_recipe() -> None:
    with pytest.raises(ValidationError, match="neither terms nor a recipe"):
        ObjectiveSpec.model_validate({})


def test_symmetric_kl_is_its_two_directions() -> None:
    seen = scene(5)
    both = result(objective_of(kind="symmetric_kl", forward_share=0.25), seen)
    forward = result(objective_of({"kind": "forward_kl"}), seen)
    reverse = result(objective_of({"kind": "reverse_kl"}), seen)
    assert abs(float(both[0] - 0.25 * forward[0] - 0.75 * reverse[0])) < 1e-12
    assert (both[1] - 0.25 * forward[1] - 0.75 * reverse[1]).abs().max() < 1e-12


def test_hard_labels_are_the_mean_of_two_cross_entropies() -> None:
    seen = scene(6)
    loss, _, _ = result(objective_of(kind="hard_labels"), seen)
    nll = torch.nn.functional.cross_entropy
    z = seen.hidden.detach()
    wanted = (nll(z, seen.labels) + nll(z, seen.roles["teacher"].argmax(1))) / 2
    assert abs(float(loss - wanted)) < 1e-12


@pytest.mark.parametrize(("share", "zero"), [(0.0, True), (0.5, False), (1.0, False)])
def test_taids_target_walks_from_the_student_to_the_role(share: float, zero: bool) -> None:
    seen = scene(7)
    loss, gradient, _ = result(objective_of(kind="taid", share=share), seen)
    assert (abs(float(loss)) < 1e-12) == zero and (gradient.abs().max() < 1e-12) == zero
    if share == 1.0:
        plain = result(objective_of({"kind": "forward_kl"}), seen)
        torch.testing.assert_close((loss, gradient), plain[:2], rtol=1e-12, atol=1e-12)


def test_a_mixture_of_one_role_is_that_role_and_of_equal_ones_either() -> None:
    seen = scene(8)
    seen.roles["second_teacher"].copy_(seen.roles["teacher"])
    plain = result(objective_of(kind="forward_kl"), seen)
    for fields in (
        {"weights": [1.0, 0.0]},
        {"weights": [0.3, 0.9]},
        {"weights": [2.0, 2.0], "by": "entropy"},
    ):
        mixed = result(objective_of(kind="multi_teacher", **fields), seen)
        torch.testing.assert_close(mixed[:2], plain[:2], rtol=1e-12, atol=1e-12)


def test_a_mixture_whose_schedules_are_all_0_at_a_step_says_so() -> None:
    falling = {"kind": "linear", "start": 1.0, "end": 0.0}
    objective = objective_of(kind="multi_teacher", weights=[falling, falling])
    with pytest.raises(ValueError, match=r"weights of a mixture are \[0\.0, 0\.0\].*above 0"):
        result(objective, scene(9), at=Progress(10, 10))


def test_permuting_a_universal_roles_entries_changes_nothing_and_wider_ones_count() -> None:
    seen = scene(10)
    plain = result(objective_of(kind="universal"), seen)
    make = torch.Generator().manual_seed(0)
    wider = torch.cat([seen.roles["teacher"], torch.full((len(seen.labels), 3), -1e3)], 1)
    seen.roles["teacher"] = wider[:, torch.randperm(10, generator=make)]  # type: ignore[index]
    permuted = result(objective_of(kind="universal"), seen)
    torch.testing.assert_close(permuted[:2], plain[:2], rtol=1e-12, atol=1e-12)


# --- numbers -------------------------------------------------------------------------------------

SCHEDULES = [
    0.3,
    {"kind": "constant", "value": 0.3},
    {"kind": "linear", "start": 0.1, "end": 0.9, "until": 12},
    {"kind": "cosine", "start": 0.9, "end": 0.2},
    {"kind": "cosine_squared", "start": 1.0, "end": 0.0},
    {"kind": "polynomial", "start": 0.0, "end": 1.0, "power": 3.0},
    {"kind": "step", "start": 0.1, "add": 0.2, "every": 3, "ceiling": 0.8},
    {"kind": "step", "start": 0.9, "add": -0.2, "every": 3, "floor": 0.25},
    {"kind": "cyclic", "start": 0.2, "peak": 0.8, "period": 6, "decay": 0.5},
    {"kind": "piecewise", "points": [[0, 0.2], [5, 0.7], [9, 0.1]]},
]


@pytest.mark.parametrize("share", SCHEDULES, ids=str)
def test_the_rest_of_a_share_and_the_share_are_1_at_every_step(share: Any) -> None:
    number = _spec(kind="partial_variance", role_share=share).terms[1].weight
    rest, scaled = rest_of(number), product(0.5, number)
    for step in range(21):
        at = Progress(step, 20)
        assert value(number, at) + value(rest, at) == pytest.approx(1.0, abs=1e-12)
        assert value(scaled, at) == pytest.approx(0.5 * value(number, at), abs=1e-12)


@pytest.mark.parametrize(
    "share",
    [
        {"kind": "exponential", "start": 0.1, "end": 0.9},
        {"kind": "step", "start": 0.9, "factor": 0.5, "every": 3},
        {"kind": "taid"},
    ],
    ids=str,
)
def test_a_share_whose_rest_is_no_schedule_is_refused_with_those_that_are(share: Any) -> None:
    with pytest.raises(ValidationError, match=r"a schedule of kind \w+.*use linear, cosine"):
        _spec(kind="forward_kl", label_share=share)


def test_two_schedules_are_not_multiplied() -> None:
    moving = {"kind": "linear", "start": 0.0, "end": 1.0}
    with pytest.raises(ValidationError, match=r"linear and linear.*plain number"):
        _spec(kind="symmetric_kl", label_share=moving, forward_share=moving)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"kind": "forward_k"}, r"objective\.recipe.*Did you mean 'forward_kl'"),
        ({"kind": "gjsd", "betta": 0.5}, r"objective\.recipe.*betta.*Did you mean 'beta'"),
        ({"kind": "gjsd", "beta": 1.0}, r"objective\.recipe\.beta.*outside"),
        ({"kind": "forward_kl", "label_share": 1.2}, r"recipe\.label_share.*outside \[0, 1\]"),
        ({"kind": "forward_kl", "temperature": 0}, r"recipe\.temperature.*outside \(0"),
        ({"kind": "kd_topk", "kept": 0}, r"recipe\.kept"),
        ({"kind": "kd_topk", "kept": 1.5}, r"recipe\.kept"),
        ({"kind": "multi_teacher", "weights": [1, -1]}, r"recipe\.weights\.1.*outside"),
        ({"kind": "multi_teacher", "weights": [0, 0]}, r"weights are all 0"),
        ({"kind": "multi_teacher", "weights": [1, 1, 1]}, r"3 numbers for 2 teachers"),
        ({"kind": "multi_teacher", "teachers": ["teacher", "teacher"]}, r"Name each once"),
        ({"kind": "multi_teacher", "teachers": ["teacher"]}, r"recipe\.teachers"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_is_refused_with_its_field(
    recipe: dict[str, Any], says: str, tmp_path: Path
) -> None:
    job = example("multi_teacher") | {"objective": {"recipe": recipe}}
    with pytest.raises(SpecError, match=says):
        _load(tmp_path, job)


@pytest.mark.parametrize("kind", [k for k in EVERY if default_recipe(k).roles])
def test_a_role_that_is_not_defined_is_named(kind: str, tmp_path: Path) -> None:
    job = example(kind)
    *_, missing = job["roles"]
    del job["roles"][missing]
    with pytest.raises(SpecError, match=rf"role '{missing}', which is not defined"):
        _load(tmp_path, job)


@pytest.mark.parametrize("kind", [k for k in EVERY if default_recipe(k).needs_labels])
def test_a_recipe_that_reads_labels_is_refused_on_data_without_any(
    kind: str, tmp_path: Path
) -> None:
    source = {"kind": "parquet", "path": "x", "format": {"kind": "features", "fields": "x"}}
    source["format"]["label"] = None  # type: ignore[index]
    job = example(kind)
    for model in (job["student"], *job["roles"].values()):
        model["task"] = "classifier"
    job["data"]["sources"] = [source]
    if kind == "kd_sim":  # which a classifier cannot answer at all
        expected = r"encoding\.kind.*full|label"
    else:
        expected = "learns from labels|label: null"
    with pytest.raises(SpecError, match=expected):
        _load(tmp_path, job)


@pytest.mark.parametrize(
    ("term", "says"),
    [
        ({"kind": "universal", "target": [{"kind": "swap"}]}, "target needs entries"),
        ({"kind": "universal", "where": "role_right"}, "where needs entries"),
        ({"kind": "universal", "weigh_by": {"measure": "gap"}}, "measure gap needs entries"),
        (
            {"kind": "forward_kl", "weigh_by": {"measure": "student_doubt", "complement": True}},
            "complement is 1 - student_doubt",
        ),
        ({"kind": "forward_kl", "target": [{"kind": "noise", "size": -1}]}, "size takes values"),
        ({"kind": "forward_kl", "target": [{"kind": "keep_top", "share": 0}]}, "share"),
        ({"kind": "forward_kl", "target": [{"kind": "delta", "alpha": 1.5}]}, "alpha takes"),
        (
            {"kind": "forward_kl", "target": [{"kind": "mix", "roles": ["b"], "weights": [1.0]}]},
            "weights",
        ),
        ({"kind": "forward_kl", "weigh_by": {"measure": "gap", "top": 0.5}}, "group is missing"),
    ],
    ids=str,
)
def test_a_term_that_cannot_be_is_refused(term: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ObjectiveSpec.model_validate({"terms": [term]})


def test_what_needs_every_entry_is_refused_from_a_top_k(tmp_path: Path) -> None:
    ladder = [1.0, 4.0, 10.0]
    for kind in ("adaptive_kl", "ka_shift", "continuation_kd", "dtd_cwsm", "btkd"):
        job = example(kind)
        job["roles"]["teacher"]["encoding"] = {"kind": "topk", "temperatures": ladder}
        with pytest.raises(SpecError, match=r"roles\.teacher\.encoding\.kind.*Use one of"):
            _load(tmp_path, job)
    job = example("kd_sim")
    job["roles"]["teacher"]["encoding"] = {"kind": "full"}
    with pytest.raises(SpecError, match=r"is full.*Use one of hidden"):
        _load(tmp_path, job)


# --- pages and the command -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
def test_a_recipe_has_a_page_with_equation_source_fields_and_an_example_that_loads(
    kind: str, tmp_path: Path
) -> None:
    page, recipe = (PAGES / f"{kind}.md").read_text(), RECIPES[kind]
    assert recipe.title in page and recipe.equation in page and recipe.source in page
    for field in set(recipe.model_fields) - {"kind"}:
        assert f"`{field}`" in page
    for heading in ("## When it helps", "## What to mind", "## What is checked"):
        assert heading in page
    shown = re.search(r"```yaml\n(objective:.*?)```", page, re.S)
    assert shown is not None
    objective = yaml.safe_load(shown[1])["objective"]
    assert objective["recipe"]["kind"] == kind
    assert _load(tmp_path, example(kind) | {"objective": objective})


def test_the_pages_are_in_the_navigation_and_in_their_table() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    table = (PAGES / "index.md").read_text()
    for kind in EVERY:
        assert f"recipes/{kind}.md" in navigation and f"[`{kind}`]({kind}.md)" in table
    pages = {page.stem for page in PAGES.glob("*.md")} - {"index"}
    assert pages == set(EVERY)


def test_the_recipe_shown_to_contributors_is_the_one_that_is_there() -> None:
    shown = (ROOT / "CONTRIBUTING.md").read_text()
    source = (ROOT / "strategies/recipes/total_variation.py").read_text()
    assert "".join(f"+{line}".rstrip() + "\n" for line in source.splitlines()) in shown


def test_the_command_lists_all_and_explains_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(kind in listed for kind in EVERY)
    line = next(line for line in listed.splitlines() if line.startswith("delta_kd "))
    assert re.search(r"teacher, teacher_base, student_base +3 +yes", line)


@pytest.mark.parametrize("kind", EVERY)
def test_what_the_command_explains_holds_a_job_that_loads(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert exit_code(["recipes", kind]) == 0
    text = capsys.readouterr().out
    for field in set(RECIPES[kind].model_fields) - {"kind"}:
        assert re.search(rf"^  {field} ", text, re.M)
    assert RECIPES[kind].equation in text
    job = yaml.safe_load(text.partition("\nExample\n")[2])
    assert _load(tmp_path, job) == _load(tmp_path, example(kind))


def test_bytes_are_those_of_the_wire(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code(["recipes", "reverse_kl"])
    text = capsys.readouterr().out
    # 64 ids of 15 bits, 64 float16 and one rung; 32,000 and 2,048 float32
    assert "full 128,000, hidden 8,192, topk 252; default hidden" in text


def test_an_unknown_name_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["recipes", "btkdd"]) == 2
    assert "Did you mean btkd?" in capsys.readouterr().err


def test_listing_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from orchestrator.cli import exit_code; exit_code(['recipes', 'taid']); "
        "sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


def test_recipes_may_be_imported_before_specs() -> None:
    for module in ("strategies.recipes", "strategies.recipes.btkd", "strategies.specs.objective"):
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, timeout=60)
