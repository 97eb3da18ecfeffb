"""Terms on what is inside student and role: hidden states, feature maps, attention. Pydantic only.

`strategies.features` has the arithmetic. Which layers a pattern names is known once both models are
loaded; `stillhouse doctor --layers FILE` lists them.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from .base import Spec
from .measures import OF_LABELS, OF_ROLES, WeighBySpec
from .term import DENSE_OR_TOPK, ImportPath, LooksAt, TermBase

ModulePath = Annotated[str, Field(pattern=r"^[^\s.]+(\.[^\s.]+)*$")]
"""Path of a module as `named_modules` has it; `*` stands for one part or some of its letters."""


class LayerPair(Spec):
    """A layer of the student, and the one of the role that it learns from.

    With wildcards on both sides the layers are paired in order. Where the role has k times as many,
    layer i of the student goes with layer i * k of the role, both counted from 1.
    """

    student: ModulePath
    role: ModulePath


class FlowPair(Spec):
    """Two layers of the student, and the two of the role whose flow theirs is to equal."""

    student: tuple[ModulePath, ModulePath]
    role: tuple[ModulePath, ModulePath]


class FeatureTermSpec(TermBase):
    """Base of terms that look inside; how the role's logits are encoded is nothing to them."""

    encodings: ClassVar[tuple[str, ...]] = (*DENSE_OR_TOPK, "sampled")
    looks_at: ClassVar[LooksAt] = "layers"

    role: str = "teacher"
    """The served role to learn from."""

    @property
    def named_roles(self) -> tuple[str, ...]:
        return (self.role,)

    @property
    def layer_pairs(self) -> list[tuple[str, str, str]]:
        """(field below the term, pattern of the student, pattern of the role), in order."""
        raise NotImplementedError


class PairedSpec(FeatureTermSpec):
    """Base of those that take layers in pairs."""

    layers: Annotated[list[LayerPair], Field(min_length=1)]
    """Which layer learns from which."""

    @property
    def layer_pairs(self) -> list[tuple[str, str, str]]:
        return [(f"layers.{i}", pair.student, pair.role) for i, pair in enumerate(self.layers)]


class _WeighedSpec(PairedSpec):
    weigh_by: WeighBySpec | None = None
    """A factor for each position, by a measure of the student."""

    @model_validator(mode="after")
    def _student_is_measured(self) -> "_WeighedSpec":
        if self.weigh_by is not None and self.weigh_by.measure in OF_ROLES:
            raise ValueError(
                f"weigh_by.measure is {self.weigh_by.measure}, which looks at a role's logits, and "
                "this term does not ask for them; use a measure of the student"
            )
        return self

    @property
    def needs_labels(self) -> bool:
        return self.weigh_by is not None and self.weigh_by.measure in OF_LABELS

    @property
    def groups(self) -> tuple[int, ...]:
        group = None if self.weigh_by is None else self.weigh_by.group
        return () if group is None else (group,)


class HiddenStatesSpec(_WeighedSpec):
    """Distance of hidden states or feature maps, position by position, summed over the pairs.

    mse: mean over channels of the squared difference (FitNets, arXiv:1412.6550, equation 3).
    normalised_mse: the same of the two as unit vectors, as the authors of arXiv:2109.11295 take it;
    that of arXiv:1908.09355, equation 7, sums over channels: it is twice `cosine`.
    cosine: 1 - cos. Positions of a feature map are averaged.
    """

    kind: Literal["hidden_states"]
    distance: Literal["mse", "normalised_mse", "cosine"] = "mse"
    projector: Literal["none", "linear", "orthogonal"] = "none"
    """Maps the student's channels to the role's; trained with the student, not exported. For
    feature maps a linear one is a 1x1 convolution. orthogonal: arXiv:2403.06213."""


class ImportedFeaturesSpec(PairedSpec):
    """A term of one's own on layers: `package.module:function` called with `arguments`.

    It returns a `strategies.contract.CustomFeatureTerm`. Nothing of this project has to change.
    """

    kind: Literal["import_features"]
    target: ImportPath
    arguments: dict[str, Any] = {}
    """Given to the function by name."""
    projector: Literal["none", "linear", "orthogonal"] = "none"
    """Maps the student's channels to the role's, as in `hidden_states`."""
    group: PositiveInt | None = None
    """Rows whose samples it compares with each other, if any; divides training.micro_batch."""

    @property
    def groups(self) -> tuple[int, ...]:
        return () if self.group is None else (self.group,)


class AttentionMapsSpec(_WeighedSpec):
    """Distance of attention probabilities, a row of keys a position; needs `attention: eager`.

    mse: sum over keys of the squared difference. kl: KL(role || student) (MiniLM, arXiv:2002.10957,
    equation 6). Mean over heads.
    """

    looks_at: ClassVar[LooksAt] = "attention"
    kind: Literal["attention_maps"]
    distance: Literal["mse", "kl"] = "kl"
    heads: Literal["each", "mean"] = "mean"
    """`each` compares heads one by one, of which both must have as many; `mean` their means."""


class AttentionTransferSpec(PairedSpec):
    """|| A_S / |A_S| - A_T / |A_T| ||^2 a sample, A at each position the mean of squared channels.

    Zagoruyko and Komodakis, arXiv:1612.03928, equation 2, squared as in the authors' code.
    Positions are those of a feature map, or those of a text that bear loss.
    """

    kind: Literal["attention_transfer"]


class FlowSpec(FeatureTermSpec):
    """|| G_S - G_T ||^2 a sample, G = (1 / positions) sum F1 F2^T of two layers: FSP matrices.

    Yim, Joo, Bae, Kim. CVPR 2017, equations 1 and 2.
    """

    kind: Literal["fsp"]
    flows: Annotated[list[FlowPair], Field(min_length=1)]
    """Which flow learns from which."""

    @property
    def layer_pairs(self) -> list[tuple[str, str, str]]:
        return [
            (f"flows.{i}", student, role)
            for i, flow in enumerate(self.flows)
            for student, role in zip(flow.student, flow.role, strict=True)
        ]


class _GroupedSpec(PairedSpec):
    group: PositiveInt
    """Rows whose samples are compared with each other; divides training.micro_batch."""

    @property
    def groups(self) -> tuple[int, ...]:
        return (self.group,)


class SimilarityPreservingSpec(_GroupedSpec):
    """|| G_S - G_T ||^2 / b^2 a group of b samples, G their inner products, rows of unit length.

    Tung and Mori, arXiv:1907.09682, equations 1 to 4. A text is the mean of its positions.
    """

    kind: Literal["similarity_preserving"]


class RelationalSpec(_GroupedSpec):
    """Huber distance of relations among the samples of a group, mean over pairs or triples.

    distance: of two samples, over the group's mean; angle: cosine of the angle at one of three.
    Park, Kim, Lu, Cho, arXiv:1904.05068, equations 6 to 10. A text is the mean of its positions.
    """

    kind: Literal["relational"]
    relation: Literal["distance", "angle"]
    group: Annotated[int, Field(ge=3)]
    """Rows whose samples are compared with each other; divides training.micro_batch. The relations
    of fewer than three samples are all alike."""


class InputGradientsSpec(FeatureTermSpec):
    """|| g_S / |g_S| - g_T / |g_T| ||^2 of the gradients of log max p, mean over places.

    A place is a sample's features or a text's token, where the role has a gradient that is not 0.
    Of classifiers. log max p points where max p does. Wang, Li, Sun, arXiv:2211.01071, and the
    authors' code. The student is differentiated twice.
    """

    looks_at: ClassVar[LooksAt] = "gradients"
    kind: Literal["input_gradients"]
    layers: Annotated[list[LayerPair], Field(min_length=1)] | None = None
    """Gradients by what these layers give; absent: by the input, texts once embedded."""
    tokens: Literal["all", "first"] = "all"
    """Of a text: every token, or the one that stands for all of it ([CLS])."""

    @property
    def layer_pairs(self) -> list[tuple[str, str, str]]:
        pairs = enumerate(self.layers or [])
        return [(f"layers.{i}", pair.student, pair.role) for i, pair in pairs]
