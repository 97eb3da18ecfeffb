"""How records become samples. Pydantic only."""

from typing import Annotated, Literal

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


class Interactions(Spec):
    """A record is an interaction of a user with an item, a sample a user with all of theirs.

    All users are trained on; of each, interactions are held out: the share `data.held_out`, chosen
    by a hash, or one. A user always keeps one, and a pair that comes again counts once.
    """

    kind: Literal["interactions"]
    user: str = "user"
    """The field of the user's name or number."""
    item: str = "item"
    """The field of the item's."""
    leave_one_out: bool = False
    """Hold out one interaction of each user that has two: the latest by `time`, without it one
    chosen by a hash. `data.held_out` is then 0."""
    time: str | None = None
    """The field of a number that orders a user's interactions."""
    seed: NonNegativeInt = 0
    """Of the choice of what is held out."""

    @model_validator(mode="after")
    def _time_has_an_effect(self) -> "Interactions":
        if self.time is not None and not self.leave_one_out:
            raise refusal(
                "time",
                f"is {self.time!r}, and only leave_one_out looks at it",
                "Remove it, or set leave_one_out to true",
            )
        return self


Format = Annotated[
    PlainText | Messages | Completion | LabelledText | Features | Interactions,
    Field(discriminator="kind"),
]
CLASSIFIED = ("labelled_text", "features", "interactions")
"""Kinds of formats that give a classifier's samples."""
