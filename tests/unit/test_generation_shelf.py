"""What is kept of written texts, and what a job may ask to be written."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from orchestrator.data import prepare
from orchestrator.errors import SpecError
from orchestrator.generation.records import Text
from orchestrator.generation.shelf import PART_TEXTS, Shelf, shelf_key
from orchestrator.generation.source import as_read, prompts_of
from orchestrator.planner.generated import check_lengths
from orchestrator.spec import JobSpec
from orchestrator.spec.data import DataSpec, GeneratedSource
from orchestrator.spec.load import validate_jobs
from orchestrator.spec.paths import absolute_paths

COUNT = 2 * PART_TEXTS + 3


def source(**changes: Any) -> GeneratedSource:
    fields = {"prompts": {"text": ["a", "b"]}, "count": COUNT, "length": 4, **changes}
    return GeneratedSource.model_validate({"kind": "generated", **fields})


def fill(shelf: Shelf, most: int | None = None) -> None:
    for part in shelf.missing()[:most]:
        texts = [Text(part.begin + i, p, f" {part.begin + i}") for i, p in enumerate(part.prompts)]
        shelf.put(part, texts)


def test_a_shelf_lacks_only_what_nobody_has_written(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "s", COUNT, ["a", "b"])
    assert [len(part.prompts) for part in shelf.missing()] == [PART_TEXTS, PART_TEXTS, 3]
    fill(shelf, 2)
    (tmp_path / "s" / ".torn").write_text('{"id": "gen')  # what a killed writer may leave
    again = Shelf(tmp_path / "s", COUNT, ["a", "b"])
    assert [part.number for part in again.missing()] == [2] and not again.complete
    fill(again)
    records = [json.loads(line) for line in again.bind().read_text().splitlines()]
    assert [record["id"] for record in records] == [f"generated-{i}" for i in range(COUNT)]
    assert [record["prompt"] for record in records[:3]] == ["a", "b", "a"]
    assert again.complete and again.missing() == [] and again.bind() == again.texts
    assert not list((tmp_path / "s").glob("part-*"))


def test_a_part_holds_its_own_texts_only(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, COUNT, ["a"])
    with pytest.raises(ValueError, match="holds texts"):
        shelf.put(shelf.missing()[1], [Text(0, "a", "")])


def test_a_key_names_all_that_decides_texts_and_nothing_else() -> None:
    def key(role: str = "r", prompts: tuple[str, ...] = ("a",), alone: bool = True, **changes: Any):
        return shelf_key(role, "t", source(**changes), prompts, alone=alone)

    others = [
        key("other"),
        key(prompts=("b",)),
        key(alone=False),
        key(count=9),
        key(length=5),
        key(temperature=0.5),
        key(seed=1),
        key(top_k=3),
        key(top_p=0.5),
    ]
    assert len({key(), *others}) == 1 + len(others)
    assert key(role="r") == key(format={"kind": "completion"}) == key(prompts=("a",))
    assert key() == key(held_out=1.0)


def test_written_texts_are_read_like_any_others(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "s", COUNT, ["def f(x):", "the cat"])
    fill(shelf)
    path = str(shelf.bind())
    raw: dict[str, Any] = {"context": 16, "held_out": 0.0}
    for format in ({"kind": "text"}, {"kind": "completion"}):
        spec = DataSpec.model_validate(
            {**raw, "sources": [{"kind": "jsonl", "path": path, "format": format}]}
        )
        data = prepare(spec, str(tiny.TOKENIZER), str(tmp_path / "cache"))
        assert len(data.train) == COUNT and data.train.id(1) == "generated-1"
    read = as_read(source(format={"kind": "completion"}, held_out=0.5), shelf)
    halves = prepare(DataSpec(sources=[read], context=16), str(tiny.TOKENIZER), str(tmp_path / "c"))
    assert COUNT / 4 < len(halves.held_out) < COUNT * 3 / 4


def test_prompts_come_from_a_source_too(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"q": f"prompt {i}"}) + "\n" for i in range(5)))
    nested = {"kind": "jsonl", "path": str(file), "format": {"kind": "text", "field": "q"}}
    found = source(prompts={"source": nested}, count=3)
    assert prompts_of(found, "f") == ["prompt 0", "prompt 1", "prompt 2"]
    file.write_text('{"q": ""}\n')
    with pytest.raises(SpecError, match=r"f.source.*empty"):
        prompts_of(found, "f")


def raw_job(tmp_path: Path, recipe: bool = True, **changes: Any) -> dict[str, Any]:
    """A job that learns what its teacher writes."""
    objective: dict[str, Any] = {"terms": [{"kind": "cross_entropy"}]}
    return {
        "name": "seq",
        "student": {"architecture": tiny.architecture(), "tokenizer": str(tiny.TOKENIZER)},
        "roles": {"teacher": {"architecture": tiny.architecture()}},
        "data": {
            "sources": [
                {
                    "kind": "generated",
                    "prompts": {"text": ["The"]},
                    "count": 4,
                    "length": 20,
                    **changes,
                }
            ],
            "context": 32,
        },
        "objective": {"recipe": {"kind": "sequence_kd"}} if recipe else objective,
        "training": {"steps": 100},
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"role": "absent"}, ["data.sources.0.role", "absent", "Add roles.absent"]),
        ({"temperature": 0}, ["data.sources.0.temperature", "0"]),
        ({"temperature": -1.0}, ["data.sources.0.temperature", "-1"]),
        ({"top_p": 1.0}, ["data.sources.0.top_p"]),
        ({"count": 0}, ["data.sources.0.count"]),
        ({"prompts": {}}, ["data.sources.0.prompts.text", "neither", "Give one"]),
        ({"prompts": {"text": [""]}}, ["data.sources.0.prompts.text"]),
        (
            {"prompts": {"source": {"kind": "jsonl", "path": "p", "held_out": 0.5}}},
            ["data.sources.0.prompts.source.held_out", "0.5", "Remove it"],
        ),
        (
            {"format": {"kind": "text", "field": "body"}},
            ["data.sources.0.format.field", "body", "text, prompt, completion"],
        ),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SpecError) as refused:
        validate_jobs([raw_job(tmp_path, **changes)])
    for word in words:
        assert word in str(refused.value)


def test_texts_beyond_the_roles_positions_are_refused(tmp_path: Path) -> None:
    def job(length: int) -> JobSpec:
        return validate_jobs([raw_job(tmp_path, length=length)])[0]

    check_lengths(job(127), [], "")
    with pytest.raises(SpecError, match=r"sources.0.length: is 128.*128 positions.*127 or less"):
        check_lengths(job(128), [], "")


def test_the_recipe_needs_something_written(tmp_path: Path) -> None:
    raw = raw_job(tmp_path)
    raw["data"]["sources"] = [{"kind": "text", "path": str(tmp_path)}]
    with pytest.raises(SpecError, match=r"objective.recipe.*no source of data is generated"):
        validate_jobs([raw])


def test_a_role_that_only_writes_is_not_asked_for_signals(tmp_path: Path) -> None:
    spec = validate_jobs([raw_job(tmp_path)])[0]
    assert spec.used_roles == () and spec.data.writers == ("teacher",)
    with pytest.raises(SpecError, match="nobody has written"):
        prepare(spec.data, str(tiny.TOKENIZER), str(tmp_path / "cache"))


def test_paths_of_prompts_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nested = {"kind": "jsonl", "path": "p.jsonl"}
    spec = validate_jobs([raw_job(tmp_path, prompts={"source": nested})])[0]
    found = absolute_paths(spec).data.sources[0]
    assert isinstance(found, GeneratedSource) and found.prompts.source is not None
    assert getattr(found.prompts.source, "path") == str(tmp_path / "p.jsonl")  # noqa: B009
