"""What is read, how it becomes samples and rows, and what is held out. Pydantic only."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from strategies.specs import Spec

from .formats import (
    CLASSIFIED,
    Completion,
    Features,
    Format,
    Interactions,
    LabelledText,
    Messages,
    PlainText,
)
from .generated import GeneratedSource, Prompts
from .refuse import refusal
from .sources import (
    CsvSource,
    DatasetSource,
    ImportSource,
    JsonlSource,
    ParquetSource,
    ReadSource,
    TextSource,
)

__all__ = [
    "CLASSIFIED",
    "Completion",
    "CorruptionSpec",
    "CsvSource",
    "DataSpec",
    "DatasetSource",
    "Features",
    "Format",
    "GeneratedSource",
    "ImportSource",
    "Interactions",
    "JsonlSource",
    "LabelledText",
    "Messages",
    "ParquetSource",
    "PlainText",
    "Prompts",
    "ReadSource",
    "Source",
    "TextSource",
    "format_of",
]

Source = Annotated[
    TextSource
    | JsonlSource
    | ParquetSource
    | CsvSource
    | DatasetSource
    | ImportSource
    | GeneratedSource,
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
    text beyond the context is cut off, and features know no context. Format `interactions` gives a
    ranker's: a row is a user.
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
    """Share of documents held out, chosen by a hash of the document's id, where a source has none
    of its own; of interactions, share of each user's."""
    max_documents: PositiveInt | None = None
    workers: PositiveInt = 1
    """Processes that tokenise."""
    corrupt: CorruptionSpec = CorruptionSpec()
    """What is done to the training samples, for studies."""

    @property
    def writers(self) -> tuple[str, ...]:
        """Roles that write some of the texts."""
        named = (source.role for source in self.sources if isinstance(source, GeneratedSource))
        return tuple(dict.fromkeys(named))

    @property
    def formats(self) -> list[Format]:
        """How the records of each source become samples."""
        return [format_of(source) for source in self.sources]

    @property
    def held_out_shares(self) -> list[float]:
        """Of the documents of each source."""
        own = (source.held_out for source in self.sources)
        return [self.held_out if share is None else share for share in own]

    @property
    def holds_out(self) -> bool:
        """Whether anything can be measured on what is not trained on."""
        return any(self.held_out_shares) or bool(getattr(self.formats[0], "leave_one_out", False))

    @property
    def task(self) -> Literal["causal_lm", "classifier"]:
        """What reads these samples."""
        return "classifier" if self.formats[0].kind in CLASSIFIED else "causal_lm"

    @property
    def reads_text(self) -> bool:
        """Whether a tokenizer is needed."""
        return not isinstance(self.formats[0], Features | Interactions)

    @property
    def has_features(self) -> bool:
        """Whether a sample is numbers, which can be blended."""
        return isinstance(self.formats[0], Features)

    @property
    def instead_of_labels(self) -> str:
        """What a format without labels has in their place, for messages."""
        return "the items of each user" if self.ranks_items else "label: null"

    @property
    def ranks_items(self) -> bool:
        """Whether a sample is a user, and a class an item."""
        return isinstance(self.formats[0], Interactions)

    @property
    def row_tokens(self) -> int | None:
        """Tokens in a row; None: a row is one sample, however many numbers it has."""
        return self.context if self.reads_text else None

    @property
    def has_labels(self) -> bool:
        """Whether samples have one target each: a text always has, a user's items are many."""
        first = self.formats[0]
        return not self.ranks_items and not (
            isinstance(first, LabelledText | Features) and first.label is None
        )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_classifiers(cls, raw: Any) -> Any:
        sources = raw.get("sources") if isinstance(raw, dict) else None
        if isinstance(sources, list) and any(
            _raw(source, "format", "kind") in CLASSIFIED for source in sources
        ):
            defaults: dict[str, Any] = {"packing": False, "long_documents": "truncate"}
            if any(_raw(source, "format", "leave_one_out") for source in sources):
                defaults["held_out"] = 0.0
            return {**defaults, **raw}
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
    def _something_is_trained_on(self) -> "DataSpec":
        if not self.ranks_items and min(self.held_out_shares) == 1:
            raise refusal(
                "sources",
                "are all held out (held_out is 1 in each), and nothing is left to train on",
                "Add a source, or lower held_out of one",
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
                "workers",
                f"is {self.workers}, and {self.formats[0].kind} are not tokenised",
                "Remove it",
            )
        return self

    @model_validator(mode="after")
    def _users_are_whole(self) -> "DataSpec":
        first = self.formats[0]
        if not isinstance(first, Interactions):
            return self
        if len(self.sources) > 1:
            raise refusal(
                "sources",
                f"are {len(self.sources)}, and users and items are numbered over one",
                "Put all interactions into one source",
            )
        if self.sources[0].held_out is not None:
            raise refusal(
                "sources.0.held_out",
                f"is {self.sources[0].held_out:g}, and of users a share of each is held out",
                "Set data.held_out, or leave_one_out of the format",
            )
        if first.leave_one_out and self.held_out > 0:
            raise refusal(
                "held_out",
                f"is {self.held_out:g} beside leave_one_out, which alone says what is held out",
                "Remove one of them",
            )
        cut = "max_documents" if self.max_documents is not None else None
        if cut or self.corrupt != CorruptionSpec():
            raise refusal(
                cut or "corrupt",
                "leaves users out, whose held-out items would be measured all the same",
                "Remove it, and leave them out of the source",
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


def _raw(holder: Any, *path: str) -> Any:
    """A field of what is written, or made in Python; None where there is none."""
    for name in path:
        holder = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
    return holder
