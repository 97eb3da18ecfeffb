"""What is read, how it becomes samples and rows, and what is held out. Pydantic only."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from strategies.specs import Spec


class PlainText(Spec):
    """One text a record; every position bears loss."""

    kind: Literal["text"] = "text"
    field: str = "text"


class Messages(Spec):
    """Chat records through the tokenizer's chat template; loss on the assistant's turns only."""

    kind: Literal["messages"]
    field: str = "messages"


class Completion(Spec):
    """Prompt and completion pairs; loss on the completion only."""

    kind: Literal["completion"]
    prompt: str = "prompt"
    completion: str = "completion"


Format = Annotated[PlainText | Messages | Completion, Field(discriminator="kind")]


class TextSource(Spec):
    """A UTF-8 text file, or a folder of them: one document a file."""

    kind: Literal["text"]
    path: str
    glob: str = "**/*.txt"


class _RecordSource(Spec):
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


class DatasetSource(Spec):
    """A data set of the `datasets` library, by name or local folder."""

    kind: Literal["dataset"]
    name: str
    config: str | None = None
    split: str = "train"
    format: Format = PlainText()


class ImportSource(Spec):
    """`package.module:function` yielding (document id, record) pairs; a record is a dict."""

    kind: Literal["import"]
    target: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    arguments: dict[str, Any] = {}
    format: Format = PlainText()


Source = Annotated[
    TextSource | JsonlSource | ParquetSource | CsvSource | DatasetSource | ImportSource,
    Field(discriminator="kind"),
]


class DataSpec(Spec):
    """Documents -> samples that fit the context -> rows packed from samples."""

    sources: Annotated[list[Source], Field(min_length=1)]
    context: Annotated[int, Field(ge=8)] = 512
    """Tokens in a row; no sample is longer."""
    packing: bool = True
    """Several samples share a row, each with its own attention and positions."""
    long_documents: Literal["split", "truncate", "drop"] = "split"
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of documents held out, chosen by a hash of the document's id."""
    max_documents: PositiveInt | None = None
    workers: PositiveInt = 1
    """Processes that tokenise."""
