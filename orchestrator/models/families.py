"""What a training engine must know of a model's family: mixture-of-experts blocks.

Promises: only families in the table are claimed; `unknown_experts` finds models that look like
experts and are not in it, so that a caller can refuse them rather than train them wrongly. Imports
torch; never ray, deepspeed or mlflow.

Shape letters: M routed positions (rows times positions) of one layer, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .forward import unwrapped


@dataclass(frozen=True, slots=True)
class Family:
    """A family with experts, by its transformers config."""

    leaf: str
    """Class of the block that ZeRO stage 3 must fetch whole: which experts run differs by rank."""
    experts: str
    """Config field: experts of a layer."""
    per_token: str = "num_experts_per_tok"
    """Config field: experts that one token visits."""
    coefficient: str | None = "router_aux_loss_coef"
    """Config field: weight of the balance loss; None: balanced by other means, nothing owed."""


FAMILIES = {
    "mixtral": Family("MixtralSparseMoeBlock", "num_local_experts"),
    "qwen2_moe": Family("Qwen2MoeSparseMoeBlock", "num_experts"),
    "qwen3_moe": Family("Qwen3MoeSparseMoeBlock", "num_experts"),
    "olmoe": Family("OlmoeSparseMoeBlock", "num_experts"),
    "phimoe": Family("PhimoeSparseMoeBlock", "num_local_experts"),
    "granitemoe": Family("GraniteMoeMoE", "num_local_experts"),
    "gpt_oss": Family("GptOssMLP", "num_local_experts"),
    "deepseek_v3": Family("DeepseekV3MoE", "n_routed_experts", coefficient=None),
}


@dataclass(frozen=True, slots=True)
class OwedLoss:
    """The balance loss that a router was trained with; add `coefficient` times `balance_loss`."""

    coefficient: float
    experts: int
    per_token: int


def owed_loss(module: nn.Module) -> OwedLoss | None:
    """The extra loss a model owes when it is trained; None if it owes none that we know of."""
    config, family = _family(module)
    if family is None or family.coefficient is None:
        return None
    coefficient = float(getattr(config, family.coefficient, 0.0) or 0.0)
    if coefficient == 0.0:
        return None
    return OwedLoss(coefficient, getattr(config, family.experts), getattr(config, family.per_token))


def zero3_leaves(module: nn.Module) -> list[type[nn.Module]]:
    """Classes that ZeRO stage 3 must treat as leaves; empty for dense models."""
    _, family = _family(module)
    if family is None:
        return []
    return list({type(m): None for m in module.modules() if type(m).__name__ == family.leaf})


def unknown_experts(module: nn.Module) -> list[str]:
    """Class names that look like experts in a model whose family is not in the table."""
    _, family = _family(module)
    names = {type(part).__name__ for part in module.modules()}
    return [] if family else sorted(n for n in names if "expert" in n.lower() or "moe" in n.lower())


def balance_loss(router_logits: Sequence[Tensor], keep: Tensor, owed: OwedLoss) -> Tensor:
    """E * sum over experts of (share of visits) * (mean router probability), over all layers.

    It is a product of means over the positions of one call, so unlike the terms of an objective it
    does depend on how a batch is cut.

    Args:
        router_logits: per layer, [M, E].
        keep: [M] bool: positions that hold text.
        owed: of the model.

    Returns:
        Scalar float32; `per_token` when experts are visited alike.

    Source: Fedus, Zoph, Shazeer, "Switch Transformers", arXiv:2101.03961, equations 4 to 6.
    """
    kept = keep.reshape(-1, 1).float()
    visits = router_logits[0].new_zeros(owed.experts, dtype=torch.float32)
    probability = torch.zeros_like(visits)
    for logits in router_logits:
        p = torch.softmax(logits.float(), dim=-1)
        chosen = torch.topk(p, owed.per_token, dim=-1).indices
        visits = visits + (torch.zeros_like(p).scatter_(1, chosen, 1.0) * kept).sum(0)
        probability = probability + (p * kept).sum(0)
    positions = (kept.sum() * len(router_logits)).clamp_min(1.0)
    return owed.experts * torch.sum((visits / positions) * (probability / positions))


def _family(module: nn.Module) -> tuple[Any, Family | None]:
    config: Any = getattr(unwrapped(module), "config", None)
    return config, FAMILIES.get(getattr(config, "model_type", ""))
