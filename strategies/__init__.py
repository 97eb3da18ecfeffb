"""What to learn from a teacher. Nothing here imports ray, deepspeed, mlflow or the orchestrator."""

# First, because specs and recipes refer to each other: in this order either may be imported alone.
from . import specs as specs
