"""How much each varied field matters, told by fANOVA through Optuna, which is imported when asked.

Source: Hutter, Hoos, Leyton-Brown. "An Efficient Approach for Assessing Hyperparameter Importance."
ICML 2014.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .board import goal_values
from .journal import State
from .plan import Search
from .space import Recorded, Recording, drawn

LEAST_TRIALS = 4
"""That went to their end: of fewer nothing can be said."""


@dataclass(slots=True)
class Distributions:
    """Answers from a record, and remembers what each name could have been."""

    inner: Recorded
    found: dict[str, Any] = field(default_factory=dict)

    def number(self, name: str, low: float, high: float, step: float | None, log: bool) -> float:
        from optuna.distributions import FloatDistribution

        self.found[name] = FloatDistribution(low, high, step=step, log=log)
        return self.inner.number(name, low, high, step, log)

    def whole(self, name: str, low: int, high: int) -> int:
        from optuna.distributions import IntDistribution

        self.found[name] = IntDistribution(low, high)
        return self.inner.whole(name, low, high)

    def label(self, name: str, labels: Sequence[str], in_turn: bool) -> str:
        from optuna.distributions import CategoricalDistribution

        self.found[name] = CategoricalDistribution(tuple(labels))
        return self.inner.label(name, labels, in_turn)


def importance(search: Search, states: Sequence[State]) -> dict[str, float]:
    """The share of the first goal's variance that each name explains by itself, largest first.

    Of trials that were drawn and went to their end. A name that only some of them have, inside an
    option of a choice, is left out. Empty where nothing can be said.
    """
    measured = [
        (state, value)
        for state in states
        if state.status == "done" and state.values
        for value in [goal_values(state, search.spec.goals)[0]]
        if value is not None
    ]
    if len(measured) < LEAST_TRIALS or len({value for _, value in measured}) < 2:
        return {}
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for state, value in measured:
            study.add_trial(_as_trial(search, state, value))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=search.spec.seed)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


def _as_trial(search: Search, state: State, value: float) -> Any:
    import optuna

    known = Distributions(Recorded(state.values))
    asked = Recording(known)  # a trial may hold values of what no longer varies
    drawn(search.spec.space, asked)
    return optuna.trial.create_trial(params=asked.values, distributions=known.found, value=value)
