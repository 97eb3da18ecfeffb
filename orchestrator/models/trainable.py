"""Choose which parameters of a student may change.

Promises: a pattern that matches nothing is an error naming the nearest paths; parameters of other
paths take no gradient. Imports torch; never ray, deepspeed or mlflow.
"""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from orchestrator.errors import SpecError

from .forward import unwrapped


def apply_trainable(
    module: nn.Module, patterns: Sequence[str], field: str = "student.trainable"
) -> int:
    """Let only the named parameters change.

    Args:
        module: the student, before an engine wraps it.
        patterns: paths of modules or parameters with the shell's wildcards, e.g. `lm_head`,
            `model.layers.*.mlp` or `*.bias`. A module's path stands for all below it.
        field: dotted path of the patterns, for messages.

    Returns:
        The number of elements that may change.

    Raises:
        SpecError: a pattern matches no parameter.
    """
    # Tied parameters are listed under each of their names, so that either name reaches them.
    parameters = dict(unwrapped(module).named_parameters(remove_duplicate=False))
    chosen: set[str] = set()
    for index, pattern in enumerate(patterns):
        matched = {name for name in parameters if _matches(name, pattern)}
        if not matched:
            raise SpecError(
                f"{field}.{index}",
                f"is {pattern!r}, which matches no parameter of {type(module).__name__}",
                f"Nearest paths: {', '.join(_nearest(pattern, parameters))}",
            )
        chosen |= matched
    changing = {id(parameters[name]) for name in chosen}
    for parameter in parameters.values():
        parameter.requires_grad_(id(parameter) in changing)
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def frozen_parts(module: nn.Module) -> list[nn.Module]:
    """The largest parts of a module whose parameters are all frozen."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [module]
    return [part for child in module.children() for part in frozen_parts(child)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _nearest(pattern: str, names: dict[str, nn.Parameter]) -> list[str]:
    paths = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, 8)}
    near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3)
    return near or sorted(name.partition(".")[0] for name in names)[:3]
