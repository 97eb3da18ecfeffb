"""The GPU kernels, run by Triton's interpreter: the numbers of the eager path, term by term."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from strategies import fused
from strategies.comparison import Asked, Dense, Labels, compare_at
from strategies.parts import Part

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    """By case, the largest differences of values and gradient from the eager path in float64."""
    pytest.importorskip("triton", reason="Triton has wheels for Linux only")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/support/interpreted_kernels.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CASES = (
    *fused.KINDS,
    "all at once",
    "all at once, bfloat16",
    "in place",
    "two roles",
    "one kind twice",
    "a temperature a row",
    "a role that lacks entries",
    "far apart",
    "smoothed labels",
    "without a gradient",
)


@pytest.mark.parametrize("case", CASES)
def test_kernels_give_the_numbers_of_float64(
    errors: dict[str, dict[str, float]], case: str
) -> None:
    assert errors[case]["value"] < 2e-5
    assert errors[case]["gradient"] < (4e-3 if case.endswith("bfloat16") else 2e-5)


def test_equal_sides_give_nothing(errors: dict[str, dict[str, float]]) -> None:
    assert errors["equal"]["value"] == 0.0
    assert errors["equal"]["gradient"] < 1e-6


def test_a_planted_fault_is_seen(errors: dict[str, dict[str, float]]) -> None:
    assert errors["planted"]["gradient"] > 1e-2


def test_what_has_no_kernel_is_told_apart() -> None:
    row = torch.zeros(1, 4)
    labels = torch.zeros(1, 1, dtype=torch.int64)

    def asked(kind: str, holes: bool = False) -> Asked:
        return Asked(Part(kind, role="role"), 1.0, Dense(row, holes, "role"), labels, True)  # type: ignore[arg-type]

    assert fused.supported(asked("reverse_kl"))
    assert not fused.supported(asked("reverse_kl", holes=True))
    assert fused.supported(asked("forward_kl", holes=True))
    assert not fused.supported(asked("adaptive_kl"))
    assert fused.supported(Asked(Part("cross_entropy"), 1.0, Labels(labels), labels, True))


def test_where_triton_cannot_be_used_it_warns_once_and_computes_eagerly() -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton can be used here")
    fused.usable.cache_clear()
    logits, labels = torch.randn(3, 7), torch.tensor([[1], [2], [3]])
    asked = [Asked(Part("cross_entropy"), 0.5, Labels(labels), labels, True)]
    with pytest.warns(UserWarning, match="the loss has no GPU kernel here") as seen:
        first = fused.compare_at(logits, 1.0, asked)
        second = fused.compare_at(logits, 1.0, asked)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eager = compare_at(logits, 1.0, asked)
    torch.testing.assert_close(first, eager, rtol=0, atol=0)
    torch.testing.assert_close(second, eager, rtol=0, atol=0)
