"""Population-based training: the worst go on from the best's checkpoints, with other numbers. Pure.

Promises: what follows a round depends on the seed and on what the members measured up to then.

Source: Jaderberg et al. "Population Based Training of Neural Networks." arXiv:1711.09846, with its
truncation selection. The paper's members do not wait for each other. Here nobody goes on before
all have come to a round's end, so that the same search decides the same again. PB2 (`bandit`)
chooses numbers otherwise.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .bandit import Seen, choose
from .journal import Leg, State
from .rounds import Begin, Command, arrived, ranked
from .space import Random, Space, drawn
from .spec import (
    Choice,
    Distribution,
    Grid,
    LogUniform,
    Pb2Scheduler,
    PbtScheduler,
    Quantised,
    Whole,
)

Numbers = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Population:
    """Decides by rounds of `every_steps`."""

    scheduler: PbtScheduler | Pb2Scheduler
    space: Space  # what may change: dotted path -> how its numbers are drawn
    first: Callable[[State], Numbers]  # the numbers that a trial begins with
    steps: int
    mode: Literal["min", "max"]
    seed: int

    def commands(self, states: Sequence[State], out: frozenset[int], closed: bool) -> list[Command]:
        found: list[Command] = [
            Begin(state.number, 0, Leg(0, self._end(0), dict(self.first(state))))
            for state in states
            if not state.legs and state.number not in out
        ]
        alive = [state for state in states if state.number not in out]
        if not closed or found:
            return found
        for index in sorted({len(state.legs) - 1 for state in alive}):
            if self._end(index) < self.steps and all(arrived(state, index) for state in alive):
                after = self.after(alive, index)
                waiting = [state for state in alive if len(state.legs) == index + 1]
                found += [Begin(s.number, index + 1, after[s.number]) for s in waiting]
        return found

    def rivals(self, states: Sequence[State], trial: int) -> list[State]:
        return list(states)

    def fits(self, states: Sequence[State]) -> bool:
        legs = [enumerate(state.legs) for state in states]
        return all(leg.until == self._end(index) for each in legs for index, leg in each)

    def _end(self, index: int) -> int:
        return min(self.steps, (index + 1) * self.scheduler.every_steps)

    def after(self, members: Sequence[State], index: int) -> dict[int, Leg]:
        """Each member's leg after one that all of them have ended."""
        begin = self._end(index)
        order = ranked(members, begin, self.mode)
        count = round_share(len(order), self.scheduler.quantile)
        best, worst = order[:count], order[len(order) - count :]
        legs = {
            state.number: Leg(begin, self._end(index + 1), state.legs[index].numbers, state.number)
            for state in order[: len(order) - count]
        }
        for state in sorted(worst, key=lambda each: each.number):
            generator = random.Random(f"{self.seed}/round {index}/{state.number}")
            parent = generator.choice(best)
            numbers = self._changed(parent, members, index, list(legs.values()), generator)
            legs[state.number] = Leg(begin, self._end(index + 1), numbers, parent.number)
        return legs

    def _changed(
        self,
        parent: State,
        members: Sequence[State],
        index: int,
        settled: Sequence[Leg],
        generator: random.Random,
    ) -> dict[str, float]:
        """The numbers with which a member leaves its parent's checkpoint."""
        if isinstance(self.scheduler, PbtScheduler):
            return explored(parent.legs[index].numbers, self.space, self.scheduler, generator)
        found = choose(
            seen(members, index, self.space, self.mode),
            when=float(index + 1),
            value=parent.value_at(self._end(index)),
            pending=[in_cube(leg.numbers, self.space) for leg in settled],
            dimensions=len(self.space),
            seed=generator.getrandbits(32),
        )
        return out_of_cube(found, self.space)


def round_share(members: int, quantile: float) -> int:
    """How many are replaced: a share of the members, one at least, half of them at most."""
    return min(members // 2, max(1, round(members * quantile)))


# --- PBT: a step, or a new draw ------------------------------------------------------------------


def explored(
    numbers: Numbers, space: Space, scheduler: PbtScheduler, generator: random.Random
) -> dict[str, float]:
    """Each number times one of the factors, inside its range; some are drawn anew.

    Of a list the neighbour is taken.
    """

    def moved(path: str, distribution: Distribution) -> float:
        anew = generator.random() < scheduler.resample
        if anew:
            return float(drawn({path: distribution}, Random(generator))[path])
        return _step(distribution, numbers[path], scheduler.factors, generator)

    return {path: moved(path, distribution) for path, distribution in space.items()}


def _step(
    distribution: Distribution, value: float, factors: Sequence[float], generator: random.Random
) -> float:
    if isinstance(distribution, Choice | Grid):
        options = options_of(distribution)
        nearest = min(range(len(options)), key=lambda index: abs(options[index] - value))
        index = nearest + generator.choice((-1, 1))
        return options[min(len(options) - 1, max(0, index))]
    low, high = span(distribution)
    scaled = min(high, max(low, value * generator.choice(factors)))
    match distribution:
        case Quantised(quniform=(_, _, step)):
            return min(high, float(f"{low + step * round((scaled - low) / step):.12g}"))
        case Whole():
            return float(round(scaled))
    return scaled


def options_of(distribution: Choice | Grid) -> list[float]:
    """The numbers of a list."""
    options: list[Any] = (
        distribution.choice if isinstance(distribution, Choice) else distribution.grid
    )
    return [float(option) for option in options]


def span(distribution: Distribution) -> tuple[float, float]:
    """The smallest and the largest number that can be drawn."""
    if isinstance(distribution, Choice | Grid):
        options = options_of(distribution)
        return min(options), max(options)
    (given,) = distribution.model_dump().values()
    return float(given[0]), float(given[1])


# --- PB2: what the bandit has seen ---------------------------------------------------------------


def seen(members: Sequence[State], index: int, space: Space, mode: Literal["min", "max"]) -> Seen:
    """What each leg up to `index` has gained, but for first ones, before which nothing is known."""
    sign = -1.0 if mode == "min" else 1.0
    by_number = {state.number: state for state in members}
    points, whens, values, gains = [], [], [], []
    for state in members:
        for place, leg in enumerate(state.legs[: index + 1]):
            origin = by_number.get(state.number if leg.parent is None else leg.parent)
            before = None if origin is None or not place else origin.value_at(leg.begin)
            after = state.value_at(leg.until)
            if before is not None and after is not None:
                points.append(in_cube(leg.numbers, space))
                whens.append(float(place))
                values.append(before)
                gains.append(sign * (after - before))
    return Seen(points, whens, values, gains)


def in_cube(numbers: Numbers, space: Space) -> list[float]:
    """Each number's place in its range, 0 to 1; by orders of magnitude for a loguniform one."""
    return [_place(numbers[path], distribution) for path, distribution in space.items()]


def _place(value: float, distribution: Distribution) -> float:
    low, high = span(distribution)
    if isinstance(distribution, LogUniform):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def out_of_cube(places: Sequence[float], space: Space) -> dict[str, float]:
    """The inverse of `in_cube`."""
    found = {}
    for place, (path, distribution) in zip(places, space.items(), strict=True):
        low, high = span(distribution)
        log = isinstance(distribution, LogUniform)
        value = low * (high / low) ** place if log else low + place * (high - low)
        found[path] = min(high, max(low, float(value)))
    return found
