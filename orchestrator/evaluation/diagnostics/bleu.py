"""BLEU over tokens, from counts that add up over texts and ranks. Standard library only."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

LONGEST = 4
"""Tokens of the longest n-grams compared."""


def bleu_counts(candidate: Sequence[int], reference: Sequence[int]) -> dict[str, float]:
    """What one text adds: `matched_n` and `written_n` for each n, and both lengths.

    `matched_n` is clipped: an n-gram counts at most as often as the reference has it.
    """
    counts = {
        "candidate_tokens": float(len(candidate)),
        "reference_tokens": float(len(reference)),
    }
    for n in range(1, LONGEST + 1):
        ours, theirs = _grams(candidate, n), _grams(reference, n)
        counts[f"matched_{n}"] = float((ours & theirs).total())
        counts[f"written_{n}"] = float(ours.total())
    return counts


def bleu(counts: Mapping[str, float]) -> float:
    """Corpus BLEU, 0 to 1, of summed counts; no smoothing, so 0 where no 4-gram is shared.

    exp(mean over n of log(matched_n / written_n)) * min(1, exp(1 - reference / candidate)).

    Source:
        Papineni, Roukos, Ward, Zhu. "BLEU: a method for automatic evaluation of machine
        translation." ACL 2002, section 2.3, with one reference a text.
    """
    matched = [counts[f"matched_{n}"] for n in range(1, LONGEST + 1)]
    written = [counts[f"written_{n}"] for n in range(1, LONGEST + 1)]
    if min(matched) == 0:
        return 0.0
    ours, theirs = counts["candidate_tokens"], counts["reference_tokens"]
    logs = (math.log(hit / all_) for hit, all_ in zip(matched, written, strict=True))
    return math.exp(sum(logs) / LONGEST + min(0.0, 1 - theirs / ours))


def _grams(tokens: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
