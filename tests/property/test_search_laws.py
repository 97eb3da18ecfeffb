"""Laws of a search's space, whatever is in it."""

import random
from typing import Any

import hypothesis.strategies as st
import searches
from hypothesis import given, settings

from orchestrator.search.load import search_of, search_yaml
from orchestrator.search.plan import check_search, settings_of, trial_job
from orchestrator.search.space import Random, Recorded, Recording, combinations, corners, drawn

POSITIVE = st.floats(1e-4, 8.0).map(lambda x: float(f"{x:.4g}"))


@st.composite
def _range(draw: st.DrawFn) -> dict[str, Any]:
    low = draw(POSITIVE)
    high = low + draw(POSITIVE)
    kind = draw(st.sampled_from(["uniform", "loguniform", "quniform"]))
    if kind == "quniform":
        steps = draw(st.integers(1, 5))
        return {kind: [low, low + 0.5 * steps, 0.5]}
    return {kind: [low, high]}


def _schedule(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    ends = st.one_of(POSITIVE, _range())
    return st.fixed_dictionaries({"kind": st.just(kind), "start": ends, "end": ends})


NUMBER = st.one_of(
    _range(),
    st.lists(
        st.one_of(POSITIVE, *map(_schedule, ("linear", "cosine", "exponential"))),
        min_size=1,
        max_size=4,
    ).map(lambda options: {"choice": options}),
    st.lists(POSITIVE, min_size=1, max_size=3).map(lambda options: {"grid": options}),
)
SPACES = st.fixed_dictionaries(
    {},
    optional={
        "objective.terms.0.weight": NUMBER,
        "training.optimizer.lr": NUMBER.filter(lambda d: "choice" not in d),
        "training.optimizer.weight_decay": _range(),
        "seed": st.just({"integer": [0, 9]}),
    },
).filter(bool)


@given(SPACES, st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_every_drawn_configuration_is_a_valid_job(space: dict[str, Any], seed: int) -> None:
    search = searches.search(space=space)
    check_search(search)
    for number in range(5):
        asked = Recording(Random(random.Random(1000 * seed + number)))
        settings = drawn(search.spec.space, asked)
        trial_job(search, settings, "trial")
        assert settings_of(search, asked.values) == settings


@given(SPACES)
@settings(deadline=None, max_examples=60)
def test_a_search_is_what_it_is_written_as(space: dict[str, Any]) -> None:
    import yaml

    search = searches.search(space=space)
    raw = yaml.safe_load(search_yaml(search))
    assert search_of({k: v for k, v in raw.items() if k != "search"}, raw["search"]) == search


@given(SPACES, st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_corners_can_be_drawn_and_are_bounded(space: dict[str, Any], most: int) -> None:
    spec = searches.search(space=space).spec
    found = corners(spec.space, most)
    assert 1 <= len(found) <= most
    for values in found:
        drawn(spec.space, Recorded(values))
    if len(found) < most:
        assert len({tuple(sorted(each.items())) for each in found}) == len(found)


@given(SPACES)
@settings(deadline=None, max_examples=60)
def test_combinations_are_of_all_that_is_listed(space: dict[str, Any]) -> None:
    spec = searches.search(space=space).spec
    grids = combinations(spec.space, choices=False)
    expected = 1
    for each in space.values():
        expected *= len({str(option) for option in each["grid"]}) if "grid" in each else 1
    assert len(grids) >= expected
    assert all(set(each) == {path for path in space if "grid" in space[path]} for each in grids)
