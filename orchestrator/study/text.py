"""Numbers as people read them: as many digits as the error allows, and no more. Pure."""

import math

from .numbers import Mean, Setting
from .spec import MetricSpec

NOTHING = "-"
MOST_DECIMALS = 6
_WITHOUT_ERROR = 3  # significant digits of a number whose error is not known


def mean_text(mean: Mean | None, metric: MetricSpec, signed: bool = False) -> str:
    """`93.12 ± 0.24`: the error to two digits, the mean as far; without an error `93.1`."""
    if mean is None:
        return NOTHING
    scale = 100.0 if metric.percent else 1.0
    sign = "+" if signed else ""
    value = mean.mean * scale
    if mean.error is None:
        return f"{value:{sign}.{_decimals(value, _WITHOUT_ERROR)}f}"
    error = mean.error * scale
    decimals = _decimals(error if error > 0 else value, 2 if error > 0 else _WITHOUT_ERROR)
    return f"{value:{sign}.{decimals}f} ± {error:.{decimals}f}"


def p_text(p: float | None) -> str:
    """`0.032`, `<0.001`; `-` where no test is defined."""
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.{max(2, _decimals(p, 2))}f}"


def setting_text(setting: Setting) -> str:
    """`noise 40, method kd`."""
    return ", ".join(f"{axis} {arm}" for axis, arm in setting)


def heading(metric: MetricSpec) -> str:
    """A metric's name, with its unit."""
    return f"{metric.label} (%)" if metric.percent else metric.label


def _decimals(value: float, digits: int) -> int:
    """Decimals that show `digits` significant digits of a value."""
    if value == 0 or not math.isfinite(value):
        return 1
    return min(MOST_DECIMALS, max(0, digits - 1 - math.floor(math.log10(abs(value)))))
