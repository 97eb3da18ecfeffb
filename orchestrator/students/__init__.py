"""RAY TRAIN + DEEPSPEED ROOM: a resident group of workers that train students.

`Group` is what the driver uses; the rest runs in the workers.
"""

from .group import Group
from .records import GroupPlan, StudentJob

__all__ = ["Group", "GroupPlan", "StudentJob"]
