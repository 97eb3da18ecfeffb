"""How far off a number may be, and why. Plain arithmetic on what was measured of the models.

What the wire does to a loss is bounded by what errors of its size do: the role's answers are
jittered at random by the type's rounding (`jitter`), the oracle says what that changes, and four
times as much is allowed. Beside it comes what float32 does.
"""

import math
from dataclasses import dataclass

UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 1 / 508}
"""By dtype, the largest relative error of rounding; for int8 of a position's whole range, which it
divides in 254 steps."""

SERVED_SHARE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""By the model's dtype: what two forwards of other shapes may differ by, as a share of the largest
entry. Each layer rounds otherwise."""
SERVED_KL = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
"""The same, nats a position."""

VALUE_SHARE, GRADIENT_SHARE = 1e-5, 1e-4
"""Of a loss in float32 against float64, relative."""
BF16_GRADIENT_SHARE = 2.0**-8
"""More, where the student trains in bf16: its gradients are rounded to that type."""
STANDARD_ERRORS = 4.0
"""Of a mean over seeds."""
ALLOWED = 4.0
"""Times what a jitter of the wire's size does."""


@dataclass(frozen=True, slots=True)
class Float32:
    """What float32 does to a loss between two models."""

    logarithm: float  # error of the logarithm of a probability, nats
    longest_row: float  # of the student's head, times its scale; 1 for a student of logits

    def value(self, temperature: float, size: float) -> float:
        """Largest error of a value, nats a position; `size` is `oracle.Truth.size`."""
        return VALUE_SHARE * size + 2 * temperature * self.logarithm

    @property
    def gradient(self) -> float:
        """Largest error of a position's gradient by the hidden state, absolute."""
        return 2 * self.longest_row * self.logarithm


def wire_value(kind: str, true: float, jittered: float) -> float:
    """Largest change of a value by the wire, nats a position.

    Args:
        kind: of the term.
        true: its value.
        jittered: its value between the role and the jittered role.

    A divergence behaves like the square of a distance, so its root moves by no more than the root
    of `jittered`; total variation is a distance.
    """
    if kind == "total_variation":
        return ALLOWED * jittered
    jittered = max(0.0, jittered)  # float64 may round a divergence of nothing below 0
    return ALLOWED * (2 * math.sqrt(abs(true) * jittered) + jittered)
