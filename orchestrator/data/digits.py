"""The source of scikit-learn's handwritten digits: real labelled images on every machine.

1797 images of 8 by 8 pixels in ten classes. Promises: the same records in the same order wherever
it runs; the first ones are a fair sample of all. Imports scikit-learn when called.

Source: E. Alpaydin, C. Kaynak. "Optical Recognition of Handwritten Digits." UCI Machine Learning
Repository, 1998.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

BRIGHTEST = 16.0


def documents(limit: int | None = None, offset: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (id, {"features": 64 numbers from 0 to 1, row by row, "label": 0 to 9}).

    Args:
        limit: records at most; None: all that follow the offset.
        offset: records passed over, so that two sources share none.

    Raises:
        ValueError: a number is negative, or nothing is left.
    """
    from sklearn.datasets import load_digits

    found: Any = load_digits(return_X_y=True)
    images, labels = found
    if offset < 0 or (limit is not None and limit < 1) or offset >= len(labels):
        raise ValueError(
            f"offset {offset} and limit {limit} leave nothing of {len(labels)} digits; keep "
            f"0 <= offset < {len(labels)} and limit above 0"
        )
    order = sorted(range(len(labels)), key=lambda index: hashlib.sha256(b"%d" % index).digest())
    for index in order[offset : None if limit is None else offset + limit]:
        features = (images[index] / BRIGHTEST).tolist()
        yield f"digit-{index:04d}", {"features": features, "label": int(labels[index])}
