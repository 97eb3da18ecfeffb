"""The data of a job, tokenised once and shared by whoever asks for the same.

Promises: `version` depends on what the documents say, on the fields of the spec that decide
samples, and on the tokenizer; not on paths, times or machines. A version's folder is published
by rename, complete or not at all, so any number of processes may prepare at once. Where all
sources are files that did not change, a second call reads none of them.
"""

import json
import os
import shutil
import time
import uuid
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from orchestrator.errors import SpecError
from orchestrator.interactions import held_out_of, trained_of
from orchestrator.spec.data import DataSpec

from .corrupt import corrupted
from .format import Encoded
from .read import Document, read_documents
from .split import is_held_out
from .store import FILES, SampleStore, StoreWriter
from .tokenise import Sample, classified, cut, encoded_documents
from .tokenizer import TextTokenizer, load_tokenizer
from .versions import Digest, quick_key

ABANDONED_S = 7 * 86400.0
"""A build that takes longer than this is taken for dead."""
PARTS = ("train", "held_out")
MANIFEST = "manifest.json"


class HeldOutEmpty(UserWarning):
    """A share is to be held out, but the rule chose no document."""


@dataclass(slots=True)
class Counts:
    """What became of the documents; kept with the data."""

    documents: int = 0
    held_out_documents: int = 0  # users with held-out items
    samples: int = 0
    tokens: int = 0
    learned: int = 0  # tokens of train samples that bear loss
    dropped_long: int = 0  # documents above the context, under `long_documents: drop`
    dropped_without_loss: int = 0  # samples with nothing to learn
    dropped_by_corruption: int = 0  # train samples that `data.corrupt` left out
    moved_labels: int = 0  # train samples that it gave another class


@dataclass(frozen=True, slots=True)
class TokenData:
    """The samples of a job. `folder` holds the files, readable by any process of this node."""

    version: str
    train: SampleStore
    held_out: SampleStore
    counts: Counts
    folder: Path
    classes: int  # of classified samples: those named, or one more than the largest label; items
    # of users; else 0

    @property
    def edges(self) -> np.ndarray:
        """[2, E] int64: user and item of all interactions that are trained on, in order."""
        samples = [self.train.tokens(index) for index in range(len(self.train))]
        items = [trained_of(sample) for sample in samples]
        users = np.repeat([sample[0] for sample in samples], [len(own) for own in items])
        return np.stack([users, np.concatenate(items)]).astype(np.int64)

    @property
    def popularity(self) -> np.ndarray:
        """[items] int64: how many users are trained on each item; of interactions."""
        return np.bincount(self.edges[1], minlength=self.classes)


def prepare(spec: DataSpec, tokenizer_folder: str | None, cache_folder: str) -> TokenData:
    """Tokenise a job's data, or find it done.

    Args:
        spec: sources and rules.
        tokenizer_folder: of the job's tokenizer; None for features.
        cache_folder: where versions are kept.

    Raises:
        SpecError: a source is faulty, or nothing is left to train on.
    """
    cache = Path(cache_folder)
    (cache / "keys").mkdir(parents=True, exist_ok=True)
    quick = quick_key(spec, tokenizer_folder)
    data = _remembered(cache, quick)
    if data is None:
        tokenizer = None if tokenizer_folder is None else load_tokenizer(tokenizer_folder)
        read = _read(spec, tokenizer)
        data = _open(cache / read.version)
        data = data or _build(spec, tokenizer, tokenizer_folder, cache, read)
        _remember(cache, quick, read.version)
    _check(data, spec)
    return data


# --- finding --------------------------------------------------------------------------------------


def _read(spec: DataSpec, tokenizer: TextTokenizer | None) -> Digest:
    digest = Digest(spec, tokenizer)
    for _ in digest.through(read_documents(spec)):
        pass
    return digest


def _remembered(cache: Path, quick: str | None) -> TokenData | None:
    file = cache / "keys" / f"{quick}"
    if quick is None or not file.is_file():
        return None
    return _open(cache / file.read_text(encoding="ascii"))


def _remember(cache: Path, quick: str | None, version: str) -> None:
    if quick is not None:
        temporary = cache / _temporary("key")
        temporary.write_text(version, encoding="ascii")
        temporary.replace(cache / "keys" / quick)


# --- building ------------------------------------------------------------------------------------


def _build(
    spec: DataSpec,
    tokenizer: TextTokenizer | None,
    tokenizer_folder: str | None,
    cache: Path,
    read: Digest,
) -> TokenData:
    _sweep(cache)
    version = read.version
    temporary = cache / _temporary(version[:16])
    try:
        counts = _write(spec, tokenizer, tokenizer_folder, temporary, read)
        sizes = {f"{p}/{f}": (temporary / p / f).stat().st_size for p in PARTS for f in FILES}
        manifest = {
            "version": version,
            "files": sizes,
            "counts": asdict(counts),
            "classes": read.classes,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        return _publish(temporary, cache / version)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    spec: DataSpec,
    tokenizer: TextTokenizer | None,
    tokenizer_folder: str | None,
    folder: Path,
    read: Digest,
) -> Counts:
    counts, digest, ids = Counts(), Digest(spec, tokenizer), set[str]()
    shares = spec.held_out_shares
    documents = digest.through(read_documents(spec))
    encoded = encoded_documents(documents, spec.formats, tokenizer, tokenizer_folder, spec.workers)
    with StoreWriter(folder / "train") as train, StoreWriter(folder / "held_out") as held_out:
        for document, tokens in encoded:
            apart = not spec.ranks_items and is_held_out(document.id, shares[document.source])
            samples = _samples(document, tokens, spec)
            counts.documents += 1
            counts.held_out_documents += apart
            counts.dropped_long += not samples
            for sample in samples:
                learned = int(sample.wanted.sum())
                if not learned:
                    counts.dropped_without_loss += 1
                    continue
                kept = sample if apart else corrupted(sample, spec.corrupt, read.classes)
                if kept is None:
                    counts.dropped_by_corruption += 1
                    continue
                counts.moved_labels += kept.label != sample.label
                if sample.id in ids:
                    raise SpecError(
                        "data.sources",
                        f"two samples are called {sample.id!r}",
                        "Give documents ids that do not end in #<number>",
                    )
                ids.add(sample.id)
                (held_out if apart else train).add(kept)
                if spec.ranks_items and len(held_out_of(kept.tokens)):
                    held_out.add(kept)  # the same words, so that roles are asked about them once
                    counts.held_out_documents += 1
                counts.samples += 1
                counts.tokens += len(sample.tokens)
                counts.learned += 0 if apart else learned
    if digest.version != read.version:
        raise SpecError(
            "data.sources",
            "gave other documents when read a second time",
            "Do not change files meanwhile; an import source must be deterministic",
        )
    return counts


def _samples(document: Document, encoded: Encoded, spec: DataSpec) -> list[Sample]:
    rule = spec.long_documents
    if spec.task == "causal_lm":
        return cut(document.id, encoded, spec.context, rule)
    assert rule != "split"  # a validator of the spec
    return classified(document, encoded, spec.row_tokens, rule)


def _publish(temporary: Path, final: Path) -> TokenData:
    for _ in range(3):
        try:
            temporary.rename(final)
        except OSError:
            if not final.exists():
                raise
            data = _open(final)
            if data is not None:
                return data  # another process was first
            # What is there is torn: put it aside, then try again.
            aside = final.with_name(_temporary("torn"))
            final.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            continue
        data = _open(final)
        if data is not None:
            return data
    raise OSError(f"{final} cannot be published: it is torn again each time")


def _temporary(what: str) -> str:
    return f".{what}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"


def _sweep(cache: Path) -> None:
    """Remove what builds that were killed left behind."""
    for folder in cache.glob(".*.tmp"):
        if folder.is_dir() and time.time() - folder.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _open(folder: Path) -> TokenData | None:
    """What is published in a folder; None if nothing is, or a file was cut short."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None  # torn: built anew
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return None
    version = manifest["version"]
    train, held_out = (SampleStore.open(folder / part, version) for part in PARTS)
    counts, classes = Counts(**manifest["counts"]), manifest["classes"]
    return TokenData(version, train, held_out, counts, folder, classes)


def _check(data: TokenData, spec: DataSpec) -> None:
    counts = data.counts
    if not len(data.train):
        account = ", ".join(f"{f.name} {getattr(counts, f.name)}" for f in fields(counts))
        raise SpecError(
            "data",
            f"nothing is left to train on: no sample has a token or class to learn ({account})",
            "Add longer documents, lower held_out of data or sources, raise data.context or "
            "data.corrupt.fraction, or check the format",
        )
    if any(spec.held_out_shares) and not len(data.held_out):
        warnings.warn(
            f"held_out is {max(spec.held_out_shares):g}, but the rule chose none of "
            f"{counts.documents} documents with anything to learn: nothing will be measured on "
            "unseen data. Add documents, or raise held_out or a data.max_documents that is given",
            HeldOutEmpty,
            stacklevel=3,
        )
