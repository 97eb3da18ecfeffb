"""(spec, inventory) -> Plan: what a job takes from the cluster and what crosses the wire.

Pure but for the headers of local models, which say how large they are.

A job is refused only when the cluster can never hold it: when a sum or a single process exceeds
what all nodes together, or the largest of them, would have if they were empty. Imports neither
torch nor ray.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import SpecError
from orchestrator.models.tokenizer import vocabulary_size
from orchestrator.signals.asks import ask_of
from orchestrator.signals.layouts import Sizes, position_bytes
from orchestrator.spec import JobSpec
from orchestrator.spec.data import GeneratedSource
from orchestrator.spec.job import EphemeralPool
from orchestrator.spec.models import (
    EncodingSpec,
    HiddenEncoding,
    ModelSpec,
    ResourcesSpec,
    RoleSpec,
)

from .sizes import ModelSize, model_size
from .tokenizers import job_tokenizer

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SLACK = 1e-9  # of sums of fractions


@dataclass(frozen=True, slots=True)
class Node:
    """What one machine offers in all, used or not. Resources by Ray's names: CPU, GPU, custom."""

    name: str
    resources: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Inventory:
    """The machines of a cluster."""

    nodes: tuple[Node, ...]

    def total(self, resource: str) -> float:
        """Sum of a resource over the nodes."""
        return sum(node.resources.get(resource, 0.0) for node in self.nodes)


@dataclass(frozen=True, slots=True)
class RolePlan:
    """How one role is served."""

    role: str
    replicas: int  # 0: by a standing pool
    encoding: str
    bytes_per_position: int | None  # None: known once the model is loaded
    request_bytes: int | None  # a full micro-batch's signals
    head_bytes: int | None  # sent once per node; 0 for encodings that need no head
    window_requests: int | None  # requests of a full micro-batch that a rank keeps in flight
    resident_bytes: int | None = 0  # beside the student, on each worker: weights and gradients


@dataclass(frozen=True, slots=True)
class Plan:
    """What the job takes and does, before anything is started."""

    job: str
    workers: int
    rows_per_worker: int  # rows of a step on one rank
    micro_batches: int  # forwards of a step on one rank
    tokens_per_step: int  # positions of a global batch, padding included; or its samples
    resources: Mapping[str, float]  # of all processes together, by Ray's names
    roles: tuple[RolePlan, ...]
    student_parameters: int | None
    checkpoint_bytes: int | None
    warnings: tuple[str, ...] = ()


def plan(job: JobSpec, inventory: Inventory | None, earlier: Sequence[JobSpec] = ()) -> Plan:
    """Plan a job for a cluster.

    Args:
        job: the job.
        inventory: the machines that there are; None if that is not known yet.
        earlier: the jobs before this one in its file; they tell the size of `{job: name}` models.

    Raises:
        SpecError: the cluster can never hold the job; says the shortfall.
    """
    if inventory is not None:
        _check_fits(_needs(job), inventory)
    student = job_model_size(job, job.student, earlier)
    sizes = {name: job_model_size(job, job.roles[name], earlier) for name in job.used_roles}
    for name in job.twin_roles:
        _check_twin(name, sizes[name], student)
    roles = tuple(_plan_role(job, name, size) for name, size in sizes.items())
    training = job.training
    return Plan(
        job=job.name,
        workers=training.workers,
        rows_per_worker=training.global_batch // training.workers,
        micro_batches=training.global_batch // (training.workers * training.micro_batch),
        tokens_per_step=training.global_batch * _row_positions(job),
        resources=_sums(_needs(job)),
        roles=roles,
        student_parameters=student.parameters,
        checkpoint_bytes=checkpoint_bytes(job, student),
        warnings=tuple(_warnings(job, roles)),
    )


def _check_twin(role: str, size: ModelSize, student: ModelSize) -> None:
    """Refuse at once a role that cannot have weights of the student's shapes; workers look closer.

    Raises:
        SpecError: with what differs.
    """
    for name in ("width", "vocabulary"):
        theirs, ours = getattr(size, name), getattr(student, name)
        if theirs is not None and ours is not None and theirs != ours:
            raise SpecError(
                f"roles.{role}",
                f"has {name} {theirs} and the student {ours}, and its weights are to have the "
                "names and shapes of the student's",
                "Give student and role one architecture",
            )


def job_model_size(job: JobSpec, model: ModelSpec, earlier: Sequence[JobSpec]) -> ModelSize:
    """Size of a model of a job, a fresh one with the vocabulary of the job's tokenizer."""
    folder = job_tokenizer(job, earlier)
    return model_size(model, earlier, None if folder is None else vocabulary_size(folder))


def resident_bytes(job: JobSpec, role: str, size: ModelSize) -> int | None:
    """Bytes that a role takes beside the student, on each worker; 0: it is not there.

    Its weights as it is loaded; where its own gradient is learned from, that in float32, and once
    more over all data where that is wanted. None if the role's size is not known yet.
    """
    if role not in job.resident_roles:
        return 0
    if size.parameters is None:
        return None
    gradients = (role in job.twin_roles) + (role in job.objective.whole_gradient_roles)
    return size.parameters * (BYTES[job.roles[role].dtype] + 4 * gradients)


def checkpoint_bytes(job: JobSpec, student: ModelSize) -> int | None:
    """Bytes of one checkpoint over all ranks; None if the student's size is not known yet.

    Full training: weights in the training precision, float32 masters where they differ, and two
    float32 moments. With LoRA the frozen weights are kept once more and the adapters are small
    beside them.
    """
    if student.parameters is None:
        return None
    weights = 2 if job.training.precision == "bf16" else 4
    if job.student.lora is not None:
        return student.parameters * weights
    masters = 4 if job.training.precision == "bf16" or job.training.zero else 0
    return student.parameters * (weights + masters + 8)


def bytes_per_position(encoding: EncodingSpec, size: ModelSize, role: str = "role") -> int | None:
    """Bytes of one loss-bearing position on the wire; None if the model's size is not known.

    Raises:
        SpecError: the model cannot answer so: k is above its vocabulary.
    """
    needed = size.width if isinstance(encoding, HiddenEncoding) else size.vocabulary
    if needed is None:
        return None
    return position_bytes(ask_of(encoding), Sizes(role, size.vocabulary or 0, size.width or 0))


def _plan_role(job: JobSpec, name: str, size: ModelSize) -> RolePlan:
    role = job.roles[name]
    position = bytes_per_position(role.encoding, size, name)
    positions = job.training.micro_batch * _row_positions(job)
    request = None if position is None else position * positions
    in_window = None if request is None else max(1, job.pool.window_bytes // request)
    head: int | None = 0
    if isinstance(role.encoding, HiddenEncoding):
        known = size.vocabulary is not None and size.width is not None
        head = (size.vocabulary or 0) * (size.width or 0) * BYTES[role.dtype] if known else None
    return RolePlan(
        role=name,
        replicas=role.replicas if isinstance(job.pool, EphemeralPool) else 0,
        encoding=role.encoding.kind,
        bytes_per_position=position,
        request_bytes=request,
        head_bytes=head,
        window_requests=None if in_window is None else min(in_window, job.pool.window_requests),
        resident_bytes=resident_bytes(job, name, size),
    )


def _row_positions(job: JobSpec) -> int:
    """Positions of a row that may bear loss: a classifier's row is one sample."""
    return 1 if job.data.task == "classifier" else job.data.context


def _warnings(job: JobSpec, roles: Sequence[RolePlan]) -> list[str]:
    found = []
    for role in roles:
        if role.request_bytes is not None and role.request_bytes > job.pool.window_bytes:
            found.append(
                f"pool.window_bytes ({job.pool.window_bytes}) holds less than one request of role "
                f"{role.role} ({role.request_bytes} bytes): one is in flight at a time; raise "
                f"window_bytes, or lower training.micro_batch"
            )
    for source in job.data.sources:
        if isinstance(source, GeneratedSource):
            found.append(
                f"role {source.role} first writes {source.count} texts, at most "
                f"{source.count * source.length} tokens, unless they are there from an earlier job"
            )
    unused = [name for name in job.roles if name not in (*job.used_roles, *job.data.writers)]
    if unused:
        found.append(f"nobody asks role {', '.join(unused)}: it is not served")
    return found


Need = tuple[str, int, dict[str, float]]
"""(field that sets the count, processes, what one process takes)."""


def check_roles_fit(roles: Mapping[str, RoleSpec], inventory: Inventory) -> None:
    """Refuse a pool that the cluster can never hold.

    Raises:
        SpecError: says the shortfall.
    """
    _check_fits(_role_needs(roles), inventory)


def no_more_than_served(role: RoleSpec, job: JobSpec) -> bool:
    """Whether a role takes no more of any resource than the roles that the job will have served."""
    if not isinstance(job.pool, EphemeralPool):
        return False
    served = _sums(_role_needs({name: job.roles[name] for name in job.used_roles}))
    wanted = _sums(_role_needs({"": role}))
    return all(amount <= served.get(name, 0.0) for name, amount in wanted.items())


def beside_a_pool(
    job: JobSpec, roles: Mapping[str, RoleSpec], inventory: Inventory
) -> tuple[dict[str, float], dict[str, float]]:
    """What a pool takes that serves many jobs, and what the workers of one such job take.

    Args:
        job: one of them.
        roles: all that the pool serves; empty where it is a standing one.
        inventory: of the cluster.

    Raises:
        SpecError: the cluster can never hold the two together; says the shortfall.
    """
    workers, served = _needs(job)[:1], _role_needs(roles)
    _check_fits([*workers, *served], inventory)
    return _sums(served), _sums(workers)


def held_at_once(job: JobSpec, inventory: Inventory, most: int) -> int:
    """How many of a job the nodes hold side by side, if they are empty; not above `most`.

    Every process lies on one node: what is left over on several of them holds none. The largest
    are placed first, each on the first node with room.
    """
    processes = [wanted for _, count, wanted in _needs(job) for _ in range(count) if wanted]
    processes.sort(key=lambda wanted: max(wanted.values()), reverse=True)
    free = [dict(node.resources) for node in inventory.nodes]
    for held in range(most if processes else 1):
        for wanted in processes:
            node = next((node for node in free if _copies(Node("", node), wanted) >= 1), None)
            if node is None:
                return held
            for name, amount in wanted.items():
                node[name] -= amount
    return most if processes else 1


def _needs(job: JobSpec) -> list[Need]:
    workers = ("training.workers", job.training.workers, _wanted(job.training.resources))
    if not isinstance(job.pool, EphemeralPool):
        return [workers]
    return [workers, *_role_needs({name: job.roles[name] for name in job.used_roles})]


def _role_needs(roles: Mapping[str, RoleSpec]) -> list[Need]:
    return [
        (f"roles.{name}.replicas", role.replicas, _wanted(role.resources))
        for name, role in roles.items()
    ]


def _check_fits(needs: Sequence[Need], inventory: Inventory) -> None:
    for need in needs:
        _check_one_process(need, inventory)
        _check_count(need, inventory)
    for resource in sorted(_sums(needs)):
        _check_sum(resource, needs, inventory)


def _check_one_process(need: Need, inventory: Inventory) -> None:
    counted, _, wanted = need
    if any(_copies(node, wanted) >= 1 for node in inventory.nodes):
        return
    owner = counted.rpartition(".")[0]
    asked = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items())
    largest = ", ".join(
        f"{name} {max((node.resources.get(name, 0.0) for node in inventory.nodes), default=0.0):g}"
        for name in wanted
    )
    raise SpecError(
        f"{owner}.resources",
        f"one process takes {asked}, and no node has that (the most on one node: {largest})",
        "Ask for less, or start a node that has it",
    )


def _check_count(need: Need, inventory: Inventory) -> None:
    counted, count, wanted = need
    holds = sum(_copies(node, wanted) for node in inventory.nodes)
    if count > holds:
        raise SpecError(
            counted,
            f"is {count}, and the cluster can hold {holds:g} such processes at most: "
            f"{count - holds:g} too many",
            f"Set it to {holds:g} or less, lower what each takes, or add nodes",
        )


def _check_sum(resource: str, needs: Sequence[Need], inventory: Inventory) -> None:
    asked = {name: count * wanted.get(resource, 0.0) for name, count, wanted in needs}
    total, there = sum(asked.values()), inventory.total(resource)
    if total > there + _SLACK:
        parts = ", ".join(f"{name} {amount:g}" for name, amount in asked.items() if amount)
        raise SpecError(
            max(asked, key=lambda name: asked[name]),
            f"{total:g} {resource} are asked for ({parts}) and the cluster has {there:g}: "
            f"{total - there:g} too few",
            "Lower replicas, workers or their resources, or add nodes",
        )


def _wanted(resources: ResourcesSpec) -> dict[str, float]:
    named = {"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom}
    return {name: amount for name, amount in named.items() if amount > 0}


def _copies(node: Node, wanted: Mapping[str, float]) -> float:
    """Processes of one kind that an empty node holds; infinite for those that take nothing."""
    return min(
        (
            math.floor(node.resources.get(name, 0.0) / amount + _SLACK)
            for name, amount in wanted.items()
        ),
        default=math.inf,
    )


def _sums(needs: Sequence[Need]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for _, count, wanted in needs:
        for name, amount in wanted.items():
            sums[name] = sums.get(name, 0.0) + count * amount
    return sums
