"""A number of a finished run as a schedule, so that another job may take the same way.

For numbers that adapted to what was measured. Reads a history only; imports neither torch nor ray.
"""

from orchestrator.errors import SpecError
from strategies.replay import as_piecewise
from strategies.specs import PiecewiseSchedule

from .history import History

PREFIX = "schedule/"


def recorded_schedule(history: History, number: str) -> PiecewiseSchedule:
    """The values that a number had, step by step and exactly.

    Args:
        history: of the run.
        number: `<term>.<field>`, as in the metric `schedule/<term>.<field>`.

    Raises:
        SpecError: it was not recorded, or not at every step.
    """
    points = history.metrics.get(PREFIX + number, ())
    if not points:
        known = sorted(
            name.removeprefix(PREFIX) for name in history.metrics if name.startswith(PREFIX)
        )
        raise SpecError(
            number,
            f"is no number of run {history.run_id!r}",
            f"It recorded {', '.join(known) or 'none'}",
        )
    values = {point.step - 1: point.value for point in points}  # a step done counts itself
    missing = [step for step in range(max(values) + 1) if step not in values]
    if missing:
        raise SpecError(
            number,
            f"of run {history.run_id!r} is not recorded at {len(missing)} of its steps, first step "
            f"{missing[0] + 1}",
            "Run it with tracking.every_steps: 1 to replay it",
        )
    return as_piecewise([values[step] for step in sorted(values)])
