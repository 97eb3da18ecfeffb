"""Vocabulary terms written once more, plainly: float64 probabilities over the whole vocabulary.

Shares no code with `strategies`. Gradients come from autograd. Beside the oracle, the signals
that a teacher with given logits would send.
"""

import torch
from torch import Tensor

from strategies.contract import SampledSignal, TopKSignal


def oracle(
    kind: str,
    student: Tensor,
    teacher: Tensor | None,
    targets: Tensor,
    temperature: float | Tensor = 1.0,
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    kept: Tensor | None = None,
    skew: float = 0.1,
    alpha: float = 0.5,
    head_mass: float = 0.5,
    label_weight: float = 1.0,
    others_weight: float = 1.0,
    logit_scale: float = 1.0,
    margin: float = 0.0,
    over: str = "sum",
    position_weight: Tensor | None = None,
) -> Tensor:
    """Sum over positions of one term.

    Args:
        kind: of the term.
        student: [N, V] logits.
        teacher: [N, V'] logits, for all but cross entropy.
        targets: [N], for cross entropy and the decoupled divergence.
        temperature: one, or [N].
        beta, label_smoothing, skew, alpha, head_mass, label_weight, others_weight, logit_scale,
            margin, over: the term's numbers.
        kept: [N, K] ids of a top-k teacher.
        position_weight: [N].
    """
    total = torch.zeros((), dtype=torch.float64)
    temperatures = torch.as_tensor(temperature, dtype=torch.float64).expand(len(student))
    for row, z in enumerate(student.double()):
        weight = 1.0 if position_weight is None else float(position_weight[row])
        if kind == "cross_entropy":
            wanted = torch.full_like(z, label_smoothing / len(z))
            wanted[targets[row]] += 1 - label_smoothing
            total = total - weight * (wanted * z.log_softmax(0)).sum()
            continue
        assert teacher is not None
        t = float(temperatures[row])
        theirs = teacher[row].detach().double()
        if kind == "logits_distance":
            total = total + weight * _distance(z, theirs, logit_scale, margin, over)
            continue
        if kind == "universal":
            total = total + weight * t * _ranks_apart((z / t).softmax(0), (theirs / t).softmax(0))
            continue
        numbers = {"beta": beta, "skew": skew, "alpha": alpha, "head_mass": head_mass}
        numbers |= {"label_weight": label_weight, "others_weight": others_weight}
        numbers["label"] = int(targets[row])
        log_p, log_q = (
            _dense(z / t, theirs / t)
            if kept is None
            else _coarse(z / t, theirs / t, kept[row].tolist())
        )
        power = 1 if kind == "total_variation" else 2
        total = total + weight * t**power * _divergence(kind, log_p, log_q, numbers)
    return total


def topk_signal(teacher: Tensor, k: int, ladder: tuple[float, ...]) -> TopKSignal:
    """What a teacher with these logits sends in the encoding `topk`."""
    logprobs = teacher.double().log_softmax(1)
    kept = logprobs.topk(k)
    others = logprobs.scatter(1, kept.indices, -torch.inf)
    rest = torch.stack([torch.logsumexp(others / t, 1) for t in ladder], 1)
    return TopKSignal(kept.indices, kept.values.float(), rest.float(), ladder, teacher.shape[1])


def sampled_signal(
    teacher: Tensor, draws: int, make: torch.Generator, proposal_temperature: float = 1.0
) -> SampledSignal:
    """What a teacher with these logits sends in the encoding `sampled`."""
    log_p = teacher.double().log_softmax(1)
    log_proposal = (teacher.double() / proposal_temperature).log_softmax(1)
    ids = torch.multinomial(log_proposal.exp(), draws, replacement=True, generator=make)
    weights = (log_p - log_proposal).gather(1, ids).exp() / draws
    entropy = -torch.nan_to_num(log_p.exp() * log_p, nan=0.0).sum(1)
    return SampledSignal(ids, weights.float(), entropy.float(), teacher.shape[1])


def _dense(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    shared = min(len(student), len(teacher))
    lacking = torch.full((len(student) - shared,), -torch.inf, dtype=teacher.dtype)
    return torch.cat([teacher[:shared].log_softmax(0), lacking]), student.log_softmax(0)


def _coarse(student: Tensor, teacher: Tensor, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Each kept id that the student has, then all others as one."""
    known = [i for i in ids if i < len(student)]
    q_others = [i for i in range(len(student)) if i not in known]
    p_others = [i for i in range(len(teacher)) if i not in ids]
    log_q, log_p = student.log_softmax(0), teacher.log_softmax(0)
    p = torch.cat([log_p[known], torch.logsumexp(log_p[p_others], 0, keepdim=True)])
    q = torch.cat([log_q[known], torch.logsumexp(log_q[q_others], 0, keepdim=True)])
    return p - torch.logsumexp(p, 0), q


def _divergence(kind: str, log_p: Tensor, log_q: Tensor, numbers: dict[str, float]) -> Tensor:
    beta, skew, alpha = numbers["beta"], numbers["skew"], numbers["alpha"]
    p, q = log_p.exp(), log_q.exp()
    match kind:
        case "forward_kl":
            return _kl(log_p, log_q)
        case "reverse_kl":
            return _kl(*_given_support(log_q, log_p))
        case "jensen_shannon":
            mixture = _mix(log_p, log_q, beta)
            return beta * _kl(log_p, mixture) + (1 - beta) * _kl(log_q, mixture)
        case "skewed_forward_kl":
            return _kl(log_p, _mix(log_p, log_q, skew))
        case "skewed_reverse_kl":
            return _kl(log_q, _mix(log_q, log_p, skew))
        case "total_variation":
            return (p - q).abs().sum() / 2
        case "adaptive_kl":
            return _adaptive_kl(log_p, log_q, numbers["head_mass"])
        case "decoupled":
            return _decoupled(log_p, log_q, numbers)
        case "alpha_beta" if alpha <= 0 or alpha + beta <= 0:
            log_q, log_p = _given_support(log_q, log_p)
            return _alpha_beta(log_p, log_q, alpha, beta)
        case "alpha_beta":
            return _alpha_beta(log_p, log_q, alpha, beta)
    raise ValueError(kind)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    held = log_a > -torch.inf
    return (log_a[held].exp() * (log_a[held] - log_b[held])).sum()


def _mix(log_a: Tensor, log_b: Tensor, share_of_a: float) -> Tensor:
    share = torch.tensor(share_of_a, dtype=torch.float64)
    held = log_a > -torch.inf
    both = torch.logaddexp(log_a.where(held, 0.0) + share.log(), log_b + (-share).log1p())
    return both.where(held, log_b + (-share).log1p())


def _given_support(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    held = log_p > -torch.inf
    return log_q[held].log_softmax(0), log_p[held]


def _alpha_beta(log_p: Tensor, log_q: Tensor, a: float, b: float) -> Tensor:
    """The published formula and its published limits; powers by logarithms, so none is 0 ** 0."""
    if a == 0 and b == 0:
        return 0.5 * (log_p - log_q).square().sum()
    if a == 0:
        q_b, p_b = (b * log_q).exp(), (b * log_p).exp()
        return (q_b * b * (log_q - log_p) - q_b + p_b).sum() / b**2
    if b == 0:
        held = log_p > -torch.inf
        p_a, q_a = (a * log_p[held]).exp(), (a * log_q).exp()
        return ((p_a * a * (log_p[held] - log_q[held]) - p_a).sum() + q_a.sum()) / a**2
    if a + b == 0:
        ratio = a * (log_q - log_p)
        return (ratio + (-ratio).exp() - 1).sum() / a**2
    of_p, of_q = ((a + b) * log_p).exp(), ((a + b) * log_q).exp()
    crossed = (a * log_p + b * log_q).exp()
    return -(crossed - a / (a + b) * of_p - b / (a + b) * of_q).sum() / (a * b)


def _distance(z: Tensor, theirs: Tensor, scale: float, margin: float, over: str) -> Tensor:
    squares = [
        (ours - scale * wanted) ** 2
        for ours, wanted in zip(z, theirs, strict=False)
        if wanted > -torch.inf
    ]
    distance = torch.stack(squares).sum() / (len(z) if over == "mean" else 1)
    return (distance - margin * scale).clamp_min(0.0)


def _ranks_apart(q: Tensor, p: Tensor) -> Tensor:
    q, p = q.sort(descending=True).values, p.sort(descending=True).values
    longest = max(len(q), len(p))
    pad = torch.nn.functional.pad
    return (pad(q, (0, longest - len(q))) - pad(p, (0, longest - len(p)))).abs().sum()


def _adaptive_kl(log_p: Tensor, log_q: Tensor, head_mass: float) -> Tensor:
    """The published algorithm: gather the head entry by entry, then weigh the two directions."""
    log_q, log_p = _given_support(log_q, log_p)
    p, q = log_p.exp(), log_q.detach().exp()
    head, held = [], 0.0
    for entry in p.argsort(descending=True).tolist():
        if held >= head_mass:
            break
        head.append(entry)
        held += float(p[entry])
    gaps = (p - q).abs()
    share = float(gaps[head].sum() / gaps.sum()) if gaps.sum() > 0 else 0.5
    return share * _kl(log_p, log_q) + (1 - share) * _kl(log_q, log_p)


def _decoupled(log_p: Tensor, log_q: Tensor, numbers: dict[str, float]) -> Tensor:
    label = int(numbers["label"])
    others = [entry for entry in range(len(log_q)) if entry != label]
    p = torch.stack([log_p[label], torch.logsumexp(log_p[others], 0)])
    q = torch.stack([log_q[label], torch.logsumexp(log_q[others], 0)])
    among = _kl(log_p[others] - p[1], log_q[others] - q[1]) if p[1] > -torch.inf else 0.0
    return numbers["label_weight"] * _kl(p, q) + numbers["others_weight"] * among
