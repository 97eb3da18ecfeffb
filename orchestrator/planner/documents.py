"""Are a job's data sources there, readable, and long enough? Looks at names, sizes and beginnings.

Promises: bounded work whatever the size of the data, nothing is tokenised. A source passes here
if its beginning is right; reading it whole, `data.prepare` makes the same demands of the rest.
"""

import codecs
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.spec.data import (
    Completion,
    CsvSource,
    DatasetSource,
    DataSpec,
    Features,
    Format,
    GeneratedSource,
    ImportSource,
    Interactions,
    JsonlSource,
    LabelledText,
    ParquetSource,
    Source,
    TextSource,
)

from .imports import check_import, near_sibling

_BEGINNING = 1 << 16  # bytes read of a file
_LOOKED_AT = 256  # files of a folder opened
_FEW = 5  # records of a file looked at


def check_sources(data: DataSpec, field: str) -> None:
    """Check every source of a job.

    Args:
        data: the job's data.
        field: dotted path of the data field, for messages.

    Raises:
        SpecError: a source is missing, empty, not what it says it is, or all together are too
            short for one row.
    """
    sizes = [
        _check_source(source, f"{field}.sources.{index}")
        for index, source in enumerate(data.sources)
    ]
    known = [size for size in sizes if size is not None]
    short = data.task == "causal_lm" and sum(known) < data.context
    if len(known) == len(sizes) and short:
        raise SpecError(
            f"{field}.sources",
            f"hold {sum(known)} bytes, too short for one sequence of {data.context} tokens "
            f"(a token takes at least a byte)",
            f"Add text, or set {field}.context to {max(8, sum(known) // 2)} or less",
        )


def _check_source(source: Source, field: str) -> int | None:
    """Upper bound of the source's tokens; None if it is not known without reading all of it."""
    match source:
        case TextSource():
            return _check_text(source, field)
        case JsonlSource():
            return _check_jsonl(source, field)
        case CsvSource():
            return _check_csv(source, field)
        case ParquetSource():
            return _check_parquet(source, field)
        case DatasetSource():
            return None  # a name: only the library knows whether it exists
        case ImportSource():
            check_import(source.target, f"{field}.target")
            return None
        case GeneratedSource():
            if source.prompts.source is not None:
                _check_source(source.prompts.source, f"{field}.prompts.source")
            return None  # texts end where the role ends them


def _check_text(source: TextSource, field: str) -> int:
    path = _existing(source.path, field)
    if path.is_file():
        _read_beginning(path, f"{field}.path")
        return path.stat().st_size
    files = sorted(entry for entry in path.glob(source.glob) if entry.is_file())
    if not files:
        raise SpecError(
            f"{field}.glob",
            f"{source.glob!r} matches no file in {source.path}",
            f"Change the pattern{_common_suffix(path)}",
        )
    size = sum(file.stat().st_size for file in files)
    if size == 0:
        raise SpecError(
            f"{field}.path", f"all {len(files)} files of {source.path} are empty", "Add text"
        )
    for file in files[:_LOOKED_AT]:
        _read_beginning(file, f"{field}.path", may_be_empty=True)
    return size


def _check_jsonl(source: JsonlSource, field: str) -> int:
    path = _existing_file(source.path, field)
    text = _read_beginning(path, f"{field}.path")
    whole = text.splitlines() if len(text) < _BEGINNING else text.splitlines()[:-1]
    for number, line in list(enumerate(whole, 1))[:_FEW]:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise SpecError(
                f"{field}.path", f"line {number} of {path} is not JSON ({error})", "Mend the line"
            ) from error
        if not isinstance(record, dict):
            raise SpecError(
                f"{field}.path", f"line {number} of {path} is no JSON object", "Write {...} a line"
            )
        _check_names(source.format, sorted(record), f"{field}.format", f"line {number} of {path}")
    return path.stat().st_size


def _check_csv(source: CsvSource, field: str) -> int:
    path = _existing_file(source.path, field)
    header = next(csv.reader(io.StringIO(_read_beginning(path, f"{field}.path"))), [])
    _check_names(source.format, header, f"{field}.format", f"the header line of {path}")
    return path.stat().st_size


def _check_parquet(source: ParquetSource, field: str) -> None:
    import pyarrow
    import pyarrow.parquet

    path = _existing_file(source.path, field)
    try:
        described = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        detail = " ".join(str(error).split())
        raise SpecError(
            f"{field}.path", f"{path} is not a Parquet file ({detail})", "Name a Parquet file"
        ) from error
    if described.metadata.num_rows == 0:
        raise SpecError(f"{field}.path", f"{path} has no rows", "Add records")
    _check_names(source.format, described.schema_arrow.names, f"{field}.format", str(path))


def _check_names(wanted: Format, names: Sequence[str], field: str, where: str) -> None:
    for key, name in _named(wanted):
        if name not in names:
            raise SpecError(
                f"{field}.{key}",
                f"{name!r} is not in {where}",
                f"Use one of: {', '.join(names) or 'none there'}",
            )


def _named(format: Format) -> list[tuple[str, str]]:
    """(key of the format, field of a record that it names)."""
    match format:
        case Completion():
            return [("prompt", format.prompt), ("completion", format.completion)]
        case Features():
            fields = [format.fields] if isinstance(format.fields, str) else format.fields
            return [*(("fields", name) for name in fields), *_label(format)]
        case Interactions():
            named = ("user", format.user), ("item", format.item), ("time", format.time)
            return [(key, name) for key, name in named if name is not None]
        case LabelledText():
            return [("field", format.field), *_label(format)]
        case _:
            return [("field", format.field)]


def _label(format: Features | LabelledText) -> list[tuple[str, str]]:
    return [] if format.label is None else [("label", format.label)]


def _existing(path: str, field: str) -> Path:
    found = Path(path)
    if not found.exists():
        raise SpecError(
            f"{field}.path", f"{path!r} does not exist on this machine", near_sibling(found)
        )
    return found


def _existing_file(path: str, field: str) -> Path:
    found = _existing(path, field)
    if not found.is_file():
        raise SpecError(f"{field}.path", f"{path!r} is a folder, not a file", "Name one file")
    return found


def _read_beginning(path: Path, field: str, may_be_empty: bool = False) -> str:
    """The first 64 KiB as text."""
    with path.open("rb") as stream:
        data = stream.read(_BEGINNING)
    if not data and not may_be_empty:
        raise SpecError(field, f"{path} is empty", "Name a file with text in it")
    if b"\0" in data:
        raise SpecError(
            field,
            f"{path} is not text (it has a NUL byte at {data.index(0)})",
            "Name UTF-8 text files only",
        )
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < _BEGINNING)
    except UnicodeDecodeError as error:
        raise SpecError(
            field, f"{path} is not UTF-8 text ({error.reason} at byte {error.start})", "Convert it"
        ) from error


def _common_suffix(folder: Path) -> str:
    suffixes = sorted({entry.suffix for entry in folder.rglob("*") if entry.is_file()})
    return (
        f"; files there end in {', '.join(suffixes[:5])}" if suffixes else "; the folder is empty"
    )
