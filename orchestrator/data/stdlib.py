"""The source of Python's own standard library as documents: a real text on every machine.

Promises: the same interpreter version gives the same documents in the same order. Left out by
rule: installed packages, test folders, what the build generates for one machine, and files that
are not UTF-8. Standard library only.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

INSTALLED = frozenset({"site-packages", "dist-packages", "lib-dynload", "__pycache__"})
TESTS = frozenset({"test", "tests", "idle_test"})
GENERATED = ("config-", "_sysconfigdata_", "sitecustomize", "usercustomize")


def documents(exclude_tests: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (id, {"text": source}) for each file, sorted by id.

    An id is the file's path below the library's root, with forward slashes. Files that do not
    decode as UTF-8 (a few of the library's tests, on purpose) are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    for path in sorted(paths, key=lambda path: path.as_posix()):
        if not _wanted(path.parts, exclude_tests):
            continue
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # by rule, see above
        yield path.as_posix(), {"text": text}


def _wanted(parts: tuple[str, ...], exclude_tests: bool) -> bool:
    if INSTALLED.intersection(parts) or any(part.startswith(GENERATED) for part in parts):
        return False
    return not (exclude_tests and TESTS.intersection(parts))
