"""Every refusal that needs no cluster: exit code 2, quickly, without torch or ray.

The message names field, value and remedy. One interpreter runs all cases, so that the suite pays
its start once.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

TOKENIZER = Path(__file__).parents[2] / "docs/examples/teacher"
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
ENTRY = """
import io, json, sys, time
from contextlib import redirect_stderr, redirect_stdout
from orchestrator.cli import exit_code

for line in sys.stdin:
    out, err, began = io.StringIO(), io.StringIO(), time.process_time()
    with redirect_stdout(out), redirect_stderr(err):
        code = exit_code(json.loads(line))
    heavy = sorted({"torch", "ray", "transformers", "mlflow", "deepspeed"} & set(sys.modules))
    took_s = time.process_time() - began
    print(json.dumps({"code": code, "err": err.getvalue(), "took_s": took_s, "heavy": heavy}))
"""


def make_model(folder: Path, **config: Any) -> Path:
    """A folder with a config, one tensor and the examples' tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**ARCHITECTURE, "vocab_size": 4096, **config}))
    save_file({"embed": np.zeros((4, 8), np.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes((TOKENIZER / "tokenizer.json").read_bytes())
    return folder


def base_job(root: Path) -> dict[str, Any]:
    """A job that passes."""
    return {
        "name": "good",
        "student": {"architecture": ARCHITECTURE, "tokenizer": str(TOKENIZER)},
        "roles": {"teacher": {"path": str(root / "teacher")}},
        "data": {"sources": [{"kind": "text", "path": str(root / "text.txt")}], "context": 32},
        "objective": {"terms": [{"kind": "forward_kl"}]},
        "training": {
            "steps": 4,
            "global_batch": 4,
            "micro_batch": 2,
            "checkpoint": {"every_steps": 2},
        },
        "ray": {"address": "local"},
        "storage": str(root / "runs"),
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are wrong in one way each."""
    root = tmp_path_factory.mktemp("bad")
    make_model(root / "teacher")
    (make_model(root / "weightless") / "model.safetensors").unlink()
    pickled = make_model(root / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    make_model(root / "remote", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    other = make_model(root / "other_tokenizer")
    Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(other / "tokenizer.json"))
    (root / "text.txt").write_text("once upon a time " * 40)
    (root / "empty.txt").write_text("")
    (root / "short.txt").write_text("too short")
    (root / "binary.txt").write_bytes(b"text\0more text" * 10)
    (root / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 20)
    (root / "bare").mkdir()
    (root / "markdown").mkdir()
    (root / "markdown/notes.md").write_text("words " * 40)
    (root / "records.jsonl").write_text('{"body": "words"}\n' * 20)
    (root / "torn.jsonl").write_text('{"text": "words"}\n{"text": \n' * 20)
    (root / "table.csv").write_text("title,body\na,b\n" * 20)
    (root / "broken.parquet").write_bytes(b"PAR1 not really" * 20)
    (root / "old_cache").mkdir()
    (root / "old_cache/format").write_text("stillhouse signals 0\n")
    (root / "foreign").mkdir()
    (root / "foreign/thesis.txt").write_text("years of work")
    (root / "not.yaml").write_text("name: [unclosed")
    (root / "nothing.yaml").write_text("jobs: []")
    return root


def source(kind: str, path: str, **more: Any) -> list[dict[str, Any]]:
    """Value of data.sources."""
    return [{"kind": kind, "path": path, **more}]


# name: (--set arguments, parts of the message). {root} is the folder above.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": (["trainning.steps=3"], ["trainning", "'training'"]),
    "unknown nested key": (["training.stepps=3"], ["training.stepps", "'steps'"]),
    "wrong type": (["training.steps=many"], ["training.steps", "'many'", "whole number"]),
    "unknown kind": (["pool={kind: standin}"], ["pool", "'standin'", "'standing'"]),
    "role not defined": (["roles={}"], ["objective.terms.0.role", "'teacher'", "roles.teacher"]),
    "compared role not defined": (
        ["evaluation.against=judge"],
        ["evaluation.against", "'judge'", "roles.judge"],
    ),
    "a role that cannot lie beside the student": (
        ["objective={recipe: {kind: modified_gradient}}", "training.zero=3"],
        ["training.zero", "is 3", "role teacher", "Set it to 2"],
    ),
    "a role that is no twin of the student": (
        [
            "objective={recipe: {kind: modified_gradient}}",
            "student.architecture.hidden_size=16",
        ],
        ["roles.teacher", "width 8 and the student 16", "one architecture"],
    ),
    "a layer map without layers": (
        ["objective={terms: [{kind: blockwise_logits, layers: []}]}"],
        ["objective.terms.0.layers", "at least one"],
    ),
    "file missing": (
        ["data.sources.0.path={root}/texd.txt"],
        ["data.sources.0.path", "texd.txt", "Did you mean", "text.txt"],
    ),
    "file empty": (["data.sources.0.path={root}/empty.txt"], ["sources.0.path", "is empty"]),
    "folder empty": (["data.sources.0.path={root}/bare"], ["sources.0.glob", "**/*.txt", "empty"]),
    "folder without a match": (["data.sources.0.path={root}/markdown"], ["glob", "end in .md"]),
    "file not text": (["data.sources.0.path={root}/binary.txt"], ["not text", "NUL byte at 4"]),
    "file not UTF-8": (["data.sources.0.path={root}/latin.txt"], ["not UTF-8", "byte 3"]),
    "file too short": (
        ["data.sources.0.path={root}/short.txt"],
        ["data.sources", "9 bytes", "too short for one sequence of 32", "data.context"],
    ),
    "records without the field": (
        ["data.sources.0={kind: jsonl, path: '{root}/records.jsonl'}"],
        ["data.sources.0.format.field", "'text'", "body"],
    ),
    "records that are not JSON": (
        ["data.sources.0={kind: jsonl, path: '{root}/torn.jsonl'}"],
        ["line 2", "not JSON"],
    ),
    "table without the column": (
        ["data.sources.0={kind: csv, path: '{root}/table.csv'}"],
        ["data.sources.0.format.field", "'text'", "title, body"],
    ),
    "broken parquet": (
        ["data.sources.0={kind: parquet, path: '{root}/broken.parquet'}"],
        ["data.sources.0.path", "not a Parquet file"],
    ),
    "import path without its module": (
        ["data.sources.0={kind: import, target: 'nowhere.at_all:f'}"],
        ["data.sources.0.target", "nowhere", "PYTHONPATH"],
    ),
    "import path without its name": (
        ["data.sources.0={kind: import, target: 'orchestrator.data.stdlib:document'}"],
        ["data.sources.0.target", "'document'", "orchestrator.data.stdlib:documents"],
    ),
    "model path missing": (
        ["roles.teacher.path={root}/teachr"],
        ["roles.teacher.path", "teachr", "Did you mean", "teacher"],
    ),
    "model without weights": (["roles.teacher.path={root}/weightless"], ["lacks weights"]),
    "model with pickles only": (
        ["roles.teacher.path={root}/pickled"],
        ["roles.teacher.path", "pytorch_model.bin", "safetensors", "allow_pickle"],
    ),
    "model with remote code": (
        ["roles.teacher.path={root}/remote"],
        ["roles.teacher.path", "auto_map", "allow_remote_code"],
    ),
    "two sources of one model": (["student.path=x"], ["student", "path, architecture"]),
    "tokenizers differ": (
        ["roles.teacher.path={root}/other_tokenizer"],
        ["roles.teacher.path", "other_tokenizer", "(2 ids)", "student.tokenizer", "share one"],
    ),
    "no tokenizer": (
        ["student.tokenizer=null", "roles={}", "objective.terms.0={kind: cross_entropy}"],
        ["student.tokenizer", "absent", "Name a folder"],
    ),
    "steps below one checkpoint": (
        ["training.checkpoint.every_steps=5"],
        ["training.steps", "is 4", "every_steps is 5", "to 4 or less"],
    ),
    "batch not divisible": (
        ["training.global_batch=5"],
        ["training.global_batch", "is 5", "1 * 2 = 2", "Set it to 4"],
    ),
    "too many replicas": (
        ["roles.teacher.replicas=4000"],
        ["roles.teacher.replicas", "is 4000", "too many", "or less"],
    ),
    "too many workers": (
        ["training.workers=4000", "training.micro_batch=1", "training.global_batch=4000"],
        ["training.workers", "is 4000", "too many"],
    ),
    "a custom resource that no node has": (
        ["roles.teacher.resources.custom={moon: 1}"],
        ["roles.teacher.resources", "moon 1", "no node has"],
    ),
    "DeepSpeed key that we own": (
        ["training.deepspeed={optimizer: {}}"],
        ["training.deepspeed.optimizer", "training.optimizer"],
    ),
    "DeepSpeed ZeRO key that we own": (
        ["training.deepspeed={zero_optimization: {stage: 2}}"],
        ["training.deepspeed.zero_optimization.stage", "training.zero"],
    ),
    "tracking URI of no kind": (["tracking.uri=mlflow.local"], ["tracking.uri", "http://"]),
    "a folder as tracking URI": (["tracking.uri=./mlruns"], ["tracking.uri", "sqlite:///"]),
    "disk too full": (
        ["student.architecture={model_type: llama, hidden_size: 65536, num_hidden_layers: 9999}"],
        ["storage", "GiB free", "checkpoints", "keep is 2"],
    ),
    "temperature outside the ladder": (
        ["roles.teacher.encoding={kind: topk}", "objective.terms.0.temperature=2"],
        ["roles.teacher.encoding.temperatures", "[1.0]", "temperature 2", "hidden"],
    ),
    "temperature between rungs that are too far apart": (
        [
            "roles.teacher.encoding={kind: topk, temperatures: [1, 4]}",
            "objective.terms.0.temperature={kind: linear, start: 4, end: 1}",
        ],
        ["roles.teacher.encoding.temperatures", "1 and 4", "1e-3 nats", "rung at 2"],
    ),
    "encoding that a term cannot use": (
        [
            "roles.teacher.encoding={kind: sampled}",
            "objective.terms.0={kind: total_variation, role: teacher}",
        ],
        ["roles.teacher.encoding.kind", "sampled", "total_variation", "full, hidden, topk"],
    ),
    "draws at another temperature": (
        ["roles.teacher.encoding={kind: sampled}", "objective.terms.0.temperature=2"],
        ["roles.teacher.encoding.kind", "temperature 1", "wants 2"],
    ),
    "k above the vocabulary": (
        ["roles.teacher.encoding={kind: topk, k: 999999}"],
        ["roles.teacher.encoding.k", "999999", "vocabulary"],
    ),
    "no pool and no cache": (
        ["pool=none", "cache.enabled=false"],
        ["cache.enabled", "pool is none"],
    ),
    "cache of another format": (
        ["cache.path={root}/old_cache"],
        ["old_cache", "stillhouse signals 0", "this version reads"],
    ),
    "cache in a folder of something else": (
        ["cache.path={root}/foreign"],
        ["thesis.txt", "no file `format`", "empty folder"],
    ),
    "override without a value": (["training.steps"], ["--set training.steps", "path=value"]),
    "override of no job": (["nobody:training.steps=3"], ["names job 'nobody'", "good"]),
}
FILES = {
    "absent.yaml": ["absent.yaml", "no such file"],
    "not.yaml": ["not.yaml", "not valid YAML"],
    "nothing.yaml": ["nothing.yaml", "holds no job"],
    "bare": ["bare", "no such file"],
}


@pytest.fixture(scope="module")
def answers(root: Path) -> dict[str, dict[str, Any]]:
    """By case: exit code, standard error, processor seconds, heavy modules."""
    job = root / "job.yaml"
    job.write_text(yaml.safe_dump(base_job(root)))
    commands = {"good": ["validate", str(job)]}
    for name, (overrides, _) in CASES.items():
        sets = [f"--set={override.replace('{root}', str(root))}" for override in overrides]
        commands[name] = ["run", str(job), *sets]
    commands |= {name: ["run", str(root / name)] for name in FILES}
    commands["resume nothing"] = ["resume", str(root / "bare")]
    done = subprocess.run(
        [sys.executable, "-c", ENTRY],
        input="".join(json.dumps(command) + "\n" for command in commands.values()),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return dict(zip(commands, map(json.loads, done.stdout.splitlines()), strict=True))


def test_the_job_that_the_cases_spoil_is_good(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["good"]["code"] == 0, answers["good"]["err"]


@pytest.mark.parametrize("name", [*CASES, *FILES, "resume nothing"])
def test_bad_input_exits_with_2_quickly_and_says_what_to_do(
    answers: dict[str, dict[str, Any]], name: str
) -> None:
    answer = answers[name]
    expected = CASES[name][1] if name in CASES else FILES.get(name, ["run folder"])
    assert answer["code"] == 2, answer["err"]
    assert answer["took_s"] < 5
    assert answer["heavy"] == []
    assert "Traceback" not in answer["err"]
    for part in expected:
        assert part in answer["err"]


def test_the_real_command_refuses_in_under_five_seconds(root: Path) -> None:
    command = [str(Path(sys.executable).parent / "stillhouse"), "run", str(root / "absent.yaml")]
    before = _children_s()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert _children_s() - before < 5
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("stillhouse: ")


def _children_s() -> float:
    """Processor seconds of the processes that this one has waited for: others share the machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
