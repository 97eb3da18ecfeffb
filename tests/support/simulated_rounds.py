"""A search in rounds whose trials train nothing: its journal in memory, and no thread.

A student is one number. Each step makes another of it by the numbers of the step, so that any
mistake in who goes on from whom, or with what, shows in every digit of it.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.search.journal import Entry, State, states_of
from orchestrator.search.lineage import lineage
from orchestrator.search.rounds import Begin, Decider

Numbers = Mapping[str, float]


def trained(weight: float, step: int, numbers: Numbers) -> float:
    """The student after a step; it tells apart steps, numbers and their order."""
    for place, name in enumerate(sorted(numbers)):
        weight = math.sin(weight * 1.7 + numbers[name] * (step + 1 + place)) + numbers[name] / 3
    return weight


@dataclass
class Simulation:
    """A search: its journal, and what decides. `own`: numbers of trials whose legs have none."""

    decider: Decider
    members: int
    own: Callable[[int], Numbers]
    every: int = 5
    steps: int = 20
    fails: Callable[[int, int], bool] = lambda trial, step: False
    measure: Callable[[float], float] = lambda weight: weight
    entries: list[Entry] = field(default_factory=list)

    @property
    def states(self) -> list[State]:
        found = states_of(self.entries)
        return [found[number] for number in sorted(found)]

    def weight(self, trial: int, until: int) -> float:
        """The student of a trial's latest leg after so many steps, along its lineage."""
        by_number = {state.number: state for state in self.states}
        weight = 1.0
        for part in lineage(by_number.__getitem__, trial):
            numbers = part.leg.numbers or self.own(trial)
            for step in range(part.leg.begin, min(part.leg.until, until)):
                weight = trained(weight, step, numbers)
        return weight

    def play(self, order: random.Random, most: int = 10**6) -> "Simulation":
        """Go on until all is over, or the journal has `most` entries; legs in any order."""
        for number in range(self.members):
            if number not in {state.number for state in self.states}:
                self._add(Entry("trial", number, 0.0, settings=dict(self.own(number))))
        while len(self.entries) < most:
            out = frozenset(s.number for s in self.states if s.status == "failed")
            commands = self.decider.commands(self.states, out, True)
            for command in commands:
                if len(self.entries) >= most:
                    return self
                if isinstance(command, Begin):
                    leg = command.leg
                    facts = {"begin": leg.begin, "until": leg.until, "numbers": leg.numbers}
                    self._add(
                        Entry("leg", command.trial, 0.0, leg=command.index, parent=leg.parent,
                              **facts)
                    )  # fmt: skip
                else:
                    self._add(Entry("ended", command.trial, 0.0, status="stopped"))
            ready = [s for s in self.states if s.legs and s.status in ("waiting", "running")]
            if not ready and not commands:
                return self
            if ready:
                self._leg(order.choice(ready), most)
        return self

    def _leg(self, state: State, most: int) -> None:
        leg = state.legs[-1]
        self._add(Entry("run", state.number, 0.0, run_id=f"t{state.number}.{len(state.legs)}"))
        for step in range(leg.begin + self.every, leg.until + 1, self.every):
            if len(self.entries) >= most:
                return
            if self.fails(state.number, step):
                self._add(Entry("ended", state.number, 0.0, status="failed", error="nan"))
                return
            value = self.measure(self.weight(state.number, step))
            self._add(Entry("result", state.number, 0.0, step=step, value=value))
        if leg.until < self.steps:
            self._add(Entry("paused", state.number, 0.0))
        else:
            summary = {"evaluation": {"student": {"loss": value}}}
            self._add(Entry("ran", state.number, 0.0, summary=summary))
            self._add(Entry("ended", state.number, 0.0, status="done"))

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)


def decisions(states: Sequence[State]) -> list[object]:
    """All that was decided, without what runs are called."""
    return [
        (
            s.number,
            s.status,
            [(leg.begin, leg.until, dict(leg.numbers), leg.parent) for leg in s.legs],
        )
        for s in states
    ]
