"""Training samples as a study wants them: fewer, of unequal classes, with wrong labels. Pure.

Every decision is a hash of (seed, sample id, what is decided), so it is the same on every machine,
in any order, and a larger share only adds to a smaller one.
"""

import hashlib
from dataclasses import replace

from orchestrator.spec.data import CorruptionSpec

from .tokenise import Sample


def corrupted(sample: Sample, spec: CorruptionSpec, classes: int) -> Sample | None:
    """The sample as it is trained on; None if it is left out.

    Args:
        sample: with its true label; one without (-1) can only be left out by `fraction`.
        spec: what is done.
        classes: of the data.

    Source:
        Cui, Jia, Lin, Song, Belongie. "Class-Balanced Loss Based on Effective Number of Samples."
        arXiv:1901.05555, section 5.1: the exponential fall of class sizes. There each class is cut
        to an exact size; here each sample is kept with that probability.
    """
    if _share(spec, sample, "fraction") >= spec.fraction:
        return None
    if sample.label < 0:
        return sample
    if _share(spec, sample, "imbalance") >= kept_share(sample.label, classes, spec.imbalance):
        return None
    if classes < 2 or _share(spec, sample, "noise") >= spec.label_noise:
        return sample
    other = int(_share(spec, sample, "class") * (classes - 1))
    return replace(sample, label=other + (other >= sample.label))


def kept_share(label: int, classes: int, ratio: float) -> float:
    """Share of a class that is kept: from 1 for the first to 1 / ratio for the last."""
    return ratio ** (-label / max(1, classes - 1))


def _share(spec: CorruptionSpec, sample: Sample, what: str) -> float:
    """Uniform in [0, 1)."""
    digest = hashlib.sha256(f"{spec.seed}\0{what}\0{sample.id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
