"""A classifier's record -> its numbers and its class, checked.

Promises: what is no number, no class, or not finite is a `SpecError` that names the record, and
never becomes something else. Numpy only.
"""

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np

from orchestrator.errors import SpecError
from orchestrator.spec.data import Features, LabelledText

LARGEST_LABEL = 2**31 - 1


def label_of(
    record: Mapping[str, Any], format: LabelledText | Features, field: str, name: str
) -> int:
    """The class of a record, from 0; 0 where the format says that none has one.

    Args:
        record: as its source gives it.
        format: of the source.
        field: dotted path of the source, for messages.
        name: id of the record, for messages.

    Raises:
        SpecError: it has no label, or one that is no class.
    """
    if format.label is None:
        return 0
    value = record[format.label]
    where = f"document {name!r}, column {format.label!r}"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise SpecError(
            field,
            f"{where}: no label",
            "Label the record or drop it, or set the format's label: null",
        )
    if format.classes is not None and isinstance(value, str):
        if value not in format.classes:
            raise SpecError(
                field,
                f"{where}: {value!r:.80} is none of the classes ({', '.join(format.classes)})",
                "Add it to the format's classes, or correct the record",
            )
        return format.classes.index(value)
    label = _whole(value)
    limit = LARGEST_LABEL if format.classes is None else len(format.classes) - 1
    if label is None or not 0 <= label <= limit:
        raise SpecError(
            field,
            f"{where}: {value!r:.80} is no class (a whole number from 0 to {limit})",
            "Name the classes in the format's classes, or number them from 0",
        )
    return label


def features_of(record: Mapping[str, Any], format: Features, field: str, name: str) -> np.ndarray:
    """The numbers of a record, [n] float32, n > 0.

    Raises:
        SpecError: one is no number or not finite, or there are fewer or more than the shape has.
    """
    where = f"document {name!r}"
    if isinstance(format.fields, str):
        values, columns = record[format.fields], format.fields
    else:
        values, columns = [record[column] for column in format.fields], ", ".join(format.fields)
    try:
        wide = np.asarray(values, np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise SpecError(
            field, f"{where}, {columns}: not all numbers ({error})", "Correct or drop the record"
        ) from error
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
        numbers = wide.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise SpecError(
            field,
            f"{where}, {columns}: number {int(bad[0])} is {wide[bad[0]]:g}, not finite in float32",
            "Correct or drop the record",
        )
    expected = len(numbers) if format.shape is None else math.prod(format.shape)
    if len(numbers) != expected or not len(numbers):
        raise SpecError(
            field,
            f"{where}, {columns}: {len(numbers)} numbers, and the shape {format.shape} has "
            f"{expected}",
            "Correct the record, or the format's shape",
        )
    return numbers


def _whole(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() else None
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
