"""Students of earlier jobs: where they are, and whether what lies there may name code.

Whoever can write the storage could change what an export says. So it is believed only where it
names the code that the list of jobs itself names. Imports neither torch nor ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.models import ModelSpec, StudentSpec

from .made import MADE_FILE, Made, is_made, made_by, read_made

MEMBERS = "members"
"""In a run folder, beside the export: the folder of the members that are not the student's own."""


@dataclass(frozen=True, slots=True)
class Export:
    """What a job of the list leaves behind."""

    uri: str  # folder or fsspec URI
    student: StudentSpec  # as the job's file has it

    def of(self, member: str | None) -> str:
        """The folder or URI of one member; None: of the student's own export."""
        if member is None or member == self.student.main:
            return self.uri
        return f"{self.uri.rpartition('/')[0]}/{MEMBERS}/{member}"


def may_import(
    folder: str | Path,
    name: str,
    exports: Mapping[str, Export],
    field: str,
    member: str | None = None,
) -> bool:
    """Whether loading a job's export imports code, which is then the code that the list names.

    Args:
        folder: the export, on this node.
        name: of the job.
        exports: by job, at least of those that the student's own source goes back to.
        field: what refers to the export, for messages.
        member: of that job's student; None: its own export.

    Raises:
        SpecError: the export names other code.
    """
    if not is_made(folder):
        return False
    student, alone = exports[name].student, None
    first = student.model_of(member)
    edit: dict[str, Any] = {}
    while True:
        alone = alone or student.alone
        edit = {**first.edit, **edit}  # the later one has the last word
        if first.job is None:
            break
        student = exports[first.job].student
        first = student.model_of(first.member)
    wanted = _named(first, field)
    if wanted is not None:
        wanted = wanted.edited(edit)
    if wanted is not None and alone is not None:
        wanted = wanted.only(alone)
    if wanted is None and first.allow_remote_code:
        return True
    found = read_made(folder, field)
    if found != wanted:
        named = "no code" if wanted is None else wanted.text
        raise SpecError(
            field,
            f"{Path(folder) / MADE_FILE} names {found.text}, and the student of job {name} is made "
            f"by {named}",
            "Somebody has changed the export: run that job again, where nobody else can write",
        )
    return True


def _named(spec: ModelSpec, field: str) -> Made | None:
    """How the list says that a student is made; None: it is no imported module, or a registry's."""
    kind, value = spec.source
    if kind == "import":
        return made_by(value, spec.arguments, field)
    if kind == "path" and is_made(value):
        return read_made(value, field)
    return None
