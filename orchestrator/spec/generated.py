"""A source whose texts a role of the job writes. Pydantic only."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from strategies.specs import Spec

from .formats import Completion, PlainText
from .refuse import refusal
from .sources import AnySource, ReadSource

COLUMNS = ("text", "prompt", "completion")
"""Fields of a record: the whole text, what it began with, and what the role wrote."""


class Prompts(Spec):
    """What texts begin with: some texts, or those of another source."""

    text: Annotated[list[Annotated[str, Field(min_length=1)]] | None, Field(min_length=1)] = None
    """Beginnings, one for each text in turn."""
    source: ReadSource | None = None
    """A source of format text whose documents are the beginnings."""

    @model_validator(mode="after")
    def _one_kind_of_prompts(self) -> "Prompts":
        if (self.text is None) == (self.source is None):
            given = "both are given" if self.text is not None else "neither is given"
            raise refusal("text", f"or source: {given}", "Give one of the two")
        kind = getattr(getattr(self.source, "format", None), "kind", "text")
        if kind != "text":
            raise refusal(
                "source.format.kind", f"is {kind}, and a prompt is a text", "Set it to text"
            )
        if self.source is not None and self.source.held_out is not None:
            raise refusal(
                "source.held_out",
                f"is {self.source.held_out:g}, and texts begin with all prompts",
                "Remove it",
            )
        return self


class GeneratedSource(AnySource):
    """Texts that a role writes before the job starts, kept and shared by later jobs.

    Each text is drawn token by token from the role, with numbers that are a hash of the seed and
    of the text's place; it ends at the tokenizer's end token, or after `length` tokens.
    """

    kind: Literal["generated"]
    role: str = "teacher"
    """The role that writes. It need not be one that a term asks."""
    prompts: Prompts
    """What the texts begin with, in turn."""
    count: PositiveInt
    """Texts."""
    length: PositiveInt
    """Tokens that the role adds to a prompt, at most."""
    temperature: PositiveFloat = 1.0
    """Below 1: likelier tokens, and texts of less variety."""
    top_k: PositiveInt | None = None
    """Draw among so many likeliest tokens only."""
    top_p: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Draw among the fewest likeliest tokens that hold this probability only."""
    seed: NonNegativeInt = 0
    """Of the draws."""
    format: Annotated[PlainText | Completion, Field(discriminator="kind")] = PlainText()
    """`text` learns the whole text, `completion` what the role has written alone."""

    @model_validator(mode="after")
    def _columns_are_there(self) -> "GeneratedSource":
        named = (
            {"field": self.format.field}
            if isinstance(self.format, PlainText)
            else {"prompt": self.format.prompt, "completion": self.format.completion}
        )
        for key, name in named.items():
            if name not in COLUMNS:
                raise refusal(
                    f"format.{key}",
                    f"is {name!r}, and what is written has {', '.join(COLUMNS)}",
                    "Name one of these",
                )
        return self
