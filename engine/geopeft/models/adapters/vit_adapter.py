"""ViT-Adapter (arXiv 2205.08534): the transformer stays as published, a side network gives finer maps in its place.

The side network cannot be merged into weights: a model opened for prediction keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from geopeft.errors import JobError
from geopeft.models.adapters.adapter import State, require_fit
from geopeft.models.adapters.interactions import GROUPS, InteractionNetwork
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.backbones.transformer import VitBackbone
from geopeft.models.spec import ModelSpec


class VitAdapter:
    """Trains and stores the side network, with its batch statistics, and nothing else."""

    trains_statistics = True
    stores_backbone = False

    def apply(self, backbone: Backbone, spec: ModelSpec) -> None:
        plain = _suitable(backbone, spec)
        plain.requires_grad_(False)
        side = InteractionNetwork(plain.in_channels, plain.dim, plain.patch_px)
        plain.side = side
        plain.out_channels, plain.strides = [plain.dim] * len(side.strides), side.strides

    def state(self, backbone: Backbone) -> State:
        return _side(backbone).state_dict()

    def load(self, backbone: Backbone, state: Mapping[str, Tensor]) -> None:
        require_fit(state, {key: tuple(value.shape) for key, value in self.state(backbone).items()}, "adapter")
        _side(backbone).load_state_dict(dict(state))

    def merge(self, backbone: Backbone, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
        self.apply(backbone, spec)
        self.load(backbone, state)


def _suitable(backbone: Backbone, spec: ModelSpec) -> VitBackbone:
    """The backbone, if it is a transformer of one date with a block for each interaction; else JobError."""
    if isinstance(backbone, VitBackbone) and len(backbone.taps) == GROUPS:
        if backbone.out_channels[0] == backbone.dim:
            return backbone
        raise JobError(
            "A ViT-Adapter sees the image of one date only.",
            "Give one date, or choose the adapter 'lora', 'vpt', 'full' or 'frozen'.",
            "ADAPTER_UNSUITABLE",
        )
    raise JobError(
        f"A ViT-Adapter needs a plain transformer of {GROUPS} blocks or more, which {spec.backbone} is not.",
        "Choose the adapter 'lora', 'full' or 'frozen', or another backbone.",
        "ADAPTER_UNSUITABLE",
    )


def _side(backbone: Backbone) -> InteractionNetwork:
    side = getattr(backbone, "side", None)
    if not isinstance(side, InteractionNetwork):
        raise TypeError("the backbone carries no ViT-Adapter")
    return side
