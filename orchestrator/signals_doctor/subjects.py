"""The models of one job in this process: the student, and a role as served and as it is here.

A role is loaded twice, one after the other: behind the pool's own engine, which is asked and let
go, and plainly. So a fault on either side shows, and memory holds one copy. Starts no Ray.

N positions of the specimen, V vocabulary, d width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from orchestrator.data import Flat
from orchestrator.errors import SpecError
from orchestrator.models.forward import (
    backbone,
    evaluating,
    forward_hidden,
    forward_logits,
    input_device,
)
from orchestrator.models.load import Loaded, load_model
from orchestrator.pool.engine import ModelEngine, load_role
from orchestrator.pool.records import RoleLoad
from orchestrator.signals.asks import exact_ask, training_ask
from orchestrator.signals.encodings import RoleOutputs, decode, encode, head_from_record
from orchestrator.signals.encodings.uniforms import token_hash
from orchestrator.signals.records import (
    Reply,
    Request,
    RoleDescription,
    SampledAsk,
    SignalAsk,
)
from orchestrator.spec import JobSpec
from orchestrator.spec.models import HiddenEncoding, ResourcesSpec
from orchestrator.students.records import StudentJob
from orchestrator.students.start import load_student
from strategies.contract import (
    Batch,
    DenseSignal,
    Head,
    HiddenSignal,
    LogitSignal,
    Outputs,
)

from .specimen import Specimen


@dataclass(frozen=True)
class Served:
    """What the engine of a role said about a specimen."""

    description: RoleDescription
    head: Head | None
    ask: SignalAsk  # the job's own
    own: LogitSignal  # its answer
    outputs: Outputs  # the answer to an ask that loses nothing, float32


def settled(job: JobSpec) -> JobSpec:
    """The job as this process can load it: without GPUs where there are none."""
    if torch.cuda.is_available():
        return job
    bare = ResourcesSpec()
    roles = {
        name: role.model_copy(update={"resources": bare, "parallel": "none"})
        for name, role in job.roles.items()
    }
    training = job.training.model_copy(update={"resources": bare})
    return job.model_copy(update={"roles": roles, "training": training})


def student_of(job: JobSpec, tokenizer: str) -> Loaded:
    """The student at its start, in the precision that it trains in."""
    loaded = load_student(StudentJob(job, job.name, "", tokenizer, ""))
    if job.training.precision == "bf16":
        loaded.module.to(torch.bfloat16)
    return loaded


def role_of(job: JobSpec, role: str) -> Loaded:
    """A role loaded plainly, without the engine."""
    spec = job.roles[role]
    return load_model(
        spec,
        device="cuda" if spec.resources.gpus else "cpu",
        tokenizer=spec.tokenizer,
        seed=job.seed,
        field=f"roles.{role}",
    )


@contextmanager
def engine_of(job: JobSpec, role: str) -> Iterator[ModelEngine]:
    """A role as a replica loads it; the process's threads and determinism are put back after."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        engine = load_role(RoleLoad(role, job.roles[role], job.deterministic, job.seed))
        assert isinstance(engine, ModelEngine)  # `examine` refuses classifiers
        yield engine
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def served(
    engine: ModelEngine, job: JobSpec, role: str, flat: Flat, device: torch.device
) -> Served:
    """Ask an engine about a specimen, in the job's own encoding and without loss.

    Raises:
        SpecError: the role cannot answer the job's own ask.
    """
    description, record = engine.describe(), engine.head()
    head = None if record is None else head_from_record(record, device)
    learned_from = role in job.objective.logit_roles
    encoding = job.roles[role].encoding
    if head is None and learned_from and isinstance(encoding, HiddenEncoding):
        raise SpecError(
            f"roles.{role}.encoding",
            "is hidden, but the model's output head cannot be told apart from its body",
            "Use encoding {kind: topk}",
        )
    exact = exact_ask(has_head=head is not None)
    ask = training_ask(job.roles[role]) if learned_from else exact

    def answer(ask: SignalAsk) -> LogitSignal:
        request = Request(role, role, job.name, ask, flat.tokens, flat.lengths, flat.wanted)
        return _decoded(ask, engine.forward(request), description, head, flat, device)

    signal = answer(exact)
    match signal:
        case HiddenSignal():
            outputs = Outputs(hidden=signal.hidden, head=signal.head)
        case DenseSignal():
            outputs = Outputs(logits=signal.logits)
        case _:
            raise AssertionError("an exact ask is answered by hidden states or logits")
    return Served(description, head, ask, answer(ask), outputs)


def encoded(
    ask: SignalAsk, what: Served, outputs: Outputs, specimen: Specimen, at: Sequence[int]
) -> LogitSignal:
    """What a role's outputs become in an encoding, on the wire and back.

    Args:
        ask: the encoding.
        what: whose outputs.
        outputs: at some positions.
        specimen: says what these are about, which decides the draws.
        at: indices of the positions.
    """
    places = [specimen.places[i] for i in at]
    hashes = {place.sample: token_hash(specimen.store.tokens(place.sample)) for place in places}
    arrays = encode(
        ask,
        RoleOutputs(
            outputs.hidden,
            outputs.head,
            outputs.logits,
            samples=np.array([hashes[place.sample] for place in places], np.uint64),
            positions=np.array([place.position for place in places], np.int64),
        ),
    )
    source = outputs.logits if outputs.hidden is None else outputs.hidden
    assert source is not None
    reply = _reply(ask, arrays, what.description)
    return _logit_signal(decode(reply, what.head, positions=len(at), device=source.device))


def draws(ask: SampledAsk, number: int) -> SampledAsk:
    """The same ask with another seed."""
    return replace(ask, seed=ask.seed + number)


def local_outputs(loaded: Loaded, batch: Batch, device: torch.device) -> Outputs:
    """A model on the student's rows, one row at a time, at the N loss-bearing positions."""
    head = loaded.head()
    parts = []
    with torch.no_grad(), evaluating(loaded.module):
        for ids, positions, mask in _by_row(loaded, batch):
            run = forward_logits if head is None else forward_hidden
            parts.append(run(loaded.module, ids, positions)[mask].to(device))
    if head is None:
        return Outputs(logits=torch.cat(parts))
    bias = None if head.bias is None else head.bias.detach().to(device)
    weight = head.weight.detach().to(device)
    return Outputs(torch.cat(parts), Head(weight, bias, head.scale, head.softcap))


def local_logits(loaded: Loaded, batch: Batch) -> Iterator[Tensor]:
    """The model's own logits at the loss-bearing positions of one row after the other, [n, V].

    By the module's whole forward: what is known of its head plays no part.
    """
    with torch.no_grad(), evaluating(loaded.module):
        for ids, positions, mask in _by_row(loaded, batch):
            yield forward_logits(loaded.module, ids, positions)[mask].cpu()


def cut_forward(loaded: Loaded, tokens: np.ndarray, *, logits: bool) -> Tensor:
    """The last hidden state [d], or the logits [V], of tokens on their own; float32, on the CPU."""
    device = input_device(loaded.module)
    ids = torch.from_numpy(tokens.astype(np.int64))[None].to(device)
    positions = torch.arange(ids.shape[1], device=device)[None]
    with torch.no_grad(), evaluating(loaded.module):
        if logits or backbone(loaded.module) is None:
            return forward_logits(loaded.module, ids, positions)[0, -1].float().cpu()
        return forward_hidden(loaded.module, ids, positions)[0, -1].float().cpu()


def rows_of(outputs: Outputs, at: Tensor) -> Outputs:
    """The outputs at some positions."""
    if outputs.hidden is not None:
        return Outputs(outputs.hidden[at.to(outputs.hidden.device)], outputs.head)
    assert outputs.logits is not None
    return Outputs(logits=outputs.logits[at.to(outputs.logits.device)])


def _by_row(loaded: Loaded, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    device = input_device(loaded.module)
    for row in range(batch.targets.shape[0]):
        part = slice(row, row + 1)
        yield (
            batch.inputs["input_ids"][part].to(device),
            batch.inputs["position_ids"][part].to(device),
            batch.mask[part].to(device),
        )


def _decoded(
    ask: SignalAsk,
    arrays: dict[str, np.ndarray],
    description: RoleDescription,
    head: Head | None,
    flat: Flat,
    device: torch.device,
) -> LogitSignal:
    reply = _reply(ask, arrays, description)
    return _logit_signal(decode(reply, head, positions=int(flat.wanted.sum()), device=device))


def _reply(ask: SignalAsk, arrays: dict[str, np.ndarray], description: RoleDescription) -> Reply:
    return Reply(
        description.role,
        description.role,
        ask,
        arrays,
        description.vocabulary,
        description.fingerprint,
    )


def _logit_signal(signal: object) -> LogitSignal:
    assert isinstance(signal, LogitSignal)
    return signal
