"""Preparing data: what the version follows, reuse, races, torn files, what is counted."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data import prepare as prepare_function
from orchestrator.data.format import Encoded
from orchestrator.data.prepare import HeldOutEmpty, TokenData
from orchestrator.data.tokenise import cut
from orchestrator.errors import SpecError
from orchestrator.spec.data import DataSpec

ROOT = Path(__file__).parents[2]
FOLDER = str(ROOT / "docs" / "examples" / "teacher")
module = sys.modules["orchestrator.data.prepare"]


def texts(folder: Path, count: int = 40) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"{index:03}.txt").write_text(f"document {index} says: " + "word " * index)
    return folder


def copy_tokenizer(folder: Path) -> None:
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(FOLDER) / name, folder)


def spec_of(folder: Path, **fields: Any) -> DataSpec:
    source = {"kind": "text", "path": str(folder)}
    return DataSpec.model_validate({"sources": [source], "context": 16, "held_out": 0.2, **fields})


def contents(data: TokenData) -> list[tuple[str, list[int], list[bool]]]:
    return [
        (store.id(i), store.tokens(i).tolist(), store.loss_mask(i).tolist())
        for store in (data.train, data.held_out)
        for i in range(len(store))
    ]


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and from then on no document may be read and no tokenizer loaded."""

    def forbid() -> None:
        def refuse(*_: Any) -> Any:
            raise AssertionError("read again")

        monkeypatch.setattr(module, "read_documents", refuse)
        monkeypatch.setattr(module, "load_tokenizer", refuse)

    return forbid


# --- what comes out ------------------------------------------------------------------------------


def test_every_document_is_whole_in_its_pieces_and_on_one_side_of_the_split(
    tmp_path: Path,
) -> None:
    from orchestrator.data.split import is_held_out
    from orchestrator.data.tokenizer import load_tokenizer

    folder = texts(tmp_path / "texts")
    data = prepare_function(spec_of(folder), FOLDER, str(tmp_path / "cache"))
    pieces: dict[str, list[int]] = {}
    for store, apart in ((data.train, False), (data.held_out, True)):
        for index in range(len(store)):
            name = store.id(index).split("#")[0]
            assert is_held_out(name, 0.2) is apart
            pieces.setdefault(name, []).extend(store.tokens(index).tolist())
            assert 2 <= store.lengths[index] <= 16
            assert not store.loss_mask(index)[0]
    backend = load_tokenizer(FOLDER).backend
    for path in sorted(folder.iterdir()):
        whole = [*backend.encode(path.read_text()).ids, 0]
        # A last piece of one token has nothing to learn and is dropped.
        assert pieces[path.name] == (whole[:-1] if len(whole) % 16 == 1 else whole)
    counts = data.counts
    assert counts.documents == 40
    assert counts.samples == len(data.train) + len(data.held_out)
    assert counts.tokens == data.train.lengths.sum() + data.held_out.lengths.sum()
    masks = [data.train.loss_mask(i).sum() for i in range(len(data.train))]
    assert counts.learned == sum(masks)
    assert data.train.tokens(0).dtype == np.int32
    assert data.train.lengths.dtype == np.int32


def test_long_documents_are_split_cut_or_dropped() -> None:
    encoded = Encoded(np.arange(10, dtype=np.int32), np.array([False] + [True] * 9))
    pieces = cut("d", encoded, 4, "split")
    assert [(p.id, p.tokens.tolist()) for p in pieces] == [
        ("d#0", [0, 1, 2, 3]),
        ("d#1", [4, 5, 6, 7]),
        ("d#2", [8, 9]),
    ]
    assert [p.loss_mask.tolist()[0] for p in pieces] == [False] * 3
    assert encoded.loss_mask.sum() == 9  # the original is left alone
    (truncated,) = cut("d", encoded, 4, "truncate")
    assert (truncated.id, truncated.tokens.tolist()) == ("d", [0, 1, 2, 3])
    assert cut("d", encoded, 4, "drop") == []
    assert [p.id for p in cut("d", encoded, 10, "drop")] == ["d"]


def test_dropped_documents_and_samples_without_loss_are_counted(tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts", 20)
    (folder / "empty.txt").write_text("")
    spec = spec_of(folder, long_documents="drop", held_out=0)
    counts = prepare_function(spec, FOLDER, str(tmp_path / "cache")).counts
    assert counts.documents == 21
    assert counts.dropped_without_loss == 1
    assert counts.dropped_long > 0
    assert counts.samples == 21 - 1 - counts.dropped_long


def test_several_processes_give_what_one_gives(tmp_path: Path, monkeypatch: Any) -> None:
    folder = texts(tmp_path / "texts")
    one = prepare_function(spec_of(folder), FOLDER, str(tmp_path / "one"))
    monkeypatch.setattr("orchestrator.data.tokenise.BATCH_DOCUMENTS", 4)
    two = prepare_function(spec_of(folder, workers=2), FOLDER, str(tmp_path / "two"))
    assert two.version == one.version
    assert contents(two) == contents(one)


# --- the version ---------------------------------------------------------------------------------


def test_the_version_follows_content_and_not_places_or_times(tmp_path: Path) -> None:
    first = texts(tmp_path / "first")
    second = tmp_path / "elsewhere" / "second"
    shutil.copytree(first, second, copy_function=shutil.copyfile)
    versions = [
        prepare_function(spec_of(folder, workers=1), FOLDER, str(tmp_path / f"cache{n}")).version
        for n, folder in enumerate((first, second))
    ]
    assert versions[0] == versions[1]
    (second / "000.txt").write_text("document 0 says otherwise")
    changed = prepare_function(spec_of(second), FOLDER, str(tmp_path / "cache1"))
    assert changed.version != versions[0]


@pytest.mark.parametrize(
    "fields",
    [{"context": 32}, {"held_out": 0.3}, {"long_documents": "drop"}, {"max_documents": 39}],
)
def test_the_version_follows_the_fields_that_decide_samples(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    folder, cache = texts(tmp_path / "texts"), str(tmp_path / "cache")
    reference = prepare_function(spec_of(folder), FOLDER, cache)
    assert prepare_function(spec_of(folder, **fields), FOLDER, cache).version != reference.version


def test_a_source_may_have_a_share_of_its_own(tmp_path: Path) -> None:
    """All of one, none of the other, and a third as the data say; the version tells them apart."""
    cache = str(tmp_path / "cache")
    sources = [
        {"kind": "text", "path": str(texts(tmp_path / name)), **own}
        for name, own in (("a", {"held_out": 1}), ("b", {"held_out": 0}), ("c", {}))
    ]
    fields: dict[str, Any] = {"context": 64, "long_documents": "drop", "held_out": 0.2}
    data = prepare_function(DataSpec(sources=sources, **fields), FOLDER, cache)  # type: ignore[arg-type]
    apart, trained = (
        [store.id(index) for index in range(len(store))] for store in (data.held_out, data.train)
    )
    plain = [name for name in apart if "@" not in name]
    assert len(plain) == 40 and all(name.endswith("@2") for name in apart if "@" in name)
    assert sum(name.endswith("@1") for name in trained) == 40
    third = sum(name.endswith("@2") for name in apart)
    assert 0 < third < 20 and third + sum(name.endswith("@2") for name in trained) == 40
    assert data.counts.held_out_documents == len(apart)
    versions = {data.version}
    for index, share in ((0, None), (1, 1), (2, 0)):
        changed = [dict(source) for source in sources]
        changed[index]["held_out"] = share
        spec = DataSpec(sources=changed, **fields)  # type: ignore[arg-type]
        versions.add(prepare_function(spec, FOLDER, cache).version)
    assert len(versions) == 4


@pytest.mark.parametrize(
    ("own", "told"),
    [([1, 1.0], r"sources.*all held out.*Add a source, or lower held_out"), ([1.5], "1")],
)
def test_shares_that_cannot_be_are_refused(own: list[float], told: str) -> None:
    sources = [{"kind": "text", "path": "t", "held_out": share} for share in own]
    with pytest.raises(ValueError, match=told):
        DataSpec(sources=sources)  # type: ignore[arg-type]


def test_packing_is_no_part_of_the_version(tmp_path: Path) -> None:
    folder, cache = texts(tmp_path / "texts"), str(tmp_path / "cache")
    loose = prepare_function(spec_of(folder, packing=False), FOLDER, cache)
    assert prepare_function(spec_of(folder), FOLDER, cache).version == loose.version


def test_the_version_follows_the_tokenizer(tmp_path: Path) -> None:
    folder, cache = texts(tmp_path / "texts"), str(tmp_path / "cache")
    other = tmp_path / "tokenizer"
    copy_tokenizer(other)
    described = json.loads((other / "tokenizer.json").read_text())
    described["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(described))
    versions = {prepare_function(spec_of(folder), t, cache).version for t in (FOLDER, str(other))}
    assert len(versions) == 2


# --- reuse ---------------------------------------------------------------------------------------


def test_a_second_call_reads_nothing(tmp_path: Path, no_reading: Any) -> None:
    folder, cache = texts(tmp_path / "texts"), str(tmp_path / "cache")
    first = prepare_function(spec_of(folder), FOLDER, cache)
    no_reading()
    second = prepare_function(spec_of(folder), FOLDER, cache)
    assert second.version == first.version
    assert contents(second) == contents(first)


@pytest.mark.parametrize("same_size", [False, True])
def test_a_changed_file_is_read_again(same_size: bool, tmp_path: Path, no_reading: Any) -> None:
    folder, cache = texts(tmp_path / "texts"), str(tmp_path / "cache")
    prepare_function(spec_of(folder), FOLDER, cache)
    file = folder / "003.txt"
    file.write_text(file.read_text().upper() if same_size else "quite another text")
    os.utime(file, ns=(0, 1))  # a clock may be too coarse to tell the two writes apart
    no_reading()
    with pytest.raises(AssertionError, match="read again"):
        prepare_function(spec_of(folder), FOLDER, cache)


def test_touched_files_with_equal_content_are_not_tokenised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = texts(tmp_path / "texts"), str(tmp_path / "cache")
    first = prepare_function(spec_of(folder), FOLDER, cache)
    (folder / "003.txt").write_text((folder / "003.txt").read_text())
    monkeypatch.setattr(module, "encoded_documents", None)
    assert prepare_function(spec_of(folder), FOLDER, cache).version == first.version


@pytest.mark.parametrize("torn", ["train/tokens.i32", "held_out/ids.u8", "manifest.json"])
def test_a_torn_file_is_built_anew_and_never_read(torn: str, tmp_path: Path) -> None:
    folder, cache = texts(tmp_path / "texts"), str(tmp_path / "cache")
    first = prepare_function(spec_of(folder), FOLDER, cache)
    expected = contents(first)
    file = first.folder / torn
    file.write_bytes(file.read_bytes()[:-3])
    second = prepare_function(spec_of(folder), FOLDER, cache)
    assert contents(second) == expected
    assert not list(Path(cache).glob(".*.tmp"))


def test_a_build_that_fails_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = texts(tmp_path / "texts"), tmp_path / "cache"
    calls: list[Any] = []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 10:
            raise OSError("disk full")
        return cut(*arguments)

    monkeypatch.setattr(module, "cut", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare_function(spec_of(folder), FOLDER, str(cache))
    assert [path.name for path in cache.iterdir()] == ["keys"]
    assert not list((cache / "keys").iterdir())


def _prepare_at_the_gate(gate: Any, folder: str, cache: str, versions: Any) -> None:
    publish = module._publish

    def wait(*arguments: Any) -> Any:
        gate.wait(60)
        return publish(*arguments)

    module._publish = wait  # type: ignore[attr-defined]
    data = prepare_function(spec_of(Path(folder)), FOLDER, cache)
    versions.put((data.version, len(data.train)))


def test_two_processes_on_one_folder_end_with_one_version(tmp_path: Path) -> None:
    folder, cache = texts(tmp_path / "texts"), tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    gate, versions = context.Barrier(2), context.Queue()
    arguments = (gate, str(folder), str(cache), versions)
    workers = [context.Process(target=_prepare_at_the_gate, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [versions.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert found[0] == found[1]
    assert sorted(p.name for p in cache.iterdir()) == sorted(["keys", found[0][0]])


def test_what_a_killed_build_left_is_swept(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    old, fresh = cache / ".a.1.x.tmp", cache / ".b.2.y.tmp"
    for left in (old, fresh):
        left.mkdir(parents=True)
    os.utime(old, (0, 0))
    prepare_function(spec_of(texts(tmp_path / "texts")), FOLDER, str(cache))
    assert not old.exists() and fresh.exists()


# --- refusals and warnings -----------------------------------------------------------------------


def test_texts_too_short_for_one_position_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("")
    with pytest.raises(SpecError, match=r"nothing is left.*documents 1.*without_loss 1"):
        prepare_function(spec_of(folder), FOLDER, str(tmp_path / "cache"))


def test_conversations_without_any_assistant_are_refused(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    copy_tokenizer(tokenizer)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (tokenizer / "chat_template.jinja").write_text(template)
    row = {"messages": [{"role": "user", "content": "hello there"}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    source = {
        "kind": "jsonl",
        "path": str(tmp_path / "x.jsonl"),
        "format": {"kind": "messages"},
    }
    spec = DataSpec.model_validate({"sources": [source], "held_out": 0})
    with pytest.raises(SpecError, match="nothing is left to train on"):
        prepare_function(spec, str(tokenizer), str(tmp_path / "cache"))


def test_nothing_held_out_is_a_warning_on_every_call(tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts", 5)
    for _ in range(2):
        with pytest.warns(HeldOutEmpty, match=r"none of 5 documents"):
            prepare_function(spec_of(folder, held_out=0.001), FOLDER, str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_function(spec_of(folder, held_out=0), FOLDER, str(tmp_path / "cache"))


def test_a_source_that_changes_its_mind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fickle_source.py").write_text(
        "calls = []\ndef make():\n    calls.append(1)\n"
        "    yield 'a', {'text': f'some words {len(calls)}'}\n"
    )
    source = {"kind": "import", "target": "fickle_source:make"}
    spec = DataSpec.model_validate({"sources": [source], "held_out": 0})
    with pytest.raises(SpecError, match="other documents when read a second time"):
        prepare_function(spec, FOLDER, str(tmp_path / "cache"))


def test_a_document_named_like_a_piece_of_another_is_refused(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "word " * 40}, {"id": "a#1", "text": "short text"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"kind": "jsonl", "path": str(tmp_path / "x.jsonl")}
    spec = DataSpec.model_validate({"sources": [source], "context": 16, "held_out": 0})
    with pytest.raises(SpecError, match="two samples are called 'a#1'"):
        prepare_function(spec, FOLDER, str(tmp_path / "cache"))


def test_the_room_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    texts(tmp_path / "texts", 10)
    program = f"""
import sys
from pathlib import Path
from orchestrator.data import Order, collate, prepare
from orchestrator.spec.data import DataSpec
spec = DataSpec(sources=[dict(kind="text", path={str(tmp_path / "texts")!r})], held_out=0.3)
data = prepare(spec, {FOLDER!r}, {str(tmp_path / "cache")!r})
collate(data.train, Order(data.train, 512, 2, 0, True).rows(0), 512)
print(sorted({{"torch", "ray", "datasets", "pyarrow"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
