"""What the two forms of dynamic temperature distillation share. Pydantic only."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from ..specs.measures import Measure, TemperatureBySpec
from ..specs.schedules import Number
from ..specs.targets import SmoothWrongSpec, SwapSpec, TargetSpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Temperature


class DynamicTemperature(RoleRecipe):
    """Base: a temperature for each position, lower for what confuses the student."""

    temperature: Temperature = 10.0
    """T0, the mean over a group before the floor."""
    beta: PositiveFloat = 40.0
    """How far temperatures go apart."""
    floor: PositiveFloat = 1.0
    """Least temperature."""
    group: PositiveInt = 4
    """Rows whose mean counts; divides training.micro_batch."""
    adjust: Literal["none", "shift", "smooth"] = "none"
    """What becomes of a wrong role first: as ka_shift, or as ka_smooth at 0.9."""

    def tempered(self, weight: Number, measure: Measure, power: float) -> list[TermSpec]:
        """Forward KL at temperatures by a measure to a power."""
        by = TemperatureBySpec(
            measure=measure, beta=self.beta, power=power, floor=self.floor, group=self.group
        )
        adjusted: dict[str, tuple[TargetSpec, ...]] = {
            "none": (),
            "shift": (SwapSpec(kind="swap"),),
            "smooth": (SmoothWrongSpec(kind="smooth_wrong"),),
        }
        fields = self.softened(weight, *adjusted[self.adjust])
        return [ForwardKLSpec(kind="forward_kl", temperature_by=by, **fields)]
