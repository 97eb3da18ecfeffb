"""Run the GPU kernels and compare them with the eager path in float64; prints JSON.

Triton decides at import whether it interprets, so this is a process of its own:

    TRITON_INTERPRET=1 python tests/support/interpreted_kernels.py     on a CPU
    python tests/support/interpreted_kernels.py --device cuda          the kernels themselves
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from strategies.comparison import Asked, Dense, Labels, compare_at
from strategies.fused import KINDS, compare_rows
from strategies.parts import Part

ROWS, WIDTH = 6, 37


@dataclass(frozen=True, slots=True)
class Scene:
    """One comparison; C rows, V entries."""

    student: Tensor  # [C, V]
    roles: dict[str, Tensor]  # [C, V]
    labels: Tensor  # [C, 1]

    def asked(self, *parts: tuple[Part, float]) -> list[Asked]:
        """Terms with their factors, of the scene's own dtype."""
        return [self._one(part, factor) for part, factor in parts]

    def _one(self, part: Part, factor: float) -> Asked:
        if part.role is None:
            return Asked(part, factor, Labels(self.labels), self.labels, True)
        logits = self.roles[part.role]
        answer = Dense(logits, bool(torch.isneginf(logits).any()), part.role)
        weight = torch.linspace(0.5, 1.5, len(logits), dtype=logits.dtype, device=logits.device)
        return Asked(part, factor * weight.unsqueeze(1), answer, self.labels, True)

    def double(self) -> "Scene":
        """In float64."""
        roles = {name: logits.double() for name, logits in self.roles.items()}
        return Scene(self.student.double(), roles, self.labels)


def scene(device: str, size: float = 2.0) -> Scene:
    make = torch.Generator().manual_seed(0)
    student, one, other = (size * torch.randn(ROWS, WIDTH, generator=make) for _ in range(3))
    labels = torch.randint(WIDTH, (ROWS, 1), generator=make)
    roles = {"teacher": one.to(device), "other": other.to(device)}
    return Scene(student.to(device), roles, labels.to(device))


def parts_of(kinds: Sequence[str], role: str = "teacher") -> list[tuple[Part, float]]:
    """One term a kind, each with another factor."""
    made = []
    for number, kind in enumerate(kinds):
        of = None if kind == "cross_entropy" else role
        part = Part(kind, role=of, beta=0.3, skew=0.2)  # type: ignore[arg-type]
        made.append((part, 0.3 + 0.2 * number))
    return made


def difference(
    given: Scene,
    parts: list[tuple[Part, float]],
    temperature: float | Tensor = 1.3,
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Largest errors of values and gradient, relative to the largest entry of each."""
    exact = given.double()
    double = temperature.double() if isinstance(temperature, Tensor) else temperature
    place = None if dtype is None else torch.empty_like(given.student, dtype=dtype)
    values, gradient = compare_rows(given.student, temperature, given.asked(*parts), place)
    true_values, true_gradient = compare_at(exact.student, double, exact.asked(*parts))
    assert gradient is not None and true_gradient is not None
    return {
        "value": max(error(*pair) for pair in zip(values, true_values, strict=True)),
        "gradient": error(gradient, true_gradient),
    }


def in_place(given: Scene, parts: list[tuple[Part, float]]) -> dict[str, float]:
    """As `difference`, the gradient written over the student's logits."""
    exact, logits = given.double(), given.student.clone()
    _, gradient = compare_rows(logits, 1.3, given.asked(*parts), logits)
    true = compare_at(exact.student, 1.3, exact.asked(*parts))[1]
    assert gradient is logits and true is not None
    return {"value": 0.0, "gradient": error(gradient, true)}


def error(found: Tensor, true: Tensor) -> float:
    gap = (found.double() - true).abs().max()
    return float(gap / true.abs().max().clamp_min(1e-30)) if gap else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    given, every = scene(device), parts_of(KINDS)
    found = {kind: difference(given, parts_of([kind])) for kind in KINDS}
    found["all at once"] = difference(given, every)
    found["all at once, bfloat16"] = difference(given, every, dtype=torch.bfloat16)
    found["two roles"] = difference(given, [*every, *parts_of(KINDS[1:], "other")])
    found["one kind twice"] = difference(given, [*every, *parts_of(["jensen_shannon"])])
    rows = torch.linspace(0.5, 3.0, ROWS, device=device).unsqueeze(1)
    found["in place"] = in_place(given, every)
    found["a temperature a row"] = difference(given, every, rows)
    found["smoothed labels"] = difference(
        given, [*parts_of(["forward_kl"]), (Part("cross_entropy", label_smoothing=0.1), 0.7)]
    )
    narrow = given.roles["teacher"].clone()
    narrow[:, WIDTH - 5 :] = -torch.inf
    lacking = replace(given, roles={"teacher": narrow})
    finite = [kind for kind in KINDS if kind != "reverse_kl"]
    found["a role that lacks entries"] = difference(lacking, parts_of(finite))
    found["far apart"] = difference(scene(device, 60.0), every, 1.0)
    without = [replace(one, wanted=False) for one in given.asked(*every)]
    values, gradient = compare_rows(given.student, 1.3, without)
    exact, _ = compare_at(given.double().student, 1.3, given.double().asked(*every))
    assert gradient is None
    worst = max(error(*pair) for pair in zip(values, exact, strict=True))
    found["without a gradient"] = {"value": worst, "gradient": 0.0}
    same = replace(given, roles={"teacher": given.student.clone()})
    values, gradient = compare_rows(same.student, 1.3, same.asked(*parts_of(KINDS[1:])))
    assert gradient is not None
    largest = max(float(value.abs().max()) for value in values)
    found["equal"] = {"value": largest, "gradient": float(gradient.abs().max())}
    wrong = replace(given, labels=(given.labels + 1) % WIDTH)
    ours = compare_rows(wrong.student, 1.3, wrong.asked(*every))[1]
    truth = compare_at(given.double().student, 1.3, given.double().asked(*every))[1]
    assert ours is not None and truth is not None
    found["planted"] = {"value": 0.0, "gradient": error(ours, truth)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
