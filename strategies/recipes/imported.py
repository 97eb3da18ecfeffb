"""A recipe of one's own, by import path: nothing of this project has to change."""

import importlib
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from ..specs.samples import BetweenEpochs, SelectSpec
from ..specs.term import ImportPath
from ..specs.terms import TermSpec
from .base import Recipe


class ImportedRecipe(Recipe):
    """`package.module:Class`, a subclass of `strategies.recipes.Recipe`, with its fields."""

    title = "Recipe of one's own"
    source = "the class that `target` names"
    equation = "what its terms say"
    kind: Literal["import"]
    target: ImportPath
    arguments: dict[str, Any] = {}
    """Fields of that class, by name."""

    @model_validator(mode="after")
    def _is_a_recipe(self) -> "ImportedRecipe":
        self._made()
        return self

    def terms(self) -> list[TermSpec]:
        return self._made().terms()

    def select(self) -> SelectSpec | None:
        return self._made().select()

    def between_epochs(self) -> BetweenEpochs | None:
        return self._made().between_epochs()

    def _made(self) -> Recipe:
        module, _, name = self.target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"target {self.target!r} does not import ({error}); name module:Class, and put its "
                "folder on PYTHONPATH"
            ) from error
        if not (isinstance(found, type) and issubclass(found, Recipe)):
            raise ValueError(
                f"target {self.target!r} is no subclass of strategies.recipes.Recipe; name one"
            )
        try:
            return found.model_validate(self.arguments)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"])) or "all"
            raise ValueError(
                f"{self.target} refuses its arguments: {at}: {first['msg']}; correct them"
            ) from None
