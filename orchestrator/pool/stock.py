"""What a job without a pool needs to know: whose signals it wants, and whether all are there."""

import hashlib
import logging
from collections.abc import Mapping

from orchestrator.data import Crossing, prepare, reading_of
from orchestrator.errors import SpecError
from orchestrator.models.source import source_digest
from orchestrator.signals.cache.notes import read_note, write_note
from orchestrator.signals.cache.records import RoleCard
from orchestrator.signals.cache.roles import read_role
from orchestrator.spec import JobSpec

from .cache import Cache, CacheLink
from .inside import inside_asks
from .label import missing_samples, needed

log = logging.getLogger(__name__)


def note_sources(
    cache: Cache, sources: dict[str, str | None], fingerprints: dict[str, str]
) -> None:
    """After labelling: keep which fingerprint each role's folder has, by `role_digest`."""
    for role, digest in sources.items():
        if digest is not None:
            write_note(cache.handle.path, f"source-{digest}", fingerprints[role])


def role_digest(job: JobSpec, role: str) -> str | None:
    """The `source_digest` of a job's role; None where its files do not tell."""
    reading = reading_of(job.data)
    return source_digest(
        job.roles[role],
        deterministic=job.deterministic,
        reads="tokens" if reading is None else reading.label,
    )


def known_fingerprints(job: JobSpec, cache: Cache) -> dict[str, str]:
    """The fingerprints of a job's roles, without loading them.

    Raises:
        SpecError: a role is no folder, or its folder as it is now was never labelled.
    """
    found: dict[str, str] = {}
    for role in job.used_roles:
        digest = role_digest(job, role)
        if digest is None:
            raise SpecError(
                f"roles.{role}",
                "is no model folder, so without a pool nobody can tell whose signals are wanted",
                "Give it a path, or give the job a pool",
            )
        fingerprint = read_note(cache.handle.path, f"source-{digest}")
        if fingerprint is None or read_role(cache.handle.path, fingerprint) is None:
            raise SpecError(
                f"roles.{role}",
                f"was never labelled as it is now, in {cache.handle.path}",
                "Run `stillhouse label` on the job with a pool first",
            )
        found[role] = fingerprint
    return found


def check_stock(
    job: JobSpec,
    cache: Cache,
    tokenizer: str | None,
    data_folder: str,
    crossings: Mapping[str, Crossing],
) -> None:
    """Refuse a job without a pool whose signals are not all in the cache.

    Raises:
        SpecError: with the number of samples that are missing; or the directory cannot be used.
    """
    fingerprints = known_fingerprints(job, cache)
    data = prepare(job.data, tokenizer, data_folder)
    cards: dict[str, RoleCard] = {}
    for role, fingerprint in fingerprints.items():
        card = read_role(cache.handle.path, fingerprint)
        assert card is not None  # `known_fingerprints` has seen it
        cards[role] = card
    heads = {role: card.head is not None for role, card in cards.items()}
    inside = inside_asks(job, data, tokenizer, lambda role: cards[role].description)
    cache.complaints()  # waited for; a directory that another session writes is read all the same
    link = CacheLink(cache.handle, "stock")
    try:
        for part in needed(job, data, heads, tokenizer, crossings, inside):
            missing = missing_samples(link, part, fingerprints[part.role])
            if missing:
                raise SpecError(
                    "pool",
                    f"is none, and the cache lacks what {part.role} says of {len(missing)} of "
                    f"{len(part.samples)} samples ({part.ask.kind})",
                    "Run `stillhouse label` on the job with a pool first",
                )
    finally:
        link.close()


def saved_s(
    cache: Cache, fingerprints: dict[str, str], counts: dict[str, int], teacher_s: float
) -> float | None:
    """Device-seconds that the cache saved a job; None if nobody ever measured these roles.

    Args:
        cache: where the measurement of an earlier job is kept.
        fingerprints: of the job's roles.
        counts: the job's `SourceCounts`.
        teacher_s: device-seconds that the roles worked for the job's answers, and for no other's.
    """
    roles = hashlib.sha256("".join(sorted(fingerprints.values())).encode()).hexdigest()
    name = f"seconds-a-token-{roles}"
    try:
        if counts.get("computed_tokens"):
            write_note(cache.handle.path, name, repr(teacher_s / counts["computed_tokens"]))
        rate = read_note(cache.handle.path, name)
        return None if rate is None or not counts else float(rate) * counts["saved_tokens"]
    except (OSError, ValueError) as error:  # a full disk, a torn note: the job is done all the same
        log.warning("what the cache saved cannot be told: %s", error)
        return None
