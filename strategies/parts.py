"""One vocabulary term with the numbers of a step, as the shared pass takes it."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .targets import Target

Kind = Literal[
    "cross_entropy",
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
    "alpha_beta",
    "adaptive_kl",
    "decoupled",
    "universal",
    "logits_distance",
]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One vocabulary term with the numbers of this step. Fields that a kind lacks are unused."""

    kind: Kind
    scale: float = 1.0
    """What the term's sum is multiplied by in the loss; 0: reported, but without a gradient."""
    role: str | None = None
    temperature: float | Tensor = 1.0
    """Of all positions, or [N]; above 0."""
    beta: float = 0.5
    label_smoothing: float = 0.0
    skew: float = 0.1
    alpha: float = 0.5
    head_mass: float = 0.5
    label_weight: float = 1.0
    others_weight: float = 1.0
    logit_scale: float = 1.0
    margin: float = 0.0
    over: Literal["sum", "mean"] = "sum"
    target: Target | None = None
    """What becomes of the role's distribution first; of roles with a dense reader."""
    position_weight: Tensor | None = None
    """[N]: what each position's value counts in the sum; None: 1."""

    @property
    def needs_support(self) -> bool:
        """Whether the value is infinite where the teacher has probability 0 and the student not.

        Such a term compares the student conditioned on the entries that the teacher has.
        """
        if self.kind == "alpha_beta":
            return self.alpha <= 0 or self.alpha + self.beta <= 0
        return self.kind in ("reverse_kl", "adaptive_kl")

    @property
    def needs_every_entry(self) -> bool:
        """Whether the role must say something of every entry of its vocabulary."""
        kinds = ("adaptive_kl", "decoupled", "universal", "logits_distance")
        return self.target is not None or self.kind in kinds

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that are looked at."""
        if self.role is None:
            return ()
        return (self.role,) if self.target is None else (self.role, *self.target.roles)

    def value_factor(self) -> float | Tensor:
        """What a position's value counts in the term's sum: a number, or [N].

        Weight times T^2, which keeps gradients of one size across temperatures; distances of
        probabilities, whose value falls as 1 / T only, get T.
        """
        falls_once = self.kind in ("total_variation", "universal")
        power = self.temperature if falls_once else self.temperature**2
        return power if self.position_weight is None else power * self.position_weight

    def pull_factor(self) -> float | Tensor:
        """What a position's pull counts in the loss's derivative by logits: a number, or [N]."""
        return self.scale * (self.value_factor() / self.temperature)
