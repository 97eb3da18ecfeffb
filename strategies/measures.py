"""Numbers of single positions: how sure, how right, how far apart. Plain torch, no gradients.

    student_entropy      H(q) / log V, in [0, 1]        role_entropy      the same of the role
    student_confidence   max q                          role_confidence   max p
    student_margin       q(1) - q(2)                    role_right        1 where argmax p = y
    student_doubt        1 / max q                      dissimilarity     1 - cos of the logits
    student_loss         -log q_y                       gap               KL(p || q)

q is the student's distribution at temperature 1, p the role's, y the label.
"""

import torch
from torch import Tensor

from .specs import Measure
from .specs.measures import OF_ROLES
from .targets import normal_entropy
from .view import View, likeliest, log_softmax


def needs_role(measure: Measure) -> bool:
    """Whether a role's logits are looked at."""
    return measure in OF_ROLES


def needs_student(measure: Measure) -> bool:
    """Whether the student's logits are looked at."""
    return not measure.startswith("role_")


def measured(measure: Measure, view: View, role: str | None) -> Tensor:
    """[b] values of one measure.

    Args:
        measure: which.
        view: the positions.
        role: the role to look at; None for measures of the student alone.
    """
    match measure:
        case "student_entropy":
            return normal_entropy(log_softmax(view.student))
        case "student_confidence":
            return _confidence(view.student)
        case "student_margin":
            first, second = torch.softmax(view.student, 1).topk(2, dim=1).values.unbind(1)
            return first - second
        case "student_doubt":
            return 1 / _confidence(view.student)
        case "student_loss":
            return -log_softmax(view.student).gather(1, view.labels.unsqueeze(1)).squeeze(1)
    if role is None:
        raise ValueError(f"{measure} looks at a role, and none is named")
    theirs = view.role(role)
    match measure:
        case "role_entropy":
            return normal_entropy(log_softmax(theirs))
        case "role_confidence":
            return _confidence(theirs)
        case "role_right":
            return (likeliest(theirs) == view.labels).to(theirs.dtype)
        case "dissimilarity":
            return (1 - _cosine(view.student, theirs)).clamp_min(0.0)
        case "gap":
            log_p = log_softmax(theirs)
            ratio = (log_p - log_softmax(view.student)).masked_fill(torch.isneginf(log_p), 0.0)
            return (log_p.exp() * ratio).sum(1).clamp_min(0.0)


def _confidence(logits: Tensor) -> Tensor:
    return (logits.amax(1) - torch.logsumexp(logits, 1)).exp()


def _cosine(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of the entries that both have."""
    absent = torch.isneginf(theirs)
    if bool(absent.any()):
        ours, theirs = ours.masked_fill(absent, 0.0), theirs.masked_fill(absent, 0.0)
    return torch.nn.functional.cosine_similarity(ours, theirs, dim=1)
