"""An answer before it is there: its bytes, for the window, and one for no positions.

Numpy only; `signals.layouts` has the layouts.
"""

import numpy as np

from orchestrator.data import TEXT, text_tokens
from orchestrator.signals.layouts import empty, position_bytes
from orchestrator.signals.records import Request, RoleDescription, SignalAsk


def tokens_read(reads: str, words: np.ndarray, lengths: np.ndarray) -> int:
    """What a role reads of samples end to end: of texts their tokens, moved or not; else all words.

    Args:
        reads: of its description.
        words: [M] int32.
        lengths: [S] words of each.
    """
    return int(text_tokens(words, lengths).sum()) if reads == TEXT else len(words)


def answer_bytes(ask: SignalAsk, positions: int, role: RoleDescription, longest: int = 0) -> int:
    """Bytes of the answer's arrays.

    Args:
        ask: what is asked.
        positions: N.
        role: who is asked.
        longest: tokens of the longest sample; only `attention` depends on it.

    Raises:
        SpecError: the role cannot answer the ask.
    """
    return positions * position_bytes(ask, role, longest)


def empty_answer(ask: SignalAsk, role: RoleDescription) -> dict[str, np.ndarray]:
    """The answer for no positions.

    Raises:
        SpecError: the role cannot answer the ask.
    """
    return empty(ask, role, 0)


def wanted_counts(request: Request) -> np.ndarray:
    """[S] int64: wanted positions of each sample.

    Raises:
        ValueError: the lengths do not add up to the tokens.
    """
    total = int(request.lengths.sum())
    if not total == len(request.tokens) == len(request.wanted) or (request.lengths < 0).any():
        raise ValueError(
            f"request {request.request_id} has {len(request.tokens)} tokens and "
            f"{len(request.wanted)} wanted flags, and its lengths add up to {total}"
        )
    before = np.concatenate([[0], np.cumsum(request.wanted, dtype=np.int64)])
    ends = np.cumsum(request.lengths, dtype=np.int64)
    return before[ends] - before[ends - request.lengths]
