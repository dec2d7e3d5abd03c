"""The whole backbone is trained and stored, with its batch statistics."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from geopeft.models.adapters.adapter import State, require_fit
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.spec import ModelSpec


class Full:
    """Trains every parameter that takes part."""

    trains_statistics = True
    stores_backbone = True

    def apply(self, backbone: Backbone, spec: ModelSpec) -> None:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name not in backbone.never_trained)

    def state(self, backbone: Backbone) -> State:
        return {key: value for key, value in backbone.state_dict().items() if key not in backbone.never_trained}

    def load(self, backbone: Backbone, state: Mapping[str, Tensor]) -> None:
        require_fit(state, {key: tuple(value.shape) for key, value in self.state(backbone).items()}, "backbone")
        backbone.load_state_dict(dict(state), strict=False)

    def merge(self, backbone: Backbone, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
        self.load(backbone, state)
