"""One generator per kind of source: a source -> (id, record) pairs in a fixed order.

Ids do not depend on where a source lies: a text file's is its path below the source's folder, a
row's is `<file name>:<row index from 0>`. Every fault of a file is a `SpecError` that names the
source's field. Imports pyarrow and `datasets` only when a source needs them.
"""

import csv
import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator import interactions
from orchestrator.errors import SpecError, StillhouseError
from orchestrator.spec.data import (
    Completion,
    CsvSource,
    DatasetSource,
    Features,
    Format,
    GeneratedSource,
    ImportSource,
    Interactions,
    JsonlSource,
    LabelledText,
    Messages,
    ParquetSource,
    PlainText,
    Source,
    TextSource,
)

Pairs = Iterator[tuple[str, Mapping[str, Any]]]


def open_source(source: Source, field: str) -> Pairs:
    """The pairs of one source.

    Args:
        field: dotted path of the source in the job, for messages.

    Raises:
        SpecError: while iterating, naming file, line or column.
    """
    match source:
        case TextSource():
            return _text(source, field)
        case JsonlSource():
            return _jsonl(source, field)
        case ParquetSource():
            return _parquet(source, field)
        case CsvSource():
            return _csv(source, field)
        case DatasetSource():
            return _dataset(source, field)
        case ImportSource():
            return _import(source, field)
        case GeneratedSource():
            raise _unwritten(field)


def source_files(source: Source, field: str) -> list[Path] | None:
    """The files whose sizes and times tell whether a source changed; None: nothing cheap tells."""
    match source:
        case TextSource():
            return [path for _, path in _text_files(source, field)]
        case JsonlSource() | ParquetSource() | CsvSource():
            return [_file(source.path, field)]
        case DatasetSource():
            files = [Path(entry["filename"]) for entry in load_dataset(source, field).cache_files]
            return files or None
        case ImportSource():
            return None
        case GeneratedSource():
            raise _unwritten(field)


def _unwritten(field: str) -> SpecError:
    return SpecError(
        field,
        "is generated, and nobody has written its texts here",
        "Run the job with `stillhouse run` or `label`, which have them written first",
    )


def columns_of(format: Format) -> tuple[str, ...]:
    """Fields of a record that a format reads."""
    match format:
        case PlainText() | Messages():
            return (format.field,)
        case Completion():
            return (format.prompt, format.completion)
        case LabelledText():
            return (format.field, *_label(format))
        case Features():
            fields = [format.fields] if isinstance(format.fields, str) else format.fields
            return (*fields, *_label(format))
        case Interactions():
            return interactions.columns_of(format)


def _label(format: LabelledText | Features) -> tuple[str, ...]:
    return () if format.label is None else (format.label,)


def _file(path: str, field: str) -> Path:
    found = Path(path)
    if found.is_dir():
        raise SpecError(f"{field}.path", f"{path!r} is a folder", "Name one file of it")
    if not found.is_file():
        raise SpecError(f"{field}.path", f"{path!r} does not exist", "Give a file that does")
    if found.stat().st_size == 0:
        raise SpecError(f"{field}.path", f"{path!r} is empty", "Give a file with records")
    return found


def _text_files(source: TextSource, field: str) -> list[tuple[str, Path]]:
    root = Path(source.path)
    if not root.is_dir():
        return [(root.name, _file(source.path, field))]
    paths = sorted((p.relative_to(root).as_posix(), p) for p in root.glob(source.glob))
    files = [(name, path) for name, path in paths if path.is_file()]
    if not files:
        raise SpecError(
            f"{field}.glob",
            f"no file in {source.path!r} matches {source.glob!r}",
            "Change the pattern or the folder",
        )
    return files


def _text(source: TextSource, field: str) -> Pairs:
    for name, path in _text_files(source, field):
        try:
            yield name, {"text": path.read_bytes().decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            raise _not_utf8(f"{field}.path", str(path), error) from error


def _jsonl(source: JsonlSource, field: str) -> Pairs:
    path = _file(source.path, field)
    with path.open("rb") as lines:
        for index, line in enumerate(lines):
            if not line.strip():
                continue
            where = f"{source.path!r}, line {index + 1}"
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{field}.path", where, error) from error
            except json.JSONDecodeError as error:
                raise SpecError(
                    f"{field}.path", f"{where}: not JSON ({error})", "Write one object a line"
                ) from error
            if not isinstance(record, dict):
                raise SpecError(
                    f"{field}.path",
                    f"{where}: a JSON {type(record).__name__}, not an object",
                    "Write one object a line",
                )
            _check_columns(record, source.format, field, where)
            yield f"{path.name}:{index}", record


def _csv(source: CsvSource, field: str) -> Pairs:
    path = _file(source.path, field)
    csv.field_size_limit(sys.maxsize)  # a document is one field, and the default is 128 KiB
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            _check_columns(rows.fieldnames or (), source.format, field, repr(source.path))
            for index, row in enumerate(rows):
                if None in row or None in row.values():
                    raise SpecError(
                        f"{field}.path",
                        f"{source.path!r}, line {rows.line_num}: the number of values is not that "
                        f"of the header ({len(rows.fieldnames or ())})",
                        "Quote values that hold commas or line breaks",
                    )
                yield f"{path.name}:{index}", row
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{field}.path", repr(source.path), error) from error
    except csv.Error as error:
        raise SpecError(
            f"{field}.path", f"{source.path!r}: not CSV ({error})", "Quote values as RFC 4180 says"
        ) from error


def _parquet(source: ParquetSource, field: str) -> Pairs:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = _file(source.path, field)
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            _check_columns(present, source.format, field, repr(source.path))
            wanted = [*dict.fromkeys((*columns_of(source.format), "id"))]
            index = 0
            columns = [name for name in wanted if name in present]
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    yield f"{path.name}:{index}", record
                    index += 1
    except (pa.ArrowException, OSError) as error:
        raise SpecError(
            f"{field}.path", f"{source.path!r}: not a Parquet file ({error})", "Write it anew"
        ) from error


def load_dataset(source: DatasetSource, field: str) -> Any:
    """A split of a data set, as the `datasets` library maps it. No code of the data set runs."""
    import datasets

    folder = Path(source.name)
    try:
        if (folder / "state.json").is_file():
            return datasets.Dataset.load_from_disk(source.name)
        if (folder / "dataset_dict.json").is_file():
            return datasets.DatasetDict.load_from_disk(source.name)[source.split]
        return datasets.load_dataset(source.name, source.config, split=source.split)
    except Exception as error:  # the library raises a dozen unrelated classes
        raise SpecError(
            f"{field}.name",
            f"data set {source.name!r}, config {source.config!r}, split {source.split!r} does not "
            f"load ({type(error).__name__}: {error})",
            "Check name, config and split; data sets that need their own code are not run",
        ) from error


def _dataset(source: DatasetSource, field: str) -> Pairs:
    data = load_dataset(source, field)
    _check_columns(data.column_names, source.format, field, f"data set {source.name!r}")
    wanted = [*dict.fromkeys((*columns_of(source.format), "id"))]
    data = data.select_columns([name for name in wanted if name in data.column_names])
    name = Path(source.name).name if Path(source.name).exists() else source.name
    for index, record in enumerate(data):
        yield f"{name}/{source.split}:{index}", record


def _import(source: ImportSource, field: str) -> Pairs:
    try:
        for pair in _function(source, field)(**source.arguments):
            if not _is_pair(pair):
                raise SpecError(
                    f"{field}.target",
                    f"{source.target} gave {pair!r:.80}",
                    "Yield (document id, record) pairs: a string and a dict",
                )
            _check_columns(pair[1], source.format, field, f"document {pair[0]!r}")
            yield pair
    except StillhouseError:
        raise
    except Exception as error:
        raise SpecError(
            f"{field}.target",
            f"{source.target} raised {type(error).__name__}: {error}",
            "Correct the function or data.sources.*.arguments",
        ) from error


def _function(source: ImportSource, field: str) -> Any:
    module, _, attributes = source.target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in attributes.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"{field}.target",
            f"{source.target!r} does not import ({error})",
            "Give package.module:function, importable on every node",
        ) from error
    return found


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], Mapping)
    )


def _check_columns(present: Iterable[str], format: Format, field: str, where: str) -> None:
    missing = [name for name in columns_of(format) if name not in present]
    if missing:
        raise SpecError(
            f"{field}.format",
            f"{where} has no column {missing[0]!r} (present: {', '.join(map(str, present))})",
            "Name the columns to read in the source's format",
        )


def _not_utf8(field: str, where: str, error: UnicodeDecodeError) -> SpecError:
    return SpecError(
        field,
        f"{where}: not UTF-8 (byte {error.start}: {error.reason})",
        "Convert the text to UTF-8",
    )
