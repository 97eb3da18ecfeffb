"""One job: one training of one student, described whole. Pydantic only.

`JobSpec` is frozen and refuses unknown keys. Cross-field rules that need no file and no machine
are validators here; those that need the file system are in `orchestrator.planner`.
"""

from collections.abc import Collection
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from strategies.specs import (
    PEER,
    AdaptiveSchedule,
    AscendSpec,
    BoundarySpec,
    CondenseSpec,
    CountingSchedule,
    FeatureTermSpec,
    HookSpec,
    ImportedTerm,
    InputGradientsSpec,
    MovedSpec,
    ObjectiveSpec,
    RankTermSpec,
    Schedule,
    Spec,
    extremes,
    within,
)
from strategies.specs.measures import OF_LABELS

from .data import DataSpec, GeneratedSource
from .diagnostics import DiagnosticSpec, LogitDistanceSpec, RankingSpec
from .models import ModelSpec, ResourcesSpec, RoleSpec, StudentSpec, TopKEncoding
from .refuse import refusal

MiB, GiB = 1 << 20, 1 << 30


class _Pool(Spec):
    window_bytes: PositiveInt = 64 * MiB
    """Bytes of signals a rank may have asked for and not yet used."""
    window_requests: PositiveInt = 8
    """Requests a rank may have in flight or waiting, whatever their size."""
    deadline_s: PositiveFloat = 120.0
    """A request unanswered this long is sent elsewhere."""
    restarts: NonNegativeInt = 8
    """Replica deaths the pool makes good before the job fails."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """The job's share of a busy pool, against the weights of the others that ask it."""


class EphemeralPool(_Pool):
    """Replicas that live and die with the job list."""

    kind: Literal["ephemeral"] = "ephemeral"


class StandingPool(_Pool):
    """A named pool started by `stillhouse pool up`, shared by jobs, trials and teams."""

    kind: Literal["standing"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class NoPool(_Pool):
    """Nobody serves: `stillhouse label` has put every signal into the cache before."""

    kind: Literal["none"]


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


PoolSpec = Annotated[
    EphemeralPool | StandingPool | NoPool, Field(discriminator="kind"), BeforeValidator(_kind_alone)
]


class CacheSpec(Spec):
    """The signal cache: what a role has said once is read from disk the next time."""

    enabled: bool = True
    """False: every signal is computed anew, and none is kept."""
    path: str | None = None
    """Folder on each node; absent: .cache/stillhouse/signals in the user's home."""
    max_bytes: PositiveInt = 16 * GiB
    """Size on each node beyond which the segments least used are dropped."""
    memory_bytes: NonNegativeInt = 64 * MiB
    """Of records that each rank keeps in memory for its later epochs; what comes first stays."""


class OptimizerSpec(Spec):
    """AdamW with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat | Annotated[Schedule, within(0.0, float("inf"), open_low=True)] = 1e-3
    """The peak: a number, or a schedule of it, which `learning_rate` shapes at every step."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.95,
    )
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    """Applied to matrices only, never to norms and biases."""

    @model_validator(mode="after")
    def _rate_is_known_beforehand(self) -> "OptimizerSpec":
        if isinstance(self.lr, AdaptiveSchedule):
            raise refusal(
                "lr.kind",
                f"is {self.lr.kind}, which moves with what a term of the objective measures",
                "Use a kind that counts steps",
            )
        return self


class LearningRateSpec(Spec):
    """Warm-up from 0, then decay to `end` times the peak at the last step."""

    warmup_steps: NonNegativeInt = 0
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    end: Annotated[float, Field(ge=0, le=1)] = 0.1


class BestSpec(Spec):
    """The held-out number by which the state to export is chosen."""

    metric: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[\w/ -]+)*$")] = "student.loss"
    """Dotted path in an evaluation: student.accuracy, or diagnostics.NAME.x."""
    better: Literal["lower", "higher"] = "lower"
    """Which way is up."""


class CheckpointSpec(Spec):
    """When state is kept. A checkpoint is also written at the end and on interruption."""

    every_steps: PositiveInt = 100
    every_minutes: PositiveFloat | None = None
    """Also when this much time has passed since the last one."""
    keep: PositiveInt = 2
    """Newest checkpoints kept."""
    best: BestSpec | None = None
    """Export, and hand to later stages, the best state of all evaluations; absent: the last."""


class StartSpec(Spec):
    """A checkpoint of another run: its weights, optimiser, place in the data and random state.

    The job must have that run's student, data and what changes them between epochs, seed, batch,
    workers and ZeRO stage; what it learns and how fast may be another.
    """

    run: Annotated[str, Field(min_length=1)]
    """Run folder or URI."""
    step: PositiveInt
    """Optimiser steps that the checkpoint has done; the job goes on with the next."""


class TrainingSpec(Spec):
    """How the student is trained."""

    steps: PositiveInt | None = None
    """Optimiser steps; or give epochs."""
    epochs: PositiveInt | None = None
    """Passes over the training data; or give steps."""
    global_batch: PositiveInt = 16
    """Rows in one optimiser step over all workers."""
    micro_batch: PositiveInt = 4
    """Rows in one forward of one worker; memory only, the result does not depend on it."""
    workers: PositiveInt = 1
    """Ranks; the same for a run's whole life."""
    resources: ResourcesSpec = ResourcesSpec()
    """What one worker takes."""
    threads: PositiveInt = 1
    """CPU threads of one worker."""
    zero: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed ZeRO stage. With bf16, 0 runs as 1, which adds bf16 gradients in fp32."""
    offload: Literal["none", "cpu"] = "none"
    precision: Literal["fp32", "bf16"] = "fp32"
    optimizer: OptimizerSpec = OptimizerSpec()
    learning_rate: LearningRateSpec = LearningRateSpec()
    clip: PositiveFloat | None = 1.0
    """Largest gradient norm; absent: no clipping."""
    gradient_checkpointing: bool = False
    checkpoint: CheckpointSpec = CheckpointSpec()
    start: StartSpec | None = None
    """A checkpoint of another run to go on from; absent: the student as it is, at step 0."""
    max_failures: NonNegativeInt = 3
    """Worker deaths after which the job goes on from its last checkpoint."""
    deepspeed: dict[str, Any] = {}
    """Further DeepSpeed configuration; keys that the job owns are refused."""

    @model_validator(mode="after")
    def _has_an_end(self) -> "TrainingSpec":
        if self.steps is None and self.epochs is None:
            raise refusal("steps", "is missing, and epochs too", "Give one of them")
        if self.steps is not None and self.epochs is not None:
            raise refusal(
                "epochs",
                f"is {self.epochs} where steps is {self.steps}: one of them ends the job",
                "Remove one",
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainingSpec":
        unit = self.workers * self.micro_batch
        if self.global_batch % unit:
            near = max(unit, round(self.global_batch / unit) * unit)
            raise refusal(
                "global_batch",
                f"is {self.global_batch}, not divisible by workers * micro_batch "
                f"({self.workers} * {self.micro_batch} = {unit})",
                f"Set it to {near}, for example",
            )
        return self

    @model_validator(mode="after")
    def _offload_has_a_stage(self) -> "TrainingSpec":
        if self.offload != "none" and self.zero == 0:
            raise refusal(
                "offload",
                f"is {self.offload}, and training.zero is 0, where DeepSpeed moves nothing",
                "Set training.zero to 1 or more, or remove offload",
            )
        return self

    @model_validator(mode="after")
    def _leaves_a_checkpoint(self) -> "TrainingSpec":
        if self.steps is not None and self.checkpoint.every_steps > self.steps:
            raise refusal(
                "steps",
                f"is {self.steps}, below one checkpoint (checkpoint.every_steps is "
                f"{self.checkpoint.every_steps}), so a failure would lose everything",
                f"Set training.checkpoint.every_steps to {self.steps} or less, or train longer",
            )
        return self

    @model_validator(mode="after")
    def _something_is_left_to_do(self) -> "TrainingSpec":
        if self.start is not None and self.steps is not None and self.start.step >= self.steps:
            raise refusal(
                "start.step",
                f"is {self.start.step}, and training.steps, which counts from the beginning, is "
                f"{self.steps}: nothing is left to do",
                f"Set training.steps to {self.start.step + 1} or more, or start earlier",
            )
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "TrainingSpec":
        warmup = self.learning_rate.warmup_steps
        if self.steps is not None and warmup >= self.steps:
            raise refusal(
                "learning_rate.warmup_steps",
                f"is {warmup}, and training.steps is {self.steps}: the peak is never reached",
                f"Set it to {self.steps - 1} or less",
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_keys_are_free(self) -> "TrainingSpec":
        zero = self.deepspeed.get("zero_optimization")
        owned = {key: owner for key, owner in OWNED_DEEPSPEED_KEYS.items() if key in self.deepspeed}
        if isinstance(zero, dict):
            inner = {key: owner for key, owner in OWNED_ZERO_KEYS.items() if key in zero}
            owned |= {f"zero_optimization.{key}": owner for key, owner in inner.items()}
        for key, owner in owned.items():
            raise refusal(
                f"deepspeed.{key}", "is owned by the job", f"Remove it and set {owner} instead"
            )
        return self


OWNED_DEEPSPEED_KEYS = {
    "train_batch_size": "training.global_batch",
    "train_micro_batch_size_per_gpu": "training.micro_batch",
    "gradient_accumulation_steps": "training.global_batch and training.micro_batch",
    "optimizer": "training.optimizer",
    "scheduler": "training.learning_rate",
    "gradient_clipping": "training.clip",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "amp": "training.precision",
    "data_types": "training.precision",
    "seed": "seed",
}
OWNED_ZERO_KEYS = {
    "stage": "training.zero",
    "offload_optimizer": "training.offload",
    "offload_param": "training.offload",
}


class GenerateSpec(Spec):
    """A sample of text at the end, greedy."""

    prompt: str = "def "
    tokens: PositiveInt = 32


class EvaluationSpec(Spec):
    """Held-out measurements before, during and after training."""

    before: bool = True
    """Measure before the first step."""
    every_steps: PositiveInt | None = None
    """Measure during training; absent: not."""
    rows: PositiveInt | None = 64
    """Held-out rows measured; absent: all."""
    against: str | None = None
    """Served role to compare with (agreement, KL); default: the first role of the objective."""
    generate: GenerateSpec | None = GenerateSpec()
    """A text written at the end; a classifier writes none."""
    diagnostics: list[DiagnosticSpec] = []
    """Further measurements at the end, and during training where they say so."""

    @model_validator(mode="after")
    def _diagnostics_have_names(self) -> "EvaluationSpec":
        names = [diagnostic.title for diagnostic in self.diagnostics]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise refusal(
                    f"diagnostics.{index}.name",
                    f"is {name!r}, as that of diagnostics.{names.index(name)}",
                    "Give one of them another name",
                )
        return self


def _known_tracking_scheme(uri: str | None) -> str | None:
    schemes = ("http://", "https://", "sqlite:///", "databricks")
    if uri is not None and not uri.startswith(schemes):
        raise ValueError(
            f"{uri!r} is not a tracking URI (MLflow has retired folders as stores); use "
            f"http://host:port or sqlite:///file.db"
        )
    return uri


class TrackingSpec(Spec):
    """Where MLflow records the run; absent uri: a sqlite file beside the runs."""

    uri: Annotated[str | None, AfterValidator(_known_tracking_scheme)] = None
    """http(s) address or sqlite:/// file; absent: a sqlite file in the storage."""
    experiment: str = "stillhouse"
    """MLflow experiment."""
    tags: dict[str, str] = {}
    """Tags of the run."""
    register_as: str | None = None
    """Name in the model registry for the trained student; absent: not registered."""
    every_steps: PositiveInt = 1
    """Steps between recorded metrics."""
    parent: str | None = None
    """Run id of the study or search that this run is a part of; absent: it stands alone."""


class RaySpec(Spec):
    """Which cluster runs the job."""

    address: str | None = None
    """`host:port`, `auto` or `ray://host:port` of a cluster to join; absent: RAY_ADDRESS, else a
    local one that ends with the run."""


class JobSpec(Spec):
    """One training of one student.

    `roles` are the served models by name; the objective and `evaluation.against` refer to them.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    """Begins the run id; later jobs of the file refer to it."""
    student: StudentSpec
    """The model that is trained."""
    roles: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")], RoleSpec] = {}
    """Served models by name."""
    data: DataSpec
    """What is read, and how it becomes rows."""
    objective: ObjectiveSpec
    """What to learn, and from which role."""
    training: TrainingSpec
    """How the student is trained."""
    pool: PoolSpec = EphemeralPool()
    """Where the roles are served."""
    cache: CacheSpec = CacheSpec()
    """Where their signals are kept."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """What is measured on held-out data."""
    tracking: TrackingSpec = TrackingSpec()
    """Where the run is recorded."""
    ray: RaySpec = RaySpec()
    """The cluster."""
    storage: str = "runs"
    """Folder or fsspec URI that holds run directories."""
    seed: NonNegativeInt = 0
    """Of fresh weights, the order of the data and dropout."""
    deterministic: bool = False
    """Bit-equal results whatever dies on the way: fixed shapes, deterministic kernels."""

    @property
    def models(self) -> dict[str, ModelSpec]:
        """Every model by its field: the student or each of its members, then the roles."""
        own = {f"student{below}": model for below, model in self.student.member_models().items()}
        return {**own, **{f"roles.{name}": role for name, role in self.roles.items()}}

    @property
    def used_roles(self) -> tuple[str, ...]:
        """Served roles that somebody asks: the objective's, then the evaluation's."""
        measured = [role for one in self.evaluation.diagnostics for role in one.asked]
        names = (*self.objective.served_roles, self.evaluation.against, *measured)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def resident_roles(self) -> tuple[str, ...]:
        """Roles whose own weights lie beside the student, on every worker."""
        return tuple(dict.fromkeys((*self.objective.resident_roles, *self._measured_twins)))

    @property
    def twin_roles(self) -> tuple[str, ...]:
        """Those of them whose weights must have the names and shapes of the student's."""
        return tuple(dict.fromkeys((*self.objective.twin_roles, *self._measured_twins)))

    @property
    def _measured_twins(self) -> tuple[str, ...]:
        wanting = (one for one in self.evaluation.diagnostics if one.needs_resident)
        roles = (named or self.compared_role for one in wanting for named in one.asked)
        return tuple(role for role in roles if role is not None)

    @property
    def compared_role(self) -> str | None:
        """The role evaluation compares with, if all read the same ids."""
        return self.compared_with(())

    def compared_with(self, crossing: Collection[str]) -> str | None:
        """The role evaluation compares with: none of those with another tokenizer."""
        against = self.evaluation.against
        roles = self.objective.served_roles if against is None else (against,)
        return next((role for role in roles if role not in crossing), None)

    @model_validator(mode="before")
    @classmethod
    def _classifiers_write_nothing(cls, raw: Any) -> Any:
        student = raw.get("student") if isinstance(raw, dict) else None
        if not isinstance(student, dict) or student.get("task") != "classifier":
            return raw
        evaluation = raw.get("evaluation", {})
        if not isinstance(evaluation, dict):
            return raw
        return {**raw, "evaluation": {"generate": None, **evaluation}}

    @model_validator(mode="after")
    def _models_read_the_data(self) -> "JobSpec":
        task = self.data.task
        formats = "labelled_text or features" if task == "causal_lm" else "text or messages"
        for field, model in {"student": self.student, **self.models}.items():
            if model.task != task:
                raise refusal(
                    f"{field}.task",
                    f"is {model.task}, and the data's format {self.data.formats[0].kind} is read "
                    f"by a {task}",
                    f"Set it to {task}, or give the data a format for it, such as {formats}",
                )
            if model.tokenizer is not None and not self.data.reads_text:
                raise refusal(
                    f"{field}.tokenizer",
                    f"is {model.tokenizer!r}, and {self.data.formats[0].kind} are not tokenised",
                    "Remove it",
                )
        if task == "classifier" and self.evaluation.generate is not None:
            raise refusal(
                "evaluation.generate", "is set, and a classifier writes nothing", "Remove it"
            )
        return self

    @model_validator(mode="after")
    def _items_are_there(self) -> "JobSpec":
        for index, term in enumerate(self.objective.terms):
            if isinstance(term, RankTermSpec) and not self.data.ranks_items:
                raise refusal(
                    f"objective.terms.{index}.kind",
                    f"is {term.kind}, which learns an order of items, and the data's format is "
                    f"{self.data.formats[0].kind}",
                    "Give the data format interactions, or remove the term",
                )
        return self

    @model_validator(mode="after")
    def _labels_are_there(self) -> "JobSpec":
        for index, term in enumerate(self.objective.terms):
            if term.needs_labels and not self.data.has_labels:
                raise refusal(
                    f"objective.terms.{index}.kind",
                    f"is {term.kind}, which learns from labels, and the data's format has "
                    f"{self.data.instead_of_labels}",
                    "Name the label's field in data.sources.*.format, or remove the term",
                )
        select = self.objective.select
        if select is not None and select.measure in OF_LABELS and not self.data.has_labels:
            raise refusal(
                "objective.select.measure",
                f"is {select.measure}, which reads labels, and the data's format has "
                f"{self.data.instead_of_labels}",
                "Choose another measure",
            )
        between = self.objective.between_epochs
        measure = between.measure if isinstance(between, HookSpec) else None
        if measure in OF_LABELS and not self.data.has_labels:
            raise refusal(
                "objective.between_epochs.measure",
                f"is {measure}, which reads labels, and the data's format has "
                f"{self.data.instead_of_labels}",
                "Choose another measure",
            )
        return self

    @model_validator(mode="after")
    def _roles_are_defined(self) -> "JobSpec":
        if "student" in self.roles:
            raise refusal(
                "roles.student", "is trained, not served, so it is no role", "Rename the role"
            )
        defined = ", ".join(self.roles) or "none"
        for index, term in enumerate(self.objective.terms):
            for role in term.served_roles:
                if role not in self.roles:
                    raise refusal(
                        f"objective.terms.{index}.role",
                        f"{term.kind} asks for role {role!r}, which is not defined (defined: "
                        f"{defined})",
                        f"Add roles.{role}, or change the term's role",
                    )
        for index, source in enumerate(self.data.sources):
            if isinstance(source, GeneratedSource) and source.role not in self.roles:
                raise refusal(
                    f"data.sources.{index}.role",
                    f"is {source.role!r}, which is not defined (defined: {defined})",
                    f"Add roles.{source.role}, or name another",
                )
        against = self.evaluation.against
        if against is not None and against not in self.roles:
            raise refusal(
                "evaluation.against",
                f"is {against!r}, which is not defined (defined: {defined})",
                f"Add roles.{against}, or remove it",
            )
        return self

    @model_validator(mode="after")
    def _members_are_there(self) -> "JobSpec":
        parts = self.student.parts
        known = ", ".join(parts) or "none: it is one model"
        for index, term in enumerate(self.objective.terms):
            field = f"objective.terms.{index}"
            if parts and term.member is None:
                raise refusal(
                    f"{field}.member",
                    f"is absent, and the student has several ({known})",
                    f"Say which of them learns from {term.kind}",
                )
            if term.member is not None and term.member not in parts:
                raise refusal(
                    f"{field}.member",
                    f"is {term.member!r}, which the student does not have ({known})",
                    "Name one of its members" if parts else "Remove it, or give student.members",
                )
            for peer in term.peers:
                if peer not in parts:
                    raise refusal(
                        f"{field}.role",
                        f"is {PEER}{peer}, and the student has no such member ({known})",
                        "Name one of its members" if parts else "Name a role",
                    )
                if peer == term.member:
                    raise refusal(
                        f"{field}.role",
                        f"is {PEER}{peer}, the member that learns: nothing is learned from oneself",
                        "Name another member",
                    )
            if term.peers and term.looks_at == "resident":
                raise refusal(
                    f"{field}.role",
                    f"is {PEER}{term.peers[0]}, which is trained, and {term.kind} wants weights "
                    "that stay as they are",
                    "Name a served role",
                )
            if term.member is not None and isinstance(term, ImportedTerm) and term.residents:
                raise refusal(
                    f"{field}.residents",
                    f"are {', '.join(term.residents)}, whose weights would lie beside those of all "
                    f"members ({known}) under other names",
                    "Train that member alone, or name the roles in roles, whose logits are told",
                )
            if term.peers and "full" not in term.usable_encodings():
                raise refusal(
                    f"{field}.role",
                    f"is {PEER}{term.peers[0]}, whose logits are told in full, from which "
                    f"{term.kind} cannot be computed as it is asked for",
                    "Learn from a served role, or remove what needs more than logits",
                )
        learning = {t.member for t in self.objective.terms if extremes(t.weight)[1] > 0}
        for name in self.student.members or {}:
            if name not in learning:
                raise refusal(
                    f"student.members.{name}",
                    "learns from no term of a weight above 0",
                    f"Add a term with member: {name}, or make it a role, which is not trained",
                )
        return self

    @model_validator(mode="after")
    def _the_best_can_be_told(self) -> "JobSpec":
        best = self.training.checkpoint.best
        if best is None:
            return self
        field = "training.checkpoint.best"
        if not self.data.holds_out:
            raise refusal(
                field,
                "needs held-out data, and data.held_out, or that of each source, is 0",
                "Raise it",
            )
        first, _, rest = best.metric.partition(".")
        if first != "diagnostics":
            every, where = self.evaluation.every_steps, "evaluation.every_steps"
        else:
            title = rest.partition(".")[0]
            named = {spec.title: spec.every_steps for spec in self.evaluation.diagnostics}
            if title not in named:
                raise refusal(
                    f"{field}.metric",
                    f"is {best.metric}, and there is no such diagnostic ("
                    f"{', '.join(named) or 'none'})",
                    "Add it to evaluation.diagnostics",
                )
            every, where = named[title], f"every_steps of diagnostic {title}"
        if every is None:
            problem = f"chooses among evaluations during training, and {where} is absent"
            raise refusal(field, problem, "Give it")
        return self

    @model_validator(mode="after")
    def _diagnostics_can_be_measured(self) -> "JobSpec":
        for index, spec in enumerate(self.evaluation.diagnostics):
            reason = _why_not(self, spec)
            if reason is not None:
                field, problem, remedy = reason
                raise refusal(f"evaluation.diagnostics.{index}{field}", problem, remedy)
        return self

    @model_validator(mode="after")
    def _somebody_writes(self) -> "JobSpec":
        recipe = self.objective.recipe
        if recipe is not None and recipe.learns_written_text and not self.data.writers:
            raise refusal(
                "objective.recipe.kind",
                f"is {recipe.kind}, which learns what a role has written, and no source of data is "  # type: ignore[attr-defined]
                "generated",
                "Add a source {kind: generated}, or use a cross_entropy term on texts that are "
                "there",
            )
        return self

    @model_validator(mode="after")
    def _temperatures_are_answerable(self) -> "JobSpec":
        for name, role in self.roles.items():
            if isinstance(role.encoding, TopKEncoding):
                for number in self.objective.temperatures(name):
                    _check_ladder(name, role.encoding.temperatures, extremes(number))
        return self

    @model_validator(mode="after")
    def _encodings_suit_their_terms(self) -> "JobSpec":
        for term in self.objective.terms:
            usable = term.usable_encodings()
            for name in term.served_roles:
                kind = self.roles[name].encoding.kind
                if kind not in usable:
                    raise refusal(
                        f"roles.{name}.encoding.kind",
                        f"is {kind}, from which {term.kind} cannot be computed as it is asked for",
                        f"Use one of {', '.join(usable)}",
                    )
        return self

    @model_validator(mode="after")
    def _groups_are_not_cut(self) -> "JobSpec":
        rows, objective = self.training.micro_batch, self.objective
        groups = [
            (f"objective.terms.{index}", group)
            for index, term in enumerate(objective.terms)
            for group in term.groups
        ]
        if objective.select is not None:
            groups.append(("objective.select.group", objective.select.group))
        for field, group in groups:
            if rows % group:
                raise refusal(
                    field,
                    f"compares groups of {group} rows, and training.micro_batch is {rows}, which "
                    "would cut one",
                    f"Set training.micro_batch to a multiple of {group}, or another group",
                )
        return self

    @model_validator(mode="after")
    def _data_may_change_between_epochs(self) -> "JobSpec":
        between = self.objective.between_epochs
        if between is None:
            return self
        condense = isinstance(between, CondenseSpec)
        if isinstance(between, MovedSpec):
            if (why := _why_not_moved(self, between)) is not None:
                raise refusal(*why)
            return self
        if self.training.steps is None and (self.data.packing or not condense):
            reason = "rows are packed" if self.data.packing else "a hook decides"
            raise refusal(
                "objective.between_epochs",
                f"changes the data, so training.epochs has no known number of steps ({reason})",
                "Give training.steps in its place"
                + (", or set data.packing to false" if condense else ""),
            )
        if condense and between.mix is not None and isinstance(self.pool, NoPool):
            raise refusal(
                "objective.between_epochs.mix",
                f"is {between.mix:g}: nobody has labelled a blend, and pool is none",
                "Remove it, or give a pool",
            )
        if condense and between.mix is not None and not self.data.has_features:
            what = "users" if self.data.ranks_items else "texts"
            raise refusal(
                "objective.between_epochs.mix",
                f"is {between.mix:g}, and {what} cannot be blended",
                "Remove it",
            )
        return self

    @model_validator(mode="after")
    def _draws_are_at_temperature_one(self) -> "JobSpec":
        for name, role in self.roles.items():
            if role.encoding.kind != "sampled":
                continue
            for number in self.objective.temperatures(name):
                if extremes(number) != (1.0, 1.0):
                    raise refusal(
                        f"roles.{name}.encoding.kind",
                        f"is sampled, whose draws are at temperature 1, and the objective wants "
                        f"{max(extremes(number)):g}",
                        "Set the temperature to 1, or use hidden, topk or full",
                    )
        return self

    @model_validator(mode="after")
    def _epochs_are_counted_where_they_end_the_job(self) -> "JobSpec":
        if self.training.epochs is not None:
            return self
        numbers = {"training.optimizer.lr": self.training.optimizer.lr} | {
            f"objective.terms.{index}.{name}": number
            for index, term in enumerate(self.objective.terms)
            for name, number in term.numbers().items()
        }
        for field, number in numbers.items():
            if isinstance(number, CountingSchedule) and number.per == "epoch":
                raise refusal(
                    f"{field}.per",
                    f"is epoch, and training.steps, {self.training.steps}, ends the job in the "
                    "middle of one",
                    "Give training.epochs in place of training.steps, or set per to step",
                )
        return self

    @model_validator(mode="after")
    def _gradients_can_be_taken(self) -> "JobSpec":
        for index, term in enumerate(self.objective.terms):
            if isinstance(term, InputGradientsSpec) and term.member is not None:
                raise refusal(
                    f"objective.terms.{index}.member",
                    f"is {term.member}, and {term.kind} differentiates whole students only",
                    "Train that model alone, or remove the term",
                )
            if isinstance(term, InputGradientsSpec) and (why := _why_not_twice(self)) is not None:
                field, problem, remedy = why
                what = f", and objective.terms.{index} ({term.kind}) differentiates it twice"
                raise refusal(field, problem + what, remedy)
        return self

    @model_validator(mode="after")
    def _what_is_projected_is_looked_at(self) -> "JobSpec":
        looked_at = {
            term.role
            for term in self.objective.terms
            if isinstance(term, FeatureTermSpec) and term.looks_at == "layers" and not term.peers
        }
        for name, role in self.roles.items():
            if role.layers_project is not None and name not in looked_at:
                raise refusal(
                    f"roles.{name}.layers_project",
                    f"is {role.layers_project}, and no term looks at layers of {name}",
                    "Remove it",
                )
        return self

    @model_validator(mode="after")
    def _roles_may_lie_beside_the_student(self) -> "JobSpec":
        for role in self.resident_roles:
            if (why := _why_not_beside(self, role)) is not None:
                raise refusal(*why)
        between = self.objective.between_epochs
        if between is not None and (whole := self.objective.whole_gradient_roles):
            raise refusal(
                "objective.between_epochs",
                f"is {between.kind}, which changes the data, and the gradient of role {whole[0]} "
                "over all of them is found once (unbiased is true)",
                "Remove it, or set unbiased to false",
            )
        return self

    @model_validator(mode="after")
    def _without_a_pool_there_is_a_cache(self) -> "JobSpec":
        if isinstance(self.pool, NoPool) and not self.cache.enabled:
            raise refusal(
                "cache.enabled",
                "is false where pool is none, so nothing can answer",
                "Enable the cache, or give a pool",
            )
        return self


def _why_not_twice(job: JobSpec) -> tuple[str, str, str] | None:
    """Why a student cannot be differentiated twice: field, problem, remedy. None: it can."""
    if job.data.task != "classifier" or job.data.ranks_items:
        what = "ranks items" if job.data.ranks_items else "is text without classes"
        return "data", what, "Use a classifier of features or texts, or remove the term"
    if job.training.zero == 3:
        return (
            "training.zero",
            "is 3, where the student has whole weights for one backward only",
            "Set it to 2 or less",
        )
    if job.training.gradient_checkpointing:
        return "training.gradient_checkpointing", "is true", "Set it to false"
    attends = job.data.reads_text and job.student.source[0] != "import"
    if attends and job.student.attention != "eager":
        return (
            "student.attention",
            f"is {job.student.attention}, which has no second derivative",
            "Set it to eager",
        )
    return None


def _why_not_beside(job: JobSpec, role: str) -> tuple[str, str, str] | None:
    """Why a role's weights cannot lie beside the student: field, problem, remedy. None: they can.

    A role that is not defined is refused elsewhere.
    """
    spec = job.roles.get(role)
    if spec is not None and spec.parallel != "none":
        return (
            f"roles.{role}.parallel",
            f"is {spec.parallel}, over several GPUs, and its weights are to lie beside the student "
            "on one",
            "Use a role that fits one GPU with the student, and parallel: none",
        )
    if role not in job.twin_roles:
        return None
    twin = f"and role {role} is to have weights of the student's names and shapes beside it"
    if job.training.zero == 3:
        return (
            "training.zero",
            f"is 3, where no rank holds the student's weights whole, {twin}",
            "Set it to 2 or less",
        )
    if job.student.lora is not None:
        return "student.lora", f"is set, so adapters are trained, {twin}", "Remove it"
    if job.student.parts:
        what = f"are {', '.join(job.student.parts)}, which have their weights together, {twin}"
        return _parts_field(job), what, "Train one of them alone"
    return None


def _parts_field(job: JobSpec) -> str:
    """Which field of the student makes it several."""
    return "student.outputs" if job.student.members is None else "student.members"


def _has_shape(job: JobSpec) -> bool:
    """Whether samples are features, and the job says how many."""
    return getattr(job.data.formats[0], "shape", None) is not None


def _why_not_moved(job: JobSpec, spec: AscendSpec | BoundarySpec) -> tuple[str, str, str] | None:
    """Why a job cannot have moved samples: field, problem, remedy. None: it can."""
    field = "objective.between_epochs"
    if job.data.task != "classifier" or job.data.ranks_items:
        what = "users" if job.data.ranks_items else "texts without classes"
        remedy = "Use data of features, or labelled text"
        return f"{field}.kind", f"moves samples, and {what} do not move", remedy
    if job.data.reads_text and (why := _why_text_stays(job, spec.role)) is not None:
        return why
    if job.data.has_features and not _has_shape(job):
        return (
            "data.sources.0.format.shape",
            f"is absent, and {field} asks for gradients by the features, however many they are",
            "Give it: [64] for 64 numbers in a row",
        )
    if job.student.parts:
        several = ", ".join(job.student.parts)
        what = f"is {spec.kind}, which looks at whole students, and this one is several ({several})"
        return f"{field}.kind", what, f"Remove it, or {_parts_field(job)}"
    if isinstance(job.pool, NoPool):
        what = "is none, and nobody has labelled samples that are moved during training"
        return "pool", what, "Give the job a pool"
    if job.training.zero == 3:
        return (
            "training.zero",
            f"is 3, where no rank has the whole weights that {field} differentiates",
            "Set it to 2 or less",
        )
    epochs = job.training.epochs
    if epochs is not None and spec.rounds * spec.every >= epochs:
        return (
            f"{field}.rounds",
            f"is {spec.rounds} of {spec.every} epochs each after the first {spec.every}, and "
            f"training.epochs is {epochs}: nothing would be learned from the last",
            "Lower rounds or every, or raise training.epochs",
        )
    return None


def _why_text_stays(job: JobSpec, role: str) -> tuple[str, str, str] | None:
    """Why a job's texts cannot move: field, problem, remedy. None: they can."""
    field = "objective.between_epochs"
    others = [other for other in job.objective.served_roles if other != role]
    if others:
        return (
            f"{field}.role",
            f"is {role!r}, on whose embeddings texts are mapped, and role {others[0]!r} "
            "is asked about them too",
            "Ask one role, or use data of features",
        )
    if beside := job.resident_roles:
        return (
            f"{field}.kind",
            f"moves texts at the student's embeddings, and role {beside[0]!r} lies beside it with "
            "its own",
            "Use data of features, or learn from no role beside the student",
        )
    for index, term in enumerate(job.objective.terms):
        if isinstance(term, InputGradientsSpec):
            return (
                f"objective.terms.{index}.kind",
                f"is {term.kind}, which compares gradients token by token, and {field} moves what "
                "these tokens are embedded as",
                f"Remove one of them ({field}, or this term)",
            )
    return None


def _why_not(job: JobSpec, spec: DiagnosticSpec) -> tuple[str, str, str] | None:
    """Why a job cannot have a diagnostic: field below it, problem, remedy. None: it can."""
    training, written = job.training, spec.written_tokens
    for named in spec.asked:
        role = named or job.compared_role
        if role not in job.roles:
            defined = ", ".join(job.roles) or "none"
            what = "absent, and evaluation compares with no role" if role is None else repr(role)
            return ".role", f"is {what} (defined: {defined})", "Name a defined role"
        if isinstance(job.pool, NoPool) and (spec.asks_new_things or role != job.compared_role):
            return (
                ".kind",
                f"is {spec.kind}, which asks {role} what no label has answered, and pool is none",
                "Give the job a pool, or remove the diagnostic",
            )
    if spec.needs_labels and not job.data.has_labels:
        return (
            ".kind",
            f"is {spec.kind}, which reads labels, and the data's format has "
            f"{job.data.instead_of_labels}",
            "Name the label's field in data.sources.*.format, or remove the diagnostic",
        )
    if isinstance(spec, RankingSpec) and not job.data.ranks_items:
        return (
            ".kind",
            f"is {spec.kind}, which looks at the items of users, and the data's format is "
            f"{job.data.formats[0].kind}",
            "Give the data format interactions, or remove the diagnostic",
        )
    if spec.needs_gradients and training.zero == 3:
        return (
            ".kind",
            f"is {spec.kind}, which needs whole gradients, and training.zero is 3",
            "Set training.zero to 2 or less, or remove the diagnostic",
        )
    batches = getattr(spec, "batches", training.workers)
    if batches % training.workers:
        return (
            ".batches",
            f"is {batches}, and training.workers is {training.workers}, which share them evenly",
            f"Set it to {-(-batches // training.workers) * training.workers}",
        )
    classifies = job.data.task == "classifier" and not job.data.ranks_items
    if spec.kind == "input_gradients" and not classifies:
        return ".kind", "is input_gradients, which classifiers have", "Remove it"
    movable = _has_shape(job) or (classifies and job.data.reads_text)
    if isinstance(spec, LogitDistanceSpec) and not movable:
        what = f"is {spec.kind}, which moves features, and data.sources.0.format has no shape"
        return ".kind", what, "Give features a shape, or remove the diagnostic"
    if isinstance(spec, LogitDistanceSpec) and job.student.alone is not None:
        what = f"is {spec.kind}, which differentiates whole students, and student.export is one of "
        return ".kind", what + "its outputs", "Remove the diagnostic, or student.export"
    if written and job.data.task == "classifier":
        return ".kind", f"is {spec.kind} with prompts, and a classifier writes nothing", "Remove it"
    if written and sum(written) > job.data.context:
        return (
            ".tokens",
            f"is {written[1]} after prompts of {written[0]}, and data.context is "
            f"{job.data.context}",
            f"Set prompt_tokens and tokens so that they add up to {job.data.context} or less",
        )
    return None


WIDEST_STEP = 1.5
"""Largest ratio of neighbouring rungs between which a temperature may lie. Read between rungs, the
rest's mass is off by less than 1e-3 nats of KL at any position of the shipped teacher (k of 16 and
more, temperatures of 0.5 and more); see docs/benchmarks.md."""
WIDEST_STEP_ABOVE_4 = 4.0
"""The same from temperature 4 up, where distributions are nearly flat: below 1e-4 nats."""


def _check_ladder(role: str, ladder: list[float], span: tuple[float, float]) -> None:
    """Every temperature of the objective lies on a rung, or between two that are close enough."""
    field = f"roles.{role}.encoding.temperatures"
    low, high = span

    def on_a_rung(temperature: float) -> bool:
        return any(abs(temperature - rung) < 1e-9 for rung in ladder)

    off = [t for t in span if not on_a_rung(t)]
    if off and not (ladder[0] <= low and high <= ladder[-1]):
        raise refusal(
            field,
            f"are {ladder} and do not cover temperature {off[0]:g} of the objective",
            "Add it, or use encoding hidden, which is exact at every temperature",
        )
    if low == high and not off:
        return
    for below, above in pairwise(ladder):
        widest = WIDEST_STEP_ABOVE_4 if below >= 4 else WIDEST_STEP
        if below < high and above > low and above / below > widest * (1 + 1e-9):
            raise refusal(
                field,
                f"are {ladder}, and the objective's temperature goes between {below:g} and "
                f"{above:g}, where the rest would be off by more than 1e-3 nats (rungs may be "
                f"{widest:g} times apart there)",
                f"Add a rung at {(below * above) ** 0.5:.3g}, or use encoding hidden",
            )
