"""Look at a directory without being its writer: what it holds, and whether all of it is sound.

Reads files and nothing else, so it works beside a running writer; what that one evicts meanwhile is
passed over. Numpy and pyarrow only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import folder
from .roles import load_card
from .segments import brief_batches, scan_segment


@dataclass(frozen=True, slots=True)
class Contents:
    """What one role's answers to one ask take."""

    fingerprint: str
    ask: str  # JSON
    records: int
    positions: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What lies in a directory."""

    path: str
    segments: int
    bytes: int  # of segment files
    role_cards: int
    role_bytes: int
    unreadable: tuple[str, ...]  # segments
    contents: tuple[Contents, ...]  # by role and ask; a record that was replaced counts once

    @property
    def records(self) -> int:
        """Of all roles."""
        return sum(each.records for each in self.contents)


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not what was put."""

    file: str  # name of the segment or card
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def summary(path: Path) -> Summary:
    """Sizes and counts, from the columns beside the payloads; nothing is checked.

    Raises:
        SpecError: the directory is not a cache of this version.
    """
    folder.check(path)
    counts: dict[tuple[str, str], dict[bytes, int]] = {}
    unreadable: list[str] = []
    sizes = folder.segment_sizes(path)
    for name in list(sizes):
        try:
            batches = brief_batches(path / folder.SEGMENTS / name)
        except FileNotFoundError:
            del sizes[name]
            continue
        except ValueError:
            unreadable.append(name)
            continue
        for batch in batches:
            names = ("key", "fingerprint", "ask", "positions")
            columns = (batch.column(name).to_pylist() for name in names)
            for key, fingerprint, ask, bitmap in zip(*columns, strict=True):
                held = counts.setdefault((fingerprint, ask), {})
                held[key] = int.from_bytes(bitmap, "little").bit_count()
    cards = [file.stat().st_size for file in folder.published(path / folder.ROLES)]
    return Summary(
        path=str(path),
        segments=len(sizes),
        bytes=sum(sizes.values()),
        role_cards=len(cards),
        role_bytes=sum(cards),
        unreadable=tuple(unreadable),
        contents=tuple(
            Contents(*form, len(records), sum(records.values()))
            for form, records in sorted(counts.items())
        ),
    )


def verify(path: Path) -> Iterator[tuple[str, list[Damage]]]:
    """Read everything: the name of each segment and card, and what is wrong with it.

    Raises:
        SpecError: the directory is not a cache of this version.
    """
    folder.check(path)
    for name in folder.segment_sizes(path):
        try:
            scan = scan_segment(path / folder.SEGMENTS / name)
        except FileNotFoundError:
            continue
        damage = [Damage(name, f"record {key.hex()} has another checksum") for key in scan.damaged]
        if scan.unreadable is not None:
            damage.append(Damage(name, f"unreadable: {scan.unreadable}"))
        yield name, damage
    for file in folder.published(path / folder.ROLES):
        try:
            load_card(file)
        except FileNotFoundError:
            continue
        except ValueError as error:
            yield file.name, [Damage(file.name, f"role card: {error}")]
        else:
            yield file.name, []
