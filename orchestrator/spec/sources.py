"""Where documents are read from. Pydantic only."""

from typing import Annotated, Any, Literal

from pydantic import Field

from strategies.specs import Spec

from .formats import Format, PlainText


class AnySource(Spec):
    """What every source has."""

    held_out: Annotated[float | None, Field(ge=0, le=1)] = None
    """Share of this source's documents held out; null: `data.held_out`; 1: all, as of a file made
    for evaluation."""


class TextSource(AnySource):
    """A UTF-8 text file, or a folder of them: one document a file."""

    kind: Literal["text"]
    path: str
    glob: str = "**/*.txt"


class _RecordSource(AnySource):
    path: str
    format: Format = PlainText()


class JsonlSource(_RecordSource):
    """One JSON object a line."""

    kind: Literal["jsonl"]


class ParquetSource(_RecordSource):
    """Columns of a Parquet file."""

    kind: Literal["parquet"]


class CsvSource(_RecordSource):
    """Columns of a CSV file with a header line."""

    kind: Literal["csv"]


class DatasetSource(AnySource):
    """A data set of the `datasets` library, by name or local folder."""

    kind: Literal["dataset"]
    name: str
    config: str | None = None
    split: str = "train"
    format: Format = PlainText()


class ImportSource(AnySource):
    """`package.module:function` yielding (document id, record) pairs; a record is a dict."""

    kind: Literal["import"]
    target: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    arguments: dict[str, Any] = {}
    format: Format = PlainText()


ReadSource = Annotated[
    TextSource | JsonlSource | ParquetSource | CsvSource | DatasetSource | ImportSource,
    Field(discriminator="kind"),
]
