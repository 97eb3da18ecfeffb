"""Copies of a cache at other addresses, and the commands that look after one."""

import json
import os
from pathlib import Path

import fsspec
import pytest
from cache_tools import LARGE, card, fetched, flip, record, same, segments

from orchestrator.cli import exit_code
from orchestrator.cli_cache import parsed_size, size
from orchestrator.errors import SpecError
from orchestrator.signals.cache.inspection import summary, verify
from orchestrator.signals.cache.records import CacheRecord
from orchestrator.signals.cache.roles import read_role, role_file
from orchestrator.signals.cache.store import Store
from orchestrator.signals.cache.transfer import export_to, import_from


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A closed cache of ten records, two a segment, and a card."""
    path = tmp_path / "full"
    with Store.open(path, LARGE, segment_bytes=4400) as store:
        store.put([record(i, width=500) for i in range(10)])
        store.put_role(card("teacher-a"))
    return path


def all_there(store: Store, count: int = 10) -> bool:
    puts = [record(i, width=500) for i in range(count)]
    there = [fetched(store, store.reader, put.key) for put in puts]
    return all(t is not None and same(t, put) for t, put in zip(there, puts, strict=True))


def run(*arguments: object) -> int:
    return exit_code(["cache", *map(str, arguments)])


@pytest.mark.parametrize("protocol", ["", "file://", "memory:/"])
def test_a_copy_holds_all_and_is_taken_whole(full: Path, tmp_path: Path, protocol: str) -> None:
    uri = f"{protocol}{tmp_path / 'copy'}"
    exported = export_to(full, uri)
    assert (exported.files, exported.there) == (6, 0)
    with Store.open(tmp_path / "other", LARGE) as store:
        done = import_from(uri, store)
        assert (done.segments, done.records, done.cards, done.refused) == (5, 10, 1, ())
        assert all_there(store)
        again = import_from(uri, store)
        assert (again.segments, again.known) == (0, 5)
        assert store.stats().segments == 5
    assert read_role(tmp_path / "other", "teacher-a") is not None
    (tmp_path / "other" / "index.sqlite").unlink()
    with Store.open(tmp_path / "other", LARGE) as store:
        assert all_there(store)


def test_an_export_copies_what_is_new_or_was_left_half_written(full: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    export_to(full, str(copy))
    with Store.open(full, LARGE) as store:
        store.put([record(50)])
    os.truncate(segments(copy)[0], 100)
    done = export_to(full, str(copy))
    assert (done.files, done.there) == (2, 5)
    assert [file.read_bytes() for file in segments(copy)] == [
        file.read_bytes() for file in segments(full)
    ]


def test_export_and_looking_work_beside_a_running_writer(full: Path, tmp_path: Path) -> None:
    with Store.open(full, LARGE) as store:
        store.put([record(50)])
        assert run("stats", "--path", full) == 0
        assert run("verify", "--path", full) == 0
        assert run("export", tmp_path / "copy", "--path", full) == 0
        assert run("prune", "--all", "--path", full) == 1  # the writer is somebody else
        assert run("import", tmp_path / "copy", "--path", full) == 1
        assert all_there(store)


def test_what_is_still_being_written_is_nobodys_business(full: Path, tmp_path: Path) -> None:
    before = summary(full)
    for part in ("segments", "roles"):
        (full / part / ".writing-half.arrow").write_bytes(b"ARROW1")
    assert summary(full) == before
    assert [found for _, found in verify(full) if found] == []
    export_to(full, str(tmp_path / "copy"))
    assert not list((tmp_path / "copy").rglob(".writing-*"))


def test_a_segment_that_vanishes_during_an_export_is_passed_over(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("file")
    put_file = type(files).put_file
    victim = segments(full)[2]

    def evicting(self: object, local: str, *rest: object, **options: object) -> None:
        victim.unlink(missing_ok=True)
        put_file(self, local, *rest, **options)

    monkeypatch.setattr(type(files), "put_file", evicting)
    assert export_to(full, str(tmp_path / "copy")).files == 5


def test_damaged_files_of_a_copy_are_refused_by_name_and_the_others_kept(
    full: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    export_to(full, str(copy))
    first, second, third, *_ = segments(copy)
    flip(first, first.read_bytes().index(record(0, width=500).arrays["ids"].tobytes()) + 7)
    os.truncate(third, 500)
    (one,) = (copy / "roles").iterdir()
    one.write_bytes(b"not a card")
    with Store.open(tmp_path / "other", LARGE) as store:
        done = import_from(str(copy), store)
        assert (done.segments, done.records) == (3, 6)
        assert [reason.partition(":")[0] for reason in done.refused] == [
            first.name,
            third.name,
            one.name,
        ]
        assert store.find([record(0, width=500).key]) == [None]
        assert fetched(store, store.reader, record(2, width=500).key) is not None
        assert store.stats().corrupt == 0  # nothing of them came in
    assert second.exists()
    assert not list((tmp_path / "other").rglob(".writing-*"))


def test_what_both_sides_have_is_merged(full: Path, tmp_path: Path) -> None:
    export_to(full, str(tmp_path / "copy"))
    more = record(1, [0, 2, 3, 8, 9], width=500)
    with Store.open(tmp_path / "other", LARGE) as store:
        store.put([more, record(77)])
        store.flush()
        assert import_from(str(tmp_path / "copy"), store).records == 9
        there = fetched(store, store.reader, more.key)
        assert isinstance(there, CacheRecord) and same(there, more)
        assert store.stats().records == 11


def test_a_copy_larger_than_the_room_is_refused_before_it_is_copied(
    full: Path, tmp_path: Path
) -> None:
    export_to(full, str(tmp_path / "copy"))
    with Store.open(tmp_path / "other", 10_000) as store:
        with pytest.raises(SpecError, match="the limit of"):
            import_from(str(tmp_path / "copy"), store)
        assert store.stats().segments == 0


def test_an_address_that_cannot_be_written_is_refused_before_anything_is_copied(
    full: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    for uri in (f"{tmp_path}/file/below", "nosuchprotocol://bucket/x"):
        with pytest.raises(SpecError) as caught:
            export_to(full, uri)
        assert caught.value.field == uri and caught.value.remedy
    assert run("export", tmp_path / "file" / "below", "--path", full) == 2


def test_a_folder_that_is_no_copy_or_of_another_version_is_refused(
    full: Path, tmp_path: Path
) -> None:
    with Store.open(tmp_path / "other", LARGE) as store:
        with pytest.raises(SpecError, match="not a copy"):
            import_from(str(tmp_path / "nothing"), store)
        export_to(full, str(tmp_path / "copy"))
        (tmp_path / "copy" / "format").write_text("stillhouse signals 9")
        with pytest.raises(SpecError, match="signals 9"):
            import_from(str(tmp_path / "copy"), store)
    with pytest.raises(SpecError, match="signals 9"):
        export_to(full, str(tmp_path / "copy"))


# --- commands -------------------------------------------------------------------------------------


def test_stats_say_what_is_there(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stats", "--path", full) == 0
    text = capsys.readouterr().out
    assert "10 records in 5 segments" in text and "KiB" in text and "role cards: 1" in text
    assert run("stats", "--json", "--path", full) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["records"] == 10 and told["segments"] == 5 and told["role_cards"] == 1
    assert told["bytes"] == sum(file.stat().st_size for file in segments(full))
    (contents,) = told["contents"]
    assert contents["fingerprint"] == "teacher-a" and contents["positions"] == 40


def test_stats_count_a_record_that_was_replaced_once(full: Path) -> None:
    with Store.open(full, LARGE) as store:
        store.put([record(1, [0, 2, 3, 8, 9], width=500)])
    found = summary(full)
    assert found.records == 10 and found.contents[0].positions == 41


def test_verify_names_the_damage_and_fails(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "--path", full) == 0
    file = segments(full)[1]
    flip(file, file.read_bytes().index(record(2, width=500).arrays["ids"].tobytes()))
    assert run("verify", "--path", full) == 1
    text = capsys.readouterr().out
    assert f"{file.name}: record {record(2, width=500).key.hex()}" in text
    assert "6 files read, 1 damaged" in text


def test_import_fails_when_it_refuses_something(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    assert run("export", copy, "--path", full) == 0
    assert run("import", copy, "--path", other) == 0
    os.truncate(segments(copy)[0], 500)
    assert run("import", copy, "--path", other) == 1
    assert f"refused: {segments(copy)[0].name}" in capsys.readouterr().out


def test_prune_keeps_to_what_it_was_told(full: Path) -> None:
    before = summary(full)
    assert run("prune", "--to", f"{before.bytes / 2e3}KB", "--path", full) == 0
    half = summary(full)
    assert 0 < half.bytes <= before.bytes / 2
    assert run("prune", "--role", "nobody", "--path", full) == 0
    assert summary(full) == half
    assert run("prune", "--role", "teacher-a", "--path", full) == 0
    assert (summary(full).records, summary(full).role_cards) == (0, 0)
    assert not role_file(full, "teacher-a").exists()
    with Store.open(full, LARGE) as store:
        store.put([record(1)])
        store.put_role(card("b"))
    assert run("prune", "--all", "--path", full) == 0
    assert (summary(full).segments, summary(full).role_cards) == (0, 0)


@pytest.mark.parametrize(
    "options", [[], ["--all", "--to", "1GB"], ["--to", "much"], ["--to", "-1"]]
)
def test_a_prune_that_is_unclear_is_refused(full: Path, options: list[str]) -> None:
    assert run("prune", *options, "--path", full) == 2
    assert summary(full).records == 10


@pytest.mark.parametrize("command", [["stats"], ["verify"], ["prune", "--all"], ["export", "x"]])
def test_a_folder_that_is_no_cache_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert run(*command, "--path", tmp_path / "nothing") == 2
    assert "is not a signal cache" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


def test_sizes_are_read_and_written_as_people_do() -> None:
    texts = {
        "0": 0,
        "1234": 1234,
        "2KB": 2000,
        "2KiB": 2048,
        "1.5 GB": 1_500_000_000,
        "1tib": 1 << 40,
    }
    assert {text: parsed_size(text) for text in texts} == texts
    assert [size(n) for n in (0, 1023, 1024, 3 << 20, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 MiB",
        "5.0 TiB",
    ]
