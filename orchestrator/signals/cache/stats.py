"""Counts of a store. The standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a store holds, and what happened since it was opened."""

    records: int  # published
    bytes: int  # of segment files
    segments: int
    pending_records: int  # in memory, not yet published
    pending_bytes: int
    hits: int  # keys found
    misses: int  # keys not found
    corrupt: int  # records that were not what was put, and were dropped
    unreadable_segments: int  # met while indexing; their records are lost
    evicted_segments: int
    evicted_records: int
    evicted_bytes: int
    written_records: int
    written_bytes: int
    write_failures: int  # segments and role cards that could not be written
    dropped: int  # records lost by that


@dataclass(slots=True)
class Tally:
    """The part of the counts that events add to."""

    hits: int = 0
    misses: int = 0
    corrupt: int = 0
    unreadable_segments: int = 0
    evicted_segments: int = 0
    evicted_records: int = 0
    evicted_bytes: int = 0
    written_records: int = 0
    written_bytes: int = 0
    write_failures: int = 0
    dropped: int = 0
