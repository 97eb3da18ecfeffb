"""Whole role terms written once more, plainly: targets, measures, weights and temperatures.

Position by position in float64, with probabilities and loops. Shares no code with `strategies`; the
divergences are those of `loss_oracle`, gradients come from autograd.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from loss_oracle import oracle
from torch import Tensor


@dataclass(frozen=True)
class Known:
    """What one position knows."""

    student: Tensor  # [V] float64
    roles: Mapping[str, Tensor]  # by role [V] float64
    label: int
    head: Tensor | None = None  # [V, d] of the term's role


def term_sum(
    term: Mapping[str, Any],
    logits: Tensor,
    roles: Mapping[str, Tensor],
    labels: Tensor,
    rows: list[int],
    head: Tensor | None = None,
) -> tuple[Tensor, float]:
    """Sum and count of a term.

    Args:
        term: its fields, defaults included.
        logits: [N, V], the student's.
        roles: by role [N, V'] logits.
        labels: [N].
        rows: of each position, the row of the micro-batch it lies in.
        head: [V, d] of the term's role, for similarities.
    """
    role = term["role"]
    known = [
        Known(
            logits[n].double(),
            {name: of_role[n].double() for name, of_role in roles.items()},
            int(labels[n]),
            head,
        )
        for n in range(len(labels))
    ]
    counted = [_counts(term["where"], one, role) for one in known]
    factors = [1.0] * len(known)
    if term["weigh_by"] is not None:
        factors = _factors(term["weigh_by"], [_measured(term, one) for one in known], rows)
    base = term.get("temperature", 1.0)
    temperatures = [base] * len(known)
    if term.get("temperature_by") is not None:
        by = term["temperature_by"]
        values = [measured(by["measure"], one, role) ** by["power"] for one in known]
        means = _means(values, rows, by["group"])
        temperatures = [
            max(by["floor"], base + by["beta"] * (mean - value))
            for mean, value in zip(means, values, strict=True)
        ]
    total = 0.0 * logits.double().sum()
    for one, counts, factor, t in zip(known, counted, factors, temperatures, strict=True):
        target = one.roles[role]
        for transform in term["target"]:
            target = transformed(transform, target, one, t)
        numbers = {
            name: term[name]
            for name in (
                *("beta", "skew", "alpha", "head_mass", "label_weight", "others_weight"),
                *("logit_scale", "margin", "over"),
            )
            if name in term
        }
        value = oracle(
            term["kind"],
            one.student.unsqueeze(0),
            target.unsqueeze(0),
            torch.tensor([one.label]),
            t,
            **numbers,
        )
        total = total + counts * factor * value
    return total, float(sum(counted))


def transformed(spec: Mapping[str, Any], logits: Tensor, one: Known, t: float) -> Tensor:
    """[V] logits after one transform, to be softened at `t`."""
    y, entries = one.label, len(logits)
    w = int(logits.argmax())
    here = [i for i in range(entries) if logits[i] > -torch.inf]
    match spec["kind"]:
        case "swap":
            changed = logits.clone()
            changed[w], changed[y] = logits[y].clone(), logits[w].clone()
            return changed
        case "smooth_wrong":
            if w == y:
                return logits
            p = torch.full_like(logits, (1 - spec["confidence"]) / (entries - 1))
            p[y] = spec["confidence"]
            return t * p.log()
        case "rectify":
            p = (logits / t).softmax(0)
            if w != y:
                both, raised, lowered = float(p[y] + p[w]), float(p[y] + 1) / 2, float(p[w]) / 2
                p[y] = both * raised / (raised + lowered)
                p[w] = both * lowered / (raised + lowered)
            return t * p.log()
        case "keep_label":
            p = (logits / t).softmax(0)
            left = (1 - p[y]) / max(1, len([i for i in here if i != y]))
            return t * torch.stack(
                [_or_none(p[y] if i == y else left, i, here) for i in range(entries)]
            )
        case "keep_top":
            p = (logits / t).softmax(0)
            kept = p.argsort(descending=True).tolist()[: math.ceil(spec["share"] * entries)]
            others = [i for i in here if i not in kept]
            left = p[others].sum() / max(1, len(others))
            return t * torch.stack(
                [_or_none(p[i] if i in kept else left, i, here) for i in range(entries)]
            )
        case "similarity":
            assert one.head is not None
            rows = [row.double() / row.double().norm() for row in one.head]
            cosines = [float(rows[y] @ row) for row in rows]
            powers = [math.copysign(abs(c) ** spec["power"], c) for c in cosines]
            return t * (torch.tensor(powers, dtype=torch.float64) / spec["temperature"])
        case "uniform":
            return torch.tensor([0.0 if i in here else -math.inf for i in range(entries)]).double()
        case "likeliest":
            return torch.tensor([0.0 if i == w else -math.inf for i in range(entries)]).double()
        case "delta":
            ours = one.roles[spec["student_base"]].softmax(0)
            theirs = one.roles[spec["teacher_base"]].softmax(0)
            # What a base lacks has no ratio.
            ratio = torch.where((ours > 0) & (theirs > 0), ours / theirs, 1.0)
            return (logits.softmax(0) * ratio ** spec["alpha"]).log()
        case "towards_student":
            share = spec["share"]
            ours = one.student.detach()
            return share * logits + (1 - share) * ours if share > 0 else ours
        case "mix":
            mixed = torch.zeros(entries, dtype=torch.float64)
            sides = [logits, *(one.roles[name] for name in spec["roles"])]
            weights = list(spec["weights"])
            if spec["by"] == "entropy":
                weights = [
                    weight * math.exp(-_entropy((side / t).softmax(0)))
                    for weight, side in zip(weights, sides, strict=True)
                ]
            for weight, side in zip(weights, sides, strict=True):
                mixed += weight / sum(weights) * (side / t).softmax(0)
            return t * mixed.log()
    raise ValueError(spec["kind"])


def _or_none(p: Tensor, entry: int, here: list[int]) -> Tensor:
    return p.log() if entry in here else torch.tensor(-math.inf, dtype=torch.float64)


def measured(measure: str, one: Known, role: str) -> float:
    """One measure of one position."""
    q = one.student.detach().softmax(0)
    theirs = one.roles.get(role)
    match measure:
        case "student_entropy":
            return _entropy(q)
        case "student_confidence":
            return float(q.max())
        case "student_margin":
            first, second = q.sort(descending=True).values[:2].tolist()
            return first - second
        case "student_doubt":
            return 1 / float(q.max())
        case "student_loss":
            return -math.log(float(q[one.label]))
    assert theirs is not None
    p = theirs.softmax(0)
    match measure:
        case "role_entropy":
            return _entropy(p)
        case "role_confidence":
            return float(p.max())
        case "role_right":
            return float(int(p.argmax()) == one.label)
        case "dissimilarity":
            held = theirs > -torch.inf
            ours, known = one.student.detach()[held], theirs[held]
            return 1 - float(ours @ known / (ours.norm() * known.norm()))
        case "gap":
            return sum(
                float(a) * math.log(float(a / b)) for a, b in zip(p, q, strict=True) if a > 0
            )
    raise ValueError(measure)


def _entropy(p: Tensor) -> float:
    """Over log V, so 1 for equal probabilities."""
    return -sum(a * math.log(a) for a in p.tolist() if a > 0) / math.log(len(p))


def _counts(where: str | None, one: Known, role: str) -> float:
    if where is None:
        return 1.0
    right = measured("role_right", one, role)
    return right if where == "role_right" else 1 - right


def _measured(term: Mapping[str, Any], one: Known) -> float:
    return measured(term["weigh_by"]["measure"], one, term["role"])


def _factors(by: Mapping[str, Any], values: list[float], rows: list[int]) -> list[float]:
    values = [value ** by["power"] for value in values]
    if by["mean"]:
        values = _means(values, rows, by["group"])
    if by["top"] is not None:
        values = _in_top(values, rows, by["group"], by["top"])
    return [1 - value for value in values] if by["complement"] else values


def _means(values: list[float], rows: list[int], group: int) -> list[float]:
    found = []
    for row in rows:
        mine = [v for v, other in zip(values, rows, strict=True) if other // group == row // group]
        found.append(sum(mine) / len(mine))
    return found


def _in_top(values: list[float], rows: list[int], group: int, share: float) -> list[float]:
    chosen = [0.0] * len(values)
    for each in {row // group for row in rows}:
        mine = [n for n, row in enumerate(rows) if row // group == each]
        best = sorted(mine, key=lambda n: -values[n])[: math.ceil(share * len(mine))]
        for n in best:
            chosen[n] = 1.0
    return chosen
