"""Terms on layers and attention written once more, plainly: loops and float64, autograd below.

Shares no code with `strategies`. A feature is a list of samples, each a list of positions, each a
vector; so texts of unequal length and maps of positions are the same thing here.
"""

from itertools import chain, permutations
from typing import Any

import torch
from torch import Tensor

Feature = list[list[Tensor]]
"""By sample, by position: [C] float64."""


def oracle(
    term: dict[str, Any],
    pairs: list[tuple[Feature, Feature]],
    group: list[int],
    maps: bool,
) -> Tensor:
    """The mean that a term is, over whatever it counts.

    Args:
        term: its fields, defaults included.
        pairs: what student and role have of each pair of layers.
        group: of each sample.
        maps: whether a sample is its whole map where samples are compared, and not its mean.
    """
    match term["kind"]:
        case "hidden_states":
            return _sum(_hidden(term["distance"], *pair) for pair in pairs)
        case "attention_maps":
            return _sum(_attention(term, *pair) for pair in pairs)
        case "attention_transfer":
            return _sum(_transfer(*pair) for pair in pairs)
        case "fsp":
            flows = zip(pairs[::2], pairs[1::2], strict=True)
            return _sum(_flow(*flow) for flow in flows)
        case "similarity_preserving":
            return _sum(_similarity(*pair, group, maps) for pair in pairs)
        case "relational":
            return _sum(_relation(term["relation"], *pair, group, maps) for pair in pairs)
    raise ValueError(term["kind"])


def _sum(values: Any) -> Tensor:
    found = torch.zeros((), dtype=torch.float64)
    for value in values:
        found = found + value
    return found


def _mean(values: list[Tensor]) -> Tensor:
    return _sum(values) / max(1, len(values))


def _norm(vector: Tensor) -> Tensor:
    return _sum(x * x for x in vector).sqrt()


def _hidden(distance: str, ours: Feature, theirs: Feature) -> Tensor:
    """Texts: mean over all positions. Maps of one size: the same."""
    values = []
    for a, b in zip(chain(*ours), chain(*theirs), strict=True):
        if distance == "mse":
            values.append(_mean([(x - y) ** 2 for x, y in zip(a, b, strict=True)]))
        elif distance == "normalised_mse":
            a, b = a / _norm(a), b / _norm(b)
            values.append(_mean([(x - y) ** 2 for x, y in zip(a, b, strict=True)]))
        else:
            values.append(1 - _sum(x * y for x, y in zip(a, b, strict=True)) / _norm(a) / _norm(b))
    return _mean(values)


def _attention(term: dict[str, Any], ours: Feature, theirs: Feature) -> Tensor:
    """Here a position's vector is [H, K]."""
    values = []
    for a, b in zip(chain(*ours), chain(*theirs), strict=True):
        if term["heads"] == "mean":
            a, b = a.mean(0)[None], b.mean(0)[None]
        heads = []
        for p, q in zip(b, a, strict=True):
            if term["distance"] == "mse":
                heads.append(_sum((x - y) ** 2 for x, y in zip(p, q, strict=True)))
            else:
                terms = zip(p, q, strict=True)
                heads.append(_sum(x * (x.log() - y.log()) for x, y in terms if x > 0))
        values.append(_mean(heads))
    return _mean(values)


def _transfer(ours: Feature, theirs: Feature) -> Tensor:
    values = []
    for sample, other in zip(ours, theirs, strict=True):
        first, second = (
            torch.stack([_mean([x * x for x in position]) for position in one])
            for one in (sample, other)
        )
        first, second = first / _norm(first), second / _norm(second)
        values.append(_sum((x - y) ** 2 for x, y in zip(first, second, strict=True)))
    return _mean(values)


def _flow(first: tuple[Feature, Feature], second: tuple[Feature, Feature]) -> Tensor:
    values = []
    for index in range(len(first[0])):
        ours, theirs = (
            _sum(torch.outer(x, y) for x, y in zip(first[s][index], second[s][index], strict=True))
            / len(first[s][index])
            for s in (0, 1)
        )
        values.append(((ours - theirs) ** 2).sum())
    return _mean(values)


def _vectors(feature: Feature, group: list[int], of: int, maps: bool) -> list[Tensor]:
    mine = [sample for sample, g in zip(feature, group, strict=True) if g == of]
    if maps:
        return [torch.cat(sample) for sample in mine]
    return [_sum(sample) / len(sample) for sample in mine]


def _similarity(ours: Feature, theirs: Feature, group: list[int], maps: bool) -> Tensor:
    values = []
    for of in dict.fromkeys(group):
        matrices = []
        for feature in (ours, theirs):
            v = _vectors(feature, group, of, maps)
            rows = [torch.stack([a @ b for b in v]) for a in v]
            matrices.append(torch.stack([row / _norm(row) for row in rows]))
        size = len(matrices[0])
        values.append(((matrices[0] - matrices[1]) ** 2).sum() / size**2)
    return _mean(values)


def _huber(difference: Tensor) -> Tensor:
    size = difference.abs()
    return size**2 / 2 if size <= 1 else size - 0.5


def _relation(
    relation: str, ours: Feature, theirs: Feature, group: list[int], maps: bool
) -> Tensor:
    values = []
    for of in dict.fromkeys(group):
        sides = [_vectors(f, group, of, maps) for f in (ours, theirs)]
        places = range(len(sides[0]))
        if relation == "distance" and len(places) > 2:
            pairs = list(permutations(places, 2))
            mean = [_mean([_norm(v[i] - v[j]) for i, j in pairs]) for v in sides]
            psi = [
                [_norm(v[i] - v[j]) / m for i, j in pairs] for v, m in zip(sides, mean, strict=True)
            ]
        elif relation == "angle" and len(places) > 2:
            triples = list(permutations(places, 3))
            psi = [[_cosine(v[i] - v[j], v[k] - v[j]) for i, j, k in triples] for v in sides]
        else:
            continue
        values.append(_mean([_huber(x - y) for x, y in zip(*psi, strict=True)]))
    return _mean(values)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / (_norm(a) * _norm(b))
