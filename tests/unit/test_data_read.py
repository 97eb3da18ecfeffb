"""Every kind of source, its ids, and each way in which it can be faulty."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data.read import Document, read_documents
from orchestrator.errors import SpecError
from orchestrator.spec.data import DataSpec


def read(*sources: dict[str, Any], **fields: Any) -> list[Document]:
    return list(read_documents(DataSpec.model_validate({"sources": list(sources), **fields})))


def pairs(documents: list[Document]) -> list[tuple[str, Any]]:
    return [(document.id, document.content) for document in documents]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module that can be imported; gives its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(body: str) -> str:
        name = f"source_{abs(hash((str(tmp_path), body)))}"
        (tmp_path / f"{name}.py").write_text(body)
        return name

    return write


# --- what is read --------------------------------------------------------------------------------


def test_a_text_folder_gives_one_document_a_file_with_relative_ids(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_bytes(
        "zwei \N{LATIN SMALL LETTER U WITH DIAERESIS}".encode()
    )
    (tmp_path / "one.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "other.md").write_text("not matched")
    expected = [("b/two.txt", "zwei \xfc"), ("one.txt", "one")]
    assert pairs(read({"kind": "text", "path": str(tmp_path)})) == expected
    markdown = {"kind": "text", "path": str(tmp_path), "glob": "*.md"}
    assert pairs(read(markdown)) == [("other.md", "not matched")]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one")
    assert pairs(read({"kind": "text", "path": str(tmp_path / "one.txt")})) == [("one.txt", "one")]


def test_jsonl_rows_are_numbered_or_named_by_their_own_id(tmp_path: Path) -> None:
    lines = ['{"text": "a"}', "", '{"text": "b", "id": "mine"}', '{"text": "c", "id": 7}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    found = pairs(read({"kind": "jsonl", "path": str(tmp_path / "x.jsonl")}))
    assert found == [("x.jsonl:0", "a"), ("mine", "b"), ("x.jsonl:3", "c")]


def test_csv_values_stay_strings_and_may_hold_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('n,text\n1,007\n2,"two\nlines, quoted"\n')
    found = pairs(read({"kind": "csv", "path": str(tmp_path / "x.csv")}))
    assert found == [("x.csv:0", "007"), ("x.csv:1", "two\nlines, quoted")]


def test_a_csv_field_may_be_longer_than_the_csv_module_s_default_limit(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"text\n{'a' * 200_000}\n")
    assert len(read({"kind": "csv", "path": str(tmp_path / "x.csv")})[0].content) == 200_000


def test_parquet_columns_of_a_completion(tmp_path: Path) -> None:
    table = pa.table({"q": ["1+1=", "2+2="], "a": ["2", "4"], "unused": [1, 2]})
    pq.write_table(table, tmp_path / "x.parquet")
    form = {"kind": "completion", "prompt": "q", "completion": "a"}
    source = {"kind": "parquet", "path": str(tmp_path / "x.parquet"), "format": form}
    assert pairs(read(source)) == [("x.parquet:0", ("1+1=", "2")), ("x.parquet:1", ("2+2=", "4"))]


def test_messages_lose_the_nulls_that_columnar_files_fill_in(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi", "name": None}, {"role": "assistant", "name": "x"}]
    pq.write_table(pa.table({"messages": [messages]}), tmp_path / "x.parquet")
    source = {
        "kind": "parquet",
        "path": str(tmp_path / "x.parquet"),
        "format": {"kind": "messages"},
    }
    expected = [{"role": "user", "content": "hi"}, {"role": "assistant", "name": "x"}]
    assert pairs(read(source)) == [("x.parquet:0", expected)]


@pytest.mark.parametrize("saved", ["to disk", "dictionary", "plain files"])
def test_a_local_data_set(saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "other": [1, 2]})
    folder = tmp_path / "mine"
    if saved == "to disk":
        data.save_to_disk(str(folder))
    elif saved == "dictionary":
        datasets.DatasetDict({"train": data}).save_to_disk(str(folder))
    else:
        folder.mkdir()
        (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    found = pairs(read({"kind": "dataset", "name": str(folder)}))
    assert found == [("mine/train:0", "a"), ("mine/train:1", "b")]


def test_an_import_source_is_called_with_its_arguments(module: Callable[[str], str]) -> None:
    name = module("def make(n):\n    for i in range(n):\n        yield f'd{i}', {'text': str(i)}\n")
    source = {"kind": "import", "target": f"{name}:make", "arguments": {"n": 2}}
    assert pairs(read(source)) == [("d0", "0"), ("d1", "1")]


def test_max_documents_counts_over_all_sources(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' * 3)
    (tmp_path / "y.jsonl").write_text('{"text": "b"}\n' * 3)
    sources = [{"kind": "jsonl", "path": str(tmp_path / f"{n}.jsonl")} for n in "xy"]
    found = read(*sources, max_documents=4)
    assert [(d.id, d.source) for d in found][-2:] == [("x.jsonl:2", 0), ("y.jsonl:0", 1)]


def test_ids_that_an_earlier_source_used_get_the_source_s_index(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    sources = [{"kind": "text", "path": str(tmp_path / folder)} for folder in ("one", "two")]
    assert pairs(read(*sources)) == [("a.txt", "one"), ("a.txt@1", "two")]


# --- what is refused -----------------------------------------------------------------------------

Bad = tuple[str, dict[str, Any], bytes | None, str, str]
JSONL: dict[str, Any] = {"kind": "jsonl"}
CHAT = {"kind": "jsonl", "format": {"kind": "messages"}}
BAD: list[Bad] = [
    ("missing file", JSONL, None, "data.sources.0.path", "does not exist"),
    ("empty file", JSONL, b"", "data.sources.0.path", "is empty"),
    ("blank file", JSONL, b"\n \n", "data.sources.0", "gives no document"),
    ("not UTF-8", JSONL, b'{"text": "a"}\n{"text": "\xff"}', "data.sources.0.path", "line 2"),
    ("text not UTF-8", {"kind": "text"}, b"abc\xff", "data.sources.0.path", "byte 3"),
    ("empty text", {"kind": "text"}, b"", "data.sources.0.path", "is empty"),
    ("not JSON", JSONL, b'{"text": "a"}\n{"text": ', "data.sources.0.path", "line 2: not JSON"),
    ("not an object", JSONL, b"[1]", "data.sources.0.path", "line 1: a JSON list"),
    (
        "no column",
        JSONL,
        b'{"a": "x", "b": "y"}',
        "data.sources.0.format",
        "(present: a, b)",
    ),
    ("null", JSONL, b'{"text": null}', "data.sources.0", "NoneType, not a string"),
    ("surrogate", JSONL, b'{"text": "ab\\ud800"}', "data.sources.0", "character 2"),
    ("twice", JSONL, b'{"text": "", "id": "i"}\n' * 2, "data.sources.0", "'i' occurs twice"),
    ("chat of text", CHAT, b'{"messages": "hi"}', "data.sources.0", "str without messages"),
    ("chat without role", CHAT, b'{"messages": [{"content": "x"}]}', "data.sources.0", "no role"),
    (
        "csv without column",
        {"kind": "csv"},
        b"a,b\n1,2\n",
        "data.sources.0.format",
        "present: a, b",
    ),
    ("csv short row", {"kind": "csv"}, b"a,text\n1\n", "data.sources.0.path", "line 2"),
    ("csv long row", {"kind": "csv"}, b"text\n1,2\n", "data.sources.0.path", "line 2"),
    ("csv open quote", {"kind": "csv"}, b'text\n"a', "data.sources.0.path", "not CSV"),
    ("csv not UTF-8", {"kind": "csv"}, b"text\n\xff\n", "data.sources.0.path", "not UTF-8"),
    ("csv header only", {"kind": "csv"}, b"text\n", "data.sources.0", "gives no document"),
    ("not parquet", {"kind": "parquet"}, b"PAR1 no", "data.sources.0.path", "not a Parquet"),
]


@pytest.mark.parametrize(
    ("source", "content", "field", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_a_faulty_file_is_refused_naming_its_field(
    source: dict[str, Any], content: bytes | None, field: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError) as raised:
        read({**source, "path": str(path)})
    assert raised.value.field == field
    assert words in str(raised.value)


def test_parquet_without_the_column_lists_those_present(tmp_path: Path) -> None:
    pq.write_table(pa.table({"q": ["x"], "a": ["y"]}), tmp_path / "x.parquet")
    with pytest.raises(SpecError, match=r"no column 'text' \(present: q, a\)"):
        read({"kind": "parquet", "path": str(tmp_path / "x.parquet")})


def test_a_folder_where_a_file_is_needed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is a folder"):
        read({"kind": "jsonl", "path": str(tmp_path)})


def test_a_folder_without_a_matching_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"sources\.0\.glob.*no file.*\*\*/\*\.txt"):
        read({"kind": "text", "path": str(tmp_path)})


def test_the_second_source_s_fault_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "a"}))
    good = {"kind": "jsonl", "path": str(tmp_path / "x.jsonl")}
    with pytest.raises(SpecError, match=r"data\.sources\.1\.path"):
        read(good, {"kind": "jsonl", "path": str(tmp_path / "y.jsonl")})


def test_a_data_set_that_does_not_load_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"data\.sources\.0\.name.*does not load"):
        read({"kind": "dataset", "name": str(tmp_path)})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("make = 3", "not callable"),
        ("def make():\n    yield 'a'", "Yield .document id, record. pairs"),
        ("def make():\n    yield 1, {'text': 'a'}", "Yield"),
        ("def make():\n    yield 'a', {}", "no column 'text'"),
        ("def make():\n    yield 'a', {'text': 'x'}\n    raise OSError('gone')", "OSError: gone"),
        ("def make(needed):\n    yield 'a', {'text': 'x'}", "needed"),
        ("def make():\n    return iter(())", "gives no document"),
        ("def make():\n    yield from [('a', {'text': 'x'})] * 2", "'a' occurs twice"),
        ("other = 1", "does not import"),
    ],
)
def test_a_faulty_function_is_refused(body: str, words: str, module: Callable[[str], str]) -> None:
    with pytest.raises(SpecError, match=words):
        read({"kind": "import", "target": f"{module(body)}:make"})


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(SpecError, match=r"data\.sources\.0\.target.*does not import"):
        read({"kind": "import", "target": "no_such_module_here:make"})


def test_documents_are_read_as_they_are_needed(module: Callable[[str], str]) -> None:
    name = module("def make():\n    yield 'a', {'text': 'x'}\n    raise OSError('read too far')\n")
    spec = DataSpec.model_validate({"sources": [{"kind": "import", "target": f"{name}:make"}]})
    documents: Iterator[Document] = read_documents(spec)
    assert next(documents).id == "a"
