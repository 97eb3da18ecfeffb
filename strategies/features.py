"""Terms on hidden states, feature maps and attention of student and role.

A feature of N positions is [N, C], or [N, C, ...] where each of N samples has a map of positions of
its own. Arithmetic in float32 (float64 for float64 students). All values are 0 where student and
role agree, and smooth there.

Letters: N loss-bearing positions, C channels, S samples, P positions of a sample, b samples of a
group, H heads, K keys.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import measuring
from .contract import (
    Ask,
    AttentionSignal,
    Batch,
    CustomFeatureTerm,
    GradientsSignal,
    LayersSignal,
    Outputs,
    Signals,
)
from .heads import compute_dtype
from .measuring import Wanted, wanted
from .pairs import Pair
from .specs import (
    AttentionMapsSpec,
    AttentionTransferSpec,
    FeatureTermSpec,
    FlowSpec,
    HiddenStatesSpec,
    InputGradientsSpec,
    Number,
    RelationalSpec,
    SimilarityPreservingSpec,
)

Sides = tuple[Tensor, Tensor]
"""What the student and what the role has."""

RELATED = 3
"""Samples of the smallest group with relations: the one distance of two is its own mean."""


@dataclass(frozen=True, slots=True)
class FeatureTerm:
    """A term of an objective on what is inside, with the layers it has found.

    Without pairs it knows what it is but cannot be computed.
    """

    name: str
    spec: FeatureTermSpec
    pairs: tuple[Pair, ...]
    own: CustomFeatureTerm | None = None  # of `import_features`

    def asks(self) -> tuple[Ask, ...]:
        """The role's layers, or their attention; nothing of a member of the student."""
        if self.spec.peers:
            return ()
        layers = tuple(dict.fromkeys(pair.role for pair in self.pairs))
        return (Ask(self.spec.role, self.spec.looks_at, layers),)

    def numbers(self) -> Mapping[str, Number]:
        """The weight."""
        return self.spec.numbers()

    def measures(self) -> list[Wanted]:
        """What must be measured of the student before `total`."""
        by = getattr(self.spec, "weigh_by", None)
        return [] if by is None else [wanted(by.measure, self.spec.role)]

    def count(self, batch: Batch, signals: Signals) -> Tensor:
        """Positions, samples, or groups with enough samples for a relation; scalar float32."""
        if self.own is not None:
            return self.own.count(batch)
        match self.spec:
            case SimilarityPreservingSpec(group=group):
                found = _groups(batch, group, 1)
            case RelationalSpec(group=group):
                found = _groups(batch, group, RELATED)
            case AttentionTransferSpec() | FlowSpec():
                found = _runs(batch)
            case InputGradientsSpec():
                signal = signals[f"{self.spec.role}.gradients"]
                assert isinstance(signal, GradientsSignal)  # it was asked for
                theirs = [self._placed(signal.gradients[pair.role]) for pair in self.pairs]
                return torch.stack([_pointing(g).sum() for g in theirs]).sum().to(torch.float32)
            case _:
                return batch.mask.sum().to(torch.float32)
        return torch.tensor(float(len(found)), device=batch.targets.device)

    def total(
        self, outputs: Outputs, batch: Batch, signals: Signals, known: Mapping[Wanted, Tensor]
    ) -> Tensor:
        """Scalar sum over pairs and over what `count` counts; 0 that reaches the layers for none.

        Args:
            outputs: with the layers of every pair.
            batch: of the outputs.
            signals: with the layers of the role.
            known: of `measures`.

        Raises:
            ValueError: no layers have been found, or student and role cover different positions.
        """
        if not self.pairs:
            raise ValueError(f"{self.name} needs its layers, and none have been found for it")
        sides = [self._sides(pair, outputs, signals) for pair in self.pairs]
        with torch.autocast(sides[0][0].device.type, enabled=False):
            reached = sum((ours.sum() * 0 for ours, _ in sides), start=sides[0][0].new_zeros(()))
            return reached + self._sum(sides, batch, known)

    def _sides(self, pair: Pair, outputs: Outputs, signals: Signals) -> Sides:
        signal = signals[f"{self.spec.role}.{self.spec.looks_at}"]
        if isinstance(signal, AttentionSignal):
            ours, theirs = outputs.attention[pair.student], signal.probabilities[pair.role]
            ours = ours[..., : theirs.shape[-1]]  # past a sample's end there is nothing
        elif isinstance(signal, GradientsSignal):
            both = outputs.gradients[pair.student], signal.gradients[pair.role]
            ours, theirs, _ = gradient_pairs(*both)
        else:
            assert isinstance(signal, LayersSignal)  # the other kind of what is inside
            theirs = signal.outputs[pair.role]
            layers, name = outputs.layers, pair.student
            ours = layers[name] if pair.projector is None else outputs.projected[pair.projector]
        if len(ours) != len(theirs):
            raise ValueError(
                f"{self.name}: {pair.student} covers {len(ours)} positions and {pair.role} of role "
                f"{self.spec.role!r} {len(theirs)}; ask the role about the same"
            )
        dtype = compute_dtype(ours)
        return ours.to(dtype), theirs.to(dtype)

    def _sum(
        self, sides: list[Sides], batch: Batch, known: Mapping[Wanted, Tensor]
    ) -> Tensor | int:
        if self.own is not None:
            return sum(self.own.total(*both, batch) for both in sides)
        match self.spec:
            case HiddenStatesSpec(distance=distance):
                values = [hidden_distance(*both, distance) for both in sides]
                return self._weighed(values, batch, known)
            case AttentionMapsSpec(distance=distance, heads=heads):
                if heads == "mean":
                    sides = [(a.mean(1, keepdim=True), b.mean(1, keepdim=True)) for a, b in sides]
                values = [attention_distance(*both, distance) for both in sides]
                return self._weighed(values, batch, known)
            case AttentionTransferSpec():
                return _each(sides, lambda features: _samples(features, batch), transfer_distance)
            case FlowSpec():
                pairs = zip(sides[::2], sides[1::2], strict=True)
                return sum(_flow_distances(*pair, batch) for pair in pairs)
            case InputGradientsSpec():
                placed = [(self._placed(ours), self._placed(theirs)) for ours, theirs in sides]
                return torch.stack([gradient_distance(*both).sum() for both in placed]).sum()
            case SimilarityPreservingSpec(group=group):
                return _each(sides, lambda x: _vectors(x, batch, group, 1), similarity_distance)
            case RelationalSpec(group=group, relation=relation):
                value = relational_distance if relation == "distance" else relational_angle
                return _each(sides, lambda x: _vectors(x, batch, group, RELATED), value)
        raise TypeError(f"{type(self.spec).__name__} has no arithmetic")

    def _placed(self, gradients: Tensor) -> Tensor:
        """[N, d, places]: gradients at the places that are compared."""
        whole = _by_place(gradients)
        return whole[..., :1] if self.spec.tokens == "first" else whole  # type: ignore[attr-defined]

    def _weighed(
        self, values: list[Tensor], batch: Batch, known: Mapping[Wanted, Tensor]
    ) -> Tensor:
        """Sum of [N] values of each pair, weighed position by position."""
        value = torch.stack(values).sum(0)
        for measure in self.measures():
            by = self.spec.weigh_by  # type: ignore[attr-defined]  # `measures` has looked
            value = value * measuring.weights(by, known[measure], batch).to(value.dtype)
        return value.sum()


# --- position by position ------------------------------------------------------------------------


def hidden_distance(ours: Tensor, theirs: Tensor, distance: str) -> Tensor:
    """[N] from features of one shape; positions of a map are averaged."""
    ours, theirs = ours.movedim(1, -1), theirs.movedim(1, -1)
    if distance != "mse":
        ours, theirs = _unit(ours, -1), _unit(theirs, -1)
    squares = (ours - theirs).square()
    # 1 - cos as half a squared distance: nothing cancels where they agree.
    value = squares.sum(-1) / 2 if distance == "cosine" else squares.mean(-1)
    return value if value.ndim == 1 else value.flatten(1).mean(1)


def attention_distance(ours: Tensor, theirs: Tensor, distance: str) -> Tensor:
    """[N] from probabilities [N, H, K]."""
    if distance == "mse":
        return (ours - theirs).square().sum(-1).mean(1)
    tiny = torch.finfo(ours.dtype).tiny
    log_ours = ours.clamp_min(tiny).log()
    return (torch.xlogy(theirs, theirs) - theirs * log_ours).sum(-1).mean(1)


def gradient_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """[N, places], in [0, 4], from gradients [N, d, places]; 0 where the role has none."""
    apart = (_unit(ours, 1) - _unit(theirs, 1)).square().sum(1)
    return torch.where(_pointing(theirs), apart, 0.0)


def gradient_pairs(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both, [N, d, places] each, and [N, places] where the role has one.

    Args:
        ours: [N, d], or [N, d, longest] of texts.
        theirs: the same; the longest text may be another.
    """
    ours, theirs = _by_place(ours), _by_place(theirs)
    missing = ours.shape[-1] - theirs.shape[-1]  # past a sample's end there is nothing
    ours = functional.pad(ours, (0, max(0, -missing)))
    theirs = functional.pad(theirs, (0, max(0, missing)))
    return ours, theirs, _pointing(theirs)


def _by_place(gradients: Tensor) -> Tensor:
    return gradients.unsqueeze(2) if gradients.ndim == 2 else gradients


def _pointing(gradients: Tensor) -> Tensor:
    """[N, places] bool: whether a gradient is long enough to have a direction."""
    return torch.linalg.vector_norm(gradients.float(), dim=1) > 1e-12


# --- sample by sample ----------------------------------------------------------------------------


def transfer_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Scalar from the features of one sample, [P, C] and [P, C']."""
    first, second = (_unit(x.square().mean(1), 0) for x in (ours, theirs))
    return (first - second).square().sum()


def _flow_distances(first: Sides, second: Sides, batch: Batch) -> Tensor | int:
    """Sum over samples of the distance of two FSP matrices."""
    matrices = [
        [a.T @ b / len(a) for a, b in zip(_samples(one, batch), _samples(two, batch), strict=True)]
        for one, two in zip(first, second, strict=True)
    ]
    return sum((ours - theirs).square().sum() for ours, theirs in zip(*matrices, strict=True))


# --- group by group ------------------------------------------------------------------------------


def similarity_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Scalar from the vectors of one group, [b, C] and [b, C']."""
    first, second = (_unit(x @ x.T, 1) for x in (ours, theirs))
    return (first - second).square().mean()


def relational_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Scalar from the vectors of one group of three and more: mean over pairs."""
    pairs = len(ours) * (len(ours) - 1)

    def relative(vectors: Tensor) -> Tensor:
        between = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        mean = between.sum() / pairs
        return between / torch.where(mean > 0, mean, 1.0)

    return _huber(relative(ours), relative(theirs)).sum() / pairs


def relational_angle(ours: Tensor, theirs: Tensor) -> Tensor:
    """Scalar from the vectors of one group of three and more: mean over ordered triples."""
    size = len(ours)
    same = torch.eye(size, dtype=torch.bool, device=ours.device)
    distinct = ~(same[:, :, None] | same[:, None, :] | same[None])

    def cosines(vectors: Tensor) -> Tensor:
        """[i, j, k]: of the angle at j between i and k."""
        away = _unit(vectors[:, None] - vectors[None], -1)
        return torch.einsum("ijc,kjc->ijk", away, away)

    values = _huber(cosines(ours), cosines(theirs))
    return torch.where(distinct, values, 0.0).sum() / (size * (size - 1) * (size - 2))


def _unit(vectors: Tensor, dim: int) -> Tensor:
    """Of length 1 along `dim`; one of length 0 stays, with a gradient of its own size."""
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / torch.where(length > 1e-12, length, 1.0)


def _huber(ours: Tensor, theirs: Tensor) -> Tensor:
    return functional.smooth_l1_loss(ours, theirs, reduction="none")


# --- what belongs together -----------------------------------------------------------------------


def _each(
    sides: list[Sides],
    cut: Callable[[Tensor], list[Tensor]],
    distance: Callable[[Tensor, Tensor], Tensor],
) -> Tensor | int:
    """Sum over pairs and pieces."""
    return sum(
        distance(ours, theirs)
        for both in sides
        for ours, theirs in zip(*map(cut, both), strict=True)
    )


def _runs(batch: Batch) -> list[int]:
    """Loss-bearing positions of each sample; those of a sample follow each other."""
    index = batch.sample_index[batch.mask]
    return index.unique_consecutive(return_counts=True)[1].tolist()


def _samples(features: Tensor, batch: Batch) -> list[Tensor]:
    """[P, C] of each sample."""
    if features.ndim > 2:
        return list(features.flatten(2).transpose(1, 2))
    return list(features.split(_runs(batch))) if len(features) else []


def _groups(batch: Batch, rows: int, least: int) -> list[tuple[int, int]]:
    """Samples of each group of rows that has at least so many: its first sample and the end."""
    runs = _runs(batch)
    firsts = torch.tensor([0, *runs[:-1]], dtype=torch.int64).cumsum(0)[: len(runs)]
    group = measuring.group_of(batch, rows)[firsts.to(batch.targets.device)]
    ends = group.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    spans = zip([0, *ends], ends, strict=False)
    return [(begin, end) for begin, end in spans if end - begin >= least]


def _vectors(features: Tensor, batch: Batch, rows: int, least: int) -> list[Tensor]:
    """[b, C] of each group: a vector a sample, the mean over its positions or its whole map."""
    if features.ndim > 2:
        whole = features.flatten(1)
    else:
        means = [sample.mean(0) for sample in _samples(features, batch)]
        whole = torch.stack(means) if means else features
    return [whole[begin:end] for begin, end in _groups(batch, rows, least)]
