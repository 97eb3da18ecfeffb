"""Several classifiers that read the same inputs, as one module.

Each member is `members.NAME` of the module, so that its paths are its own below that. Nothing is
shared: what one learns from another, terms decide. Imports torch; never ray, deepspeed or mlflow.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from .forward import NamedLogits, classify

MEMBERS = "members"
"""The module's attribute: begins the paths of all members."""


class Members(nn.Module):
    """Called as each of them is; gives the logits of all by name.

    Args:
        models: by name, two or more, of the same classes.
        main: whose logits are the answer where one is wanted.
        classes: of each.
    """

    def __init__(self, models: Mapping[str, nn.Module], main: str, classes: int) -> None:
        super().__init__()
        self.num_labels = classes
        self._main = main
        self.members = nn.ModuleDict(models)

    def forward(self, **inputs: Tensor) -> NamedLogits:
        """By name [R, V]."""
        found = {name: classify(model, inputs) for name, model in self.members.items()}
        return NamedLogits(found, self._main)
