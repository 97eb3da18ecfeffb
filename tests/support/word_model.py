"""A student from an import path: a module of our own, known to no library."""

import torch
from torch import Tensor, nn


class WordModel(nn.Module):
    """Logits of the next token from the token and its position alone."""

    def __init__(self, vocabulary: int, width: int, positions: int) -> None:
        super().__init__()
        self.vocab_size = vocabulary
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(positions, width)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """[R, T] int64 twice -> [R, T, V]."""
        return self.out(torch.tanh(self.tokens(input_ids) + self.places(position_ids)))


def build(vocabulary: int, width: int = 16, positions: int = 64) -> WordModel:
    """What a job's `import` names."""
    return WordModel(vocabulary, width, positions)
