"""The sum of what many terms want of one student's logits."""

from torch import Tensor


class Pull:
    """The sum of many pulls on one student's logarithms, dense ones and those at a few ids."""

    def __init__(self, q: Tensor) -> None:
        self._q = q
        self._dense: Tensor | None = None
        self._everywhere: list[float | Tensor] = []
        self._at: list[tuple[Tensor, Tensor]] = []
        self._on_logits: Tensor | None = None

    def add_on_logits(self, gradient: Tensor) -> None:
        """+= [b, V], a derivative by the logits themselves."""
        self._on_logits = gradient if self._on_logits is None else self._on_logits + gradient

    def add(self, pull: Tensor, factor: float | Tensor) -> None:
        """+= factor * pull; both broadcast to [b, V]."""
        if self._dense is None:
            self._dense = pull * factor
        elif isinstance(factor, Tensor):
            self._dense.addcmul_(pull, factor)
        else:
            self._dense.add_(pull, alpha=factor)

    def add_everywhere(self, number: float | Tensor) -> None:
        """+= a number, or [b, 1], at all V entries."""
        self._everywhere.append(number)

    def add_at(self, ids: Tensor, values: Tensor) -> None:
        """[:, ids] += values; both [b, K]; repeated ids add up."""
        self._at.append((ids, values))

    def by_logits(self) -> Tensor:
        """[b, V]: pull - q * sum(pull), the derivative by the logits of q."""
        total = sum((values.sum(1, keepdim=True) for _, values in self._at), start=0.0)
        total = total + sum(number * self._q.shape[1] for number in self._everywhere)
        if self._dense is None:
            gradient = self._q * -total
        else:
            total = total + self._dense.sum(1, keepdim=True)
            gradient = self._dense.addcmul_(self._q, total, value=-1.0)
        for number in self._everywhere:
            gradient.add_(number)
        for ids, values in self._at:
            gradient.scatter_add_(1, ids, values)
        return gradient if self._on_logits is None else gradient.add_(self._on_logits)
