"""A term by import path, from a folder outside the repository: the guide's own example."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from feature_scenes import gradients, texts
from residents import gradients_of, joined, loss_of, mlp, numbers, resident
from tiny_objective import result, scene

from orchestrator.errors import SpecError
from orchestrator.planner import preflight
from orchestrator.spec import JobSpec
from strategies.objective import build_objective
from strategies.pairs import Pair
from strategies.progress import Progress
from strategies.samples import Book, Epoch, hook_of
from strategies.specs import LinearSchedule, ObjectiveSpec
from strategies.specs.samples import HookSpec

GUIDE = Path(__file__).parents[2] / "docs/guide/own-terms.md"
BESIDE = GUIDE.with_name("residents.md")


def _shown(language: str, which: int = 0, page: Path = GUIDE) -> str:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)[which]


def test_contributing_shows_the_whole_of_a_term_on_layers() -> None:
    assert _shown("python", 1) in (GUIDE.parents[2] / "CONTRIBUTING.md").read_text()


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that can be imported from, with the guide's module."""
    (tmp_path / "own_terms.py").write_text(_shown("python"))
    (tmp_path / "own_features.py").write_text(_shown("python", 1))
    (tmp_path / "own_recipes.py").write_text(_shown("python", 2))
    (tmp_path / "own_residents.py").write_text(_shown("python", page=BESIDE))
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("own_terms", "own_features", "own_recipes", "own_residents"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def _job(folder: Path, objective: dict[str, Any]) -> JobSpec:
    text = tiny.save_text(folder / "text")
    return tiny.job(tiny.TOKENIZER, text, folder / "runs", objective=objective)


def _objective() -> dict[str, Any]:
    return yaml.safe_load(_shown("yaml"))["objective"]


@pytest.mark.parametrize("through_head", [True, False])
def test_the_guides_term_is_learned_from_beside_a_built_in_one(
    outside: Path, through_head: bool
) -> None:
    spec = _objective()
    spec["terms"][1]["weight"] = 0.1
    seen = scene(1)
    loss, gradient, means = result(
        build_objective(ObjectiveSpec.model_validate(spec)), seen, through_head=through_head
    )
    plain, of_plain, _ = result(
        build_objective(ObjectiveSpec.model_validate({"terms": spec["terms"][:1]})), seen
    )

    def entropy(logits: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Categorical(logits=logits).entropy()

    wanted = (entropy(seen.hidden) - entropy(seen.roles["teacher"])).square().mean()
    (of_wanted,) = torch.autograd.grad(0.1 * wanted, seen.hidden)
    assert means["entropy"] == pytest.approx(wanted.item(), rel=1e-5)
    assert float(loss) == pytest.approx((plain + 0.1 * wanted).item(), rel=1e-5)
    torch.testing.assert_close(gradient, of_plain + of_wanted, rtol=1e-4, atol=1e-6)


def test_a_path_that_leads_to_something_passes_before_the_module_runs(
    outside: Path, tmp_path: Path
) -> None:
    job = _job(tmp_path, _objective())
    preflight([job])
    assert "own_terms" not in sys.modules


@pytest.mark.parametrize(
    ("target", "problem", "remedy"),
    [
        ("no_such_module:term", "there is no module 'no_such_module'", "PYTHONPATH"),
        ("own_terms:matched_entrpy", "has no 'matched_entrpy'", "'own_terms:matched_entropy'"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_before_anything_starts(
    outside: Path, tmp_path: Path, target: str, problem: str, remedy: str
) -> None:
    objective = _objective()
    objective["terms"][1]["target"] = target
    job = _job(tmp_path, objective)
    with pytest.raises(SpecError) as refused:
        preflight([job])
    text = str(refused.value)
    assert text.startswith("objective.terms.1.target") and problem in text and remedy in text


def test_a_hook_that_leads_nowhere_is_refused_too(tmp_path: Path) -> None:
    objective = {
        "terms": [{"kind": "cross_entropy"}],
        "between_epochs": {"kind": "import", "target": "no_such_module:hook"},
    }
    job = _job(tmp_path, objective)
    with pytest.raises(SpecError, match=r"objective\.between_epochs\.target.*no_such_module"):
        preflight([job])


def test_arguments_that_the_function_does_not_take_are_named(outside: Path) -> None:
    spec = _objective()
    spec["terms"][1]["arguments"] = {"teacher": "teacher"}
    with pytest.raises(ValueError, match=r"own_terms:matched_entropy.*unexpected keyword"):
        build_objective(ObjectiveSpec.model_validate(spec))


def test_the_guides_term_on_layers_is_one_of_the_objective(outside: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load(_shown("yaml", 1))["objective"]
    spec = ObjectiveSpec.model_validate(raw)
    assert spec.names == ("centred",) and spec.looks_inside and not spec.logit_roles
    preflight([_job(tmp_path, raw)])
    seen = texts(1)
    objective = build_objective(spec, pairs={"centred": (Pair("a", "a"), Pair("b", "b"))})
    assert [ask.key for ask in objective.asks()] == ["teacher.layers"]
    count = float(objective.counts(seen.batch, seen.signals())["centred"])
    numbers = objective.numbers(Progress(0, 10), objective.start())
    loss, _ = objective.loss(
        seen.outputs(), seen.batch, seen.signals(), numbers, {"centred": 1 / count}
    )
    wanted = sum(
        1 - torch.corrcoef(torch.stack([ours, theirs]))[0, 1]
        for path in ("a", "b")
        for ours, theirs in zip(seen.student[path].detach(), seen.role[path], strict=True)
    )
    assert float(loss.detach()) == pytest.approx(float(wanted) / len(seen.student["a"]), rel=1e-9)
    pulls = gradients(loss, seen)
    assert all(float(pulls[path].abs().max()) > 0 for path in ("a", "b"))


def test_a_term_on_layers_that_is_not_there_is_refused(outside: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load(_shown("yaml", 1))["objective"]
    raw["terms"][0]["target"] = "own_features:centered"
    with pytest.raises(SpecError, match=r"objective\.terms\.0\.target.*centred"):
        preflight([_job(tmp_path, raw)])


def test_the_guides_recipe_is_one_of_the_objective(outside: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load(_shown("yaml", 2))["objective"]
    job = _job(tmp_path, raw)
    preflight([job])
    first, second = job.objective.terms
    assert (first.kind, second.kind) == ("forward_kl", "reverse_kl")
    grows = second.numbers()["weight"]
    assert isinstance(grows, LinearSchedule) and (grows.start, grows.end) == (0.0, 0.3)
    written = job.objective.model_dump(mode="json", by_alias=True)
    assert ObjectiveSpec.model_validate(written) == job.objective, "the resolved file says the same"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"target": "own_recipes:BothWay"}, r"does not import.*BothWay"),
        ({"target": "no_such_module:Recipe"}, r"does not import.*PYTHONPATH"),
        ({"target": "own_terms:MatchedEntropy"}, "no subclass of strategies.recipes.Recipe"),
        ({"arguments": {"shares": 0.3}}, r"own_recipes:BothWays refuses its arguments: shares"),
        ({"arguments": {"share": -0.3}}, r"refuses its arguments|weight"),
    ],
)
def test_a_recipe_that_is_none_is_refused(
    outside: Path, changes: dict[str, Any], told: str
) -> None:
    raw = yaml.safe_load(_shown("yaml", 2))["objective"]["recipe"]
    with pytest.raises(ValueError, match=told):
        ObjectiveSpec.model_validate({"recipe": {**raw, **changes}})


def test_rows_that_an_own_term_compares_are_named(outside: Path, tmp_path: Path) -> None:
    raw = _objective()
    raw["terms"][1]["group"] = 3
    with pytest.raises(ValueError, match=r"group|micro_batch"):
        tiny_job = _job(tmp_path, raw)
        preflight([tiny_job])


def test_a_hook_of_ones_own_is_called_with_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_hooks.py").write_text(
        "from strategies.samples import Change\n"
        "def every(epoch, nth):\n"
        "    return Change(epoch.members[::nth])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = HookSpec(kind="import", target="own_hooks:every", arguments={"nth": 2})
    epoch = Epoch(1, np.arange(5), 5, Book.of(5), str)
    assert hook_of(spec)(epoch).members.tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match=r"own_hooks:none.*does not import"):
        hook_of(HookSpec(kind="import", target="own_hooks:none"))


def test_the_guides_term_has_the_role_beside_the_student(outside: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load(_shown("yaml", 1, BESIDE))["objective"]
    spec = ObjectiveSpec.model_validate(raw)
    assert spec.names[1] == "anchored" and spec.resident_roles == spec.served_roles == ("teacher",)
    assert not spec.logit_roles and not spec.twin_roles
    job = _job(tmp_path, raw)
    preflight([job])
    assert job.resident_roles == ("teacher",)
    student, role = mlp(1), resident(mlp(2))
    module, objective = joined(student, role, raw["terms"][1])
    loss, _ = loss_of(module, objective, numbers())
    for name, pull in gradients_of(loss, student).items():
        wanted = 0.1 * (student.module.get_parameter(name) - role.weights[name])
        torch.testing.assert_close(pull, wanted.detach())
    asked = [ask.key for ask in build_objective(spec).asks()]
    assert asked == ["teacher.resident"]


def test_the_guides_terms_beside_the_student_are_read(tmp_path: Path) -> None:
    spec = ObjectiveSpec.model_validate(yaml.safe_load(_shown("yaml", 0, BESIDE))["objective"])
    assert spec.twin_roles == ("teacher",) and spec.looks_inside
