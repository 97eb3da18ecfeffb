"""A layer of the student beside one of a role, once both models are known.

Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pair:
    """Which module learns from which."""

    student: str  # module path
    role: str  # module path
    projector: str | None = None  # what maps the student's channels to the role's; None: nothing


Pairs = Mapping[str, tuple[Pair, ...]]
"""By the name of a term, in the order of its spec's `layer_pairs`."""
