"""A classifier's samples: records to words and classes, words to inputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TOKENIZER

from orchestrator.data import (
    Order,
    Reading,
    SampleStore,
    TokenData,
    collation,
    end_to_end,
    inputs_of,
    prepare,
    reading_of,
)
from orchestrator.data.tokenise import Sample
from orchestrator.data.tokenizer import load_tokenizer
from orchestrator.errors import SpecError
from orchestrator.spec.data import DataSpec


def spec_of(source: dict[str, Any], **changes: Any) -> DataSpec:
    return DataSpec.model_validate({"sources": [source], "held_out": 0.0, **changes})


def jsonl(folder: Path, records: list[dict[str, Any]], **format: Any) -> dict[str, Any]:
    file = folder / "records.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in records))
    return {"kind": "jsonl", "path": str(file), "format": {"kind": "features", **format}}


def prepared(folder: Path, spec: DataSpec) -> TokenData:
    return prepare(spec, str(TOKENIZER) if spec.reads_text else None, str(folder / "cache"))


def numbers(store: SampleStore, index: int) -> list[float]:
    return store.tokens(index).view(np.float32).tolist()


TWO = [{"features": [[0.5, -1], [2, 3]], "label": 1}, {"features": [1, 2, 3, 4.25], "label": 0}]


def test_features_keep_their_bits_and_labels(tmp_path: Path) -> None:
    data = prepared(tmp_path, spec_of(jsonl(tmp_path, TWO)))
    assert [numbers(data.train, i) for i in (0, 1)] == [[0.5, -1, 2, 3], [1, 2, 3, 4.25]]
    assert [data.train.label(i) for i in (0, 1)] == [1, 0]
    assert data.classes == 2 and data.counts.learned == 2
    again = prepared(tmp_path, spec_of(jsonl(tmp_path, TWO)))
    assert again.version == data.version and again.classes == 2


def test_fields_of_one_number_each_come_from_any_table(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"b": [1.5, 2.5], "a": [-1.0, 7.0], "kind": ["cat", "dog"]}
    format = {
        **{"kind": "features", "fields": ["a", "b"]},
        **{"label": "kind", "classes": ["dog", "cat"]},
    }
    (tmp_path / "t.csv").write_text("a,b,kind\n-1.0,1.5,cat\n7.0,2.5,dog\n")
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = []
    for kind in ("csv", "parquet"):
        source = {"kind": kind, "path": str(tmp_path / f"t.{kind}"), "format": format}
        store = prepared(tmp_path, spec_of(source)).train
        found.append([(numbers(store, i), store.label(i)) for i in range(len(store))])
    assert found[0] == found[1] == [([-1.0, 1.5], 1), ([7.0, 2.5], 0)]


@pytest.mark.parametrize(
    ("record", "format", "told"),
    [
        ({"features": [1.0], "label": None}, {}, "no label"),
        ({"features": [1.0], "label": -1}, {}, "-1 is no class"),
        ({"features": [1.0], "label": True}, {}, "True is no class"),
        ({"features": [1.0], "label": 1.5}, {}, "1.5 is no class"),
        ({"features": [1.0], "label": "cat"}, {}, "'cat' is no class"),
        ({"features": [1.0], "label": "cow"}, {"classes": ["cat", "dog"]}, "'cow' is none of the"),
        ({"features": [1.0], "label": 2}, {"classes": ["cat", "dog"]}, "2 is no class"),
        ({"features": ["x"], "label": 1}, {}, "not all numbers"),
        ({"features": None, "label": 1}, {}, "number 0 is nan"),
        ({"features": [1.0, float("nan")], "label": 1}, {}, "number 1 is nan"),
        ({"features": [1e300], "label": 1}, {}, "not finite in float32"),
        ({"features": [], "label": 1}, {}, "0 numbers"),
        ({"features": [1.0, 2.0], "label": 1}, {"shape": [3]}, "2 numbers, and the shape"),
    ],
)
def test_a_record_that_is_no_sample_is_refused_by_name(
    tmp_path: Path, record: dict[str, Any], format: dict[str, Any], told: str
) -> None:
    with pytest.raises(SpecError, match=told) as refused:
        prepared(tmp_path, spec_of(jsonl(tmp_path, [record], **format)))
    assert "records.jsonl:0" in str(refused.value) and "data.sources.0" in str(refused.value)


def test_records_of_unequal_length_are_refused(tmp_path: Path) -> None:
    records = [{"features": [1, 2], "label": 0}, {"features": [1, 2, 3], "label": 0}]
    with pytest.raises(SpecError, match=r"records.jsonl:1' has 3 numbers.*records.jsonl:0' has 2"):
        prepared(tmp_path, spec_of(jsonl(tmp_path, records)))


def test_samples_without_labels_have_class_zero(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [{"features": [1.0]}, {"features": [2.0]}], label=None)
    store = prepared(tmp_path, spec_of(source)).train
    assert [store.label(i) for i in (0, 1)] == [0, 0]


def test_a_long_text_is_cut_before_what_closes_it(tmp_path: Path) -> None:
    text = "def " * 60
    source = jsonl(tmp_path, [{"text": text, "label": 3}, {"text": "return", "label": 0}])
    source["format"] = {"kind": "labelled_text"}
    store = prepared(tmp_path, spec_of(source, context=8)).train
    tokenizer = load_tokenizer(TOKENIZER)
    assert [len(store.tokens(i)) for i in (0, 1)] == [8, len(store.tokens(1))]
    assert store.tokens(0)[-1] == store.tokens(1)[-1] == tokenizer.end
    assert store.label(0) == 3
    assert not store.loss_mask(0).any() and store.wanted(0).tolist() == [False] * 7 + [True]
    dropped = prepared(tmp_path, spec_of(source, context=8, long_documents="drop"))
    assert len(dropped.train) == 1 and dropped.counts.dropped_long == 1


def store_of(*samples: tuple[list[int], int]) -> SampleStore:
    return SampleStore.of(
        Sample(f"s{i}", np.array(words, np.int32), np.zeros(len(words), bool), label)
        for i, (words, label) in enumerate(samples)
    )


def test_text_is_padded_on_the_right_and_an_empty_row_attends_to_something() -> None:
    store = store_of(([5, 6, 7], 2), ([8], 0))
    format = {"kind": "labelled_text"}
    source = {"kind": "jsonl", "path": "x", "format": format}
    batch = collation(spec_of(source))(store, [(1,), (0,), ()])
    assert batch.inputs["input_ids"].tolist() == [[8, 0, 0], [5, 6, 7], [0, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1], [1, 0, 0]]
    assert batch.targets.tolist() == [[0], [2], [-100]]
    assert batch.sample_index.tolist() == [[1], [0], [-1]]


def test_features_take_the_shape_and_name_of_their_format() -> None:
    words = np.arange(8, dtype=np.float32).view(np.int32).tolist()
    store = store_of((words, 1))
    format = {"kind": "features", "shape": [2, 2, 2]}
    spec = spec_of({"kind": "jsonl", "path": "x", "format": format})
    batch = collation(spec)(store, [(), (0,)])
    (name,) = batch.inputs
    assert name == "pixel_values" and batch.inputs[name].dtype == np.float32
    assert batch.inputs[name].tolist() == [
        np.zeros((2, 2, 2)).tolist(),
        np.arange(8.0).reshape(2, 2, 2).tolist(),
    ]
    assert reading_of(spec) == Reading("pixel_values", (2, 2, 2))


def test_a_row_of_two_samples_is_refused() -> None:
    spec = spec_of({"kind": "jsonl", "path": "x", "format": {"kind": "features"}})
    with pytest.raises(ValueError, match="holds one sample"):
        collation(spec)(store_of(([1], 0), ([2], 0)), [(0, 1)])


def test_words_that_do_not_make_the_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"samples of \[3\] numbers .* shape \[2, 2\]"):
        inputs_of(Reading("features", (2, 2)), [np.zeros(3, np.int32)], 3)


def test_readings_that_differ_have_labels_that_differ() -> None:
    readings = [Reading(), Reading("x"), Reading("y"), Reading("x", (4,)), Reading("x", (2, 2))]
    assert len({reading.label for reading in readings}) == len(readings)


def test_a_role_is_asked_about_the_last_word_of_each_sample() -> None:
    flat = end_to_end(store_of(([1, 2, 3], 0), ([4], 1)), [(0,), (1,)])
    assert flat.wanted.tolist() == [False, False, True, True]


def test_rows_of_features_know_no_context() -> None:
    store = store_of(*[([1] * 600, 0)] * 5)
    order = Order(store, None, 2, 0, packing=False)
    assert sorted(row for step in range(3) for row in order.rows(step)) == [
        *[()], (0,), (1,), (2,), (3,), (4,)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="cannot be packed"):
        Order(store, None, 2, 0, packing=True).rows(0)


def test_the_data_version_follows_words_and_labels(tmp_path: Path) -> None:
    def version(records: list[dict[str, Any]]) -> str:
        return prepared(tmp_path, spec_of(jsonl(tmp_path, records))).version

    base = [{"features": [1.0, 2.0], "label": 0}]
    assert version(base) == version(base)
    assert version(base) != version([{"features": [1.0, 2.0], "label": 1}])
    assert version(base) != version([{"features": [1.0, 2.5], "label": 0}])
