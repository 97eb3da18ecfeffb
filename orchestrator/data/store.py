"""Samples on disk: a folder of flat little-endian arrays, written once and mapped by readers.

Files of one part: `tokens.i32`, `mask.u8`, `offsets.i64` (where each sample begins), `ids.u8`
(UTF-8), `id_offsets.i64` and `labels.i32`. A token is 32 bits: of features it is a float32's.
Shape letters: S samples, n tokens of a sample, N tokens in all.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .tokenise import Sample, wanted_positions

FILES = {
    "tokens.i32": np.dtype("<i4"),
    "mask.u8": np.dtype("u1"),
    "offsets.i64": np.dtype("<i8"),
    "ids.u8": np.dtype("u1"),
    "id_offsets.i64": np.dtype("<i8"),
    "labels.i32": np.dtype("<i4"),
}


DISTINCT_OF = 1 << 24
"""Words that `SampleStore.distinct` looks at, at most."""


@dataclass(frozen=True)
class SampleStore:
    """The samples of one part, by index."""

    version: str
    _tokens: np.ndarray  # [N] int32
    _mask: np.ndarray  # [N] uint8
    _offsets: np.ndarray  # [S + 1] int64
    _ids: np.ndarray  # [bytes] uint8
    _id_offsets: np.ndarray  # [S + 1] int64
    _labels: np.ndarray  # [S] int32

    @classmethod
    def open(cls, folder: Path, version: str) -> "SampleStore":
        """Map the files of a part."""
        return cls(version, *(_mapped(folder / name, dtype) for name, dtype in FILES.items()))

    @classmethod
    def of(cls, samples: Iterable[Sample], version: str = "") -> "SampleStore":
        """A store in memory."""
        kept = list(samples)
        ids = [sample.id.encode() for sample in kept]
        return cls(
            version,
            np.concatenate([np.zeros(0, np.int32), *(s.tokens for s in kept)]).astype(np.int32),
            np.concatenate([np.zeros(0, bool), *(s.loss_mask for s in kept)]).astype(np.uint8),
            np.cumsum([0, *(len(s.tokens) for s in kept)], dtype=np.int64),
            np.frombuffer(b"".join(ids), np.uint8),
            np.cumsum([0, *map(len, ids)], dtype=np.int64),
            np.array([s.label for s in kept], np.int32),
        )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """[S] int32: tokens of each sample."""
        return np.diff(self._offsets).astype(np.int32)

    def tokens(self, index: int) -> np.ndarray:
        """[n] int32."""
        return np.asarray(self._tokens[self._offsets[index] : self._offsets[index + 1]])

    def loss_mask(self, index: int) -> np.ndarray:
        """[n] bool: tokens that are to be learned; the first never is."""
        return np.asarray(self._mask[self._offsets[index] : self._offsets[index + 1]]).view(bool)

    def label(self, index: int) -> int:
        """The class of a classified sample; -1 for others."""
        return int(self._labels[index])

    def labelled(self, index: int) -> bool:
        """Whether a sample's label is one; False for samples that were made from others."""
        return True

    @property
    def weights(self) -> np.ndarray | None:
        """[S] float32: what samples count in a mean; None: 1 each."""
        return None

    def distinct(self) -> np.ndarray:
        """[I] int32, rising: the words that occur, in the first of a large store."""
        return np.unique(self._tokens[:DISTINCT_OF]).astype(np.int32)

    @property
    def as_asked(self) -> "SampleStore":
        """The samples as roles are asked about them."""
        return self

    def wanted(self, index: int) -> np.ndarray:
        """[n] bool: positions that bear loss: before each token that is to be learned; the last of
        a classified sample."""
        return wanted_positions(self.loss_mask(index), self.label(index))

    def id(self, index: int) -> str:
        """The document's id, with `#<piece>` where the document was split."""
        return bytes(self._ids[self._id_offsets[index] : self._id_offsets[index + 1]]).decode()


class StoreWriter:
    """Appends samples to a part's files; complete once closed. A context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._stack = ExitStack()
        self._files: dict[str, Any] = {
            name: self._stack.enter_context((folder / name).open("wb")) for name in FILES
        }
        self._end = self._id_end = 0
        self._write("offsets.i64", [0])
        self._write("id_offsets.i64", [0])

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, sample: Sample) -> None:
        """Append one sample."""
        name = sample.id.encode()
        self._end += len(sample.tokens)
        self._id_end += len(name)
        self._write("tokens.i32", sample.tokens)
        self._write("mask.u8", sample.loss_mask)
        self._write("offsets.i64", [self._end])
        self._files["ids.u8"].write(name)
        self._write("id_offsets.i64", [self._id_end])
        self._write("labels.i32", [sample.label])

    def _write(self, name: str, values: Any) -> None:
        self._files[name].write(np.asarray(values, dtype=FILES[name]).tobytes())


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)  # an empty file cannot be mapped
    # As a plain array: slices of a `memmap` cost several times as much, and are taken by sample.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))
