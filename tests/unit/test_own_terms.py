"""A term by import path, from a folder outside the repository: the guide's own example."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from tiny_objective import result, scene

from orchestrator.errors import SpecError
from orchestrator.planner import preflight
from orchestrator.spec import JobSpec
from strategies.objective import build_objective
from strategies.specs import ObjectiveSpec

GUIDE = Path(__file__).parents[2] / "docs/guide/own-terms.md"


def _shown(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.S)
    assert found is not None
    return found[1]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that can be imported from, with the guide's module."""
    (tmp_path / "own_terms.py").write_text(_shown("python"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_terms", raising=False)
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
