"""Every recipe from one job file: pool, cache, resident group and DeepSpeed student are shared.

The first student learns what a role has written, the second one is the teacher of those after it,
so that who dynamic rectification learns from is a student as itself.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from other_tokenizer import save_other_teacher

from orchestrator import load_jobs, run
from orchestrator.cli_recipes import default_recipe
from orchestrator.data import prepare
from orchestrator.events import Event, StepDone
from orchestrator.spec import JobSpec
from strategies.recipes import RECIPES
from strategies.samples import size_after
from strategies.specs import CondenseSpec
from strategies.view import share_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, BATCH = 5, 8
KINDS = [kind for kind, recipe in RECIPES.items() if not recipe.of_classifiers]
TEACHER = "label_smoothing_kd"
FIELDS: dict[str, dict[str, Any]] = {
    "annealing_kd": {"t_max": 2, "stair": 1},
    "condensation": {"keep": 0.5, "stages": 1},
    "delta_kd": {"teacher_base": "second", "student_base": "third"},
    "dynamic_adoption": {"small": "second"},
    "dynamic_selection": {"share": 0.25},
    "multi_teacher": {"teachers": ["teacher", "second", "third"], "weights": [1.0, 1.0, 1.0]},
}
THREE_ROLES = ("delta_kd", "dynamic_adoption", "multi_teacher")
ALONE = ("sequence_kd", TEACHER)
AS_WIDE = (TEACHER, "fsp", "modified_gradient")
"""Recipes whose student has the teacher's shapes: flow matrices, gradients of parameters."""
ORDER = (
    *ALONE,
    *(kind for kind in KINDS if kind not in (*ALONE, *THREE_ROLES, "universal")),
    *THREE_ROLES,
    "universal",
)
"""Recipes that ask the same roles follow each other, and so share a pool."""


def _roles(root: Path, kind: str) -> dict[str, Any]:
    resources = {"resources": {"cpus": 0.25}}
    teacher = {"job": TEACHER.replace("_", "-"), **resources}
    second, third, other = ({"path": str(root / n), **resources} for n in ("a", "b", "other"))
    if kind in THREE_ROLES:
        return {"teacher": teacher, "second": second, "third": third}
    if kind == "sequence_kd":
        return {"teacher": second}
    if kind == "universal":
        return {"teacher": other}
    return {"teacher": teacher} if default_recipe(kind).roles else {}


def _job(root: Path, kind: str) -> dict[str, Any]:
    """A job of a few steps; the teacher of the others learns longer."""
    sources: list[dict[str, Any]] = [{"kind": "text", "path": str(root / "text")}]
    if kind == "sequence_kd":
        prompts = {"text": ["def f(x):\n"]}
        sources = [{"kind": "generated", "prompts": prompts, "count": 20, "length": 8}]
    architecture = tiny.architecture(48 if kind in AS_WIDE else 32, layers=2)
    asks_third = kind == "dynamic_adoption"  # two roles by itself, and so another pool
    return {
        "name": kind.replace("_", "-"),
        "student": {"architecture": architecture, "tokenizer": str(tiny.TOKENIZER)},
        "roles": _roles(root, kind),
        "data": {
            "sources": sources,
            "context": 64,
            "held_out": 0.1,
            "packing": False,
            "long_documents": "truncate",
        },
        "objective": {"recipe": {"kind": kind, **FIELDS.get(kind, {})}},
        "training": {
            "steps": 30 if kind == TEACHER else STEPS,
            "global_batch": BATCH,
            "micro_batch": BATCH // 2,
            "resources": {"cpus": 0.25},
            "optimizer": {"lr": 1e-2},
            "checkpoint": {"every_steps": STEPS},
        },
        "evaluation": {
            "before": False,
            "rows": 2,
            "generate": None,
            "against": "third" if asks_third else None,
        },
        "cache": {"path": str(root / "cache"), "max_bytes": 1 << 26},
        "storage": str(root / "runs"),
        "deterministic": True,
    }


@dataclass
class Played:
    """What a job said."""

    spec: JobSpec
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Played]:
    """All recipes, by kind."""
    root = tmp_path_factory.mktemp("recipes")
    tiny.save_text(root / "text", documents=22)
    for seed, name in enumerate(("a", "b")):
        tiny.save_teacher(root / name, seed)
    save_other_teacher(root / "other")
    file = root / "recipes.yaml"
    file.write_text(yaml.safe_dump([_job(root, kind) for kind in ORDER]))
    jobs = load_jobs(file)
    found = {job.name: Played(job) for job in jobs}

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            found[event.job].metrics.append(dict(event.metrics))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.session.CACHE", root / "home")
        for job, summary in zip(jobs, run(jobs, listen).jobs, strict=True):
            found[job.name].summary = summary
    return {kind: found[kind.replace("_", "-")] for kind in ORDER}


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_trains_its_student_on_what_its_roles_say(
    played: dict[str, Played], kind: str
) -> None:
    job = played[kind]
    assert len(job.metrics) == job.summary["steps"]
    assert job.metrics[0]["loss/total"] != job.metrics[-1]["loss/total"]
    for metrics in job.metrics:
        assert math.isfinite(metrics["loss/total"]) and metrics["train/gradient_norm"] > 0
        weighed = {
            term: metrics[f"schedule/{term}.weight"] * metrics[f"loss/{term}"]
            for term in job.spec.objective.names
        }
        assert metrics["loss/total"] == pytest.approx(sum(weighed.values()), rel=1e-5)
        assert any(weighed.values())


def _consumed(spec: JobSpec, samples: int) -> int:
    """Samples that a role is asked about in all steps: epochs end with what is left of them."""
    select, between = spec.objective.select, spec.objective.between_epochs
    left, epoch, found = 0, -1, 0
    for _ in range(STEPS):
        if not left:
            epoch += 1
            shrinks = isinstance(between, CondenseSpec)
            left = size_after(between, samples, epoch) if shrinks else samples
        taken = min(BATCH, left)
        left -= taken
        groups = (min(BATCH // 2, taken), max(0, taken - BATCH // 2))
        share = 1.0 if select is None else select.share
        found += sum(share_of(size, share) for size in groups)
    return found


@pytest.mark.parametrize("kind", [kind for kind in KINDS if default_recipe(kind).roles])
def test_what_a_recipe_asks_is_delivered_and_consumed(
    played: dict[str, Played], kind: str, tmp_path: Path
) -> None:
    job = played[kind]
    samples = len(prepare(job.spec.data, str(tiny.TOKENIZER), str(tmp_path)).train)
    counts = job.summary["pool"]["samples"]
    assert counts["asked"] == counts["delivered"] == counts["consumed"]
    wanted = _consumed(job.spec, samples)
    recipe = job.spec.objective.recipe
    assert recipe is not None
    served = [looks_at for _, looks_at in recipe.asks if looks_at != "resident"]
    assert counts["consumed"] == len(served) * wanted
    whole = _consumed(played["forward_kl"].spec, samples)
    assert (wanted < whole) == (kind in ("condensation", "dynamic_selection"))


def test_no_two_recipes_end_with_the_same_student(played: dict[str, Played]) -> None:
    assert len({job.summary["weights_sha256"] for job in played.values()}) == len(KINDS)


def test_what_a_role_has_said_to_one_recipe_is_not_computed_for_the_next(
    played: dict[str, Played],
) -> None:
    computed = [kind for kind in ORDER if played[kind].summary["cache"].get("misses")]
    assert "reverse_kl" not in computed and "dr_kd" not in computed
