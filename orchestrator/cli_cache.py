"""The `stillhouse cache` commands: look at a signal cache, copy it, make it smaller.

`stats`, `verify` and `export` only read, and work beside a running writer; `import` and `prune`
need to be the writer. Heavy imports wait until a command runs.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import SpecError
from orchestrator.signals.cache.folder import DEFAULT_PATH

UNLIMITED = 1 << 62  # an import keeps to no limit; the next job that writes keeps to its own
DAMAGED = 1

cache_app = typer.Typer(
    help="The signal cache: what roles have said, on disk.", no_args_is_help=True
)

CachePath = Annotated[Path, typer.Option("--path", help="Folder of the cache.")]
Address = Annotated[
    str, typer.Argument(help="A folder, or any fsspec address.", metavar="URI", show_default=False)
]


@cache_app.command()
def stats(
    path: CachePath = DEFAULT_PATH,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a cache holds."""
    from orchestrator.signals.cache.inspection import summary

    held = summary(path)
    if as_json:
        print(json.dumps(dataclasses.asdict(held) | {"records": held.records}))
        return
    print(f"{held.path}: {held.records} records in {held.segments} segments, {size(held.bytes)}")
    print(f"role cards: {held.role_cards}, {size(held.role_bytes)}")
    for each in held.contents:
        print(f"{each.fingerprint}  {each.ask}: {each.records} records, {each.positions} positions")
    for name in held.unreadable:
        print(f"segment {name} is unreadable")


@cache_app.command()
def verify(path: CachePath = DEFAULT_PATH) -> None:
    """Read all of a cache and name what is damaged; exit code 1 if anything is."""
    from orchestrator.signals.cache.inspection import verify as check

    files = damaged = 0
    for _, damage in check(path):
        files += 1
        damaged += bool(damage)
        for each in damage:
            print(each)
    print(f"{files} files read, {damaged} damaged")
    if damaged:
        raise typer.Exit(DAMAGED)


@cache_app.command()
def export(uri: Address, path: CachePath = DEFAULT_PATH) -> None:
    """Copy segments and role cards to an address; what is there already is left."""
    from orchestrator.signals.cache.transfer import export_to

    done = export_to(path, uri)
    print(f"{done.files} files copied, {size(done.bytes)}; {done.there} were there already")


@cache_app.command(name="import")
def import_(uri: Address, path: CachePath = DEFAULT_PATH) -> None:
    """Take segments and role cards from an address; exit code 1 if some are damaged."""
    from orchestrator.signals.cache.store import Store
    from orchestrator.signals.cache.transfer import import_from

    with Store.open(path, UNLIMITED) as store:
        done = import_from(uri, store)
    print(
        f"{done.segments} segments taken, {size(done.bytes)}, with {done.records} new records; "
        f"{done.known} held nothing new; {done.cards} role cards"
    )
    for reason in done.refused:
        print(f"refused: {reason}")
    if done.refused:
        raise typer.Exit(DAMAGED)


@cache_app.command()
def prune(
    path: CachePath = DEFAULT_PATH,
    to: Annotated[
        str | None, typer.Option(help="Size to keep: bytes, or e.g. 500MB, 20GiB.", metavar="BYTES")
    ] = None,
    role: Annotated[
        str | None, typer.Option(help="Remove what this role said.", metavar="FINGERPRINT")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
) -> None:
    """Remove the segments least used, one role's records, or everything."""
    if sum((to is not None, role is not None, everything)) != 1:
        raise SpecError("prune", "needs one of --to, --role and --all", "Give exactly one")
    limit = None if to is None else parsed_size(to)
    from orchestrator.signals.cache import folder
    from orchestrator.signals.cache.store import Store

    folder.check(path)  # to prune does not make a cache
    with Store.open(path, UNLIMITED) as store:
        before = store.stats()
        if limit is not None:
            store.prune_to(limit)
        elif role is not None:
            store.prune_role(role)
        else:
            store.prune_all()
        after = store.stats()
    print(
        f"{before.records - after.records} records removed, {size(before.bytes - after.bytes)}; "
        f"{after.records} remain, {size(after.bytes)}"
    )


def size(count: int) -> str:
    """Bytes for people."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if abs(count) >= 1 << power:
            return f"{count / (1 << power):.1f} {unit}"
    return f"{count} B"


def parsed_size(text: str) -> int:
    """Bytes that a person means.

    Raises:
        SpecError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if found is None:
        raise SpecError(
            "--to", f"is {text!r}, which is no size", "Give bytes, or a number with KB to TiB"
        )
    number, prefix, binary = found.groups()
    power = " KMGT".index(prefix.upper() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)
