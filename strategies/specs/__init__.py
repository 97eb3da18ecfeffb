"""The part of a job file that says what to learn: schedules, terms, objectives.

Pydantic only: loads neither torch nor ray. `strategies.objective.build_objective` turns these
into callables.
"""

from .adaptive import AdaptiveSchedule as AdaptiveSchedule
from .adaptive import FollowSchedule as FollowSchedule
from .adaptive import TaidSchedule as TaidSchedule
from .base import Spec as Spec
from .features import AttentionMapsSpec as AttentionMapsSpec
from .features import AttentionTransferSpec as AttentionTransferSpec
from .features import FeatureTermSpec as FeatureTermSpec
from .features import FlowPair as FlowPair
from .features import FlowSpec as FlowSpec
from .features import HiddenStatesSpec as HiddenStatesSpec
from .features import ImportedFeaturesSpec as ImportedFeaturesSpec
from .features import InputGradientsSpec as InputGradientsSpec
from .features import LayerPair as LayerPair
from .features import RelationalSpec as RelationalSpec
from .features import SimilarityPreservingSpec as SimilarityPreservingSpec
from .measures import Measure as Measure
from .measures import TemperatureBySpec as TemperatureBySpec
from .measures import WeighBySpec as WeighBySpec
from .objective import ObjectiveSpec as ObjectiveSpec
from .ranking import BprSpec as BprSpec
from .ranking import RankTermSpec as RankTermSpec
from .ranking import StratifiedPairsSpec as StratifiedPairsSpec
from .samples import CondenseSpec as CondenseSpec
from .samples import HookSpec as HookSpec
from .samples import SelectSpec as SelectSpec
from .schedules import ConstantSchedule as ConstantSchedule
from .schedules import CosineSchedule as CosineSchedule
from .schedules import CountingSchedule as CountingSchedule
from .schedules import CyclicSchedule as CyclicSchedule
from .schedules import ExponentialSchedule as ExponentialSchedule
from .schedules import LinearSchedule as LinearSchedule
from .schedules import Number as Number
from .schedules import PiecewiseSchedule as PiecewiseSchedule
from .schedules import PolynomialSchedule as PolynomialSchedule
from .schedules import Schedule as Schedule
from .schedules import StepSchedule as StepSchedule
from .schedules import Within as Within
from .schedules import extremes as extremes
from .schedules import within as within
from .targets import TargetSpec as TargetSpec
from .targets import TransformSpec as TransformSpec
from .term import MEMBER_NAME as MEMBER_NAME
from .term import PEER as PEER
from .term import TermBase as TermBase
from .terms import AdaptiveKLSpec as AdaptiveKLSpec
from .terms import AlphaBetaSpec as AlphaBetaSpec
from .terms import CrossEntropySpec as CrossEntropySpec
from .terms import DecoupledSpec as DecoupledSpec
from .terms import DivergenceSpec as DivergenceSpec
from .terms import ForwardKLSpec as ForwardKLSpec
from .terms import ImportedTerm as ImportedTerm
from .terms import JensenShannonSpec as JensenShannonSpec
from .terms import LogitsDistanceSpec as LogitsDistanceSpec
from .terms import MeasureTerm as MeasureTerm
from .terms import ReverseKLSpec as ReverseKLSpec
from .terms import RoleTerm as RoleTerm
from .terms import SkewedForwardKLSpec as SkewedForwardKLSpec
from .terms import SkewedReverseKLSpec as SkewedReverseKLSpec
from .terms import TermSpec as TermSpec
from .terms import TotalVariationSpec as TotalVariationSpec
from .terms import UniversalSpec as UniversalSpec
