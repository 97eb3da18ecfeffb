"""What varies, walked: a draw, its values by name, and the settings they come to. Pure.

Promises: one walk serves every searcher. Whoever is asked for a value (random numbers, Optuna, a
record, each value in turn) is a `Suggest`; the same values always give the same settings.

A value's name is the dotted path of its field; inside an option of a choice it is the choice's
name, the option's label in brackets, and the path from there: `a.b[linear].start`.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

from strategies.specs import Spec

from .spec import Choice, Distribution, Grid, LogUniform, Quantised, Uniform, Whole

Value = float | int | str
Values = dict[str, Value]
"""Name -> what was drawn; of a choice or a grid, the option's label."""
Space = Mapping[str, Distribution]
Settings = dict[str, Any]
"""Dotted path of a field -> plain value."""

GOLDEN = 0.6180339887498949
"""Share of the way at which the inside of a range is looked at: no round number."""


class Suggest(Protocol):
    """Says a value for a name."""

    def number(self, name: str, low: float, high: float, step: float | None, log: bool) -> float:
        """Between two numbers, both included; of `step`s from the lower where that is given."""
        ...

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number between two, both included."""
        ...

    def label(self, name: str, labels: Sequence[str], in_turn: bool) -> str:
        """One of several; `in_turn`: of a grid."""
        ...


def drawn(space: Space, suggest: Suggest) -> Settings:
    """Ask for a value of all that varies; the fields' settings.

    Of an option that is not chosen, nothing is asked.
    """
    return {path: _value(path, distribution, suggest) for path, distribution in space.items()}


def _value(name: str, node: Any, suggest: Suggest) -> Any:
    match node:
        case Uniform(uniform=(low, high)):
            return suggest.number(name, low, high, None, False)
        case LogUniform(loguniform=(low, high)):
            return suggest.number(name, low, high, None, True)
        case Quantised(quniform=(low, high, step)):
            return suggest.number(name, low, high, step, False)
        case Whole(integer=(low, high)):
            return suggest.whole(name, low, high)
        case Choice(choice=options):
            return _option(name, options, suggest, in_turn=False)
        case Grid(grid=options):
            return _option(name, options, suggest, in_turn=True)
        case dict():
            return {key: _value(f"{name}.{key}", each, suggest) for key, each in node.items()}
        case list():
            return [_value(f"{name}.{index}", each, suggest) for index, each in enumerate(node)]
        case _:
            return node


def _option(name: str, options: Sequence[Any], suggest: Suggest, *, in_turn: bool) -> Any:
    labels = labels_of(options)
    label = suggest.label(name, labels, in_turn)
    return _value(f"{name}[{label}]", options[labels.index(label)], suggest)


def labels_of(options: Sequence[Any]) -> list[str]:
    """A name for each option: a plain value itself, a mapping's kind; `#2` where one repeats."""
    labels: list[str] = []
    for number, option in enumerate(options, 1):
        label = _label(option, number)
        again = sum(each == label or each.startswith(f"{label}#") for each in labels)
        labels.append(f"{label}#{again + 1}" if again else label)
    return labels


def _label(option: Any, number: int) -> str:
    if isinstance(option, dict):
        kind = option.get("kind")
        return kind if isinstance(kind, str) else f"option {number}"
    if isinstance(option, Spec | list):
        return f"option {number}"
    return yaml.safe_dump(option).removesuffix("\n").removesuffix("...").removesuffix("\n")


def values_of(space: Space, setting: Callable[[str], Any]) -> Values:
    """The values that come to given settings: what `drawn` would have been told.

    Raises:
        ValueError: a setting cannot be drawn.
    """
    found: Values = {}
    for path, distribution in space.items():
        found |= _values(path, distribution, setting(path))
    return found


def _values(name: str, node: Any, value: Any) -> Values:
    match node:
        case Uniform() | LogUniform() | Quantised() | Whole():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} is {value!r}, and no number")
            asked = Recording(Recorded({name: value}))
            if _value(name, node, asked) != value:
                raise ValueError(f"{name} is {value!r}, and is drawn whole")
            return asked.values
        case Choice(choice=options) | Grid(grid=options):
            for label, option in zip(labels_of(options), options, strict=True):
                try:
                    return {name: label, **_values(f"{name}[{label}]", option, value)}
                except ValueError:
                    continue
        case dict() if isinstance(value, dict) and node.keys() == value.keys():
            inner = (_values(f"{name}.{key}", each, value[key]) for key, each in node.items())
            return {key: each for values in inner for key, each in values.items()}
        case list() if isinstance(value, list) and len(node) == len(value):
            pairs = enumerate(zip(node, value, strict=True))
            inner = (_values(f"{name}.{index}", *pair) for index, pair in pairs)
            return {key: each for values in inner for key, each in values.items()}
        case _ if value == node and isinstance(value, bool) == isinstance(node, bool):
            return {}
    raise ValueError(f"{name} is {value!r}, which cannot be drawn")


# --- who is asked --------------------------------------------------------------------------------


@dataclass(slots=True)
class Recording:
    """Passes questions on, and remembers the answers in `values`."""

    inner: Suggest
    values: Values = field(default_factory=dict)

    def number(self, name: str, low: float, high: float, step: float | None, log: bool) -> float:
        self.values[name] = found = self.inner.number(name, low, high, step, log)
        return found

    def whole(self, name: str, low: int, high: int) -> int:
        self.values[name] = found = self.inner.whole(name, low, high)
        return found

    def label(self, name: str, labels: Sequence[str], in_turn: bool) -> str:
        self.values[name] = found = self.inner.label(name, labels, in_turn)
        return found


@dataclass(frozen=True, slots=True)
class Random:
    """Draws by a generator; grids are answered from a combination."""

    generator: random.Random
    grid: Mapping[str, Value] = field(default_factory=dict)

    def number(self, name: str, low: float, high: float, step: float | None, log: bool) -> float:
        if step is not None:
            steps = round((high - low) / step)
            return _stair(low, high, step, self.generator.randint(0, steps))
        if log:
            found = math.exp(self.generator.uniform(math.log(low), math.log(high)))
            return min(max(found, low), high)
        return self.generator.uniform(low, high)

    def whole(self, name: str, low: int, high: int) -> int:
        return self.generator.randint(low, high)

    def label(self, name: str, labels: Sequence[str], in_turn: bool) -> str:
        given = self.grid.get(name)
        return given if isinstance(given, str) else self.generator.choice(labels)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Answers with values that were drawn before.

    Raises:
        ValueError: a value is missing, or none that could be drawn.
    """

    values: Mapping[str, Value]

    def number(self, name: str, low: float, high: float, step: float | None, log: bool) -> float:
        found = self._found(name)
        if isinstance(found, str) or not low <= found <= high:
            raise ValueError(f"{name} is {found!r}, outside [{low:g}, {high:g}]")
        if step is not None and abs((found - low) / step - round((found - low) / step)) > 1e-8:
            raise ValueError(f"{name} is {found!r}, between steps of {step:g} from {low:g}")
        return float(found)

    def whole(self, name: str, low: int, high: int) -> int:
        found = self._found(name)
        if isinstance(found, str) or not low <= found <= high:
            raise ValueError(f"{name} is {found!r}, outside [{low}, {high}]")
        return int(found)

    def label(self, name: str, labels: Sequence[str], in_turn: bool) -> str:
        found = self._found(name)
        if not isinstance(found, str) or found not in labels:
            raise ValueError(f"{name} is {found!r}, none of {', '.join(labels)}")
        return found

    def _found(self, name: str) -> Value:
        if name not in self.values:
            raise ValueError(f"{name} has no value")
        return self.values[name]


def _stair(low: float, high: float, step: float, steps: int) -> float:
    """So many steps above the lower end, without the dust of adding them up."""
    return min(high, max(low, float(f"{low + step * steps:.12g}")))


# --- every one in turn ---------------------------------------------------------------------------


def combinations(space: Space, *, choices: bool) -> list[Values]:
    """Every combination of the labels of grids, and of choices too where asked.

    Values of ranges are not in it. Without a grid there is one combination, the empty one.
    """

    def labels(name: str, options: Sequence[str], in_turn: bool) -> Sequence[str]:
        return options if in_turn or choices else options[:1]

    found = [
        {name: value for name, value in trail.values.items() if name in trail.listed}
        for trail in _every(space, lambda low, high, log: (low,), labels, choices)
    ]
    return [values for index, values in enumerate(found) if values not in found[:index]]


def corners(space: Space, most: int) -> list[Values]:
    """Values at the ends of all ranges and inside, with each option: all of them, or a sample.

    Args:
        space: what varies.
        most: beyond so many, `most` are drawn among them, the same each time.
    """

    def ends(low: float, high: float, log: bool) -> Sequence[float]:
        inside = low * (high / low) ** GOLDEN if log else low + GOLDEN * (high - low)
        return low, high, inside

    found: list[Values] = []
    for trail in _every(space, ends, lambda name, labels, in_turn: labels, True):
        if len(found) == most:
            break
        found.append(trail.values)
    else:
        return found
    sampled = []
    for number in range(most):
        trail = _Trail(ends, lambda name, labels, in_turn: labels, True)
        trail.generator = random.Random(number)
        drawn(space, trail)
        sampled.append(trail.values)
    return sampled


Ends = Callable[[float, float, bool], Sequence[float]]
Labels = Callable[[str, Sequence[str], bool], Sequence[str]]


def _every(space: Space, ends: Ends, labels: Labels, choices: bool) -> Iterator["_Trail"]:
    """A walk for each way through the space; the last question moves fastest."""
    taken: list[int] = []
    while True:
        trail = _Trail(ends, labels, choices, taken)
        drawn(space, trail)
        yield trail
        taken, counts = trail.taken, trail.counts
        while taken and taken[-1] + 1 == counts[len(taken) - 1]:
            taken.pop()
        if not taken:
            return
        taken[-1] += 1


class _Trail:
    """One way: to question k it gives answer `taken[k]`, beyond those the first or a random one."""

    def __init__(
        self, ends: Ends, labels: Labels, choices: bool, taken: Sequence[int] = ()
    ) -> None:
        self._ends, self._labels, self._choices = ends, labels, choices
        self._given = list(taken)
        self.taken: list[int] = []
        self.counts: list[int] = []
        self.values: Values = {}
        self.listed: set[str] = set()  # names of grids, and of choices that are gone through
        self.generator: random.Random | None = None

    def number(self, name: str, low: float, high: float, step: float | None, log: bool) -> float:
        options = self._ends(low, high, log)
        if step is not None:
            counts = (round((each - low) / step) for each in options)
            options = list(dict.fromkeys(_stair(low, high, step, count) for count in counts))
        return self._take(name, options)

    def whole(self, name: str, low: int, high: int) -> int:
        options = list(dict.fromkeys(round(each) for each in self._ends(low, high, False)))
        return self._take(name, options)

    def label(self, name: str, labels: Sequence[str], in_turn: bool) -> str:
        if in_turn or self._choices:
            self.listed.add(name)
        return self._take(name, self._labels(name, labels, in_turn))

    def _take(self, name: str, options: Sequence[Any]) -> Any:
        index, place = 0, len(self.taken)
        if self.generator is not None:
            index = self.generator.randrange(len(options))
        elif place < len(self._given):
            index = self._given[place]
        self.taken.append(index)
        self.counts.append(len(options))
        self.values[name] = options[index]
        return options[index]
