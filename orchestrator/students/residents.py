"""Roles whose own weights lie beside the student, on each worker.

They are loaded as replicas load them and are no part of the module that DeepSpeed wraps, so they
are neither trained nor cut up, checkpointed or exported. What does not fit is refused on every rank
alike, before the engine starts.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from orchestrator.data import TokenData, collation, held_out_rows, share
from orchestrator.errors import SpecError
from orchestrator.models.build import MODEL_ERRORS
from orchestrator.models.forward import input_device, unwrapped
from orchestrator.models.load import Loaded, load_role_model
from orchestrator.models.resident import ResidentRole, given_by
from orchestrator.planner.layer_maps import LayerMaps
from orchestrator.spec import JobSpec
from strategies.contract import Batch
from strategies.pairs import Pair
from strategies.specs import BlockwiseLogitsSpec

from .batches import to_device
from .inside import trained
from .records import StudentJob

Residents = Mapping[str, ResidentRole]
"""By role."""

_SHOWN = 8  # names that a message lists


def open_residents(job: StudentJob, data: TokenData, student: Loaded, maps: LayerMaps) -> Residents:
    """Load what the job's terms and diagnostics want beside the student.

    Args:
        job: the job.
        data: of which students and roles that are to be joined are shown two samples.
        student: before an engine wraps it.
        maps: the layers that are joined.

    Raises:
        SpecError: a role is not the one that is served, its weights are not the student's twins, or
            it cannot be joined with the student where a term says.
    """
    spec, device = job.spec, input_device(student.module)
    found: dict[str, ResidentRole] = {}
    for role in spec.resident_roles:
        loaded = load_role_model(role, spec.roles[role], device=device.type, seed=spec.seed)
        _check_served(job, role, loaded)
        if role in spec.twin_roles:
            check_twins(role, student.module, loaded.module)
        found[role] = ResidentRole(loaded)
    check_joins(spec, data, student, maps, found)
    return found


def _check_served(job: StudentJob, role: str, loaded: Loaded) -> None:
    """The weights here are those that answer there."""
    served = job.fingerprints.get(role)
    if served is not None and served.partition("/")[0] != loaded.fingerprint:
        raise SpecError(
            f"roles.{role}",
            f"is served with fingerprint {served.partition('/')[0][:12]}, and what this worker "
            f"loads beside the student has {loaded.fingerprint[:12]}",
            "Start the pool anew with this job's role (and seed, if its weights are fresh); label "
            "anew where pool is none; have one version of transformers everywhere",
        )


def check_twins(role: str, student: nn.Module, module: nn.Module) -> None:
    """Refuse a role whose weights are not named and shaped as those that are trained.

    Raises:
        SpecError: with names and shapes.
    """
    ours = {name: tuple(p.shape) for name, p in trained(student).items()}
    theirs = {name: tuple(p.shape) for name, p in module.named_parameters()}
    unlike = [name for name, shape in ours.items() if theirs.get(name) != shape]
    if not unlike:
        return
    shown = ", ".join(
        f"{name} {list(ours[name])} and {_shape(theirs.get(name))}" for name in unlike[:_SHOWN]
    )
    more = f" and {len(unlike) - _SHOWN} more" if len(unlike) > _SHOWN else ""
    raise SpecError(
        f"roles.{role}",
        f"is to have weights of the names and shapes of the student's, and these differ, student "
        f"and role: {shown}{more}",
        "Give student and role one architecture, or train only parts that are alike "
        "(student.trainable)",
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def check_joins(
    spec: JobSpec, data: TokenData, student: Loaded, maps: LayerMaps, residents: Residents
) -> None:
    """Refuse roles that cannot be cut where terms say, or where the student's layer does not fit.

    Raises:
        SpecError: names the layers.
    """
    if not maps.whole:
        return
    rows = [(0,), (len(data.train) - 1,)]
    batch = to_device(collation(spec.data)(data.train, rows), input_device(student.module))
    objective = spec.objective
    for index, (name, term) in enumerate(zip(objective.names, objective.terms, strict=True)):
        if isinstance(term, BlockwiseLogitsSpec):
            for pair in maps.pairs[name]:
                field = f"objective.terms.{index}"
                _check_cut(field, term.role, residents[term.role], pair.role, batch)
                _check_place(field, pair, student, residents[term.role], batch)


def _check_cut(field: str, role: str, resident: ResidentRole, path: str, batch: Batch) -> None:
    if _can_be_cut(resident, path, batch):
        return
    paths = [path for path, _ in unwrapped(resident.loaded.module).named_modules()]
    siblings = [path for path in paths if path.rpartition(".")[2].isdigit()]
    able: list[str] = []
    for one in siblings:
        if len(able) < _SHOWN and _can_be_cut(resident, one, batch):
            able.append(one)
    where = f"it can be cut after {', '.join(able)}" if able else "no block of it can be cut after"
    raise SpecError(
        field,
        f"cuts role {role}, a {type(resident.loaded.module).__name__}, after {path}, which not all "
        f"passes that the rest of it reads; {where}",
        "Name a block through which everything goes: a whole layer of transformers' decoders and "
        "encoders (model.layers.*, transformer.h.*, bert.encoder.layer.*), stages.* of the "
        "reference models",
    )


def _can_be_cut(resident: ResidentRole, path: str, batch: Batch) -> bool:
    try:
        return resident.can_be_cut(path, batch)
    except MODEL_ERRORS:  # it does not run so, for one reason or another
        return False


def _check_place(
    field: str, pair: Pair, student: Loaded, resident: ResidentRole, batch: Batch
) -> None:
    """The student's layer has the form of the role's but for its channels, which are known."""
    ours = given_by(student, pair.student, batch).shape
    theirs = given_by(resident.loaded, pair.role, batch).shape
    channels = -1 if "input_ids" in batch.inputs else 1
    if _outer(ours, channels) != _outer(theirs, channels):
        raise SpecError(
            field,
            f"puts {pair.student} of the student, {list(ours)} for two samples, in the place of "
            f"{pair.role} of role {list(theirs)}",
            "Choose layers that differ in their channels alone",
        )


def _outer(shape: torch.Size, channels: int) -> tuple[int, ...]:
    """Sizes but for the channels; of texts their product: flash attention joins rows."""
    rest = [size for i, size in enumerate(shape) if i != channels % len(shape)]
    return (len(shape), torch.Size(rest).numel()) if channels == -1 else tuple(rest)


def find_mean_gradients(
    spec: JobSpec, data: TokenData, residents: Residents, rank: int, world: int
) -> None:
    """Find roles' gradients over all training data, every rank its share. Collective.

    The same to the bit whenever a job of as many ranks starts or goes on, so that no checkpoint
    keeps it.
    """
    micro = spec.training.micro_batch
    rows = held_out_rows(data.train, spec.data.row_tokens, None, packing=spec.data.packing)
    rows += [()] * (-len(rows) % (world * micro))
    parts, collate = share(rows, rank, world, micro), collation(spec.data)
    for role in spec.objective.whole_gradient_roles:
        resident = residents[role]
        device = input_device(resident.loaded.module)
        batches = (to_device(collate(data.train, part), device) for part in parts)
        sums: dict[str, Tensor] = {}
        count = torch.zeros((), dtype=torch.float64, device=device)
        for batch in batches:
            for name, gradient in resident.gradient(batch).items():
                sums[name] = sums[name].add_(gradient) if name in sums else gradient.clone()
            count += batch.mask.sum()
        if world > 1:
            for tensor in (count, *sums.values()):
                torch.distributed.all_reduce(tensor)
        resident.mean_gradient = {name: g / float(count) for name, g in sums.items()}
