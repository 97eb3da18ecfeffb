"""A search file: what it may say, how it is refused, and what it draws."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import digits
import pytest
import searches
import yaml

from orchestrator.cli import exit_code
from orchestrator.errors import SpecError
from orchestrator.search.load import load_search, search_yaml
from orchestrator.search.plan import (
    check_search,
    grid_points,
    key_of,
    settings_of,
    trial_job,
    trials_of,
)
from orchestrator.search.space import Random, Recorded, Recording, corners, drawn, labels_of

WEIGHT = searches.SMOOTHING


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump({**searches.raw_job(), "search": searches.raw_search()}))
    return path


def test_a_search_written_out_loads_back_to_an_equal_one(file: Path) -> None:
    search = load_search(file)
    file.write_text(search_yaml(search))
    assert load_search(file) == search


def test_an_override_reaches_the_search_or_its_job(file: Path) -> None:
    changes = [
        "search.budget.trials=9",
        "training.threads=2",
        "search.space.seed={integer: [0, 3]}",
    ]
    search = load_search(file, changes, {"tracking.uri": "http://here:5000"})
    assert search.spec.budget.trials == 9
    assert search.job["training"]["threads"] == 2
    assert search.job["tracking"] == {"uri": "http://here:5000"}
    assert "seed" in search.spec.space


def test_a_job_with_a_search_is_not_run_as_one_job(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["validate", str(file)]) == 2
    assert f"stillhouse search {file}" in capsys.readouterr().err


@pytest.mark.parametrize("held", [{"jobs": [digits.raw_job()]}, digits.raw_job(), []])
def test_a_file_of_something_else_is_refused(tmp_path: Path, held: Any) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(held))
    with pytest.raises(SpecError, match=r"holds (no search|a list of jobs)"):
        load_search(path)


def _space(**fields: Any) -> dict[str, Any]:
    return {"space": {path.replace("__", "."): each for path, each in fields.items()}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # a path that does not exist, with the nearest that does
        (_space(training__optimiser__lr={"uniform": [0, 1]}), "Did you mean 'optimizer'"),
        (_space(objectve__terms={"choice": [1]}), "'objectve' is no field.*'objective'"),
        (_space(objective__terms__3__weight={"uniform": [0, 1]}), "no index of a list of 1"),
        # a distribution that leaves its field's range, at an end or inside
        (_space(training__optimizer__lr={"uniform": [-1, 1]}), "is -1.0.*greater than 0"),
        (_space(training__global_batch={"uniform": [16, 64]}), "Write a whole number"),
        (_space(objective__terms__0__weight={"choice": [1.0, -1.0]}), "outside"),
        (
            _space(
                objective__terms__0__weight={
                    "choice": [1.0, {"kind": "linear", "start": {"uniform": [-1, 1]}, "end": 1}]
                }
            ),
            "terms.0.weight.*from -1 to 1, outside",
        ),
        # distributions that are none
        (_space(seed={"unifrom": [0, 1]}), "no distribution"),
        (_space(seed={"uniform": [1, 0]}), r"seed.uniform: is \[1, 0\].*Exchange"),
        (_space(seed={"loguniform": [0, 1]}), "begins at 0"),
        (_space(seed={"quniform": [0, 1, 0.3]}), "End at 0.9"),
        (_space(seed={"choice": []}), "at least one entry"),
        (
            _space(seed={"choice": [{"kind": "x", "a": [{"uniform": [2, 1]}]}]}),
            r"choice.0.a.0.uniform: is \[2, 1\]",
        ),
        # what all trials share
        (_space(roles__teacher__path={"choice": ["a"]}), "one pool for all trials"),
        (_space(storage={"choice": ["a"]}), "where the whole search lies"),
        (_space(evaluation__rows={"choice": [1]}), "compared by"),
        (_space(training__workers={"choice": [1]}), "worker groups"),
        ({**_space(seed={"integer": [0, 9]}), "seeds": [1]}, "given by search.seeds too"),
        (
            {"space": {"training": {"choice": [1]}, "training.steps": {"choice": [1]}}},
            "lies inside training",
        ),
        ({"space": {}}, "is empty"),
        # what is sought
        ({"metric": "student.los"}, "'student.loss'"),
        ({"metric": "kl"}, "does not produce"),
        ({"metric": "diagnostics.omega.mean"}, "does not produce"),
        ({"metric": "summary.steps"}, "summary.tokens"),
        ({"tradeoffs": [{"metric": "student.loss", "mode": "max"}]}, "given twice"),
        # what may be spent
        ({"budget": {"trials": 0}}, "budget.trials: is 0"),
        ({"budget": {"hours": 1}}, "budget.trials: is absent"),
        ({"budget": {"trials": 1, "tokens": 639}}, "below one trial.*Set it to 640"),
        ({"seeds": [1, 1]}, "repeat"),
        # who searches and who stops
        ({"searcher": "grid"}, "lr: is a range"),
        ({"searcher": "tpee"}, "'tpe'"),
        ({"searcher": "tpe", **_space(seed={"grid": [1]})}, "Write choice"),
        (
            {"searcher": "cmaes", "tradeoffs": [{"metric": "summary.tokens", "mode": "min"}]},
            "for one goal",
        ),
        ({"scheduler": {"kind": "asha", "grace_steps": 4}}, r"is 4, outside \[5, 20\)"),
        ({"scheduler": {"kind": "asha", "grace_steps": 20}}, r"is 20, outside \[5, 20\)"),
        (
            {
                "scheduler": {"kind": "asha", "grace_steps": 5},
                **_space(training__steps={"grid": [9, 12]}),
            },
            "absent or varies",
        ),
        (
            {"scheduler": {"kind": "median", "grace_steps": 5}, "metric": "summary.tokens"},
            "known at a run's end",
        ),
        ({"scheduler": {"kind": "median", "grace_steps": 5}, "seeds": [0, 1]}, "2 seeds"),
        (
            {
                "scheduler": {"kind": "asha", "grace_steps": 5},
                "tradeoffs": [{"metric": "student.accuracy", "mode": "max"}],
            },
            "by one goal",
        ),
        ({"fixed": [{"training.optimizer.lr": -1}]}, "search.fixed.0.training.optimizer.lr"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=f"(?s){words}"):
        check_search(searches.search(**changes))


def test_a_scheduler_needs_measurements_on_the_way() -> None:
    job = searches.raw_job()
    job["evaluation"].pop("every_steps")
    with pytest.raises(SpecError, match=r"evaluation.every_steps: is absent"):
        check_search(searches.search(job, scheduler={"kind": "asha", "grace_steps": 5}))


def test_a_name_leaves_room_for_those_of_trials() -> None:
    job = {**searches.raw_job(), "name": "x" * 49}
    with pytest.raises(SpecError, match=r"49 letters.*48"):
        check_search(searches.search(job))


def test_the_encoding_of_a_role_may_vary() -> None:
    teacher = {**digits.student(), "encoding": {"kind": "full"}}
    job = searches.raw_job(
        roles={"teacher": teacher}, objective={"terms": [{"kind": "forward_kl", "weight": 1.0}]}
    )
    path = "roles.teacher.encoding"
    kinds = [{"kind": "full"}, {"kind": "topk", "k": {"integer": [2, 4]}}]
    jobs = check_search(searches.search(job, space={path: {"choice": kinds}}, metric="kl"))
    assert {job.roles["teacher"].encoding.kind for job in jobs} == {"full", "topk"}


# --- draws ---------------------------------------------------------------------------------------


def test_corners_are_every_end_inside_and_option() -> None:
    space = searches.search().spec.space
    found = corners(space, 512)
    assert len(found) == 3 * (1 + 3 + 3)
    assert found[0] == {searches.LR: 1e-3, WEIGHT: "1.0"}
    assert {values[WEIGHT] for values in found} == {"1.0", "linear", "cosine"}
    inside = 10 ** (-3 + 2 * 0.6180339887498949)
    assert {round(float(values[searches.LR]), 9) for values in found} == {
        0.001,
        0.1,
        round(inside, 9),
    }
    assert len(corners(space, 7)) == 7


def test_what_is_not_chosen_is_not_drawn() -> None:
    space = searches.search().spec.space
    for seed in range(20):
        asked = Recording(Random(random.Random(seed)))
        settings = drawn(space, asked)
        chosen = asked.values[WEIGHT]
        inner = {name for name in asked.values if "[" in name}
        assert inner == (set() if chosen == "1.0" else {f"{WEIGHT}[{chosen}].start"})
        assert drawn(space, Recorded(asked.values)) == settings


def test_steps_of_a_range_are_whole() -> None:
    space = searches.search(space={"data.held_out": {"quniform": [0.1, 0.4, 0.1]}}).spec.space
    found = {drawn(space, Random(random.Random(seed)))["data.held_out"] for seed in range(40)}
    assert found == {0.1, 0.2, 0.3, 0.4}


def test_options_have_names() -> None:
    options = [
        1.0,
        True,
        "a",
        {"kind": "linear"},
        {"kind": "linear", "end": 2},
        {"x": 1},
        [1],
        None,
    ]
    assert labels_of(options) == [
        "1.0",
        "true",
        "a",
        "linear",
        "linear#2",
        "option 6",
        "option 7",
        "null",
    ]


def test_values_of_another_space_are_noticed() -> None:
    search = searches.search()
    with pytest.raises(ValueError, match="outside"):
        settings_of(search, {searches.LR: 2.0, WEIGHT: "1.0"})
    with pytest.raises(ValueError, match=r"none of 1\.0, linear, cosine"):
        settings_of(search, {searches.LR: 0.01, WEIGHT: "step"})
    with pytest.raises(ValueError, match="has no value"):
        settings_of(search, {searches.LR: 0.01})


def test_grids_are_gone_through_and_draws_are_counted() -> None:
    space = {"seed": {"grid": [1, 2, 3]}, "training.clip": {"grid": [1.0, 2.0]}}
    grids = searches.search(space=space, budget={}, fixed=[{"seed": 7}]).spec
    assert trials_of(grids) == 1 + 6
    assert grid_points(grids)[:2] == [
        {"seed": "1", "training.clip": "1.0"},
        {"seed": "1", "training.clip": "2.0"},
    ]
    assert trials_of(searches.search(space=space, budget={"trials": 4}).spec) == 4
    mixed = searches.search(space={**space, "training.optimizer.lr": {"uniform": [0.1, 0.2]}})
    assert trials_of(mixed.spec) == 4 and len(grid_points(mixed.spec)) == 6
    chosen = {"seed": {"choice": [1, 2]}}
    assert trials_of(searches.search(space=chosen, budget={}, searcher="grid").spec) == 2
    assert trials_of(searches.search(space={}, budget={}, fixed=[{"seed": 7}]).spec) == 1


def test_a_trials_key_is_of_what_it_does() -> None:
    search = searches.search()
    settings = settings_of(search, {searches.LR: 0.01, WEIGHT: "1.0"})
    one, other = trial_job(search, settings, "a"), trial_job(search, settings, "b")
    assert key_of(one) == key_of(other)
    changed = {**settings, searches.LR: 0.02}
    assert key_of(trial_job(search, changed, "a")) != key_of(one)


def test_checking_a_search_loads_neither_torch_nor_ray(file: Path) -> None:
    code = (
        "import sys\n"
        "from orchestrator.search.load import load_search\n"
        "from orchestrator.search.plan import check_search\n"
        f"check_search(load_search({str(file)!r}))\n"
        "assert not {'torch', 'ray', 'optuna', 'mlflow'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=root)
