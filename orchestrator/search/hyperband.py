"""HyperBand: brackets of trials, each halved at rungs of its own. Pure.

Source: Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar. "Hyperband: A Novel Bandit-Based Approach to
Hyperparameter Optimization." JMLR 18 (2018), algorithm 1. A rung lies at the next step that is
measured; brackets follow each other until the budget ends, and the last may be part of one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .journal import Leg, State
from .rounds import Begin, Command, Stop, arrived, ranked


@dataclass(frozen=True, slots=True)
class Bracket:
    """Trials that are compared with each other."""

    size: int
    rungs: tuple[tuple[int, float], ...]  # (optimiser steps, one in so many has gone on after it)

    def kept(self, index: int, members: int) -> int:
        """How many of the bracket's members go on after a rung."""
        return max(1, math.floor(members / self.rungs[index][1] + 1e-9))


def brackets(steps: int, grace: int, reduction: float, every: int) -> list[Bracket]:
    """One round of brackets, the one with the most trials and the shortest legs first.

    Args:
        steps: of a whole run.
        grace: fewest steps that a trial gets.
        reduction: one in so many goes on.
        every: steps between two measurements.
    """
    most = math.floor(math.log(steps / grace) / math.log(reduction) + 1e-9)
    found = []
    for halvings in range(most, -1, -1):
        size = math.ceil((most + 1) / (halvings + 1) * reduction**halvings - 1e-9)
        rungs: dict[int, float] = {}
        for done in range(halvings):
            exact = steps * reduction ** (done - halvings)
            rung = every * math.ceil(exact / every - 1e-9)
            if rung < steps:
                rungs[rung] = reduction ** (done + 1)
        found.append(Bracket(size, tuple(rungs.items())))
    return found


@dataclass(frozen=True, slots=True)
class HyperBand:
    """Decides by brackets; trials fill them in order of their number."""

    round_of: tuple[Bracket, ...]  # repeated
    steps: int
    mode: Literal["min", "max"]

    def commands(self, states: Sequence[State], out: frozenset[int], closed: bool) -> list[Command]:
        found: list[Command] = []
        for bracket, members in self._filled(states):
            found += self._begun(bracket, members, out)
            if closed or len(members) == bracket.size:
                for index in range(len(bracket.rungs)):
                    found += self._halved(bracket, members, index, out)
        return found

    def rivals(self, states: Sequence[State], trial: int) -> list[State]:
        for _, members in self._filled(states):
            if any(state.number == trial for state in members):
                return members
        raise ValueError(f"trial {trial} is in no bracket")

    def fits(self, states: Sequence[State]) -> bool:
        return all(
            leg.until == self._end(bracket, index)
            for bracket, members in self._filled(states)
            for state in members
            for index, leg in enumerate(state.legs)
        )

    def _filled(self, states: Sequence[State]) -> list[tuple[Bracket, list[State]]]:
        found, rest, turn = [], list(states), 0
        while rest:
            bracket = self.round_of[turn % len(self.round_of)]
            found.append((bracket, rest[: bracket.size]))
            rest, turn = rest[bracket.size :], turn + 1
        return found

    def _end(self, bracket: Bracket, index: int) -> int:
        return bracket.rungs[index][0] if index < len(bracket.rungs) else self.steps

    def _begun(
        self, bracket: Bracket, members: Sequence[State], out: frozenset[int]
    ) -> list[Command]:
        first = Leg(0, self._end(bracket, 0))
        fresh = [state for state in members if not state.legs and state.number not in out]
        return [Begin(state.number, 0, first) for state in fresh]

    def _halved(
        self, bracket: Bracket, members: Sequence[State], index: int, out: frozenset[int]
    ) -> list[Command]:
        """What follows a rung, once all who climb to it are there."""
        climbers = [state for state in members if len(state.legs) > index]
        alive = [state for state in climbers if state.number not in out]
        earlier = index > 0 and any(
            len(state.legs) == index and state.status == "paused" for state in members
        )
        unborn = index == 0 and any(not s.legs and s.number not in out for s in members)
        if earlier or unborn or not all(arrived(state, index) for state in alive):
            return []
        rung = bracket.rungs[index][0]
        order = ranked(alive, rung, self.mode)
        measured = [state for state in order if state.value_at(rung) is not None]
        good = {state.number for state in measured[: bracket.kept(index, len(members))]}
        found: list[Command] = []
        for state in order:
            if len(state.legs) > index + 1 or state.status != "paused":
                continue
            leg = Leg(rung, self._end(bracket, index + 1))
            goes_on = state.number in good
            found.append(Begin(state.number, index + 1, leg) if goes_on else Stop(state.number))
        return found
