"""Texts that a role writes before a job starts: drawn, kept on disk, and read like any others.

`writing` is a Ray room: actors that hold the role. `shelf` is what they have written; what is there
is never written again. `author` is one copy of the role at work, without Ray; `source` says what a
job wants written.
"""

from .records import Task, Written
from .shelf import Shelf
from .source import as_read, open_shelf, progress, task_of
from .writing import written

__all__ = ["Shelf", "Task", "Written", "as_read", "open_shelf", "progress", "task_of", "written"]
