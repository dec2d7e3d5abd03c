"""The backbone stays as published; decoder and head are trained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from geopeft.models.adapters.adapter import State, require_fit
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.spec import ModelSpec


class Frozen:
    """Trains nothing and stores nothing."""

    trains_statistics = False
    stores_backbone = False

    def apply(self, backbone: Backbone, spec: ModelSpec) -> None:
        backbone.requires_grad_(False)

    def state(self, backbone: Backbone) -> State:
        return {}

    def load(self, backbone: Backbone, state: Mapping[str, Tensor]) -> None:
        require_fit(state, {}, "adapter")

    def merge(self, backbone: Backbone, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
        require_fit(state, {}, "adapter")
