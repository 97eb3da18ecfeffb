"""Interactions of users with items -> users with the items they are trained on and those held out.

Promises: users, items and the split depend on what the records say, never on their order, on time
of day or on the machine: both are numbered in the order of their sorted names, and what is held out
is decided by time or by a hash. Whoever reads the same records by the same rule, a data source or a
model of the graph, has the same numbers. Numpy only.
"""

import csv
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import SpecError
from orchestrator.spec.formats import Interactions

Record = tuple[str, Mapping[str, Any]]
"""What a record is called, and its fields."""


@dataclass(frozen=True, slots=True)
class User:
    """One user. Items are their numbers, rising; `trained` is never empty."""

    name: str
    trained: np.ndarray  # [k] int32
    held_out: np.ndarray  # [h] int32


@dataclass(frozen=True)
class Table:
    """All users and items; their place is their number."""

    users: tuple[User, ...]
    items: tuple[str, ...]

    @cached_property
    def edges(self) -> np.ndarray:
        """[2, E] int64: user and item of every interaction that is trained on, in order."""
        users = np.repeat(np.arange(len(self.users)), [len(user.trained) for user in self.users])
        items = np.concatenate([user.trained for user in self.users])
        return np.stack([users, items.astype(np.int64)])


def table_of(records: Iterable[Record], format: Interactions, held_out: float, field: str) -> Table:
    """Group records by user, number them, and hold some out.

    Args:
        records: one interaction each; a pair that comes again counts once, at its latest time.
        format: which fields, and how one interaction of each user is held out.
        held_out: share of interactions held out by a hash; a user always keeps one.
        field: dotted path of the source, for messages.

    Raises:
        SpecError: a record has no user or no item, or a time that is no number; or there is none.
    """
    latest: dict[str, dict[str, float]] = {}
    for name, record in records:
        user, item = (_key(record, column, field, name) for column in (format.user, format.item))
        items = latest.setdefault(user, {})
        items[item] = max(items.get(item, -math.inf), _time(record, format.time, field, name))
    if not latest:
        raise SpecError(field, "gives no interaction", "Remove the source or fill it")
    names = sorted({item for items in latest.values() for item in items})
    numbers = {item: number for number, item in enumerate(names)}
    users = []
    for user in sorted(latest):
        apart = _apart(user, latest[user], format, held_out)
        both = (sorted(numbers[i] for i in part) for part in (latest[user].keys() - apart, apart))
        users.append(User(user, *(np.array(part, np.int32) for part in both)))
    return Table(tuple(users), tuple(names))


def read_csv(path: str, format: Interactions) -> Iterator[Record]:
    """The records of a CSV file with a header line, for whoever is no data source.

    Raises:
        SpecError: the file is not there, or lacks a column.
    """
    if not Path(path).is_file():
        raise SpecError("path", f"is {path!r}, and there is no such file", "Give a file that is")
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        for column in columns_of(format):
            if column not in (rows.fieldnames or ()):
                present = ", ".join(rows.fieldnames or ()) or "none"
                raise SpecError(
                    "format",
                    f"names column {column!r}, and {path!r} has no such (present: {present})",
                    "Name the columns of user and item",
                )
        for index, row in enumerate(rows):
            yield f"{Path(path).name}:{index}", row


def columns_of(format: Interactions) -> tuple[str, ...]:
    """Fields of a record that are read."""
    return (format.user, format.item, *(() if format.time is None else (format.time,)))


# --- a user as the words of a sample -------------------------------------------------------------


def words_of(number: int, user: User) -> np.ndarray:
    """[2 + k + h] int32: the user's number, k, the items trained on, those held out."""
    head = np.array([number, len(user.trained)], np.int32)
    return np.concatenate([head, user.trained, user.held_out])


def trained_of(words: np.ndarray) -> np.ndarray:
    """[k] int32, rising: the items of a sample that are trained on; none of an empty row."""
    return words[2 : 2 + int(words[1])] if len(words) else words


def held_out_of(words: np.ndarray) -> np.ndarray:
    """[h] int32, rising: the items of a sample that are held out."""
    return words[2 + int(words[1]) :]


# --- records -------------------------------------------------------------------------------------


def _key(record: Mapping[str, Any], column: str, field: str, name: str) -> str:
    value = record.get(column)
    value = value.strip() if isinstance(value, str) else value
    named = isinstance(value, str | Integral) and not isinstance(value, bool)
    if not named or value == "":
        raise SpecError(
            field,
            f"record {name!r}, column {column!r}: {value!r} names nobody and nothing",
            "Give every record a user and an item, each a text or a whole number, or drop it",
        )
    return str(value)


def _time(record: Mapping[str, Any], column: str | None, field: str, name: str) -> float:
    if column is None:
        return 0.0
    value = record.get(column)
    try:
        time = float(value)  # type: ignore[arg-type]  # what is no number is told so below
    except (TypeError, ValueError):
        time = math.nan
    if not math.isfinite(time):
        raise SpecError(
            field,
            f"record {name!r}, column {column!r}: {value!r} is no number",
            "Give times as numbers, such as seconds, or leave time out",
        )
    return time


def _apart(
    user: str, items: Mapping[str, float], format: Interactions, held_out: float
) -> set[str]:
    """The items of a user that are held out: never all of them."""
    chance = {item: _chance(format.seed, user, item) for item in items}
    if format.leave_one_out:
        last = max(items, key=lambda item: (items[item], chance[item]))
        return {last} if len(items) > 1 else set()
    apart = {item for item in items if chance[item] < held_out}
    return apart - {max(chance, key=lambda item: chance[item])}


def _chance(seed: int, user: str, item: str) -> float:
    """Uniform in [0, 1), a hash of seed and interaction."""
    digest = hashlib.sha256(f"{seed}\0{user}\0{item}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
