"""BitFit (arXiv 2106.10199): biases are trained, and with them the gains of normalisations; nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from geopeft.models.adapters.adapter import State, require_fit
from geopeft.models.adapters.targets import chosen
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.spec import ModelSpec


class BitFit:
    """Trains in place and stores what it trains. Batch statistics stay as published."""

    trains_statistics = False
    stores_backbone = False

    def apply(self, backbone: Backbone, spec: ModelSpec) -> None:
        backbone.requires_grad_(False)
        for parameter in _vectors(backbone, spec).values():
            parameter.requires_grad_(True)
        self._names = tuple(_vectors(backbone, spec))

    def state(self, backbone: Backbone) -> State:
        own = backbone.state_dict()
        return {name: own[name] for name in self._names}

    def load(self, backbone: Backbone, state: Mapping[str, Tensor]) -> None:
        own = self.state(backbone)
        require_fit(state, {name: tuple(value.shape) for name, value in own.items()}, "adapter")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def merge(self, backbone: Backbone, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
        self.apply(backbone, spec)
        self.load(backbone, state)


def _vectors(backbone: Backbone, spec: ModelSpec) -> dict[str, nn.Parameter]:
    """Parameters by full name, of the modules that the spec asks for."""
    modules = {name: module for name, module in backbone.named_modules() if any(_own(backbone, name, module))}
    kept = chosen(backbone, modules, None, spec)
    return {full: parameter for name, module in kept.items() for full, parameter in _own(backbone, name, module)}


def _own(backbone: Backbone, name: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's biases, and its weight where that is a vector, as in normalisations."""
    for own, parameter in module.named_parameters(prefix=name, recurse=False):
        last = own.rpartition(".")[2]
        if parameter.ndim == 1 and (last == "weight" or last.endswith("bias")) and own not in backbone.never_trained:
            yield own, parameter
