"""Interactions: numbering, what is held out, the samples of users, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from ranking import raw_job, write_csv

from orchestrator.data import collation, prepare
from orchestrator.errors import SpecError
from orchestrator.interactions import held_out_of, read_csv, table_of, trained_of, words_of
from orchestrator.planner import preflight
from orchestrator.spec import JobSpec
from orchestrator.spec.data import DataSpec
from orchestrator.spec.formats import Interactions

ROWS = [
    ("ann", "tea", 3), ("bob", "tea", 9), ("ann", "rum", 1), ("cid", "ale", 2),
    ("bob", "ale", 4), ("ann", "gin", 7), ("bob", "rum", 5), ("ann", "tea", 8),
]  # fmt: skip
ITEMS = ("ale", "gin", "rum", "tea")


def rule(**fields: Any) -> Interactions:
    return Interactions.model_validate({"kind": "interactions", **fields})


def records(rows: list[Any], header: tuple[str, ...] = ("user", "item", "time")) -> list[Any]:
    return [(f"r:{i}", dict(zip(header, row, strict=True))) for i, row in enumerate(rows)]


def split(rows: list[Any], held_out: float = 0.0, **fields: Any) -> dict[str, Any]:
    """By user: names of items trained on, and of those held out."""
    table = table_of(records(rows), rule(**fields), held_out, "data.sources.0")
    return {
        user.name: tuple({table.items[i] for i in part} for part in (user.trained, user.held_out))
        for user in table.users
    }


def data(path: Path, held_out: float | None = None, **format: Any) -> DataSpec:
    source = {"kind": "csv", "path": str(path), "format": {"kind": "interactions", **format}}
    share = {} if held_out is None else {"held_out": held_out}
    return DataSpec.model_validate({"sources": [source], **share})


# --- the table -----------------------------------------------------------------------------------


def test_users_and_items_are_numbered_by_name_whatever_the_order_of_the_file() -> None:
    found = table_of(records(ROWS), rule(), 0.3, "f")
    assert [user.name for user in found.users] == ["ann", "bob", "cid"]
    assert found.items == ITEMS
    turned = table_of(records(ROWS[::-1]), rule(), 0.3, "f")
    assert words_all(turned) == words_all(found)
    assert found.edges.tolist() == [
        [u for u, user in enumerate(found.users) for _ in user.trained],
        [int(i) for user in found.users for i in user.trained],
    ]


def words_all(table: Any) -> list[list[int]]:
    return [words_of(i, user).tolist() for i, user in enumerate(table.users)]


def test_a_pair_that_comes_again_counts_once_at_its_latest_time() -> None:
    found = split(ROWS, leave_one_out=True, time="time")
    assert found["ann"] == ({"rum", "gin"}, {"tea"})  # at 3 and 8; gin at 7


def test_the_latest_of_each_user_who_has_two_is_left_out() -> None:
    found = split(ROWS, leave_one_out=True, time="time")
    assert found["bob"] == ({"rum", "ale"}, {"tea"}) and found["cid"] == ({"ale"}, set())


def test_without_a_time_a_hash_leaves_one_out_and_seeds_leave_out_others() -> None:
    rows = [(u, i, 0) for u in range(30) for i in range(5)]
    one, again, other = (split(rows, leave_one_out=True, seed=s) for s in (1, 1, 2))
    assert one == again != other
    assert all(len(kept) == 4 and len(out) == 1 for kept, out in one.values())


def test_a_share_is_held_out_by_a_hash_a_larger_one_only_adds_and_everybody_keeps_one() -> None:
    rows = [(u, i, 0) for u in range(60) for i in range(10)]
    few, many, most = (split(rows, share) for share in (0.2, 0.5, 0.999))
    assert sum(len(out) for _, out in few.values()) == pytest.approx(120, abs=35)
    for user, (_, out) in few.items():
        assert out <= many[user][1] <= most[user][1]
    assert all(len(kept) == 1 for kept, _ in most.values())


def test_words_hold_both_parts_of_a_user() -> None:
    user = table_of(records(ROWS), rule(leave_one_out=True, time="time"), 0.0, "f").users[0]
    words = words_of(7, user)
    assert words.dtype == np.int32 and words.tolist() == [7, 2, 1, 2, 3]
    assert trained_of(words).tolist() == [1, 2] and held_out_of(words).tolist() == [3]


# --- prepared data -------------------------------------------------------------------------------


def test_every_user_is_trained_on_and_those_with_held_out_items_are_measured(
    tmp_path: Path,
) -> None:
    spec = data(write_csv(tmp_path / "x.csv", ROWS), leave_one_out=True, time="time")
    found = prepare(spec, None, str(tmp_path / "cache"))
    names = [found.train.id(i) for i in range(len(found.train))]
    assert names == ["ann", "bob", "cid"]
    assert [found.held_out.id(i) for i in range(len(found.held_out))] == ["ann", "bob"]
    assert found.held_out.tokens(1).tolist() == found.train.tokens(1).tolist()
    assert found.classes == 4 and found.popularity.tolist() == [2, 1, 2, 0]
    assert found.edges.tolist() == [[0, 0, 1, 1, 2], [1, 2, 0, 2, 0]]
    assert found.counts.held_out_documents == 2
    again = prepare(spec, None, str(tmp_path / "cache"))
    assert again.version == found.version


def test_another_split_is_another_version_and_another_order_is_not(tmp_path: Path) -> None:
    def version(name: str, rows: list[Any], **format: Any) -> str:
        spec = data(write_csv(tmp_path / name, rows), leave_one_out=True, **format)
        return prepare(spec, None, str(tmp_path / "cache")).version

    first = version("a.csv", ROWS, time="time")
    assert version("b.csv", ROWS[::-1], time="time") == first
    assert version("a.csv", [(*row[:2], -row[2]) for row in ROWS], time="time") != first


def test_a_batch_says_who_and_what_they_are_trained_on(tmp_path: Path) -> None:
    spec = data(write_csv(tmp_path / "x.csv", ROWS), leave_one_out=True, time="time")
    found = prepare(spec, None, str(tmp_path / "cache"))
    batch = collation(spec)(found.train, [(2,), (0,), ()])
    assert batch.inputs["users"].tolist() == [2, 0, 0]
    assert batch.inputs["items"].tolist() == [[0, -1], [1, 2], [-1, -1]]
    assert batch.targets.tolist() == [[0], [0], [-100]]
    assert batch.sample_index.tolist() == [[2], [0], [-1]]


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("a", "x", 1), ("b", " ", 2)], r"record 'r:1', column 'item': '' names nobody"),
        ([("", "x", 1)], r"column 'user': '' names nobody.*Give every record a user and an item"),
        ([(1.5, "x", 1)], r"column 'user': 1\.5"),
        ([("a", None, 1)], r"column 'item': None"),
        ([("a", "x", "soon")], r"column 'time': 'soon' is no number"),
        ([("a", "x", "nan")], r"column 'time': 'nan' is no number"),
        ([], r"data\.sources\.0.*gives no interaction"),
    ],
)
def test_a_record_that_is_no_interaction_is_named(rows: list[Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        split(rows, leave_one_out=True, time="time")


def test_a_csv_without_the_columns_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", [(1, 2, 3)], header="who,what,when")
    with pytest.raises(SpecError, match=r"data\.sources\.0\.format\.user.*'user' is not in.*who"):
        preflight([JobSpec.model_validate(raw_job(path, 1, 1))])
    with pytest.raises(SpecError, match="has no column 'user'"):
        prepare(data(path), None, str(tmp_path / "cache"))
    with pytest.raises(SpecError, match=r"names column 'user'.*present: who, what, when"):
        list(read_csv(str(path), rule()))
    with pytest.raises(SpecError, match="there is no such file"):
        list(read_csv(str(tmp_path / "y.csv"), rule()))


def test_a_user_without_an_item_is_named_with_file_and_row(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", [("ann", "tea", 1), ("bob", "", 2)])
    with pytest.raises(SpecError, match=r"'x\.csv:1', column 'item'.*or drop it"):
        prepare(data(path), None, str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("format", "further", "told"),
    [
        ({"time": "time"}, {}, "only leave_one_out looks at it"),
        ({"leave_one_out": True}, {"held_out": 0.1}, "is 0.1 beside leave_one_out"),
        ({}, {"max_documents": 3}, "leaves users out"),
        ({}, {"corrupt": {"fraction": 0.5}}, "leaves users out"),
        ({}, {"packing": True}, "have a row each"),
        ({}, {"workers": 2}, "interactions are not tokenised"),
    ],
)
def test_settings_that_say_nothing_about_users_are_refused(
    format: dict[str, Any], further: dict[str, Any], told: str
) -> None:
    source = {"kind": "csv", "path": "x", "format": {"kind": "interactions", **format}}
    with pytest.raises(ValidationError, match=told):
        DataSpec.model_validate({"sources": [source], **further})
    if not format and "packing" in further:
        with pytest.raises(ValidationError, match="are 2, and users and items are numbered"):
            DataSpec.model_validate({"sources": [source, source]})
