"""A model of a job file -> a torch module, ready to train or to serve.

Promises: nothing from a model's files is run and no pickle is read unless the spec says so; a
weight that is missing or has another shape is an error, never a fresh one; fresh weights depend on
the seed alone, so every rank builds the same. Imports torch and transformers; never ray, deepspeed
or mlflow.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import nn

from orchestrator.errors import SpecError
from orchestrator.spec.models import ModelSpec, RoleSpec, StudentSpec
from strategies.contract import Head

from .build import MODEL_ERRORS, Resolve, build_module
from .fingerprint import role_fingerprint
from .forward import packing_is_exact
from .head import HeadForm, find_head_form, head_of, output_layer
from .made import Made
from .members import Members


@dataclass(frozen=True)
class Loaded:
    """A model and what the other rooms need to know of it."""

    module: nn.Module
    task: Literal["causal_lm", "classifier"]
    vocabulary: int
    """Rows of the output head (padded vocabularies count), or classes."""
    width: int
    """Width of the last hidden state; 0 where the module does not say (an imported one)."""
    head_kind: Literal["linear", "none"]
    """`none`: the head cannot be told apart, so the role is served as topk or full."""
    config: Any
    """The transformers config; None for an imported module that has none."""
    attention: str
    head_form: HeadForm | None = None
    made: Made | None = None
    """What makes the module, if it came by an import path."""
    members: "Mapping[str, Loaded]" = dataclasses.field(default_factory=dict)
    """Those of which the module is put together, by name; none of most."""

    def head(self) -> Head | None:
        """The output head with the module's live parameters, or None; see `head.head_of`."""
        return None if self.head_form is None else head_of(self.module, self.head_form)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides the outputs; of the weights as they are when first read."""
        # An import's arguments may change what its module does without changing its weights.
        edits = "" if self.made is None else self.made.text
        return role_fingerprint(self.module, attention=self.attention, edits=edits)

    @cached_property
    def packing_is_exact(self) -> bool:
        """Whether samples sharing a row are strangers; see `forward.packing_is_exact`."""
        return packing_is_exact(self.module)


def load_model(
    spec: ModelSpec,
    *,
    device: str = "cpu",
    tokenizer: str | None = None,
    for_training: bool = False,
    seed: int = 0,
    resolve: Resolve | None = None,
    packing: bool = False,
    field: str = "model",
) -> Loaded:
    """Load one role.

    Args:
        spec: where the model comes from and how it is run; of a student with members, each of
            them is loaded and they are one module. An `import` source names a callable
            that returns an `nn.Module` when called with `arguments`. A causal one is called as
            `module(input_ids=[R, T] int64, position_ids=[R, T] int64)`, without `position_ids` if
            its forward does not take them; a classifier as `module(**inputs)`: a text's
            `input_ids` and `attention_mask`, padded on the right, or the features' argument, float
            [R, ...]. Either returns logits, [R, T, V] or [R, V], or an object with `.logits`. An
            imported classifier has a `num_labels`.
        device: a torch device, or `auto` to lay the layers over all GPUs this process sees.
        tokenizer: folder of the job's tokenizer; gives a fresh architecture its vocabulary.
        for_training: the module is in training mode and its weights take gradients.
        seed: of fresh weights.
        resolve: turns a `registry` or `job` source into a folder.
        packing: refuse a causal model that does not keep packed samples apart.
        field: dotted path of `spec` in the job, for messages.

    Raises:
        SpecError: the model cannot be loaded as asked.
    """
    if isinstance(spec, StudentSpec) and spec.members is not None:
        how: dict[str, Any] = {"tokenizer": tokenizer, "resolve": resolve, "packing": packing}
        how |= {"device": device, "for_training": for_training}
        return _load_members(spec, seed, f"{field}.members", how)
    if spec.attention == "flash_attention_2" and device == "cpu":
        raise SpecError(
            f"{field}.attention",
            "is flash_attention_2, which needs a GPU, and this process has device cpu",
            "Use sdpa, or give the process a GPU",
        )
    module, made = build_module(spec, device, tokenizer, seed, resolve, field)
    if device != "auto":
        module.to(device)
    module.requires_grad_(for_training).train(for_training)
    loaded = _describe(module, made, spec, field)
    if packing and spec.task == "causal_lm":
        _check_packing(loaded, field)
    if not for_training:
        _ = loaded.fingerprint  # of the weights as loaded: read before anyone can change them
    return loaded


def _load_members(spec: StudentSpec, seed: int, field: str, how: Mapping[str, Any]) -> Loaded:
    """Each member, from a seed of its own, and all of them as one."""
    assert spec.members is not None and spec.main is not None  # `load_model` has looked
    members = {
        name: load_model(
            member,
            seed=seed + place if member.seed is None else member.seed,
            field=f"{field}.{name}",
            **how,
        )
        for place, (name, member) in enumerate(spec.members.items())
    }
    main = members[spec.main]
    for name, member in members.items():
        if member.vocabulary != main.vocabulary:
            raise SpecError(
                f"{field}.{name}",
                f"has {member.vocabulary} classes, and {spec.main} {main.vocabulary}",
                "Use models of the same classes",
            )
    module = Members({n: m.module for n, m in members.items()}, spec.main, main.vocabulary)
    module.train(how["for_training"])
    return Loaded(
        module=module,
        task=spec.task,
        vocabulary=main.vocabulary,
        width=0,
        head_kind="none",
        config=None,
        attention=main.attention,
        members=members,
    )


def load_role_model(role: str, spec: RoleSpec, *, device: str, seed: int) -> Loaded:
    """A role's model, the same in a replica and beside a student: one fingerprint.

    Args:
        role: its name, for messages.
        spec: of the role.
        device: as of `load_model`.
        seed: of fresh weights; the pool's.

    Raises:
        SpecError: the model cannot be loaded as asked.
    """
    return load_model(
        spec, device=device, tokenizer=spec.tokenizer, seed=seed, field=f"roles.{role}"
    )


def _describe(module: nn.Module, made: Made | None, spec: ModelSpec, field: str) -> Loaded:
    config: Any = getattr(module, "config", None)
    form = _head_form(module, field) if spec.task == "causal_lm" else None
    linear = output_layer(module) if spec.task == "causal_lm" else None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if linear is not None:
        vocabulary, width = linear.weight.shape
    else:
        name = "vocab_size" if spec.task == "causal_lm" else "num_labels"
        vocabulary = _number(name, module, config, text)
        width = _number("hidden_size", config, text)
        if not vocabulary:
            raise SpecError(
                field,
                f"{_name(module)} does not say how many logits it has",
                f"Give the module or its config an attribute {name}",
            )
    return Loaded(
        module=module,
        task=spec.task,
        vocabulary=vocabulary,
        width=width,
        head_kind="none" if form is None else "linear",
        config=config,
        attention=spec.attention,
        head_form=form,
        made=made,
    )


def _head_form(module: nn.Module, field: str) -> HeadForm | None:
    try:
        return find_head_form(module)
    except MODEL_ERRORS as error:
        raise SpecError(
            field, f"{_name(module)} does not run forward ({error})", "Mend its config"
        ) from error


def _check_packing(loaded: Loaded, field: str) -> None:
    try:
        exact = loaded.packing_is_exact
    except MODEL_ERRORS as error:
        raise SpecError(
            field,
            f"{_name(loaded.module)} does not run packed ({error})",
            "Set data.packing: false",
        ) from error
    if not exact:
        raise SpecError(
            field,
            f"{_name(loaded.module)} with attention {loaded.attention} lets packed samples see "
            "each other",
            "Set data.packing: false, or use another model or attention",
        )


def _number(name: str, *holders: Any) -> int:
    values = [getattr(holder, name, None) for holder in holders]
    return next((value for value in values if isinstance(value, int)), 0)


def _name(module: nn.Module) -> str:
    return type(module).__name__
