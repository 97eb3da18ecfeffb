"""Terms that need a role's own weights beside the student. Pydantic only.

`strategies.resident` has the arithmetic. Every worker loads such a role as its replicas do; it is
served as well, so that evaluation can compare with it.
"""

from typing import Annotated, ClassVar, Literal

from .features import PairedSpec
from .schedules import Number, within
from .term import DENSE_OR_TOPK, LooksAt, TermBase


class RoleGradientSpec(TermBase):
    """<theta - x, grad f(theta)>: its gradient is the role's own, with a minus.

    x are the student's weights, theta the role's, f the cross entropy against the batch's labels.
    Beside cross entropy it makes the modified gradient grad f(x) - weight grad f(theta). Its value
    is how far f, made straight about theta, lies at the role above where it lies at the student.
    Safaryan, Peste, Alistarh, arXiv:2305.17581.
    """

    encodings: ClassVar[tuple[str, ...]] = (*DENSE_OR_TOPK, "sampled")
    looks_at: ClassVar[LooksAt] = "resident"
    same_weights: ClassVar[bool] = True
    kind: Literal["role_gradient"]
    role: str = "teacher"
    """The served role, of the student's architecture."""
    unbiased: bool = False
    """Take the role's gradient over all training data away from it, which one pass finds at the
    start of each run."""

    @property
    def named_roles(self) -> tuple[str, ...]:
        return (self.role,)

    @property
    def needs_labels(self) -> bool:
        return True


class BlockwiseLogitsSpec(PairedSpec):
    """T^2 KL(role || hybrid): a layer of the student goes on through the rest of the role.

    What the student's layer gives takes the place of what the role's layer gives, and the role's
    later layers and head, which stay as they are, make logits of it. Summed over the pairs.
    Block-wise logit distillation, as the survey arXiv:2504.13825 has it.
    """

    looks_at: ClassVar[LooksAt] = "resident"
    scheduled: ClassVar[tuple[str, ...]] = ("weight", "temperature")
    kind: Literal["blockwise_logits"]
    temperature: Annotated[Number, within(0.0, 1000.0, open_low=True)] = 1.0
    """Softens both sides."""
    projector: Literal["none", "linear", "orthogonal"] = "none"
    """Maps the student's channels to the role's, as in `hidden_states`."""
