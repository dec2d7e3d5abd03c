"""Which layers of a backbone an adapter updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from geopeft.errors import JobError, unknown_name
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.spec import ModelSpec

Layer = nn.Linear | nn.Conv2d
Found = TypeVar("Found", bound=nn.Module)


def target_layers(backbone: Backbone, spec: ModelSpec) -> dict[str, Layer]:
    """Linear layers and pointwise convolutions by full name: those that `spec.targets` names, else the backbone's own,
    of the last `spec.last_blocks` blocks, else of all.

    Raises:
        JobError: a target is no last part of a layer's name (NAME_UNKNOWN), or no layer is left
            (ADAPTER_TRAINS_NOTHING).
    """
    unused = {name.rpartition(".")[0] for name in backbone.never_trained}
    layers = {n: m for n, m in backbone.named_modules() if isinstance(m, Layer) and _is_matrix(m) and n not in unused}
    return chosen(backbone, layers, backbone.adapter_targets, spec)


def chosen(
    backbone: Backbone, modules: Mapping[str, Found], usual: Sequence[str] | None, spec: ModelSpec
) -> dict[str, Found]:
    """Of these modules those that the spec asks for.

    Args:
        usual: last parts of names where the spec names no targets; None: all.
    """
    refuse_unknown(spec.targets, modules)
    wanted = spec.targets or usual
    kept = {name: module for name, module in modules.items() if wanted is None or _named(name, wanted)}
    if spec.last_blocks:
        blocks = list(dict.fromkeys(block for name in kept if (block := block_of(backbone, name))))
        last = set(blocks[-spec.last_blocks :])
        kept = {name: module for name, module in kept.items() if block_of(backbone, name) in last}
    if not kept:
        raise JobError(
            f"The adapter '{spec.adapter}' would train nothing of {spec.backbone}: it has no layer that this adapter "
            "can update.",
            "Choose the adapter 'full' or 'frozen', or another backbone.",
            "ADAPTER_TRAINS_NOTHING",
        )
    return kept


def refuse_unknown(targets: Sequence[str], names: Iterable[str]) -> None:
    """JobError that lists the last parts of names there are, unless each target fits one."""
    names = list(names)
    for target in targets:
        if not any(_named(name, (target,)) for name in names):
            raise unknown_name("layer", target, {name.rpartition(".")[2] for name in names})


def block_of(backbone: Backbone, name: str) -> str:
    """The block that a module is in: the innermost numbered member of a list of modules of one kind; empty: none."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if parts[end - 1].isdigit():
            parent = backbone.get_submodule(".".join(parts[: end - 1]))
            if len({type(child) for child in parent.children()}) == 1:
                return ".".join(parts[:end])
    return ""


def _is_matrix(layer: Layer) -> bool:
    return isinstance(layer, nn.Linear) or (layer.kernel_size == (1, 1) and layer.groups == 1)


def _named(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith("." + target) for target in targets)
