"""What is read, how it becomes samples and rows, and what is held out. Pydantic only."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from strategies.specs import Spec

from .refuse import refusal


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


class _Classified(Spec):
    """A record is one sample of a classifier, with one class."""

    label: str | None = "label"
    """The field of the class: a whole number from 0, or a name out of `classes`. null: no sample
    has one, and no term may need it."""
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    """Names of the classes in order; absent: labels are numbers."""

    @model_validator(mode="after")
    def _classes_name_labels(self) -> "_Classified":
        if self.classes is None:
            return self
        if self.label is None:
            raise refusal("classes", "are named, and label is null", "Remove one of the two")
        if len(set(self.classes)) != len(self.classes):
            raise refusal("classes", f"are {self.classes}, with a repeat", "Name each class once")
        return self


class LabelledText(_Classified):
    """One text a record and its class."""

    kind: Literal["labelled_text"]
    field: str = "text"


class Features(_Classified):
    """Numbers and their class: rows of a table, or images."""

    kind: Literal["features"]
    fields: str | Annotated[list[str], Field(min_length=1)] = "features"
    """The field that holds a list of numbers, nested as it may be; or fields of one number each."""
    shape: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """What the model is given of a sample, such as [1, 8, 8]; absent: all numbers in a row."""
    input: Annotated[str | None, Field(pattern=r"^[A-Za-z_]\w*$")] = None
    """Argument of the model; absent: pixel_values for a shape of three, else features."""

    @property
    def input_name(self) -> str:
        """Argument of the model."""
        image = self.shape is not None and len(self.shape) == 3
        return self.input or ("pixel_values" if image else "features")


Format = Annotated[
    PlainText | Messages | Completion | LabelledText | Features, Field(discriminator="kind")
]
CLASSIFIED = ("labelled_text", "features")
"""Kinds of formats that give a classifier's samples."""


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


def format_of(source: Source) -> Format:
    """How a source's records become samples."""
    return PlainText() if isinstance(source, TextSource) else source.format


class CorruptionSpec(Spec):
    """What is done to the training samples, for studies; never to those held out.

    Every decision is a function of seed and sample id: the same on every machine, and a larger
    share only adds to a smaller one.
    """

    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of labels moved to another class, each other class alike."""
    imbalance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """How many times more of the first class is kept than of the last; between them the share falls
    exponentially. The first class is kept whole."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of samples kept."""
    seed: NonNegativeInt = 0

    @property
    def of_labels(self) -> str | None:
        """The first field in use that needs labels."""
        if self.label_noise > 0:
            return "label_noise"
        return "imbalance" if self.imbalance > 1 else None


class DataSpec(Spec):
    """Documents -> samples that fit the context -> rows packed from samples.

    Formats `labelled_text` and `features` give a classifier's samples: one a row, without packing;
    text beyond the context is cut off, and features know no context.
    """

    sources: Annotated[list[Source], Field(min_length=1)]
    context: Annotated[int, Field(ge=8)] = 512
    """Tokens in a row; no sample is longer."""
    packing: bool = True
    """Several samples share a row, each with its own attention and positions. A classifier's never
    do."""
    long_documents: Literal["split", "truncate", "drop"] = "split"
    """What becomes of documents beyond the context; a classifier's are truncated by default."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of documents held out, chosen by a hash of the document's id."""
    max_documents: PositiveInt | None = None
    workers: PositiveInt = 1
    """Processes that tokenise."""
    corrupt: CorruptionSpec = CorruptionSpec()
    """What is done to the training samples, for studies."""

    @property
    def formats(self) -> list[Format]:
        """How the records of each source become samples."""
        return [format_of(source) for source in self.sources]

    @property
    def task(self) -> Literal["causal_lm", "classifier"]:
        """What reads these samples."""
        return "classifier" if self.formats[0].kind in CLASSIFIED else "causal_lm"

    @property
    def reads_text(self) -> bool:
        """Whether a tokenizer is needed."""
        return not isinstance(self.formats[0], Features)

    @property
    def row_tokens(self) -> int | None:
        """Tokens in a row; None: a row is one sample, however many numbers it has."""
        return self.context if self.reads_text else None

    @property
    def has_labels(self) -> bool:
        """Whether samples have targets of their own: a text always has."""
        first = self.formats[0]
        return not (isinstance(first, LabelledText | Features) and first.label is None)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_classifiers(cls, raw: Any) -> Any:
        sources = raw.get("sources") if isinstance(raw, dict) else None
        if isinstance(sources, list) and any(_raw_kind(source) in CLASSIFIED for source in sources):
            return {"packing": False, "long_documents": "truncate", **raw}
        return raw

    @model_validator(mode="after")
    def _sources_agree(self) -> "DataSpec":
        first = self.formats[0]
        for index, format in enumerate(self.formats[1:], 1):
            if first.kind not in CLASSIFIED and format.kind not in CLASSIFIED:
                continue
            if format.kind != first.kind:
                raise refusal(
                    f"sources.{index}.format.kind",
                    f"is {format.kind}, and that of the first source is {first.kind}: no model "
                    "reads both",
                    "Make them one kind, or two jobs",
                )
            for name in ("shape", "input_name", "label", "classes"):
                ours, theirs = getattr(format, name, None), getattr(first, name, None)
                unlike = (ours is None) != (theirs is None) if name == "label" else ours != theirs
                if unlike:
                    raise refusal(
                        f"sources.{index}.format.{name.removesuffix('_name')}",
                        f"is {ours}, and that of the first source is {theirs}",
                        "Make them one",
                    )
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "DataSpec":
        if self.task == "causal_lm":
            return self
        if self.packing:
            raise refusal(
                "packing", "is true, and a classifier's samples have a row each", "Remove it"
            )
        if self.long_documents == "split":
            raise refusal(
                "long_documents",
                "is split, and a piece of a text does not have the whole one's class",
                "Use truncate or drop",
            )
        if not self.reads_text and self.workers > 1:
            raise refusal(
                "workers", f"is {self.workers}, and features are not tokenised", "Remove it"
            )
        return self

    @model_validator(mode="after")
    def _corruption_suits_the_samples(self) -> "DataSpec":
        name = self.corrupt.of_labels
        if name is not None and (self.task == "causal_lm" or not self.has_labels):
            what = "text without labels" if self.task == "causal_lm" else "samples without labels"
            raise refusal(
                f"corrupt.{name}",
                f"is {getattr(self.corrupt, name):g}, and the sources give {what}",
                "Remove it; of these only a fraction can be taken",
            )
        return self


def _raw_kind(source: Any) -> Any:
    """The format's kind in a source as written, or as made in Python."""

    def get(holder: Any, name: str) -> Any:
        return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)

    return get(get(source, "format"), "kind")
