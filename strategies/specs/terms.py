"""Terms: what may be learned from labels and roles. Pydantic only."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from .features import (
    AttentionMapsSpec,
    AttentionTransferSpec,
    FlowSpec,
    HiddenStatesSpec,
    ImportedFeaturesSpec,
    InputGradientsSpec,
    RelationalSpec,
    SimilarityPreservingSpec,
)
from .measures import OF_BOTH_SIDES, OF_LABELS, OF_ROLES, Measure, TemperatureBySpec, WeighBySpec
from .ranking import BprSpec, StratifiedPairsSpec
from .resident import BlockwiseLogitsSpec, RoleGradientSpec
from .schedules import Number, extremes, within
from .targets import TargetSpec
from .term import DENSE, DENSE_OR_TOPK, PEER, ImportPath, LooksAt, TermBase


class CrossEntropySpec(TermBase):
    """Next-token (or class) cross entropy against the data's own labels."""

    weighs_samples: ClassVar[bool] = True

    kind: Literal["cross_entropy"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a label's weight that is spread evenly over the vocabulary."""

    @property
    def needs_labels(self) -> bool:
        return True


class RoleTerm(TermBase):
    """Base of terms that compare the student with a served role."""

    encodings: ClassVar[tuple[str, ...]] = DENSE_OR_TOPK
    weighs_samples: ClassVar[bool] = True

    role: str = "teacher"
    """The served role to learn from, or `student.NAME`, another member of the student."""
    target: list[TargetSpec] = []
    """What becomes of the role's distribution first, in order. Needs `full` or `hidden`."""
    where: Literal["role_right", "role_wrong"] | None = None
    """Only positions where the role's likeliest entry is the label, or is not."""
    weigh_by: WeighBySpec | None = None
    """A factor for each position; the count stays that of the positions."""

    @property
    def named_roles(self) -> tuple[str, ...]:
        others = (role for transform in self.target for role in transform.named_roles)
        return tuple(dict.fromkeys((self.role, *others)))

    @property
    def needs_labels(self) -> bool:
        measured = self.weigh_by is not None and self.weigh_by.measure in OF_LABELS
        return self.where is not None or measured or any(t.needs_labels for t in self.target)

    @model_validator(mode="after")
    def _positions_are_known_before(self) -> Self:
        if self.where is not None and self.role.startswith(PEER):
            raise ValueError(
                f"where is {self.where} of {self.role}, and which positions those are must be "
                "known before the student runs; weigh_by: {measure: role_right} looks at the same"
            )
        return self

    @property
    def groups(self) -> tuple[int, ...]:
        group = None if self.weigh_by is None else self.weigh_by.group
        return () if group is None else (group,)

    def numbers(self) -> dict[str, Number]:
        moving = super().numbers()
        for index, transform in enumerate(self.target):
            for name in transform.scheduled:
                moving[f"target.{index}.{name}"] = getattr(transform, name)
            for place, weight in enumerate(getattr(transform, "weights", ())):
                moving[f"target.{index}.weights.{place}"] = weight
        return moving

    def usable_encodings(self) -> tuple[str, ...]:
        usable = self.encodings
        if self.where is not None or self.weigh_by is not None:
            usable = tuple(kind for kind in usable if kind in DENSE)
        for transform in self.target:
            usable = tuple(kind for kind in usable if kind in transform.encodings)
        return usable


class DivergenceSpec(RoleTerm):
    """Base of divergences between the role's distribution and the student's."""

    scheduled: ClassVar[tuple[str, ...]] = ("weight", "temperature")

    temperature: Annotated[Number, within(0.0, 1000.0, open_low=True)] = 1.0
    """Softens both sides."""
    temperature_by: TemperatureBySpec | None = None
    """Makes the temperature each position's own."""

    @model_validator(mode="after")
    def _floor_is_below(self) -> Self:
        by, least = self.temperature_by, extremes(self.temperature)[0]
        if by is not None and by.floor > least:
            raise ValueError(
                f"temperature_by.floor is {by.floor:g}, above temperature ({least:g}), which would "
                "never hold; lower the floor, or raise temperature"
            )
        return self

    @property
    def needs_labels(self) -> bool:
        by = self.temperature_by
        return super().needs_labels or (by is not None and by.measure in OF_LABELS)

    @property
    def groups(self) -> tuple[int, ...]:
        by = self.temperature_by
        return super().groups if by is None else (*super().groups, by.group)

    def usable_encodings(self) -> tuple[str, ...]:
        kinds = super().usable_encodings()
        if self.temperature_by is not None:
            kinds = tuple(kind for kind in kinds if kind in DENSE)
        return kinds


class ForwardKLSpec(DivergenceSpec):
    """T^2 KL(teacher || student), both at temperature T. Hinton et al., arXiv:1503.02531.

    The one divergence that can learn from encoding `sampled`, at temperature 1 only.
    """

    encodings: ClassVar[tuple[str, ...]] = (*DENSE_OR_TOPK, "sampled")
    kind: Literal["forward_kl"]


class ReverseKLSpec(DivergenceSpec):
    """T^2 KL(student || teacher), both at temperature T. Gu et al., arXiv:2306.08543."""

    kind: Literal["reverse_kl"]


class JensenShannonSpec(DivergenceSpec):
    """T^2 generalised JSD: beta KL(p||m) + (1-beta) KL(q||m), m = beta p + (1-beta) q.

    p is the teacher, q the student. Agarwal et al., arXiv:2306.13649, section 2.
    """

    scheduled: ClassVar[tuple[str, ...]] = ("weight", "temperature", "beta")
    kind: Literal["jensen_shannon"]
    beta: Annotated[
        Number,
        within(
            0.0,
            1.0,
            open_low=True,
            open_high=True,
            remedy="for the ends use forward_kl or reverse_kl instead",
        ),
    ] = 0.5
    """The teacher's share of the mixture, in (0, 1)."""


class _SkewedSpec(DivergenceSpec):
    scheduled: ClassVar[tuple[str, ...]] = ("weight", "temperature", "skew")
    skew: Annotated[
        Number,
        within(
            0.0,
            1.0,
            open_low=True,
            open_high=True,
            remedy="for 0 use the term without skew; at 1 there is nothing to learn",
        ),
    ] = 0.1
    """Share of the first distribution in the mixture it is compared with, in (0, 1)."""


class SkewedForwardKLSpec(_SkewedSpec):
    """T^2 KL(p || skew p + (1-skew) q), p the teacher. Ko et al., arXiv:2402.03898."""

    kind: Literal["skewed_forward_kl"]


class SkewedReverseKLSpec(_SkewedSpec):
    """T^2 KL(q || (1-skew) p + skew q), q the student. Ko et al., arXiv:2402.03898."""

    kind: Literal["skewed_reverse_kl"]


class TotalVariationSpec(DivergenceSpec):
    """T sum |p - q| / 2; T, not its square, keeps its gradient of one size. arXiv:2307.15190."""

    kind: Literal["total_variation"]


class AlphaBetaSpec(DivergenceSpec):
    """T^2 alpha-beta divergence of teacher p and student q. Wang et al., arXiv:2505.04560.

    -1 / (a b) sum (p^a q^b - a / (a+b) p^(a+b) - b / (a+b) q^(a+b)), and its limits where alpha,
    beta or their sum is 0: (1, 0) is forward_kl, (0, 1) reverse_kl.
    """

    scheduled: ClassVar[tuple[str, ...]] = ("weight", "temperature", "alpha", "beta")
    kind: Literal["alpha_beta"]
    alpha: Annotated[Number, within(-2.0, 2.0)] = 0.2
    """In [-2, 2]; larger: less weight on where teacher and student differ most."""
    beta: Annotated[Number, within(-2.0, 2.0)] = 0.7
    """In [-2, 2]; larger: more weight on what the student is sure of."""


class AdaptiveKLSpec(DivergenceSpec):
    """Forward and reverse KL, weighed by where teacher and student differ. arXiv:2404.02657.

    The head is the fewest likeliest entries of the teacher that hold `head_mass`; forward KL counts
    the share of sum |p - q| that lies in it, reverse KL the rest. The shares have no gradient.
    """

    encodings: ClassVar[tuple[str, ...]] = DENSE
    kind: Literal["adaptive_kl"]
    head_mass: Annotated[float, Field(gt=0, lt=1)] = 0.5


class DecoupledSpec(DivergenceSpec):
    """T^2 (label_weight KL of (label, rest) + others_weight KL among the others). arXiv:2203.08679.

    With others_weight = 1 - q_y of the teacher it would be forward KL; here both are free.
    """

    encodings: ClassVar[tuple[str, ...]] = DENSE
    scheduled: ClassVar[tuple[str, ...]] = (
        "weight",
        "temperature",
        "label_weight",
        "others_weight",
    )
    kind: Literal["decoupled"]
    label_weight: Annotated[Number, within(0.0, float("inf"))] = 1.0
    others_weight: Annotated[Number, within(0.0, float("inf"))] = 8.0

    @property
    def needs_labels(self) -> bool:
        return True


class UniversalSpec(DivergenceSpec):
    """T sum |p - q| over ranks: both sorted, so entries need no common meaning. arXiv:2402.12030.

    For a role whose entries mean something else, and of which there may be more or fewer.
    """

    encodings: ClassVar[tuple[str, ...]] = DENSE
    crosses_tokenizers: ClassVar[bool] = True
    kind: Literal["universal"]

    @model_validator(mode="after")
    def _entries_are_not_compared(self) -> "UniversalSpec":
        measures = [by.measure for by in (self.weigh_by, self.temperature_by) if by is not None]
        crossed = [f"measure {one}" for one in measures if one in OF_BOTH_SIDES]
        crossed += ["target"] if self.target else []
        crossed += ["where"] if self.where is not None else []
        if crossed:
            raise ValueError(
                f"universal compares ranks only, and {crossed[0]} needs entries of role "
                f"{self.role!r} that mean what they mean to the student; remove it, or use another "
                "divergence"
            )
        return self


class LogitsDistanceSpec(RoleTerm):
    """max(0, sum (student - scale * role)^2 - margin * scale) on the logits themselves.

    Continuation KD, arXiv:2212.05998, equation 5; with margin 0 the annealed loss, with scale 1
    too the squared error that arXiv:2109.11295 uses.
    """

    encodings: ClassVar[tuple[str, ...]] = DENSE
    scheduled: ClassVar[tuple[str, ...]] = ("weight", "logit_scale", "margin")
    kind: Literal["logits_distance"]
    logit_scale: Annotated[Number, within(0.0, float("inf"))] = 1.0
    """What the role's logits are multiplied by."""
    margin: Annotated[Number, within(0.0, float("inf"))] = 0.0
    """Squared distance that costs nothing."""
    over: Literal["sum", "mean"] = "sum"
    """Over the entries."""


class MeasureTerm(TermBase):
    """A measure of every position: reported as a loss is, followed by schedules, never trained on.

    A measure of a role needs its encoding `full` or `hidden`.
    """

    encodings: ClassVar[tuple[str, ...]] = DENSE
    kind: Literal["measure"]
    measure: Measure
    role: str | None = None
    """The role that the measure looks at; absent: `teacher`, where it looks at one."""
    weight: Annotated[Number, within(0.0, 0.0, remedy="nothing is learned from it; remove it")] = (
        0.0
    )

    @property
    def looked_at(self) -> str:
        """The role, for measures that look at one."""
        return "teacher" if self.role is None else self.role

    @property
    def named_roles(self) -> tuple[str, ...]:
        return (self.looked_at,) if self.measure in OF_ROLES else ()

    @property
    def needs_labels(self) -> bool:
        return self.measure in OF_LABELS

    @model_validator(mode="after")
    def _role_is_looked_at(self) -> "MeasureTerm":
        if self.role is not None and self.measure not in OF_ROLES:
            raise ValueError(
                f"role is {self.role!r}, and {self.measure} looks at none; remove role"
            )
        return self


class ImportedTerm(TermBase):
    """A term of one's own: `package.module:function` called with `arguments`.

    It returns a `strategies.contract.CustomTerm`. Nothing of this project has to change.
    """

    encodings: ClassVar[tuple[str, ...]] = (*DENSE_OR_TOPK, "sampled")
    kind: Literal["import"]
    target: ImportPath
    roles: list[str] = []
    """Served roles whose logits it asks for."""
    residents: list[str] = []
    """Served roles whose own weights it wants beside the student."""
    arguments: dict[str, Any] = {}
    """Given to the function by name."""
    group: PositiveInt | None = None
    """Rows that it compares with each other; divides training.micro_batch."""

    @property
    def named_roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.roles, *self.residents)))

    @property
    def asked(self) -> tuple[tuple[str, LooksAt], ...]:
        told = (role for role in self.roles if not role.startswith(PEER))
        logits: list[tuple[str, LooksAt]] = [(role, "logits") for role in told]
        beside: list[tuple[str, LooksAt]] = [(role, "resident") for role in self.residents]
        return (*logits, *beside)

    @property
    def groups(self) -> tuple[int, ...]:
        return () if self.group is None else (self.group,)

    @model_validator(mode="after")
    def _members_have_no_frozen_weights(self) -> Self:
        for role in self.residents:
            if role.startswith(PEER):
                raise ValueError(
                    f"residents name {role}, a member of the student, and what is beside it is "
                    "frozen; name it in roles, whose logits are told, or name a served role"
                )
        return self


TermSpec = Annotated[
    CrossEntropySpec
    | ForwardKLSpec
    | ReverseKLSpec
    | JensenShannonSpec
    | SkewedForwardKLSpec
    | SkewedReverseKLSpec
    | TotalVariationSpec
    | AlphaBetaSpec
    | AdaptiveKLSpec
    | DecoupledSpec
    | UniversalSpec
    | LogitsDistanceSpec
    | HiddenStatesSpec
    | AttentionMapsSpec
    | AttentionTransferSpec
    | FlowSpec
    | SimilarityPreservingSpec
    | RelationalSpec
    | InputGradientsSpec
    | ImportedFeaturesSpec
    | RoleGradientSpec
    | BlockwiseLogitsSpec
    | BprSpec
    | StratifiedPairsSpec
    | MeasureTerm
    | ImportedTerm,
    Field(discriminator="kind"),
]
