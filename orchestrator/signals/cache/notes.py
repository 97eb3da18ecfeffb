"""Small facts beside the records, a file each: what a model folder's fingerprint was, what a role's
forward takes, the limit that came last. A note that is lost costs a question, never an answer."""

import os
from pathlib import Path

FOLDER = "notes"


def write_note(path: str | Path, name: str, text: str) -> None:
    """Publish a note by rename; a later one of its name replaces it."""
    file = Path(path) / FOLDER / name
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{name}.{os.getpid()}")
    draft.write_text(text)
    os.replace(draft, file)


def read_note(path: str | Path, name: str) -> str | None:
    """The note of a name, or None."""
    try:
        return (Path(path) / FOLDER / name).read_text()
    except FileNotFoundError:
        return None
