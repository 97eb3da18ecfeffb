"""Published methods, each a file and one line here. Pydantic only.

`recipe: {kind: ...}` in an objective expands to terms; the resolved job records both. One from
elsewhere is `recipe: {kind: import, target: ...}`.
"""

from typing import Annotated, get_args

from pydantic import Field

from .adaptive_kl import AdaptiveKL
from .alpha_beta import AlphaBeta
from .annealing_kd import AnnealingKD
from .attention_transfer import AttentionTransfer
from .backward_pass import BackwardPass
from .base import Recipe as Recipe
from .blockwise_logits import BlockwiseLogits
from .boundary_samples import BoundarySamples
from .btkd import Btkd
from .condensation import Condensation
from .continuation_kd import ContinuationKD
from .decoupled import Decoupled
from .delta_kd import DeltaKD
from .dr_kd import DrKD
from .dtd_cwsm import DtdCwsm
from .dtd_flsw import DtdFlsw
from .dynamic_adoption import DynamicAdoption
from .dynamic_selection import DynamicSelection
from .fitnet import FitNet
from .forward_kl import ForwardKL
from .fsp import Fsp
from .gjsd import GeneralisedJSD
from .gradient_kd import GradientKD
from .hard_labels import HardLabels
from .imported import ImportedRecipe
from .ka_shift import KAShift
from .ka_smooth import KASmooth
from .kd_pt import KDpt
from .kd_sim import KDsim
from .kd_topk import KDtopk
from .label_smoothing_kd import LabelSmoothingKD
from .modified_gradient import ModifiedGradient as ModifiedGradient
from .multi_teacher import MultiTeacher
from .mutual_learning import MutualLearning
from .objective_adjustment import ObjectiveAdjustment
from .one import One
from .partial_variance import PartialVariance as PartialVariance
from .relational import Relational
from .reverse_kl import ReverseKL
from .sequence_kd import SequenceKD
from .similarity_preserving import SimilarityPreserving
from .skewed_kl import SkewedKL
from .symmetric_kl import SymmetricKL
from .taid import Taid
from .top1_ce import Top1CrossEntropy
from .total_variation import TotalVariation
from .universal import Universal
from .unkd import UnKD

_Published = (
    ForwardKL
    | ReverseKL
    | SymmetricKL
    | GeneralisedJSD
    | SkewedKL
    | AdaptiveKL
    | AlphaBeta
    | TotalVariation
    | Taid
    | Decoupled
    | Top1CrossEntropy
    | HardLabels
    | SequenceKD
    | LabelSmoothingKD
    | KDpt
    | KDsim
    | KDtopk
    | MultiTeacher
    | Universal
    | DynamicAdoption
    | DynamicSelection
    | Condensation
    | DeltaKD
    | KAShift
    | KASmooth
    | DtdFlsw
    | DtdCwsm
    | Btkd
    | DrKD
    | AnnealingKD
    | ContinuationKD
    | PartialVariance
    | ModifiedGradient
    | FitNet
    | AttentionTransfer
    | SimilarityPreserving
    | Relational
    | Fsp
    | ObjectiveAdjustment
    | GradientKD
    | BlockwiseLogits
    | BackwardPass
    | BoundarySamples
    | UnKD
    | MutualLearning
    | One
)

RecipeSpec = Annotated[_Published | ImportedRecipe, Field(discriminator="kind")]

RECIPES: dict[str, type[Recipe]] = {
    get_args(recipe.model_fields["kind"].annotation)[0]: recipe for recipe in get_args(_Published)
}
"""Published ones by kind, in the order of the union."""
