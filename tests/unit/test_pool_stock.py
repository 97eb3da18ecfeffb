"""A job without a pool is refused while the cache lacks anything that its terms will ask."""

from types import SimpleNamespace
from typing import Any

import digits
import pytest

from orchestrator.errors import SpecError
from orchestrator.pool import stock
from orchestrator.pool.label import Needed
from orchestrator.signals.cache.records import RoleCard
from orchestrator.signals.records import RoleDescription
from orchestrator.spec import JobSpec

LAYERS = {f"stages.{i}": 32 for i in range(3)}
PAIR = [{"student": "stages.1", "role": "stages.1"}]


def job(*terms: dict[str, Any]) -> JobSpec:
    data = digits.data(60)
    data["sources"][0]["format"]["shape"] = [64]
    return digits.job(
        objective={"terms": list(terms)},
        roles={"teacher": digits.student()},
        data=data,
        pool="none",
    )


def missed(spec: JobSpec, folder: Any, monkeypatch: Any, lacking: str) -> list[str]:
    """Kinds of ask that are looked for, where the cache has none of kind `lacking`."""
    card = RoleCard(RoleDescription("teacher", "f", 10, 0, 1, LAYERS, input_width=64), None)
    seen: list[str] = []

    def lacks(_: Any, part: Needed, fingerprint: str) -> list[int]:
        seen.append(part.ask.kind)
        return [0, 1] if part.ask.kind == lacking else []

    monkeypatch.setattr(stock, "known_fingerprints", lambda *_: {"teacher": "f"})
    monkeypatch.setattr(stock, "read_role", lambda *_: card)
    monkeypatch.setattr(stock, "CacheLink", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(stock, "missing_samples", lacks)
    cache: Any = SimpleNamespace(handle=SimpleNamespace(path="x"), complaints=lambda: [])
    stock.check_stock(spec, cache, None, str(folder), {})
    return seen


LAYER_TERM = {"kind": "hidden_states", "layers": PAIR}
GRADIENT_TERM = {"kind": "input_gradients"}


@pytest.mark.parametrize(
    ("term", "kind"), [(LAYER_TERM, "layers"), (GRADIENT_TERM, "gradients")], ids=str
)
def test_what_is_asked_beyond_logits_is_looked_for_too(
    term: dict[str, Any], kind: str, tmp_path: Any, monkeypatch: Any
) -> None:
    spec = job({"kind": "forward_kl"}, term)
    assert missed(spec, tmp_path, monkeypatch, "nothing") == ["full", kind, "full"]
    with pytest.raises(SpecError, match=rf"^pool: is none.*lacks what teacher says of 2.*{kind}"):
        missed(spec, tmp_path, monkeypatch, kind)


def test_roles_beside_the_student_are_asked_nothing(tmp_path: Any, monkeypatch: Any) -> None:
    spec = job({"kind": "blockwise_logits", "layers": PAIR})
    assert missed(spec, tmp_path, monkeypatch, "layers") == ["full"]  # of held-out rows
