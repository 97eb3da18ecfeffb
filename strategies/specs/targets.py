"""What becomes of a role's distribution before a student learns it. Pydantic only.

Transforms of a list apply in order. `strategies.targets` has the arithmetic.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from .base import Spec
from .schedules import Number, extremes, within


class TransformSpec(Spec):
    """Base of all transforms."""

    encodings: ClassVar[tuple[str, ...]] = ("full", "hidden")
    """Encodings of the term's role that it can be computed from."""
    scheduled: ClassVar[tuple[str, ...]] = ()
    """Fields that may be schedules."""
    needs_labels: ClassVar[bool] = False

    @property
    def named_roles(self) -> tuple[str, ...]:
        """Roles that it looks at beside the term's own."""
        return ()


class SwapSpec(TransformSpec):
    """Where the role is wrong, its likeliest entry and the label change places.

    Probability shift of arXiv:1911.07471; the rectification of arXiv:2201.11319.
    """

    needs_labels: ClassVar[bool] = True
    kind: Literal["swap"]


class SmoothWrongSpec(TransformSpec):
    """Where the role is wrong, a smoothed label takes its place. arXiv:1911.07471."""

    needs_labels: ClassVar[bool] = True
    kind: Literal["smooth_wrong"]
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Of the label; the rest is spread evenly over the others."""


class RectifySpec(TransformSpec):
    """Where the role is wrong, its likeliest entry w and the label y share anew what they had.

    In the proportion (q_y + 1) to q_w, at the term's temperature. Zhang et al., arXiv:2412.09874.
    """

    needs_labels: ClassVar[bool] = True
    kind: Literal["rectify"]


class KeepLabelSpec(TransformSpec):
    """The label stays as it is, the others share the rest evenly: KD-pt, arXiv:2002.03532.

    At the term's temperature.
    """

    needs_labels: ClassVar[bool] = True
    kind: Literal["keep_label"]


class KeepTopSpec(TransformSpec):
    """A share of the likeliest entries stays, the others share the rest evenly: KD-topk there.

    At the term's temperature.
    """

    kind: Literal["keep_top"]
    share: Annotated[float, Field(gt=0, le=1)]
    """Of the entries."""


class SimilaritySpec(TransformSpec):
    """No role's answer: how alike the label's row of the role's head is to every other: KD-sim.

    softmax(cosine^power / temperature), the power keeping the cosine's sign. arXiv:2002.03532. For
    heads of few entries: it goes over all of the head for every few positions.
    """

    encodings: ClassVar[tuple[str, ...]] = ("hidden",)
    needs_labels: ClassVar[bool] = True
    kind: Literal["similarity"]
    power: PositiveFloat = 1.0
    temperature: PositiveFloat = 0.3


class UniformSpec(TransformSpec):
    """All entries alike: what label smoothing adds."""

    kind: Literal["uniform"]


class LikeliestSpec(TransformSpec):
    """The likeliest entry alone."""

    kind: Literal["likeliest"]


class NoiseSpec(TransformSpec):
    """Normal noise on the logits, the same whenever a position comes. arXiv:2505.15442."""

    scheduled: ClassVar[tuple[str, ...]] = ("size",)
    kind: Literal["noise"]
    size: Annotated[Number, within(0.0, float("inf"))]
    """Standard deviation, in those of the position's own logits if `relative`."""
    relative: bool = True
    seed: NonNegativeInt = 0


class DeltaSpec(TransformSpec):
    """log p + alpha (log student_base - log teacher_base): Cao et al., arXiv:2509.14526."""

    scheduled: ClassVar[tuple[str, ...]] = ("alpha",)
    kind: Literal["delta"]
    alpha: Annotated[Number, within(0.0, 1.0)] = 0.5
    """0: the role as it is; 1: the whole parallelogram."""
    teacher_base: str = "teacher_base"
    student_base: str = "student_base"

    @property
    def named_roles(self) -> tuple[str, ...]:
        return (self.teacher_base, self.student_base)


class TowardsStudentSpec(TransformSpec):
    """share * logits + (1 - share) * student's logits, held fixed: TAID, arXiv:2501.16937."""

    scheduled: ClassVar[tuple[str, ...]] = ("share",)
    kind: Literal["towards_student"]
    share: Annotated[Number, within(0.0, 1.0)]
    """Of the role: 0 is the student itself, 1 the role."""


class MixSpec(TransformSpec):
    """Mixture of the role's distribution and those of others, at the term's temperature.

    With `by: entropy` each role's weight is multiplied by exp(-its entropy / log V), position by
    position, so that who is sure counts more.
    """

    kind: Literal["mix"]
    roles: Annotated[list[str], Field(min_length=1)]
    """The others."""
    weights: Annotated[list[Annotated[Number, within(0.0, float("inf"))]], Field(min_length=2)]
    """The term's own role first, then `roles`; made to sum to 1."""
    by: Literal["weights", "entropy"] = "weights"

    @property
    def named_roles(self) -> tuple[str, ...]:
        return tuple(self.roles)

    @model_validator(mode="after")
    def _weights_fit(self) -> "MixSpec":
        if len(self.weights) != len(self.roles) + 1:
            raise ValueError(
                f"weights has {len(self.weights)} numbers for {len(self.roles) + 1} roles (the "
                "term's own first); give one each"
            )
        if all(extremes(weight)[1] == 0 for weight in self.weights):
            raise ValueError("weights are all 0; give at least one role a weight above 0")
        return self


TargetSpec = Annotated[
    SwapSpec
    | SmoothWrongSpec
    | RectifySpec
    | KeepLabelSpec
    | KeepTopSpec
    | SimilaritySpec
    | UniformSpec
    | LikeliestSpec
    | NoiseSpec
    | DeltaSpec
    | TowardsStudentSpec
    | MixSpec,
    Field(discriminator="kind"),
]
