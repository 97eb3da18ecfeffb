"""Samples moved to where a role has more to say: the arithmetic of a step. Plain torch, pure.

Samples are features, or what is added to a text's embeddings. Nothing here runs a model: outputs
and gradients come from the caller.

Shape letters: R samples, n numbers of one, V classes.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from .specs.moving import MovedSpec
from .targets import mixed_bits, uniform

Output = Literal["logits", "probabilities"]


def output_of(logits: Tensor, output: Output, temperature: float) -> Tensor:
    """[R, V]: what is compared of [R, V] logits; the temperature is that of probabilities."""
    return logits if output == "logits" else torch.softmax(logits / temperature, 1)


def squared_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """[R]: |ours - theirs|^2 of [R, V] outputs."""
    return (ours - theirs).square().sum(1)


def ascended(x: Tensor, gradient: Tensor, size: float, *, normalised: bool) -> Tensor:
    """One step up a gradient.

    Args:
        x: [R, n].
        gradient: [R, n]; where it is 0 a sample stays.
        size: the length of the step if it is normalised, else what the gradient is multiplied by.
        normalised: whether all steps are of one length.

    Source:
        Jafari, Rezagholizadeh, Ghodsi. arXiv:2301.12006: x + eta d/dx |S(x) - T(x)|^2. That steps
        are normalised is ours.
    """
    return x + size * (unit(gradient) if normalised else gradient)


def past_boundary(x: Tensor, ahead: Tensor, gradient: Tensor, rate: float, margin: float) -> Tensor:
    """One step towards where another class has as much as the likeliest.

    Args:
        x: [R, n].
        ahead: [R]: the likeliest class's logit less the other's.
        gradient: [R, n] of `ahead`; where it is 0 a sample stays.
        rate: 1 goes to the boundary of a linear model, and past it by the margin.
        margin: by which the other class shall be ahead, in logits.

    Source:
        Heo, Lee, Yun, Choi. "Knowledge Distillation with Adversarial Samples Supporting Decision
        Boundary." arXiv:1805.05532, equation 4, of logits in place of probabilities.
    """
    square = gradient.square().sum(1, keepdim=True)
    step = gradient / torch.where(square > 0, square, torch.ones_like(square))
    return x - rate * (ahead + margin).unsqueeze(1) * step


def other_class(logits: Tensor, draw: Tensor) -> Tensor:
    """[R] int64: a class that is not the likeliest, drawn as likely as the role says.

    Args:
        logits: [R, V], V > 1.
        draw: [R] float64 in (0, 1).
    """
    z = logits.double()
    likeliest = z.argmax(1, keepdim=True)
    rest = z.scatter(1, likeliest, -math.inf)
    below = torch.softmax(rest, 1).cumsum(1)
    below = below / below[:, -1:]
    drawn = (below < draw.to(z.device).unsqueeze(1)).sum(1)
    # The likeliest adds nothing to the sum, but rounding may leave a draw just on it.
    return torch.where(drawn == likeliest.squeeze(1), rest.argmax(1), drawn)


def class_difference(ahead: Tensor, behind: Tensor, classes: int) -> Tensor:
    """[R, V] float32: 1 at one class, -1 at another. Its product with logits is how far ahead."""
    c = torch.zeros(len(ahead), classes, device=ahead.device)
    return c.scatter(1, ahead.unsqueeze(1), 1.0).scatter(1, behind.unsqueeze(1), -1.0)


def draws(samples: Tensor, round_: int, seed: int) -> Tensor:
    """[R] float64 in (0, 1): a hash of sample, round and seed."""
    return uniform(_bits(samples, round_, seed))


def random_ways(samples: Tensor, numbers: int, round_: int, seed: int) -> Tensor:
    """[R, n] float64: a random direction of length 1 for each sample, from its index alone; that of
    more numbers begins along the same.

    Args:
        samples: [R] int64.
        numbers: n.
        round_: directions of rounds differ.
        seed: and so do those of seeds.
    """
    place = torch.arange(2 * numbers, dtype=torch.int64)
    bits = mixed_bits(_bits(samples, round_, seed).unsqueeze(1) + place)
    first, second = uniform(mixed_bits(bits)).view(-1, numbers, 2).unbind(2)
    normal = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()  # Box and Muller
    return unit(normal)


def embedding_map(ours: Tensor, theirs: Tensor) -> Tensor:
    """[d, e] float64: Q with the least |ours @ Q - theirs|^2; the smallest such Q.

    Args:
        ours: [I, d]: the embeddings of I token ids.
        theirs: [I, e]: another model's of the same ids.

    Source:
        Jafari, Rezagholizadeh, Ghodsi. arXiv:2301.12006, for texts. That only what is added is
        mapped, and not the embeddings themselves, is ours: where nothing was moved the other model
        reads its own.
    """
    first, second = ours.detach().double().cpu(), theirs.detach().double().cpu()
    return torch.linalg.lstsq(first, second, driver="gelsy").solution


def size_in_epoch(spec: MovedSpec, samples: int, epoch: int) -> int:
    """Samples that an epoch holds: the data's, and in `rounds` runs of `every` the moved ones."""
    return samples + (moved_count(spec, samples) if has_moved(spec, epoch) else 0)


def has_moved(spec: MovedSpec, epoch: int) -> bool:
    """Whether an epoch holds moved samples."""
    return 1 <= epoch // spec.every <= spec.rounds


def moved_count(spec: MovedSpec, samples: int) -> int:
    """How many samples each round moves."""
    return samples if spec.samples is None else min(spec.samples, samples)


def unit(vectors: Tensor) -> Tensor:
    """[R, n]: of length 1, where they are not 0."""
    length = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(length > 0, length, torch.ones_like(length))


def _bits(samples: Tensor, round_: int, seed: int) -> Tensor:
    return mixed_bits(mixed_bits(samples.cpu() + (seed << 32) + (round_ << 44)))
