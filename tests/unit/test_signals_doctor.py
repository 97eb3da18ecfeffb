"""`stillhouse doctor --signals`: a healthy job passes, and each planted fault is found where it
belongs."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml

from orchestrator.cli import exit_code
from orchestrator.data import NumpyBatch, collate, format
from orchestrator.data.tokenizer import load_tokenizer
from orchestrator.errors import SpecError
from orchestrator.models.load import Loaded
from orchestrator.pool.engine import ModelEngine, load_role
from orchestrator.signals.encodings import sampled, topk
from orchestrator.signals.records import Request, SampledAsk, TopKAsk
from orchestrator.signals_doctor import alignment, specimen, subjects
from orchestrator.signals_doctor.examine import examine
from orchestrator.signals_doctor.findings import Finding
from orchestrator.spec import JobSpec
from orchestrator.spec.data import Messages
from strategies import linear
from strategies.contract import Head, HiddenSignal, LogitSignal
from strategies.parts import Part
from strategies.teachers import DenseReader

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation", "alpha_beta")


class House:
    """A tiny teacher, texts, and data prepared once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.teacher = tiny.save_teacher(root / "teacher")
        self.text = tiny.save_text(root / "text")

    def job(self, encoding: dict[str, Any], *terms: dict[str, Any], **changes: Any) -> JobSpec:
        role = {"path": str(self.teacher), "encoding": encoding, **changes.pop("role", {})}
        return tiny.job(
            self.teacher,
            self.text,
            self.root / "runs",
            roles={"teacher": role},
            objective={"terms": list(terms) or [{"kind": "forward_kl", "temperature": 2.0}]},
            **changes,
        )

    def examine(self, *jobs: JobSpec) -> list[Finding]:
        return list(examine(jobs, lambda _: None, self.root / "data"))

    def faults(self, job: JobSpec) -> list[Finding]:
        return [finding for finding in self.examine(job) if not finding.ok]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    torch.set_num_threads(1)
    return House(tmp_path_factory.mktemp("doctor"))


@pytest.fixture(autouse=True)
def few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.signals_doctor.examine.POSITIONS", 64)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """The command installs a handler of its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def checks(findings: Sequence[Finding]) -> set[str]:
    return {finding.check for finding in findings}


def said(findings: Sequence[Finding]) -> str:
    return "\n".join(finding.sentence() for finding in findings)


def named(findings: Sequence[Finding], what: str) -> Finding:
    [found] = [finding for finding in findings if what in finding.what]
    return found


# --- healthy jobs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding",
    [
        {"kind": "hidden"},
        {"kind": "hidden", "dtype": "bfloat16"},
        {"kind": "topk", "k": 16, "dtype": "int8", "temperatures": [1.0, 2.0]},
        {"kind": "full", "dtype": "float16"},
    ],
    ids=lambda encoding: "-".join(map(str, encoding.values())),
)
def test_a_healthy_job_passes_with_every_term(house: House, encoding: dict[str, Any]) -> None:
    terms = [{"kind": kind} for kind in DIVERGENCES]
    softened = {"kind": "forward_kl", "temperature": 2.0}
    findings = house.examine(house.job(encoding, softened, *terms))
    faults = [finding for finding in findings if not finding.ok]
    assert not faults, said(faults)
    assert checks(findings) == {"alignment", "served", "zero", "oracle", "vocabulary"}
    bounded = [f for f in findings if f.check == "oracle" and f.bound is not None]
    assert len([f for f in bounded if "value" in f.what]) == 1 + len(DIVERGENCES)
    # The bounds say something: no relative error of a half or more would pass.
    assert all(f.bound is not None and f.bound < 0.5 for f in bounded), said(bounded)


def test_a_healthy_job_passes_with_draws_and_labels(house: House) -> None:
    terms = {"kind": "forward_kl"}, {"kind": "cross_entropy", "label_smoothing": 0.1}
    findings = house.examine(
        house.job({"kind": "sampled", "temperature": 1.25, "dtype": "float32"}, *terms)
    )
    faults = [finding for finding in findings if not finding.ok]
    assert not faults, said(faults)
    assert {f.bound for f in findings if "on average" in f.what} == {4.0}
    assert {f.role for f in findings if f.what.startswith("cross_entropy")} == {"data"}


def test_a_healthy_job_passes_in_half_precision(house: House) -> None:
    training = {"steps": 8, "precision": "bf16", "checkpoint": {"every_steps": 8}}
    faults = house.faults(
        house.job(
            {"kind": "topk", "k": 16},
            {"kind": "forward_kl"},
            role={"dtype": "bfloat16"},
            training=training,
        )
    )
    assert not faults, said(faults)


def test_a_schedule_is_looked_at_where_it_starts_and_where_it_ends(house: House) -> None:
    falling = {"kind": "linear", "start": 2.0, "end": 1.0, "until": 20}
    findings = house.examine(
        house.job({"kind": "hidden"}, {"kind": "forward_kl", "temperature": falling})
    )
    titles = {f.what for f in findings if f.check == "zero"}
    assert titles == {
        f"forward_kl{when}, {what}"
        for when in (" T=2 (start)", " (end)")
        for what in ("value", "gradient")
    }
    assert all(finding.ok for finding in findings)


def test_a_student_with_a_wider_padded_vocabulary_passes(house: House) -> None:
    student = {
        "architecture": {**tiny.architecture(), "vocab_size": 4160},
        "tokenizer": str(tiny.TOKENIZER),
    }
    findings = house.examine(
        house.job(
            {"kind": "hidden"}, {"kind": "forward_kl"}, {"kind": "reverse_kl"}, student=student
        )
    )
    assert all(finding.ok for finding in findings), said([f for f in findings if not f.ok])
    assert named(findings, "lacks").note == "tokenizer 4096, teacher 4096, student 4160"


def test_mass_beyond_the_tokenizer_is_told(house: House) -> None:
    teacher = {"path": None, "architecture": {**tiny.architecture(), "vocab_size": 4224}}
    job = house.job(
        {"kind": "topk", "k": 16},
        {"kind": "forward_kl"},
        role={**teacher, "tokenizer": str(tiny.TOKENIZER)},
    )
    findings = house.examine(job)
    assert all(finding.ok for finding in findings), said([f for f in findings if not f.ok])
    beyond = named(findings, "beyond the tokenizer's")
    # A fresh model spreads its mass evenly: 128 of 4224 entries.
    assert beyond.measured == pytest.approx(128 / 4224, rel=0.1) and beyond.bound is None


def test_models_whose_head_cannot_be_told_apart_pass(house: House) -> None:
    model = {"import": "word_model:build", "arguments": {"vocabulary": 4096}}
    job = house.job(
        {"kind": "topk", "k": 16, "dtype": "float32"},
        {"kind": "forward_kl"},
        {"kind": "total_variation"},
        role={"path": None, **model},
        student={**model, "tokenizer": str(tiny.TOKENIZER)},
        seed=3,
    )
    faults = house.faults(job)
    assert not faults, said(faults)


@pytest.mark.parametrize("packing", [True, False])
def test_prompts_are_planted_too(house: House, packing: bool, tmp_path: Path) -> None:
    pairs = [{"prompt": f"add {i} and one: ", "completion": f"{i + 1}, be sure"} for i in range(9)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs)))
    source = {"kind": "jsonl", "path": str(file), "format": {"kind": "completion"}}
    data = {"sources": [source], "context": 64, "held_out": 0.0, "packing": packing}
    findings = house.examine(house.job({"kind": "hidden"}, data=data))
    assert named(findings, "planted completion").ok
    assert all(finding.ok for finding in findings), said([f for f in findings if not f.ok])


CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant: {% endif %}"


@pytest.mark.parametrize("fault", [False, True])
def test_chats_are_planted_too(
    house: House, fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in tiny.TOKENIZER_FILES:
        shutil.copyfile(tiny.TOKENIZER / name, tmp_path / name)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHAT}))
    tokenizer = load_tokenizer(tmp_path)
    if fault:  # a mask that starts a turn too early
        render = format.render
        monkeypatch.setattr(format, "render", lambda *a: (render(*a)[0], [(0, 1000)]))
    off = alignment._wrong_words(tokenizer, Messages(kind="messages"), 64)
    assert bool(off) == fault
    assert not fault or "wheredothesevenoaksstand" in off[0]


# --- planted faults ------------------------------------------------------------------------------


def test_targets_that_are_not_shifted_are_found_by_position(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unshifted(*arguments: Any) -> NumpyBatch:
        batch = collate(*arguments)
        learned = batch.targets >= 0
        batch.targets[learned] = batch.inputs["input_ids"][learned]
        return batch

    for module in (alignment, specimen):
        monkeypatch.setattr(module, "collate", unshifted)
    faults = house.faults(house.job({"kind": "hidden"}))
    assert checks(faults) == {"alignment"}
    first = named(faults, "targets that are not the next token").note
    assert first.startswith("first: sample '") and ", position 0: target " in first
    assert named(faults, "planted signal").note.endswith("position 0")
    assert named(faults, "planted text")


def test_a_mask_that_teaches_the_prompt_is_found(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everything(*arguments: Any) -> NumpyBatch:
        batch = collate(*arguments)
        inside = batch.sample_index[:, 1:] == batch.sample_index[:, :-1]
        inside &= batch.sample_index[:, 1:] >= 0
        batch.targets[:, :-1][inside] = batch.inputs["input_ids"][:, 1:][inside]
        return batch

    file = house.root / "one.jsonl"
    pair = {"prompt": "what is behind the mill: ", "completion": "seven oaks"}
    file.write_text(json.dumps(pair))
    source = {"kind": "jsonl", "path": str(file), "format": {"kind": "completion"}}
    job = house.job({"kind": "hidden"}, data={"sources": [source], "context": 64, "held_out": 0.0})
    monkeypatch.setattr(alignment, "collate", everything)
    faults = house.faults(job)
    assert checks(faults) == {"alignment"}
    assert "not -100" in named(faults, "targets").note
    assert "are wanted, and" in named(faults, "wanted").note
    assert named(faults, "planted completion")


@pytest.mark.parametrize("rows", [1, -1])
@pytest.mark.parametrize("encoding", [{"kind": "topk", "k": 16}, {"kind": "sampled"}])
def test_signal_rows_that_are_off_by_one_are_found(
    house: House, monkeypatch: pytest.MonkeyPatch, encoding: dict[str, Any], rows: int
) -> None:
    forward = ModelEngine.forward

    def rolled(self: ModelEngine, request: Request) -> dict[str, np.ndarray]:
        arrays = forward(self, request)
        if isinstance(request.ask, TopKAsk | SampledAsk):  # what the job asks
            arrays = {name: np.roll(array, rows, 0) for name, array in arrays.items()}
        return arrays

    monkeypatch.setattr(ModelEngine, "forward", rolled)
    faults = house.faults(house.job(encoding, {"kind": "forward_kl"}))
    assert "alignment" in checks(faults) and "served" not in checks(faults)
    note = named(faults, "rows of another position").note
    assert note.startswith("first: sample '") and "nearest to sample '" in note


def test_positions_off_by_one_in_the_engine_are_found(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ModelEngine.forward

    def late(self: ModelEngine, request: Request) -> dict[str, np.ndarray]:
        request.wanted[:] = np.roll(request.wanted, 1)
        arrays = forward(self, request)
        request.wanted[:] = np.roll(request.wanted, -1)
        return arrays

    monkeypatch.setattr(ModelEngine, "forward", late)
    faults = house.faults(house.job({"kind": "hidden"}))
    assert named(faults, "hidden rows of another position").measured > 8
    assert "served" in checks(faults)


@pytest.mark.parametrize("encoding", [{"kind": "hidden"}, {"kind": "full", "dtype": "float16"}])
def test_a_wrong_power_of_the_temperature_is_found_by_the_oracle(
    house: House, monkeypatch: pytest.MonkeyPatch, encoding: dict[str, Any]
) -> None:
    monkeypatch.setattr(Part, "value_factor", lambda self: self.temperature)
    faults = house.faults(house.job(encoding))
    assert checks(faults) <= {"oracle", "vocabulary"}
    for what in ("value", "gradient"):  # half of it is missing at temperature 2
        found = named([f for f in faults if f.check == "oracle"], what)
        assert found.measured == pytest.approx(0.5, abs=0.01)


def test_one_other_weight_in_the_served_model_is_found(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(what: Any) -> ModelEngine:
        engine = load_role(what)
        with torch.no_grad():
            engine._loaded.module.model.layers[0].mlp.down_proj.weight[0, 0] += 0.02
        return engine

    monkeypatch.setattr(subjects, "load_role", changed)
    faults = house.faults(house.job({"kind": "hidden"}))
    assert checks(faults) == {"served"}, said(faults)
    assert {f.what for f in faults} >= {"hidden states", "logits"}


def test_another_model_behind_the_engine_is_found_by_its_fingerprint(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    role_of = subjects.role_of

    def other(job: JobSpec, role: str) -> Loaded:
        spec = job.roles[role].model_copy(update={"attention": "eager"})
        return role_of(job.model_copy(update={"roles": {role: spec}}), role)

    monkeypatch.setattr("orchestrator.signals_doctor.examine.role_of", other)
    faults = house.faults(house.job({"kind": "hidden"}))
    assert [fault.what for fault in faults] == ["fingerprints that differ"]


def test_absent_entries_counted_as_logits_of_0_are_found(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = DenseReader.logits

    def counted(self: DenseReader, rows: slice, out: torch.Tensor) -> torch.Tensor:
        logits = read(self, rows, out)
        return logits.masked_fill_(torch.isneginf(logits), 0.0)

    monkeypatch.setattr(DenseReader, "logits", counted)
    faults = house.faults(house.job({"kind": "hidden"}, {"kind": "forward_kl"}))
    assert checks(faults) == {"vocabulary"}
    assert "more entries of the student" in said(faults)


def test_a_wider_role_that_is_cut_at_the_wrong_end_is_found(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = linear.read

    def wrong_end(signal: LogitSignal, width: int, dtype: torch.dtype) -> Any:
        if isinstance(signal, HiddenSignal):
            signal = HiddenSignal(signal.hidden, Head(signal.head.weight[-width:]))
        return read(signal, width, dtype)

    monkeypatch.setattr(linear, "read", wrong_end)
    faults = house.faults(house.job({"kind": "hidden", "dtype": "float16"}, {"kind": "forward_kl"}))
    wider = [fault for fault in faults if "more entries of the role" in fault.what]
    assert checks(wider) == {"vocabulary"}


def test_a_head_with_a_wrong_scale_is_found_on_the_wire(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_record = subjects.head_from_record

    def scaled(*arguments: Any) -> Head:
        head = from_record(*arguments)
        return Head(head.weight, head.bias, head.scale * 1.01, head.softcap)

    monkeypatch.setattr(subjects, "head_from_record", scaled)
    faults = house.faults(house.job({"kind": "hidden"}))
    assert checks(faults) == {"served"} and "logits" in said(faults)
    assert "hidden states" not in said(faults)


def test_entries_that_are_not_the_likeliest_are_found(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = torch.topk

    def second_best(z: torch.Tensor, k: int, dim: int) -> Any:
        kept, ids = best(z, k + 1, dim=dim)
        return kept[:, 1:], ids[:, 1:]

    class Torch:
        """The module's torch with another `topk`."""

        topk = staticmethod(second_best)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    monkeypatch.setattr(topk, "torch", Torch())
    faults = house.faults(house.job({"kind": "topk", "k": 16}, {"kind": "forward_kl"}))
    assert [fault.what for fault in faults] == ["entries left out above entries kept"]


def test_coarse_codes_on_the_wire_pass_no_bound(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_wire: Callable[..., dict[str, np.ndarray]] = topk.logs_to_wire

    def coarser(name: str, logs: torch.Tensor, dtype: Any) -> dict[str, np.ndarray]:
        return to_wire(name, (logs * 4).round() / 4, dtype)

    monkeypatch.setattr(topk, "logs_to_wire", coarser)
    encoding = {"kind": "topk", "k": 16, "dtype": "float16", "temperatures": [1.0, 2.0]}
    assert {"zero", "oracle"} <= checks(house.faults(house.job(encoding)))


def test_draws_that_favour_some_entries_are_found_on_average(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    even = sampled.uniforms

    def low(seed: int, samples: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return even(seed, samples, positions) * 0.1

    monkeypatch.setattr(sampled, "uniforms", low)
    faults = house.faults(house.job({"kind": "sampled"}, {"kind": "forward_kl"}))
    assert "zero" in checks(faults)
    assert all("on average" in fault.what for fault in faults)


def test_a_number_that_is_not_one_is_never_within_its_bound() -> None:
    assert not Finding("job", "zero", "value", "teacher", float("nan"), 1.0).ok
    assert Finding("job", "zero", "value", "teacher", 1e9).ok


# --- refusals and the command --------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [{"job": "earlier"}, {"registry": "models:/teacher/1"}], ids=["job", "registry"]
)
def test_models_that_are_not_there_yet_are_refused(house: House, source: dict[str, str]) -> None:
    job = house.job({"kind": "hidden"}, role={"path": None, **source})
    with pytest.raises(SpecError, match=r"tiny\.roles\.teacher\..* Give its export as path"):
        house.examine(job)


def test_a_file_that_asks_no_role_is_refused(house: House) -> None:
    with pytest.raises(SpecError, match="Only what roles say can be checked"):
        house.examine(house.job({"kind": "hidden"}, {"kind": "cross_entropy"}))


def test_hidden_states_of_a_model_without_a_head_are_refused(house: House) -> None:
    model = {"import": "word_model:build", "arguments": {"vocabulary": 4096}}
    with pytest.raises(SpecError, match=r"cannot be told apart.*topk"):
        house.examine(house.job({"kind": "hidden"}, role={"path": None, **model}))


@pytest.fixture
def file(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("orchestrator.signals_doctor.examine.CACHE", house.root)
    raw = house.job({"kind": "hidden"}).model_dump(mode="json", by_alias=True, exclude_none=True)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_the_command_draws_a_table_and_ends_with_one_object(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["doctor", "--signals", str(file), "--json"]) == 0
    streams = capsys.readouterr()
    result = json.loads(streams.out.splitlines()[-1])
    assert result["ok"] and len(result["findings"]) > 20
    assert set(result["findings"][0]) == {
        "job", "check", "what", "role", "measured", "bound", "note", "ok",
    }  # fmt: skip
    assert "KL(served, local)" in streams.err and "OFF" not in streams.err


def test_the_command_fails_loudly_past_a_bound(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Part, "value_factor", lambda self: self.temperature)
    assert exit_code(["doctor", "--signals", str(file), "--json"]) == 1
    streams = capsys.readouterr()
    assert not json.loads(streams.out.splitlines()[-1])["ok"]
    assert "OFF tiny, oracle: forward_kl T=2, hidden float32, value, teacher: 0.5" in streams.err


def test_a_bad_file_is_refused_before_anything_is_loaded(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_reached(*_: Any) -> None:
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr(subjects, "load_role", not_reached)
    arguments = ["doctor", "--signals", str(file), "--set", "roles.teacher.path=/nowhere"]
    assert exit_code(arguments) == 2
    assert "roles.teacher.path" in capsys.readouterr().err
    assert exit_code(["doctor", "--json"]) == 2
    assert "--signals" in capsys.readouterr().err
