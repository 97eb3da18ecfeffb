"""The standard library as documents, and the held-out rule."""

import sysconfig
from pathlib import Path

import pytest

from orchestrator.data import stdlib
from orchestrator.data.split import is_held_out


def test_documents_are_the_library_s_own_files_in_order() -> None:
    pairs = list(stdlib.documents())
    names = [name for name, _ in pairs]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= set(names)
    assert not [n for n in names if "site-packages" in n or "/test" in n or n.startswith("test/")]
    assert not [n for n in names if "_sysconfigdata_" in n or "config-" in n]
    root = Path(sysconfig.get_path("stdlib"))
    assert dict(pairs)["argparse.py"]["text"] == (root / "argparse.py").read_text("utf-8")


def test_tests_and_undecodable_files_are_left_out_by_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.py", "b/c.py", "b/tests/d.py", "test/e.py", "site-packages/f.py", "g.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass")
    (tmp_path / "latin.py").write_bytes(b"# \xe9")
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda _: str(tmp_path))
    assert [name for name, _ in stdlib.documents()] == ["a.py", "b/c.py"]
    everything = [name for name, _ in stdlib.documents(exclude_tests=False)]
    assert everything == ["a.py", "b/c.py", "b/tests/d.py", "test/e.py"]


def test_the_held_out_rule_is_the_first_eight_bytes_of_sha_256() -> None:
    # sha256("abc") begins ba7816bf8f01cfea: 0.72839...
    assert is_held_out("abc", 0.7284)
    assert not is_held_out("abc", 0.7283)
    assert not is_held_out("abc", 0.0)


def test_the_held_out_share_is_about_what_was_asked() -> None:
    chosen = sum(is_held_out(f"document {i}", 0.1) for i in range(5000))
    assert 430 < chosen < 570
