"""Which role fingerprint a model folder had when it was last labelled: one small file each."""

import os
from pathlib import Path

FOLDER = "sources"


def remember(path: str | Path, digest: str, fingerprint: str) -> None:
    """Note the fingerprint of a folder's digest; published by rename."""
    file = Path(path) / FOLDER / digest
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{digest}.{os.getpid()}")
    draft.write_text(fingerprint)
    os.replace(draft, file)


def recall(path: str | Path, digest: str) -> str | None:
    """The fingerprint noted for a digest, or None."""
    try:
        return (Path(path) / FOLDER / digest).read_text()
    except FileNotFoundError:
        return None
