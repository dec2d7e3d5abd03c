"""Adapters that change the weights of layers: a layer's matrix W becomes a function of W and of a few trained values.

The published weights stay untouched while training; for prediction the function is evaluated once and written into
them, so that a merged model is the plain network. Stored names are LAYER.NAME of each trained value.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.adapters.adapter import State, require_fit
from geopeft.models.adapters.targets import Layer, target_layers
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.spec import ModelSpec

SHARED = "shared_update"


class Update(nn.Module):
    """What an adapter makes of one layer. Created so that shapes are right; `start` gives the values to train from."""

    def start(self, layer: Layer) -> None:
        """Values with which the layer is what it was."""

    def matrix(self, weight: Tensor) -> Tensor:
        """The layer's new matrix (rows, cols) from the published one; a pointwise convolution is a matrix too."""
        raise NotImplementedError

    def offset(self, bias: Tensor | None) -> Tensor | None:
        """The layer's new bias (rows,)."""
        return bias

    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """What the changed layer makes of x."""
        return through(layer, x, self.matrix(flat(layer)), self.offset(layer.bias))


class AdaptedLayer(nn.Module):
    """Stands in a layer's place. `weight` and `bias` are the changed ones, for networks that use them past it."""

    def __init__(self, layer: Layer, update: Update) -> None:
        super().__init__()
        self.base_layer = layer
        self.update = update

    @property
    def weight(self) -> Tensor:
        return self.update.matrix(flat(self.base_layer)).view_as(self.base_layer.weight)

    @property
    def bias(self) -> Tensor | None:
        return self.update.offset(self.base_layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.update(self.base_layer, x)
        return y


class Reparametrized:
    """An adapter that gives each target layer an update."""

    trains_statistics = False
    stores_backbone = False

    def updates(self, layers: Mapping[str, Layer], spec: ModelSpec) -> tuple[dict[str, Update], nn.Module | None]:
        """An update for each layer that takes part, and what they share; None: nothing."""
        raise NotImplementedError

    def apply(self, backbone: Backbone, spec: ModelSpec) -> None:
        self._insert(backbone, spec, fresh=True)

    def state(self, backbone: Backbone) -> State:
        return {_stored_name(key): value for key, value in backbone.state_dict().items() if _is_own(key)}

    def load(self, backbone: Backbone, state: Mapping[str, Tensor]) -> None:
        own = self.state(backbone)
        require_fit(state, {key: tuple(value.shape) for key, value in own.items()}, "adapter")
        with torch.no_grad():
            for key, value in state.items():
                own[key].copy_(value)

    def merge(self, backbone: Backbone, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
        self._insert(backbone, spec, fresh=False)
        self.load(backbone, state)
        adapted = {name: module for name, module in backbone.named_modules() if isinstance(module, AdaptedLayer)}
        with torch.no_grad():
            for name, module in adapted.items():
                layer = module.base_layer
                layer.weight.copy_(module.weight)
                bias = module.bias
                if layer.bias is not None and bias is not None:
                    layer.bias.copy_(bias)
                backbone.set_submodule(name, layer)
        if hasattr(backbone, SHARED):
            delattr(backbone, SHARED)

    def _insert(self, backbone: Backbone, spec: ModelSpec, *, fresh: bool) -> None:
        layers = target_layers(backbone, spec)
        backbone.requires_grad_(False)
        updates, shared = self.updates(layers, spec)
        if shared is not None:
            setattr(backbone, SHARED, shared)
        for name, update in updates.items():
            if fresh:
                update.start(layers[name])
            backbone.set_submodule(name, AdaptedLayer(layers[name], update))


def plain_state(backbone: Backbone) -> State:
    """The tensors of the network under an adapter, with the names that it has without one."""
    own = backbone.state_dict()
    return {key.replace(".base_layer.", "."): value for key, value in own.items() if not _is_own(key)}


def flat(layer: Layer) -> Tensor:
    """The layer's weight as a matrix (rows, cols)."""
    return layer.weight.flatten(1)


def through(layer: Layer, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """x through a matrix in the place of the layer's own."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, matrix, bias)
    return F.conv2d(x, matrix[:, :, None, None], bias, layer.stride, layer.padding)


def _is_own(key: str) -> bool:
    return ".update." in key or key.startswith(SHARED + ".")


def _stored_name(key: str) -> str:
    return key.replace(".update.", ".")
