"""The best state so far, by a held-out number. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.evaluation.paths import number_at, paths_of
from orchestrator.spec.explain import nearest
from orchestrator.spec.job import BestSpec


@dataclass(frozen=True, slots=True)
class Best:
    """A state, and what speaks for it."""

    step: int  # optimiser steps done
    value: float


def better(
    spec: BestSpec, best: Best | None, step: int, evaluation: Mapping[str, Any]
) -> Best | None:
    """The best after an evaluation: the earlier one where both are as good.

    Args:
        spec: which number, and which way is up.
        best: before it.
        step: of the evaluation.
        evaluation: what was measured.

    Raises:
        SpecError: nothing of what was measured is that number, though its part was; or it is not
            finite.
    """
    value = number_at(evaluation, spec.metric)
    if value is None:
        # A number without a part is one of the usual, which have always this one beside them.
        part = spec.metric.rpartition(".")[0] or "positions"
        if not _has(evaluation, part):
            return best  # it was not due
        raise SpecError(
            "training.checkpoint.best.metric",
            f"is {spec.metric}, of which evaluation has no finite number",
            nearest(spec.metric, list(paths_of(evaluation))),
        )
    if best is not None and not _beats(spec, value, best.value):
        return best
    return Best(step, value)


def _beats(spec: BestSpec, value: float, other: float) -> bool:
    return value < other if spec.better == "lower" else value > other


def _has(evaluation: Mapping[str, Any], part: str) -> bool:
    found: Any = evaluation
    for name in part.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return False
        found = found[name]
    return True
