"""Transforms of a role's distribution, before a student learns it. Plain torch, no gradients.

Logits in, logits out. What comes out is softened at the term's temperature afterwards, so a
transform that means a distribution at that temperature multiplies its logarithms by it.

b positions, V entries, p the role's probabilities, y the label, w the role's likeliest entry.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranking import at_rank
from .specs import targets as specs
from .view import View, likeliest, log_softmax, share_of

Numbers = Mapping[str, float]
Temperature = float | Tensor
"""A number, or [b, 1]."""


@dataclass(frozen=True, slots=True)
class Target:
    """Some transforms in a row, with this step's numbers."""

    transforms: tuple[specs.TargetSpec, ...]
    numbers: tuple[tuple[str, float], ...]
    """By `<place of the transform>.<field>`."""

    @property
    def makes_holes(self) -> bool:
        """Whether an entry may come out with probability 0."""
        return any(isinstance(one, specs.LikeliestSpec) for one in self.transforms)

    @property
    def compares_entries(self) -> bool:
        """Whether it looks at the rows of the role's head."""
        return any(isinstance(one, specs.SimilaritySpec) for one in self.transforms)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that it asks beside the term's own."""
        return tuple(role for one in self.transforms for role in one.named_roles)

    def __call__(self, view: View, role: str) -> Tensor:
        """[b, V] logits to learn from, in place of `role`'s."""
        logits, numbers = view.role(role), dict(self.numbers)
        for index, spec in enumerate(self.transforms):
            prefix = f"{index}."
            own = {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}
            logits = transformed(spec, own, view, logits, role)
        return logits


def transformed(
    spec: specs.TargetSpec, numbers: Numbers, view: View, logits: Tensor, role: str
) -> Tensor:
    """One transform.

    Args:
        spec: which.
        numbers: its scheduled fields at this step.
        view: the positions.
        logits: [b, V] of the role so far; left as they are.
        role: the term's own.

    Returns:
        [b, V] logits.
    """
    match spec:
        case specs.SwapSpec():
            return swap(logits, view.labels)
        case specs.SmoothWrongSpec():
            return smooth_wrong(logits, view.labels, spec.confidence, view.temperature)
        case specs.RectifySpec():
            return rectify(logits, view.labels, view.temperature)
        case specs.KeepLabelSpec():
            return keep_label(logits, view.labels, view.temperature)
        case specs.KeepTopSpec():
            return keep_top(logits, spec.share, view.temperature)
        case specs.SimilaritySpec():
            alike = similarity(view.directions_of(role), view.labels, spec.power, logits)
            return alike.mul_(view.temperature / spec.temperature)
        case specs.UniformSpec():
            return torch.zeros_like(logits).masked_fill_(torch.isneginf(logits), -torch.inf)
        case specs.LikeliestSpec():
            return only(logits, likeliest(logits))
        case specs.NoiseSpec():
            return noisy(logits, view.places, numbers["size"], spec.relative, spec.seed)
        case specs.DeltaSpec():
            shift = log_softmax(view.role(spec.student_base)) - log_softmax(
                view.role(spec.teacher_base)
            )
            # An entry that a base lacks has no ratio: it stays as the role has it.
            shift = shift.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            return log_softmax(logits).add_(shift, alpha=numbers["alpha"])
        case specs.TowardsStudentSpec():
            share = numbers["share"]
            if share == 0.0:
                return view.student.clone()
            return share * logits + (1 - share) * view.student
        case specs.MixSpec():
            own = [numbers[f"weights.{place}"] for place in range(len(spec.weights))]
            others = [view.role(name) for name in spec.roles]
            return mixed([logits, *others], own, view.temperature, by_entropy=spec.by == "entropy")


def swap(logits: Tensor, labels: Tensor) -> Tensor:
    """Where w is not y, their logits change places. Swapping probabilities is the same at any T."""
    best, label = likeliest(logits).unsqueeze(1), labels.unsqueeze(1)
    high, low = logits.gather(1, best), logits.gather(1, label)
    return logits.scatter(1, best, low).scatter_(1, label, high)


def smooth_wrong(
    logits: Tensor, labels: Tensor, confidence: float, temperature: Temperature
) -> Tensor:
    """Where w is not y: `confidence` for y and the rest evenly, whatever the temperature."""
    entries = logits.shape[1]
    others = math.log((1 - confidence) / max(1, entries - 1))
    smooth = torch.full_like(logits, others)
    smooth.scatter_(1, labels.unsqueeze(1), math.log(confidence))
    wrong = (likeliest(logits) != labels).unsqueeze(1)
    return torch.where(wrong, smooth * temperature, logits)


def rectify(logits: Tensor, labels: Tensor, temperature: Temperature) -> Tensor:
    """Where w is not y: q_y' = (q_y + 1) / 2 and q_w' = q_w / 2, scaled to keep q_y + q_w.

    Of the probabilities at the temperature: a role that is sure has at 1 next to nothing to share.
    """
    log_q = log_softmax(logits / temperature)
    best, label = likeliest(logits).unsqueeze(1), labels.unsqueeze(1)
    log_y, log_w = log_q.gather(1, label), log_q.gather(1, best)
    q_y, q_w = log_y.exp(), log_w.exp()
    both = (q_y + q_w) / (q_y + 1 + q_w)
    wrong = best != label
    log_q.scatter_(1, best, torch.where(wrong, (q_w * both).log(), log_w))
    log_q.scatter_(1, label, torch.where(wrong, ((q_y + 1) * both).log(), log_y))
    return log_q.mul_(temperature)


def keep_label(logits: Tensor, labels: Tensor, temperature: Temperature) -> Tensor:
    """p_y at the temperature stays, 1 - p_y is spread evenly over the others that the role has."""
    log_p, label = log_softmax(logits / temperature), labels.unsqueeze(1)
    rest = torch.logsumexp(log_p.scatter(1, label, -torch.inf), 1, keepdim=True)
    absent = torch.isneginf(logits)
    others = (~absent).sum(1, keepdim=True) - (~absent.gather(1, label)).long()
    spread = (rest - others.clamp_min(1).to(log_p.dtype).log()).expand_as(log_p)
    spread = spread.masked_fill(absent, -torch.inf)
    return spread.scatter(1, label, log_p.gather(1, label)) * temperature


def keep_top(logits: Tensor, share: float, temperature: Temperature) -> Tensor:
    """The ceil(share * V) likeliest stay at the temperature, the others share theirs evenly."""
    log_p, count = log_softmax(logits / temperature), share_of(logits.shape[1], share)
    kept = _largest(log_p, count)
    rest = log_p.masked_fill(kept, -torch.inf)
    kept |= torch.isneginf(log_p)  # what the role lacks stays so
    others = kept.shape[1] - kept.sum(1, keepdim=True)
    spread = torch.logsumexp(rest, 1, keepdim=True) - others.clamp_min(1).to(log_p.dtype).log()
    return torch.where(kept, log_p, spread).mul_(temperature)


def _largest(values: Tensor, count: int) -> Tensor:
    """[b, V] bool: the `count` largest of each row."""
    found = values >= at_rank(values, count)
    if bool((found.sum(1) != count).any()):  # the last of them has its equals
        kept = values.topk(count, dim=1).indices
        return torch.zeros_like(found).scatter_(1, kept, True)
    return found


def similarity(directions: Tensor, labels: Tensor, power: float, like: Tensor) -> Tensor:
    """[b, V] cosine of each row of a head with the label's, to a power that keeps the sign.

    -inf where the head has no entry. A label that it lacks is like none.

    Args:
        directions: [V', d] the head's rows, all of length 1.
        labels: [b].
        power: of the cosines.
        like: [b, V].
    """
    rows, width = directions[: like.shape[1]], like.shape[1]
    known = (labels < len(rows)).unsqueeze(1)
    alike = (rows[labels.clamp_max(len(rows) - 1)] * known) @ rows.t()
    if power != 1.0:
        alike = alike.abs().pow(power).copysign(alike)
    return torch.nn.functional.pad(alike, (0, width - len(rows)), value=-torch.inf)


def only(logits: Tensor, entries: Tensor) -> Tensor:
    """All probability on one entry of each row."""
    return torch.full_like(logits, -torch.inf).scatter_(1, entries.unsqueeze(1), 0.0)


def noisy(logits: Tensor, places: Tensor, size: float, relative: bool, seed: int) -> Tensor:
    """Normal noise that depends on seed, place and entry alone, so that it comes back alike."""
    if size == 0.0:
        return logits
    noise = _normals(places, logits.shape[1], seed).to(logits)
    if relative:
        finite = torch.where(torch.isneginf(logits), torch.nan, logits)
        mean = finite.nanmean(1, keepdim=True)
        noise = noise * (finite - mean).square().nanmean(1, keepdim=True).sqrt()
    return logits + size * noise


def mixed(
    roles: list[Tensor], weights: list[float], temperature: Temperature, *, by_entropy: bool
) -> Tensor:
    """Logits whose softmax at `temperature` is the weighted mean of the roles' there.

    Raises:
        ValueError: no weight is above 0.
    """
    if not any(weight > 0 for weight in weights):
        raise ValueError(
            f"the weights of a mixture are {weights} at this step; keep one of them above 0"
        )
    logs = [log_softmax(logits / temperature) for logits in roles]
    shares = torch.tensor(weights, dtype=roles[0].dtype, device=roles[0].device)
    shares = shares.expand(roles[0].shape[0], -1)
    if by_entropy:
        shares = shares * torch.stack([(-normal_entropy(log)).exp() for log in logs], 1)
    shares = (shares / shares.sum(1, keepdim=True)).log()
    stacked = torch.stack([log + shares[:, [i]] for i, log in enumerate(logs)])
    return torch.logsumexp(stacked, 0) * temperature


def normal_entropy(log: Tensor) -> Tensor:
    """[b] entropy over log V, in [0, 1], of [b, V] log-probabilities."""
    entropy = -(log.exp() * log.masked_fill(torch.isneginf(log), 0.0)).sum(1)
    return (entropy / math.log(max(2, log.shape[1]))).clamp(0.0, 1.0)


def _normals(places: Tensor, entries: int, seed: int) -> Tensor:
    """[b, entries] float32 standard normals by Box-Muller from a hash of (seed, place, entry)."""
    entry = torch.arange(entries, device=places.device)
    start = mixed_bits(places + mixed_bits(torch.tensor(seed, device=places.device)))
    first = uniform(mixed_bits(start.unsqueeze(1) + 2 * entry + 1))
    second = uniform(mixed_bits(start.unsqueeze(1) + 2 * entry + 2))
    return ((-2 * first.log()).sqrt() * torch.cos(2 * math.pi * second)).float()


def uniform(bits: Tensor) -> Tensor:
    """(0, 1) float64 from 53 of the 64 bits."""
    return ((bits >> 11) & ((1 << 53) - 1)).double().add(0.5) / 2.0**53


def mixed_bits(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 in wrapping int64 arithmetic. OOPSLA 2014, Steele et al."""
    z = (z ^ _shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shifted(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own is arithmetic."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
