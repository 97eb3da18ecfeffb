"""Where a model comes from, and how a role is run. Pydantic only."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from strategies.specs import MEMBER_NAME, Spec

from .refuse import refusal

_NOT_EDITED = frozenset({"model_type", "architectures", "auto_map"})
SOURCES = ("path", "hub", "registry", "job", "architecture", "import")
DType = Literal["float32", "bfloat16", "float16"]
LogDType = Literal["float32", "float16", "int8"]
"""Of log-probabilities on the wire; int8 has a scale for each position."""


class FullEncoding(Spec):
    """All V logits of each loss-bearing position; for small vocabularies."""

    kind: Literal["full"]
    dtype: DType = "float32"


class HiddenEncoding(Spec):
    """The last hidden state of each loss-bearing position; exact at every temperature."""

    kind: Literal["hidden"]
    dtype: DType = "float32"


class TopKEncoding(Spec):
    """k log-probabilities, the mass of the rest, log-normalisers at a ladder of temperatures."""

    kind: Literal["topk"]
    k: PositiveInt = 64
    dtype: LogDType = "float16"
    temperatures: Annotated[list[PositiveFloat], Field(min_length=1)] = [1.0]

    @model_validator(mode="after")
    def _ladder_rises(self) -> "TopKEncoding":
        if list(self.temperatures) != sorted(set(self.temperatures)):
            raise ValueError(
                f"temperatures must rise strictly, got {self.temperatures}; sort them, drop repeats"
            )
        return self


class SampledEncoding(Spec):
    """Entries drawn from the role with importance weights; unbiased. arXiv:2503.16870."""

    kind: Literal["sampled"]
    draws: PositiveInt = 12
    """Draws at each position."""
    temperature: PositiveFloat = 1.0
    """Of the distribution drawn from; the weights undo it."""
    dtype: LogDType = "int8"
    """Of the weights, which cross only if temperature is not 1."""
    seed: NonNegativeInt = 0
    """Of the draws."""


EncodingSpec = Annotated[
    FullEncoding | HiddenEncoding | TopKEncoding | SampledEncoding, Field(discriminator="kind")
]


class ModelSpec(Spec):
    """A model, from exactly one source.

    path: a folder in Hugging Face layout. hub: a hub id. registry: an MLflow `models:/` URI.
    job: the student of an earlier job of the same file. architecture: a transformers config with
    `model_type` (fresh weights). import: `package.module:function`, a callable returning a module.
    """

    sources: ClassVar[tuple[str, ...]] = SOURCES

    path: str | None = None
    """Folder in Hugging Face layout: config.json and safetensors."""
    hub: str | None = None
    """Hub id, `owner/name`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    registry: Annotated[str | None, Field(pattern=r"^models:/[^/]+/[^/]+$")] = None
    """MLflow model registry: `models:/name/version`."""
    job: str | None = None
    """The student of an earlier job of the same file."""
    member: Annotated[str, Field(pattern=MEMBER_NAME)] | None = None
    """Which member of that student; absent: the one that it exports as its own."""
    architecture: dict[str, Any] | None = None
    """Fresh weights: a transformers config with its `model_type`."""
    import_: Annotated[str | None, Field(alias="import", pattern=r"^[\w.]+:[\w.]+$")] = None
    """`package.module:callable` that returns a torch module."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the imported callable."""
    edit: dict[str, Any] = {}
    """A copy with these changes and the same weights: entries of the model's config, or arguments
    of an imported module. `{num_hidden_layers: 4}`: the first four layers."""
    task: Literal["causal_lm", "classifier"] = "causal_lm"
    """A classifier gives one row of logits a sample: of a text, of features, of an image."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; default: the model's own, else the first role's."""
    dtype: DType = "float32"
    """Of the weights as loaded; for a student, of those exported."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    allow_remote_code: bool = False
    """Run Python files that come with the model."""
    allow_pickle: bool = False
    """Read weights from pickles, which can run code."""

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSpec":
        given = [name for name in self.sources if getattr(self, self._attribute(name)) is not None]
        if len(given) != 1:
            what = f"{len(given)} sources ({', '.join(given)})" if given else "no source"
            raise ValueError(f"has {what}; give exactly one of {', '.join(self.sources)}")
        if self.architecture is not None and not isinstance(
            self.architecture.get("model_type"), str
        ):
            raise ValueError(
                "architecture lacks model_type; name a transformers model type, e.g. llama"
            )
        if self.arguments and self.import_ is None:
            raise ValueError("arguments are only used with import; remove them")
        if self.edit and self.source[0] not in ("path", "hub", "registry", "job"):
            raise ValueError(
                f"edit changes a model that is there, and {self.source[0]} makes a new one; say it "
                "there"
            )
        if self.edit.keys() & _NOT_EDITED:
            named = ", ".join(sorted(self.edit.keys() & _NOT_EDITED))
            raise ValueError(f"edit changes {named}, which say what model it is; remove them")
        if self.revision and self.hub is None:
            raise ValueError("revision is only used with hub; remove it")
        if self.member is not None and self.job is None:
            raise ValueError("member is only used with job; remove it")
        return self

    @staticmethod
    def _attribute(name: str) -> str:
        return "import_" if name == "import" else name

    @property
    def source(self) -> tuple[str, Any]:
        """(kind, value) of the one source given."""
        for name in self.sources:
            value = getattr(self, self._attribute(name))
            if value is not None:
                return name, value
        raise AssertionError("validated: one source")


class LoraSpec(Spec):
    """Low-rank adapters on the student, through peft."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: list[str] | Literal["all-linear"] = "all-linear"
    export: Literal["adapter", "merged"] = "merged"


class MemberSpec(ModelSpec):
    """One of several models that are trained together, each from a source of its own."""

    seed: NonNegativeInt | None = None
    """Of fresh weights; absent: the job's, plus the member's place, so that no two are alike."""


class StudentSpec(ModelSpec):
    """The one role that is trained: a model, or several that learn side by side.

    `members` are models of their own; `outputs` are those of one module that gives several by name.
    Terms do not tell the two apart.
    """

    sources: ClassVar[tuple[str, ...]] = (*SOURCES, "members")

    members: dict[Annotated[str, Field(pattern=MEMBER_NAME)], MemberSpec] | None = None
    """Classifiers by name, trained together on the same batches; terms say which of them learns."""
    outputs: list[Annotated[str, Field(pattern=MEMBER_NAME)]] = []
    """Names of the outputs of a module that gives several."""
    export: str | None = None
    """The member whose numbers and export are the student's; absent: the first. Of outputs: the one
    that is exported without the others; absent: the whole module."""
    lora: LoraSpec | None = None
    trainable: list[str] | None = None
    """Module paths with wildcards that may change; absent: all (or the adapters, with lora)."""

    @model_validator(mode="after")
    def _adapters_are_for_language_models(self) -> "StudentSpec":
        if self.lora is not None and self.task == "classifier":
            raise refusal(
                "lora", "is set, and adapters are made for causal models only", "Remove it"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _members_have_its_task(cls, raw: Any) -> Any:
        members = raw.get("members") if isinstance(raw, dict) else None
        if not isinstance(members, dict) or "task" not in raw:
            return raw
        given = {
            name: {"task": raw["task"], **member} if isinstance(member, dict) else member
            for name, member in members.items()
        }
        return {**raw, "members": given}

    @model_validator(mode="after")
    def _members_are_several(self) -> "StudentSpec":
        if self.members is not None and len(self.members) < 2:
            raise refusal(
                "members",
                f"are {', '.join(self.members) or 'none'}, and members learn beside each other",
                "Name two or more, or give the model's source without members",
            )
        if self.members is not None and self.outputs:
            raise refusal(
                "outputs",
                f"are {', '.join(self.outputs)} beside members, whose names are the outputs",
                "Remove it",
            )
        for index, name in enumerate(self.outputs):
            if name in self.outputs[:index]:
                raise refusal(f"outputs.{index}", f"is {name!r} again", "Name each once")
        for name, member in (self.members or {}).items():
            if member.task != self.task:
                raise refusal(
                    f"members.{name}.task",
                    f"is {member.task}, and the student's is {self.task}",
                    f"Set it to {self.task}, or remove it",
                )
        return self

    @model_validator(mode="after")
    def _several_are_classifiers(self) -> "StudentSpec":
        if self.parts and self.task != "classifier":
            field = "outputs" if self.members is None else "members"
            raise refusal(
                field,
                f"are {', '.join(self.parts)}, and task is {self.task}: several models learn side "
                "by side as classifiers only",
                "Set task to classifier, or train one causal model after the other, each with the "
                "one before as a role {job: ...}",
            )
        if self.export is not None and self.export not in self.parts:
            known = ", ".join(self.parts) or "none: the student is one model"
            raise refusal(
                "export",
                f"is {self.export!r}, which is no member ({known})",
                "Name one of them, or remove it",
            )
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what learns beside each other: members, or outputs; none for most students."""
        return tuple(self.outputs if self.members is None else self.members)

    @property
    def main(self) -> str | None:
        """The member that stands for the student where one is wanted."""
        return self.export if self.members is None else self.export or self.parts[0]

    @property
    def alone(self) -> str | None:
        """The output that is exported without the others; None: the module is exported whole."""
        return self.export if self.outputs else None

    def member_models(self) -> dict[str, ModelSpec]:
        """Its models by their field below the student's: itself under "", or its members."""
        if self.members is None:
            return {"": self}
        return {f".members.{name}": member for name, member in self.members.items()}

    def with_models(self, change: Callable[[Any], Any]) -> "StudentSpec":
        """The same with its model, or each of its members, changed."""
        if self.members is None:
            return change(self)
        members = {name: change(member) for name, member in self.members.items()}
        return self.model_copy(update={"members": members})

    def model_of(self, member: str | None) -> ModelSpec:
        """The model that a member is; of a student that is one, or None, itself or its main one."""
        if self.members is None:
            return self
        return self.members[member or self.main or ""]


class ResourcesSpec(Spec):
    """What one process takes from the cluster."""

    cpus: NonNegativeFloat = 1.0
    gpus: NonNegativeFloat = 0.0
    custom: dict[str, PositiveFloat] = {}
    """Ray's own resource names, e.g. to place teachers on nodes started with `--resources`."""


class RoleSpec(ModelSpec):
    """A served role: who answers, how many copies, and in which encoding."""

    replicas: PositiveInt = 1
    """Copies of the model."""
    resources: ResourcesSpec = ResourcesSpec()
    """What one replica takes."""
    threads: PositiveInt = 1
    """CPU threads of one replica."""
    parallel: Literal["none", "layers"] = "none"
    """How one replica uses several GPUs: `layers` lays the model's layers over them."""
    encoding: EncodingSpec = HiddenEncoding(kind="hidden")
    """How its answers are carried; a classifier's default is full."""
    layers_dtype: DType = "float32"
    """Of layers, attention and gradients on the wire, where a term looks inside."""
    layers_project: PositiveInt | None = None
    """Columns that the replica projects its layers to before they are sent, by a fixed random
    matrix that keeps lengths and inner products in expectation; terms see layers that wide."""
    max_queue: PositiveInt = 64
    """Requests a replica holds before it refuses more with a retry hint."""

    def served(self) -> dict[str, Any]:
        """What decides a replica: all but how answers are carried, which is each request's own."""
        carried = {"encoding", "layers_dtype", "layers_project"}
        return self.model_dump(mode="json", by_alias=True, exclude=carried)

    @model_validator(mode="before")
    @classmethod
    def _classifiers_answer_in_full(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("task") == "classifier":
            return {"encoding": {"kind": "full"}, **raw}
        return raw

    @model_validator(mode="after")
    def _classifiers_tell_no_hidden_state(self) -> "RoleSpec":
        if self.task == "classifier" and isinstance(self.encoding, HiddenEncoding):
            raise refusal(
                "encoding.kind",
                "is hidden, and a classifier's logits are not made of one hidden state a position",
                "Use full, which is small for classes, or topk or sampled",
            )
        return self

    @model_validator(mode="after")
    def _several_gpus_are_shared_in_a_stated_way(self) -> "RoleSpec":
        several = self.resources.gpus > 1
        if several and self.parallel == "none":
            raise refusal(
                "parallel",
                f"is none, and resources.gpus is {self.resources.gpus:g}: only one is used",
                "Set parallel: layers, or take one GPU and more replicas",
            )
        if not several and self.parallel != "none":
            raise refusal(
                "parallel",
                f"is {self.parallel}, and resources.gpus is {self.resources.gpus:g}: there is "
                "nothing to share",
                "Set resources.gpus to 2 or more, or remove parallel",
            )
        return self
