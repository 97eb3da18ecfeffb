"""Held-out measurements from sums over positions.

`strategies.statistics.position_statistics` gives sums for one micro-batch; `add` joins them over
micro-batches and ranks in any order; `Evaluation.from_sums` divides once, at the end, so the result
does not depend on the cut. Plain numbers only: no torch, no numpy.

Sums, by name: `nll` (nats), `count` (positions), `correct` (top-1), `calibration_count`,
`calibration_confidence`, `calibration_correct` (one value a bin of the top-1 probability). With a
role to compare with also `teacher_nll`, `teacher_correct`, `agreement` (same top-1) and `kl`
(nats, role || student); a top-k signal has no `teacher_nll`, as it does not know every target. Data
without labels have only `count`, `agreement` and `kl`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Sums = Mapping[str, float | list[float]]

_BINS = ("calibration_count", "calibration_confidence", "calibration_correct")
_OF_LABELS = {"nll", "correct", *_BINS}
_MEANS = {
    "student_loss": "nll",
    "student_accuracy": "correct",
    "teacher_loss": "teacher_nll",
    "teacher_accuracy": "teacher_correct",
    "top1_agreement": "agreement",
    "kl": "kl",
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One measurement of a student on held-out data. None: no labels, or no role to compare."""

    positions: int
    student_loss: float | None = None  # nats a token
    student_perplexity: float | None = None
    student_accuracy: float | None = None  # share of positions whose likeliest token is right
    calibration_error: float | None = None  # expected, of the top-1 probability, 0 to 1
    teacher_loss: float | None = None
    teacher_perplexity: float | None = None
    teacher_accuracy: float | None = None
    top1_agreement: float | None = None  # share of positions with the role's likeliest token
    kl: float | None = None  # nats a token, role || student, at temperature 1

    @classmethod
    def from_sums(cls, sums: Sums) -> "Evaluation":
        """Divide.

        Raises:
            ValueError: nothing was measured, or a sum is missing.
        """
        labelled = bool(_OF_LABELS & set(sums))
        missing = {"count", *(_OF_LABELS if labelled else ())} - set(sums)
        if missing:
            raise ValueError(f"sums lack {sorted(missing)}, have {sorted(sums)}")
        count = _number(sums, "count")
        if count <= 0:
            raise ValueError(
                f"no held-out position was measured (count is {count:g}); raise data.held_out or "
                "evaluation.rows"
            )
        found = {
            mean: _number(sums, total) / count for mean, total in _MEANS.items() if total in sums
        }
        for model in ("student", "teacher"):
            if f"{model}_loss" in found:
                found[f"{model}_perplexity"] = perplexity(found[f"{model}_loss"])
        if labelled:
            bins = (_bins(sums, name) for name in _BINS)
            found["calibration_error"] = calibration_error(*bins)
        return cls(round(count), **found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, nested by who is measured; `teacher` only when a role was compared.

        Data without labels have neither.
        """
        nested: dict[str, Any] = {"positions": self.positions}
        labelled = self.student_loss is not None
        if labelled:
            nested["student"] = {
                "loss": self.student_loss,
                "perplexity": self.student_perplexity,
                "accuracy": self.student_accuracy,
                "calibration_error": self.calibration_error,
            }
        if labelled and self.kl is not None:
            nested["teacher"] = {
                "loss": self.teacher_loss,
                "perplexity": self.teacher_perplexity,
                "accuracy": self.teacher_accuracy,
            }
        if self.kl is not None:
            nested |= {"top1_agreement": self.top1_agreement, "kl": self.kl}
        return nested

    def metrics(self) -> dict[str, float]:
        """By metric name, `held_out/...`; what is None is left out."""
        values = asdict(self)
        return {f"held_out/{name}": value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement of a student, and of each of its members where it has several."""

    own: Evaluation  # of a student with several: its main member's
    members: Mapping[str, Evaluation] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the student's as ever, and `members.NAME` with the same of each."""
        found = self.own.to_dict()
        if self.members:
            found["members"] = {name: _of_member(one) for name, one in self.members.items()}
        return found

    def metrics(self) -> dict[str, float]:
        """By metric name, `held_out/...`, and `held_out/NAME/...` of each member."""
        named = {
            f"held_out/{member}/{name.removeprefix('held_out/')}": value
            for member, one in self.members.items()
            for name, value in one.metrics().items()
        }
        return {**self.own.metrics(), **named}


def _of_member(found: Evaluation) -> dict[str, Any]:
    """What an evaluation says of its student, without the role."""
    whole = found.to_dict()
    compared = {name: whole[name] for name in ("top1_agreement", "kl") if name in whole}
    return {**whole.get("student", {}), **compared}


def add(a: Sums, b: Sums) -> dict[str, float | list[float]]:
    """Sums of two parts together; an empty mapping is zero.

    Raises:
        ValueError: the parts measured different things, or in different bins.
    """
    if not a or not b:
        return {**a, **b}
    if set(a) != set(b):
        raise ValueError(f"parts measured different things: {sorted(a)} and {sorted(b)}")
    return {name: _plus(name, a[name], b[name]) for name in a}


def _plus(name: str, a: float | list[float], b: float | list[float]) -> float | list[float]:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [x + y for x, y in zip(a, b, strict=True)]
    if isinstance(a, list) or isinstance(b, list):
        raise ValueError(f"{name} has different shapes in the two parts: {a!r} and {b!r}")
    return a + b


def calibration_error(count: list[float], confidence: list[float], correct: list[float]) -> float:
    """Expected calibration error: sum over bins of (share of positions) * |accuracy - confidence|.

    Args:
        count: positions in each bin of the top-1 probability.
        confidence: the sum of top-1 probabilities in each bin.
        correct: right top-1 tokens in each bin.

    Source:
        Guo, Pleiss, Sun, Weinberger. "On Calibration of Modern Neural Networks."
        arXiv:1706.04599, equation 3.
    """
    total = sum(count)
    gaps = (abs(right - sure) for sure, right in zip(confidence, correct, strict=True))
    return sum(gaps) / total if total else 0.0


def perplexity(loss: float) -> float:
    """exp(loss), infinite where it does not fit a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _number(sums: Sums, name: str) -> float:
    value = sums[name]
    if isinstance(value, list):
        raise ValueError(f"{name} must be one number, got {value!r}")
    return float(value)


def _bins(sums: Sums, name: str) -> list[float]:
    value = sums[name]
    if not isinstance(value, list):
        raise ValueError(f"{name} must hold one value a bin, got {value!r}")
    return [float(x) for x in value]
