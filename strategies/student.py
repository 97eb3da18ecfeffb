"""The student's logits a chunk at a time, from hidden states and a head or as they are."""

from torch import Tensor

from .contract import Outputs
from .heads import Projection, compute_dtype


class StudentLogits:
    """Read only: nothing of it carries a gradient.

    Attributes:
        like: a tensor with N rows on the student's device.
        width: V.
        dtype: of the arithmetic.
    """

    def __init__(self, outputs: Outputs) -> None:
        self._projection: Projection | None = None
        if outputs.hidden is not None and outputs.head is not None:
            self.like = outputs.hidden.detach()
            self.dtype = compute_dtype(self.like, outputs.head.weight)
            self._projection = Projection(outputs.head, self.like.dtype, self.dtype)
            self.width = self._projection.width
        elif outputs.logits is not None:
            self.like = outputs.logits.detach()
            self.dtype, self.width = compute_dtype(self.like), self.like.shape[1]
        else:
            raise ValueError(
                "outputs hold neither (hidden, head) nor logits; the model must give one"
            )

    def write(self, rows: slice, out: Tensor) -> Tensor:
        """The logits of `rows` into `out` [C, V]."""
        if self._projection is None:
            return out.copy_(self.like[rows])
        return self._projection.logits(self.like[rows], out)
