"""How to make an imported module again: `stillhouse.json` beside its weights.

A transformers model says in its config what it is; a module from an import path is made by code of
the job's own. Its export names that code and the arguments, and nothing else of the folder is ever
run. Standard library only.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError

MADE_FILE = "stillhouse.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Made:
    """A callable by import path, and what it was called with."""

    target: str  # package.module:callable
    arguments: dict[str, Any] = field(default_factory=dict)

    def only(self, output: str) -> "Made":
        """What makes one output of a module that has several, without the others."""
        return Made(self.target, {**self.arguments, "only": output})

    def edited(self, edit: dict[str, Any]) -> "Made":
        """What makes a copy with some other arguments."""
        return Made(self.target, {**self.arguments, **edit})

    @property
    def text(self) -> str:
        """As JSON, equal for equal ones."""
        described = {"format": _FORMAT, "import": self.target, "arguments": self.arguments}
        return json.dumps(described, sort_keys=True)


def made_by(target: str, arguments: dict[str, Any], field: str) -> Made:
    """What an import source makes.

    Raises:
        SpecError: an argument cannot be written down, so no export could be loaded again.
    """
    made = Made(target, arguments)
    try:
        again = json.loads(made.text)["arguments"]
    except (TypeError, ValueError) as error:
        again, problem = None, str(error)
    else:
        problem = "it would come back as another value"
    if again != arguments:
        raise SpecError(
            f"{field}.arguments",
            f"cannot be kept as JSON ({problem})",
            "Use numbers, text, lists and mappings with text keys",
        )
    return made


def is_made(folder: str | Path) -> bool:
    """Whether a folder holds an imported module and not a transformers model."""
    folder = Path(folder)
    return (folder / MADE_FILE).is_file() and not (folder / "config.json").is_file()


def write_made(folder: Path, made: Made) -> None:
    """Write `stillhouse.json`."""
    (folder / MADE_FILE).write_text(made.text + "\n", encoding="utf-8")


def read_made(folder: str | Path, field: str) -> Made:
    """What a folder's `stillhouse.json` says. Imports nothing.

    Raises:
        SpecError: it is torn, or of another version.
    """
    file = Path(folder) / MADE_FILE
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if raw["format"] == _FORMAT:
            return Made(str(raw["import"]), dict(raw["arguments"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SpecError(field, f"{file} cannot be read ({error})", "Export it again") from error
    raise SpecError(
        field,
        f"{file} has format {raw['format']}, and this version reads {_FORMAT}",
        "Use the version that wrote it",
    )
