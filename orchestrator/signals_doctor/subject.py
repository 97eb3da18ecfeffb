"""One role of one job, ready to be checked: what the checks share. Imports torch.

N positions of the specimen.
"""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from orchestrator.spec import JobSpec
from strategies.contract import Outputs

from .bounds import UNIT, Float32
from .jitter import jittered
from .losses import Moment
from .oracle import logits_in_chunks
from .specimen import Specimen
from .subjects import Served


@dataclass(frozen=True)
class Subject:
    """A role and the student, each at the N positions of a specimen."""

    job: JobSpec
    role: str
    specimen: Specimen
    targets: Tensor  # [N] int64
    student: Outputs
    served: Served
    moments: tuple[Moment, ...]  # of the terms that learn from the role

    @property
    def role_dtype(self) -> str:
        """Of the role's weights."""
        return self.job.roles[self.role].dtype

    @cached_property
    def float32(self) -> Float32:
        """Of a loss between the role and the job's student."""
        peaks = self._role_peak + peak(self.student)
        return Float32(_ROUNDINGS * peaks, longest_row(self.student))

    @cached_property
    def float32_alone(self) -> Float32:
        """Of a loss between the role and itself."""
        return Float32(_ROUNDINGS * 2 * self._role_peak, longest_row(self.served.outputs))

    @cached_property
    def jittered(self) -> Outputs:
        """The role with errors of the size that the job's encoding makes."""
        return jittered(self.served.ask, self.served.outputs, self.role_dtype)

    @cached_property
    def _role_peak(self) -> float:
        return peak(self.served.outputs)


_ROUNDINGS = 4 * UNIT["float32"]
"""Of a logit on its way to the logarithm of a probability, relative."""


def peak(outputs: Outputs) -> float:
    """Largest magnitude of the logits."""
    return max(float(z.abs().max()) for _, z in logits_in_chunks(outputs))


def longest_row(outputs: Outputs) -> float:
    """Of the head's matrix, times its scale: how far a logit moves with the hidden state."""
    if outputs.head is None:
        return 1.0
    return abs(outputs.head.scale) * float(outputs.head.weight.norm(dim=1).max())
