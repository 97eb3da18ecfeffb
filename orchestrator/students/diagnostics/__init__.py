"""Diagnostics of a student on all its ranks: what is measured, when, and on which batches.

Promises: the student is left as it was, to the bit; no tensor leaves the ranks, only a few
numbers; they do not depend on how rows and prompts were cut over ranks.
"""

from .site import Site
from .suite import check_diagnostics, diagnose, end_token

__all__ = ["Site", "check_diagnostics", "diagnose", "end_token"]
