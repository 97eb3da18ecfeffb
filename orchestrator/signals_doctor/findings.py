"""What a check of a job's signals found: one row of the table. Plain values, no torch."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Check = Literal["zero", "served", "alignment", "oracle", "vocabulary"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One number, and the bound it must not pass."""

    job: str
    check: Check
    what: str
    role: str  # the served role, or `student`, or `data`
    measured: float
    bound: float | None = None  # None: told for information, never wrong
    note: str = ""  # the unit of the number, the first position that is off, ...

    @property
    def ok(self) -> bool:
        """Whether the number is within its bound; one that is not a number never is."""
        return self.bound is None or self.measured <= self.bound

    def sentence(self) -> str:
        """What is wrong, in one line."""
        note = f" ({self.note})" if self.note else ""
        return (
            f"{self.job}, {self.check}: {self.what}, {self.role}: {self.measured:.4g}, and the "
            f"bound is {self.bound:.4g}{note}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields and `ok`."""
        return {**asdict(self), "ok": self.ok}
