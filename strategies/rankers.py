"""Terms on a ranker's scores: pairs of items drawn for each user, the better one to come first.

Which pairs a user gets is a hash of (seed, epoch, user), so neither the cut over ranks and
micro-batches nor the order of rows changes them. Scores of all items are at hand, [N, V]: rankers
are served in encoding `full`.

Letters: N users (loss-bearing positions), V items, P items of a user, M pairs of a user, padded.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .contract import Ask, Batch, DenseSignal, Outputs, Signals
from .heads import compute_dtype
from .popularity import strata_of
from .specs import BprSpec, Number, RankTermSpec, StratifiedPairsSpec
from .targets import mixed_bits, uniform


def rank_term(name: str, spec: RankTermSpec, popularity: Tensor | None) -> "RankTerm":
    """A term over items of which is known how many users are trained on each, [V] int64.

    Raises:
        ValueError: there are fewer items than strata.
    """
    stratum = None
    if isinstance(spec, StratifiedPairsSpec) and popularity is not None:
        stratum = strata_of(popularity, spec.strata)
    return RankTerm(name, spec, None if popularity is None else len(popularity), stratum)


@dataclass(frozen=True, slots=True)
class RankTerm:
    """A term of an objective on the order of items.

    Without items it knows what it is but cannot be computed.
    """

    name: str
    spec: RankTermSpec
    items: int | None  # V
    stratum: Tensor | None  # [V] int64, of terms that have strata

    def asks(self) -> tuple[Ask, ...]:
        """The scores of the spec's role, if it has one."""
        return tuple(Ask(role) for role in self.spec.served_roles)

    def numbers(self) -> Mapping[str, Number]:
        """The weight."""
        return self.spec.numbers()

    def count(self, batch: Batch, signals: Signals) -> Tensor:
        """Pairs, scalar float32."""
        users = users_of(batch)
        lacking = ~users.owns(self._items)
        match self.spec:
            case BprSpec(negatives=negatives):
                pairs = (users.items >= 0).sum(1) * lacking.any(1) * negatives
            case StratifiedPairsSpec(strata=strata, pairs=wanted):
                stratum = self._known_stratum
                shares = enumerate(shares_of(wanted, strata))
                enough = [(lacking & (stratum == s)).sum(1).ge(2) * share for s, share in shares]
                pairs = torch.stack(enough)
            case _:
                raise TypeError(f"{type(self.spec).__name__} has no arithmetic")
        return pairs.sum().to(torch.float32)

    def total(
        self, outputs: Outputs, batch: Batch, signals: Signals, numbers: Mapping[str, float]
    ) -> Tensor:
        """Sum over pairs of -log sigmoid(better - worse), scalar; 0 that reaches the scores.

        Raises:
            ValueError: student, role and data have different numbers of items, or the data's
                popularity is not known.
        """
        ours = scores_of(outputs)
        self._check("the student", ours)
        drawn = self._drawn(batch, signals)
        with torch.autocast(ours.device.type, enabled=False):
            scores = ours.to(compute_dtype(ours))
            margin = scores.gather(1, drawn.better) - scores.gather(1, drawn.worse)
            lost = -functional.logsigmoid(margin)
            return torch.where(drawn.there, lost, 0.0).sum() + scores.sum() * 0

    @torch.no_grad()
    def _drawn(self, batch: Batch, signals: Signals) -> "Drawn":
        users, spec = users_of(batch), self.spec
        key = user_keys(users.number, spec.seed, batch.epoch)
        owned = users.owns(self._items)
        if isinstance(spec, BprSpec):
            return bpr_pairs(users.items, owned, key, spec.negatives)
        assert isinstance(spec, StratifiedPairsSpec)
        signal = signals[spec.role]
        if not isinstance(signal, DenseSignal):
            raise ValueError(f"{self.name} needs all scores of {spec.role!r}; use encoding full")
        self._check(f"role {spec.role!r}", signal.logits)
        return stratified_pairs(
            signal.logits, owned, self._known_stratum, key, spec.pairs, spec.decay, spec.kept
        )

    @property
    def _items(self) -> int:
        if self.items is None:
            raise ValueError(f"{self.name} needs the popularity of items, and none has been given")
        return self.items

    @property
    def _known_stratum(self) -> Tensor:
        assert self.stratum is not None  # there where items are
        return self.stratum

    def _check(self, who: str, scores: Tensor) -> None:
        if scores.shape[1] != self._items:
            raise ValueError(
                f"{self.name}: {who} scores {scores.shape[1]} items, and the data have "
                f"{self._items}; use models of as many"
            )


@dataclass(frozen=True, slots=True)
class Users:
    """The users of a batch's loss-bearing positions."""

    number: Tensor  # [N] int64
    items: Tensor  # [N, P] int64, rising, -1 past their end

    def owns(self, items: int) -> Tensor:
        """[N, V] bool: what each user is trained on."""
        owned = self.items.new_zeros(len(self.items), items + 1, dtype=torch.bool)
        places = self.items.masked_fill(self.items < 0, items)  # a column that is cut off again
        return owned.scatter_(1, places, True)[:, :items]


def users_of(batch: Batch) -> Users:
    """The users, in order.

    Raises:
        ValueError: the batch holds none.
    """
    if "items" not in batch.inputs:
        raise ValueError(
            f"the batch has {', '.join(batch.inputs)} and no users; give the data format "
            "interactions"
        )
    kept = batch.mask[:, 0]
    return Users(batch.inputs["users"][kept], batch.inputs["items"][kept])


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pairs of items, [N, M] each."""

    better: Tensor  # int64
    worse: Tensor  # int64
    there: Tensor  # bool; False: padding


def bpr_pairs(items: Tensor, owned: Tensor, key: Tensor, negatives: int) -> Drawn:
    """Each item of a user against some the user lacks, drawn uniformly with replacement.

    Args:
        items: [N, P] int64, rising, -1 past their end.
        owned: [N, V] bool of the same.
        key: [N] of `user_keys`.
        negatives: pairs of each item.

    Returns:
        M = P * negatives; an item's draws depend on key and item alone.
    """
    rows, width = items.shape
    lacking = (~owned).sum(1, keepdim=True)
    there = (items >= 0) & (lacking > 0)
    better = items.clamp_min(0).repeat_interleave(negatives, 1)
    draw = better * negatives + torch.arange(negatives, device=items.device).repeat(width)
    place = (uniforms(key, draw) * lacking).long().clamp_max((lacking - 1).clamp_min(0))
    # The item lacked at a place: lacked items first, in order of number.
    order = owned.long().argsort(dim=1, stable=True)
    worse = order.gather(1, place)
    assert worse.shape == (rows, width * negatives)
    return Drawn(better, worse, there.repeat_interleave(negatives, 1))


def stratified_pairs(
    scores: Tensor,
    owned: Tensor,
    stratum: Tensor,
    key: Tensor,
    pairs: int,
    decay: float,
    kept: int,
) -> Drawn:
    """Two items each, both lacked by the user and of one stratum, in the order of the scores.

    Args:
        scores: [N, V] the role's.
        owned: [N, V] bool.
        stratum: [V] int64, from 0.
        key: [N] of `user_keys`.
        pairs: M, split over the strata as `shares_of` says.
        decay: of `ranks`.
        kept: items of user and stratum looked at.
    """
    strata = int(stratum.max()) + 1
    better, worse, there = [], [], []
    first = 0
    for number, share in enumerate(shares_of(pairs, strata)):
        members = (stratum == number).nonzero().squeeze(1)
        lacked = ~owned[:, members]
        ranked = scores[:, members].masked_fill(~lacked, -torch.inf)
        ranked = members[ranked.argsort(dim=1, descending=True, stable=True)]
        size = lacked.sum(1, keepdim=True).clamp_max(kept)
        draw = torch.arange(first, first + share, device=key.device).expand(len(key), share)
        upper, lower = ranks(size, uniforms(key, 2 * draw), uniforms(key, 2 * draw + 1), decay)
        last = len(members) - 1
        better.append(ranked.gather(1, upper.clamp_max(last)))
        worse.append(ranked.gather(1, lower.clamp_max(last)))
        there.append((size > 1).expand(len(key), share))
        first += share
    return Drawn(torch.cat(better, 1), torch.cat(worse, 1), torch.cat(there, 1))


def ranks(size: Tensor, first: Tensor, second: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Two distinct ranks from 0 to size - 1, [N, M] each, the smaller first.

    Their probability is in proportion to exp(-(a + b) / decay). It is inverted in closed form: the
    difference d of the two has P(d) ~ q^d - q^(2 size - d), q = exp(-1 / decay), and the smaller
    one, given d, is geometric with q^2, cut off at size - d.

    Args:
        size: [N, 1]; below 2 the result means nothing.
        first: [N, M] float64 in (0, 1), which draws the difference.
        second: [N, M] float64 in (0, 1), which draws the smaller rank.
        decay: from 0.01 to 10,000, between which the sums below stay numbers.
    """
    n = size.clamp_min(2).to(torch.float64)
    q = torch.exp(torch.tensor(-1.0 / decay, dtype=torch.float64, device=size.device))
    end = q**n * q**n
    # The sum of P up to d is (1 - x)(q - end / x) with x = q^d: a quadratic equation in x.
    whole = (1 - q ** (n - 1)) * (q - q ** (n + 1))  # at d = n - 1
    b = q + end - first * whole
    x = (b + (b.square() - 4 * q * end).clamp_min(0).sqrt()) / (2 * q)
    apart = torch.ceil(-decay * torch.log(x)).clamp_min(1).minimum(n - 1)
    left = n - apart
    reach = -torch.expm1(-2 * left / decay)
    upper = torch.floor(-decay / 2 * torch.log1p(-second * reach)).clamp_min(0).minimum(left - 1)
    return upper.long(), (upper + apart).long()


def shares_of(pairs: int, strata: int) -> list[int]:
    """Pairs of each stratum: as equal as can be, the first ones have what is over."""
    return [pairs // strata + (stratum < pairs % strata) for stratum in range(strata)]


def user_keys(users: Tensor, seed: int, epoch: int) -> Tensor:
    """[N] int64: what all draws of a user in an epoch are a hash of."""
    start = mixed_bits(torch.tensor(seed, dtype=torch.int64, device=users.device))
    return mixed_bits(mixed_bits(users + 1) + mixed_bits(start + epoch + 1))


def uniforms(key: Tensor, draw: Tensor) -> Tensor:
    """[N, M] float64 in (0, 1) from [N] keys and [N, M] numbers of draws."""
    return uniform(mixed_bits(key.unsqueeze(1) + mixed_bits(draw + 1)))


def scores_of(outputs: Outputs) -> Tensor:
    """[N, V] of the student."""
    if outputs.logits is not None:
        return outputs.logits
    if outputs.hidden is None or outputs.head is None:
        raise ValueError("outputs hold neither (hidden, head) nor logits; the model must give one")
    return outputs.head.logits(outputs.hidden)
