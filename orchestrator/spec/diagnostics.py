"""What a job may have measured beside the usual held-out numbers. Pydantic only.

Each kind is computed at the end of training, and during it where `every_steps` says so; its
numbers are `diagnostics.<name>` of the run's evaluation.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from strategies.specs import Spec


class DiagnosticBase(Spec):
    """What all kinds share."""

    needs_gradients: ClassVar[bool] = False
    """Whether whole gradients of the student are computed."""
    needs_labels: ClassVar[bool] = False
    """Whether it means nothing without the data's own labels."""

    needs_resident: ClassVar[bool] = False
    """Whether the role's own weights are wanted beside the student, of the student's shapes."""

    name: Annotated[str | None, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = None
    """Where its numbers are found; absent: its kind."""
    every_steps: PositiveInt | None = None
    """Also measure during training; absent: at the end only."""

    @property
    def title(self) -> str:
        """Its name in evaluation, metrics and report."""
        return self.name or self.kind  # type: ignore[attr-defined]

    @property
    def asked(self) -> tuple[str | None, ...]:
        """Roles asked; None is the one that evaluation compares with."""
        return ()

    @property
    def asks_new_things(self) -> bool:
        """Whether a role is asked what `stillhouse label` has not put into the cache."""
        return False

    @property
    def written_tokens(self) -> tuple[int, int] | None:
        """Tokens of a prompt and of what is written after it; None: nothing is written."""
        return None


class _OfRole(DiagnosticBase):
    role: str | None = None
    """Served role; absent: the one that evaluation compares with."""

    @property
    def asked(self) -> tuple[str | None, ...]:
        """The role."""
        return (self.role,)


Lam = Annotated[float, Field(ge=0, le=1)]


class GradientNoiseSpec(_OfRole):
    """How much gradients differ between micro-batches, and what the role does to that.

    arXiv:2305.17581.
    """

    needs_gradients: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    kind: Literal["gradient_noise"]
    batches: Annotated[int, Field(ge=2)] = 16
    """Micro-batches of training rows, over all workers."""
    lam: Lam = 0.5
    """Share of the role's loss in the mixture (1 - lam) CE + lam KL that is reported."""

    @property
    def asks_new_things(self) -> bool:
        """Its answers about training rows are exact whatever the role's encoding."""
        return True


class ModifiedGradientSpec(_OfRole):
    """How near the modified gradient comes to that of distillation, at the student as it is.

    arXiv:2305.17581.
    """

    needs_gradients: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    needs_resident: ClassVar[bool] = True

    kind: Literal["modified_gradient"]
    batches: PositiveInt = 16
    """Micro-batches of training rows, over all workers."""
    lam: Lam = 0.7
    """Share of the role."""


class GradientNormSpec(DiagnosticBase):
    """Norm of the objective's gradient by layer. arXiv:2006.16589."""

    needs_gradients: ClassVar[bool] = True

    kind: Literal["gradient_norm_by_layer"]
    batches: PositiveInt = 4
    """Micro-batches of training rows, over all workers, whose mean gradient is looked at."""


class OmegaSpec(_OfRole):
    """By what factor the role's loss rescales the label's gradient at held-out positions.

    arXiv:2002.03532.
    """

    needs_labels: ClassVar[bool] = True

    kind: Literal["omega"]
    lam: Lam = 0.5
    """Share of the role's loss in (1 - lam) CE + lam KL."""


class FidelitySpec(_OfRole):
    """How alike student and role are, in what they get wrong and in what they write.

    arXiv:2505.15442.
    """

    kind: Literal["fidelity"]
    prompts: PositiveInt | None = None
    """Held-out prompts that both continue, for BLEU; absent: none, as for a classifier."""
    prompt_tokens: PositiveInt = 16
    """Tokens of a prompt: the beginning of a held-out sample."""
    tokens: PositiveInt = 32
    """Tokens written after it, fewer where a text ends."""

    @property
    def asks_new_things(self) -> bool:
        """With prompts, the role is asked about its own text."""
        return self.prompts is not None

    @property
    def written_tokens(self) -> tuple[int, int] | None:
        """Of the continuations."""
        return None if self.prompts is None else (self.prompt_tokens, self.tokens)


class PrecisionRecallSpec(_OfRole):
    """How likely the student's text is to the role, and held-out text to the student.

    arXiv:2505.13111.
    """

    kind: Literal["precision_recall"]
    prompts: PositiveInt = 16
    """Held-out prompts that the student continues."""
    prompt_tokens: PositiveInt = 16
    """Tokens of a prompt: the beginning of a held-out sample."""
    tokens: PositiveInt = 32
    """Tokens drawn after it at temperature 1, fewer where a text ends."""

    @property
    def asks_new_things(self) -> bool:
        """The role is asked about the student's text."""
        return True

    @property
    def written_tokens(self) -> tuple[int, int] | None:
        """Of the samples."""
        return self.prompt_tokens, self.tokens


class InputGradientsSpec(_OfRole):
    """Cosine of the gradients of log max p by the input, a classifier's and the role's.

    arXiv:2211.01071.
    """

    needs_gradients: ClassVar[bool] = True

    kind: Literal["input_gradients"]

    @property
    def asks_new_things(self) -> bool:
        """Held-out rows are labelled with logits alone."""
        return True


class LogitDistanceSpec(_OfRole):
    """Mean squared difference of logits, student's and role's, on held-out samples and near them.

    Near: where `steps` steps of `size` towards a larger one have led, which is about the worst
    within steps * size. Of features, or at a text's embeddings. arXiv:2301.12006.
    """

    needs_gradients: ClassVar[bool] = True

    kind: Literal["logit_distance"]
    steps: PositiveInt = 5
    """Steps from each held-out sample."""
    size: PositiveFloat = 0.25
    """Length of a step, in the units of the features, or of the student's embeddings."""

    @property
    def asks_new_things(self) -> bool:
        """Nobody has labelled what lies near."""
        return True


class ObjectiveLossSpec(DiagnosticBase):
    """The objective's loss on held-out data, in all and term by term."""

    kind: Literal["objective"]

    @property
    def asks_new_things(self) -> bool:
        """Held-out rows are labelled for evaluation alone."""
        return True


class RankingSpec(DiagnosticBase):
    """How well held-out items are ranked, overall and by popularity, and what is recommended.

    Of format `interactions` only. A user's list is the best of the items the user is not trained
    on. Recall and NDCG are means over users; `listed` is a stratum's share of the entries of all
    lists. arXiv:2211.14729.
    """

    kind: Literal["ranking"]
    cutoffs: Annotated[list[PositiveInt], Field(min_length=1)] = [10]
    """Lengths of the list."""
    strata: PositiveInt = 2
    """Groups of items of about equally many interactions, the most popular first."""
    role: str | None = None
    """Served role that is measured beside the student; absent: none."""

    @property
    def asked(self) -> tuple[str | None, ...]:
        """The role, if it is named."""
        return () if self.role is None else (self.role,)


DiagnosticSpec = Annotated[
    GradientNoiseSpec
    | ModifiedGradientSpec
    | GradientNormSpec
    | OmegaSpec
    | FidelitySpec
    | PrecisionRecallSpec
    | InputGradientsSpec
    | LogitDistanceSpec
    | ObjectiveLossSpec
    | RankingSpec,
    Field(discriminator="kind"),
]
