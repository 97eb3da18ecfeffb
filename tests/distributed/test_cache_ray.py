"""Jobs with a cache: what was said once is read, whoever asks, and read right or not at all."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny

from orchestrator.errors import SpecError
from orchestrator.events import Event, Warned
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session
from orchestrator.signals.cache.store import Store
from orchestrator.spec import JobSpec
from orchestrator.spec.job import NoPool

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ENCODINGS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "hidden": {"kind": "hidden"},
    "topk": {"kind": "topk", "k": 16, "dtype": "int8"},
    "sampled": {"kind": "sampled", "draws": 8, "temperature": 1.5},
}


@dataclass
class Stage:
    """One Ray session in which jobs are played one after the other."""

    session: Session
    root: Path
    teacher: Path
    played: int = 0
    warned: list[str] = field(default_factory=list)  # since the newest play began

    def job(self, cache: str = "cache", encoding: str = "hidden", **changes: Any) -> JobSpec:
        spec = tiny.job(
            self.teacher,
            self.root / "text",
            self.root / "runs",
            cache={"path": str(self.root / cache)},
            objective={"terms": [{"kind": "forward_kl"}]},
            **changes,
        )
        role = spec.roles["teacher"].model_dump(mode="json", by_alias=True)
        raw = spec.model_dump(mode="json", by_alias=True)
        raw["roles"]["teacher"] = {**role, "encoding": ENCODINGS[encoding]}
        return JobSpec.model_validate(raw)

    def play(self, spec: JobSpec) -> dict[str, Any]:
        """Run a job from its start."""
        self.played += 1
        self.warned.clear()
        folder = RunFolder.at(spec.storage, f"tiny-{self.played}")
        folder.write([spec], 0, [folder.run_id])
        return self.session.run_job(spec, folder, {}, resume=False)

    def published(self, cache: str) -> list[Path]:
        """Segments, once all that was put is published."""
        self.session.caches[str(self.root / cache)].publish()
        return sorted((self.root / cache).glob("segments/*.arrow"))

    def on_event(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warned.append(event.text)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("cached")
    tiny.save_text(root / "text")
    stage = Stage(None, root, tiny.save_teacher(root / "teacher"))  # type: ignore[arg-type]
    with Session([stage.job()], stage.on_event) as session:
        stage.session = session
        yield stage


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_second_job_asks_nobody_and_learns_the_same(stage: Stage, encoding: str) -> None:
    spec = stage.job(f"cache-{encoding}", encoding)
    first, second = stage.play(spec), stage.play(spec)
    assert first["cache"]["misses"] > 0 and first["pool"]["asked"] > 0
    assert second["cache"]["misses"] == second["pool"]["asked"] == 0
    wanted = sum(first["cache"][name] for name in ("hits", "shared", "misses"))
    assert second["cache"]["hits"] == wanted
    assert second["weights_sha256"] == first["weights_sha256"]
    samples = second["pool"]["samples"]
    assert samples["asked"] == samples["delivered"] == samples["consumed"] > 0


@pytest.mark.slow
def test_another_order_another_packing_and_another_temperature_ask_nobody(stage: Stage) -> None:
    first = stage.play(stage.job())
    data = {**stage.job().data.model_dump(mode="json", by_alias=True), "packing": False}
    for changes in ({"seed": 5}, {"data": data}):
        other = stage.play(stage.job(**changes))
        assert other["cache"]["misses"] == other["pool"]["asked"] == 0
        assert other["weights_sha256"] != first["weights_sha256"]


def test_a_cache_changes_no_bit(stage: Stage) -> None:
    without = stage.job().model_copy(
        update={"cache": stage.job().cache.model_copy(update={"enabled": False})}
    )
    assert stage.play(without)["weights_sha256"] == stage.play(stage.job())["weights_sha256"]


@pytest.mark.slow
def test_another_teacher_is_a_miss_though_one_bit_differs(stage: Stage) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    stage.play(stage.job())
    other = stage.root / "other"
    shutil.copytree(stage.teacher, other)
    weights = load_file(other / "model.safetensors")
    bits = weights["model.norm.weight"].view(torch.int32)
    bits[0] ^= 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    changed = Stage(stage.session, stage.root, other, 1000)
    summary = changed.play(changed.job())
    assert summary["cache"]["misses"] > 0
    assert summary["weights_sha256"] != stage.play(stage.job())["weights_sha256"]


def test_labelling_fills_the_cache_for_a_job_without_a_pool(stage: Stage) -> None:
    spec = stage.job("cache-label")
    alone = spec.model_copy(update={"pool": NoPool(kind="none")})
    with pytest.raises(SpecError, match="was never labelled"):
        stage.play(alone)
    told = stage.session.label_job(spec, "label-1", {})["labelled"]
    assert all(part["computed"] == part["samples"] > 0 for part in told)
    again = stage.session.label_job(spec, "label-2", {})["labelled"]
    assert all(part["computed"] == 0 for part in again)
    calm = stage.play(stage.job())
    summary = stage.play(alone)
    assert summary["weights_sha256"] == calm["weights_sha256"]
    assert summary["cache"]["misses"] == 0 and "asked" not in summary["pool"]


def test_a_job_without_a_pool_is_told_how_many_samples_are_missing(stage: Stage) -> None:
    spec = stage.job("cache-label-more")
    stage.session.label_job(spec, "label-3", {})
    more = stage.root / "more"
    shutil.copytree(stage.root / "text", more)
    (more / "new.txt").write_text("class New:\n    pass\n")
    raw = spec.model_dump(mode="json", by_alias=True)
    raw["data"]["sources"][0]["path"] = str(more)
    raw["pool"] = "none"
    with pytest.raises(SpecError, match=r"lacks what teacher says of 1 of \d+ samples"):
        stage.play(JobSpec.model_validate(raw))


def test_a_cache_of_another_format_is_refused_before_any_student_loads(stage: Stage) -> None:
    folder = stage.root / "cache-old"
    Store.open(folder, 1 << 20).close()
    version = folder / "format"
    version.write_text("stillhouse signals 99\n")
    with pytest.raises(SpecError, match="99"):
        stage.play(stage.job("cache-old"))
    folder.rename(stage.root / "moved-away")
    assert stage.play(stage.job("cache-old"))["cache"]["misses"] > 0
    assert stage.published("cache-old")


@pytest.mark.slow
def test_a_later_jobs_limit_holds(stage: Stage) -> None:
    stage.play(stage.job("cache-limit"))
    full = sum(file.stat().st_size for file in stage.published("cache-limit"))
    raw = stage.job("cache-limit").model_dump(mode="json", by_alias=True)
    raw["cache"]["max_bytes"] = full // 2
    summary = stage.play(JobSpec.model_validate(raw))
    assert summary["cache"]["store"]["evicted_segments"] > 0
    left = sum(file.stat().st_size for file in stage.published("cache-limit"))
    assert left <= full // 2


@pytest.mark.slow
def test_labelling_that_cannot_all_fit_is_refused_before_anything_is_asked(stage: Stage) -> None:
    told = stage.session.label_job(stage.job("cache-fits"), "label-4", {})["labelled"]
    sizes = [part["bytes"] for part in told]
    assert len(sizes) == 2
    raw = stage.job("cache-sum").model_dump(mode="json", by_alias=True)
    raw["cache"]["max_bytes"] = max(sizes)  # room for either part, and not for both
    with pytest.raises(SpecError, match=f"takes {sum(sizes)} bytes") as caught:
        stage.session.label_job(JobSpec.model_validate(raw), "label-5", {})
    assert all(str(size) in str(caught.value) for size in sizes)
    store = stage.session.caches[str(stage.root / "cache-sum")].stats()
    assert store["records"] == store["pending_records"] == store["dropped"] == 0


# --- a directory that another session writes to ---------------------------------------------------


@pytest.fixture
def held(stage: Stage, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A labelled cache whose writer is this process: for the stage, another session.

    A folder for each test: the stage's owner of the one before may still be about to write there.
    """
    stage.session.label_job(stage.job("cache-first"), "label-6", {})
    stage.published("cache-first")
    folder = stage.root / f"cache-held-{request.node.name}"
    shutil.copytree(stage.root / "cache-first", folder)
    with Store.open(folder, 1 << 30):
        yield folder


def test_a_second_session_reads_and_computes_the_rest_and_says_so_once(
    stage: Stage, held: Path
) -> None:
    calm = stage.play(stage.job("cache-first"))
    files = sorted(held.glob("segments/*"))
    known = stage.play(stage.job(held.name))
    assert known["weights_sha256"] == calm["weights_sha256"]
    assert known["cache"]["misses"] == known["pool"]["asked"] == 0
    (warning,) = stage.warned
    assert str(held) in warning and "no new ones are kept" in warning
    assert "another folder" in warning
    again, rest = (stage.play(stage.job(held.name, "topk")) for _ in range(2))
    assert again["cache"]["misses"] == rest["cache"]["misses"] > 0 and len(stage.warned) == 1
    assert rest["weights_sha256"] == stage.play(stage.job("cache-topk", "topk"))["weights_sha256"]
    assert sorted(held.glob("segments/*")) == files


@pytest.mark.slow
def test_a_job_without_a_pool_reads_what_another_session_writes(stage: Stage, held: Path) -> None:
    alone = stage.job(held.name).model_copy(update={"pool": NoPool(kind="none")})
    summary = stage.play(alone)
    assert summary["cache"]["misses"] == 0 and len(stage.warned) == 1
    assert summary["weights_sha256"] == stage.play(stage.job("cache-first"))["weights_sha256"]


def test_labelling_where_another_session_writes_is_refused(stage: Stage, held: Path) -> None:
    with pytest.raises(SpecError, match=str(held)):
        stage.session.label_job(stage.job(held.name), "label-7", {})
