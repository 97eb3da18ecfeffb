"""Which documents are held out: a function of the document's id alone.

Promises: the same answer on every machine, Python version and order of reading; raising the share
only adds documents. Standard library only.
"""

import hashlib


def is_held_out(document_id: str, share: float) -> bool:
    """Whether a document belongs to the held-out share (0 <= share <= 1) of the documents."""
    digest = hashlib.sha256(document_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share
