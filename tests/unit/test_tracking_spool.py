"""The spool and its cursor: nothing written is lost, whatever the end."""

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from orchestrator.evaluation.history import SPOOL, read_records
from orchestrator.tracking.spool import (
    Cursor,
    Spool,
    count_lines,
    cursor_path,
    publish_cursor,
    read_cursor,
    read_page,
)


def _numbers(folder: Path) -> list[int]:
    return [record.number for record in read_records(folder) if record is not None]


def test_a_record_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    spool = Spool(tmp_path)  # deliberately not closed
    assert spool.append("metrics", {"step": 1, "values": {"loss/total": 2.5}}) == 0
    (record,) = read_records(tmp_path)
    assert record is not None
    assert (record.kind, record.body["values"]) == ("metrics", {"loss/total": 2.5})


def test_numbers_go_on_when_the_spool_is_opened_again(tmp_path: Path) -> None:
    for _ in range(3):
        with Spool(tmp_path) as spool:
            spool.append("tags", {"values": {}})
    assert _numbers(tmp_path) == [0, 1, 2]


def test_a_torn_last_line_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.append("tags", {"values": {"a": "1"}})
    with open(tmp_path / SPOOL, "ab") as raw:
        raw.write(b'{"n":1,"time_ms":0,"kind":"ta')
    assert _numbers(tmp_path) == [0]
    with Spool(tmp_path) as spool:
        spool.append("tags", {"values": {"b": "2"}})
    assert _numbers(tmp_path) == [0, 1]
    assert None not in list(read_records(tmp_path))


def test_a_whole_record_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.append("tags", {"values": {"a": "1"}})
        spool.append("tags", {"values": {"b": "2"}})
    path = tmp_path / SPOOL
    path.write_bytes(path.read_bytes()[:-1])
    with Spool(tmp_path) as spool:
        assert spool.next_number == 2
        spool.append("tags", {"values": {"c": "3"}})
    assert _numbers(tmp_path) == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(kept=st.integers(0, 400), text=st.text(max_size=20))
def test_cutting_the_file_anywhere_leaves_a_spool_that_goes_on(
    tmp_path_factory: pytest.TempPathFactory, kept: int, text: str
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with Spool(folder) as spool:
        for index in range(4):
            spool.append("text", {"name": str(index), "text": text})
    path = folder / SPOOL
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    survivors = whole[:kept].count(b"\n")
    with Spool(folder) as spool:
        assert spool.next_number in (survivors, survivors + 1)
        spool.append("text", {"name": "new", "text": text})
    records = list(read_records(folder))
    assert None not in records
    assert _numbers(folder) == list(range(len(records)))


def test_pages_cover_the_spool_once_and_leave_a_torn_tail(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        for index in range(10):
            spool.append("tags", {"values": {"i": str(index)}})
    with open(tmp_path / SPOOL, "ab") as raw:
        raw.write(b'{"n":10')
    seen, offset = [], 0
    while page := read_page(tmp_path, offset, limit_bytes=100):
        seen += [entry.record.number for entry in page if entry.record]
        offset = page[-1].end
    assert seen == list(range(10))
    assert count_lines(tmp_path, offset) == 0


def test_a_cursor_survives_and_belongs_to_one_target(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.append("tags", {"values": {}})
    cursor = Cursor("http://a", 10, 1, "run", 0, ("models:/s/1",))
    publish_cursor(tmp_path, cursor)
    assert read_cursor(tmp_path, "http://a") == cursor
    assert read_cursor(tmp_path, "http://b") == Cursor("http://b")
    assert not [path for path in (tmp_path / "tracking").iterdir() if "cursor" in path.name][1:]


@pytest.mark.parametrize("damage", ["", "{", "[]", json.dumps({"target": "http://a"})])
def test_a_damaged_cursor_starts_over(tmp_path: Path, damage: str) -> None:
    Spool(tmp_path).close()
    cursor_path(tmp_path, "http://a").write_text(damage)
    assert read_cursor(tmp_path, "http://a") == Cursor("http://a")


def test_a_cursor_beyond_the_spool_starts_over(tmp_path: Path) -> None:
    Spool(tmp_path).close()
    publish_cursor(tmp_path, Cursor("http://a", offset=999, records=9))
    assert read_cursor(tmp_path, "http://a") == Cursor("http://a")
