"""Corruption of training samples: shares, and what is left alone."""

from pathlib import Path

import digits
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data import TokenData, prepare
from orchestrator.data.corrupt import corrupted, kept_share
from orchestrator.data.tokenise import Sample
from orchestrator.spec.data import CorruptionSpec, DataSpec

MANY = 4000


def sample(number: int, label: int) -> Sample:
    return Sample(f"s{number}", np.zeros(1, np.int32), np.zeros(1, bool), label)


def kept(spec: CorruptionSpec, classes: int = 4) -> list[tuple[int, int]]:
    """(true class, class given) of those of `MANY` samples that stay."""
    found = []
    for number in range(MANY):
        result = corrupted(sample(number, number % classes), spec, classes)
        if result is not None:
            found.append((number % classes, result.label))
    return found


def test_noise_moves_its_share_of_labels_to_every_other_class_alike() -> None:
    pairs = kept(CorruptionSpec(label_noise=0.4))
    moved = [(true, given) for true, given in pairs if true != given]
    assert len(moved) / MANY == pytest.approx(0.4, abs=0.03)
    to = np.bincount([(given - true) % 4 for true, given in moved], minlength=4)
    assert to[0] == 0 and to[1:] / len(moved) == pytest.approx([1 / 3] * 3, abs=0.04)


def test_noise_of_one_leaves_no_label_as_it_was() -> None:
    assert all(true != given for true, given in kept(CorruptionSpec(label_noise=1.0), 2))


def test_classes_fall_exponentially_to_the_ratio() -> None:
    sizes = np.bincount([true for true, _ in kept(CorruptionSpec(imbalance=8))])
    assert sizes[0] == MANY / 4
    assert sizes / sizes[0] == pytest.approx([1, 1 / 2, 1 / 4, 1 / 8], abs=0.05)
    assert kept_share(3, 4, 8) == 1 / 8


def test_a_fraction_is_taken_of_samples_without_labels_too() -> None:
    spec = CorruptionSpec(fraction=0.25)
    left = [corrupted(sample(number, -1), spec, 0) for number in range(MANY)]
    assert sum(each is not None for each in left) / MANY == pytest.approx(0.25, abs=0.03)


@given(st.integers(0, 5), st.floats(0.05, 0.9), st.floats(1, 50))
def test_more_only_adds_to_less(seed: int, share: float, ratio: float) -> None:
    for number in range(40):
        one = sample(number, number % 3)
        less = corrupted(one, CorruptionSpec(fraction=share, seed=seed), 3)
        more = corrupted(one, CorruptionSpec(fraction=min(1.0, share + 0.1), seed=seed), 3)
        assert less is None or more is not None
        mild = corrupted(one, CorruptionSpec(imbalance=ratio, seed=seed), 3)
        harsh = corrupted(one, CorruptionSpec(imbalance=2 * ratio, seed=seed), 3)
        assert harsh is None or mild is not None
        few = corrupted(one, CorruptionSpec(label_noise=share, seed=seed), 3)
        many = corrupted(one, CorruptionSpec(label_noise=share + 0.1, seed=seed), 3)
        assert few is not None and many is not None
        assert few.label == one.label or many.label == few.label


def prepared(folder: Path, **corrupt: float) -> TokenData:
    spec = DataSpec.model_validate(digits.data(400, corrupt=corrupt))
    return prepare(spec, None, str(folder))


def labels(data: TokenData) -> tuple[dict[str, int], dict[str, int]]:
    train, held_out = (
        {store.id(i): store.label(i) for i in range(len(store))}
        for store in (data.train, data.held_out)
    )
    return train, held_out


def test_held_out_samples_are_never_corrupted(tmp_path: Path) -> None:
    plain, noisy = (
        prepared(tmp_path),
        prepared(tmp_path, label_noise=0.5, imbalance=5, fraction=0.7),
    )
    assert labels(plain)[1] == labels(noisy)[1]
    before, after = labels(plain)[0], labels(noisy)[0]
    assert set(after) < set(before)
    moved = sum(after[name] != before[name] for name in after)
    assert moved == noisy.counts.moved_labels > 0.3 * len(after)
    assert len(before) - len(after) == noisy.counts.dropped_by_corruption
    assert plain.version != noisy.version


def test_the_seed_is_part_of_the_data(tmp_path: Path) -> None:
    first = prepared(tmp_path, label_noise=0.3)
    again, other = prepared(tmp_path, label_noise=0.3), prepared(tmp_path, label_noise=0.3, seed=1)
    assert again.version == first.version != other.version
    assert labels(first)[0] != labels(other)[0]
