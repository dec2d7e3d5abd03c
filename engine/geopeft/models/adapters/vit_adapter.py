"""ViT-Adapter (arXiv 2205.08534): the transformer stays as published, a side network gives finer maps in its place.

The side network cannot be merged into weights: a model opened for prediction keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from geopeft.errors import JobError
from geopeft.models.adapters.adapter import State, require_fit
from geopeft.models.adapters.interactions import GROUPS, InteractionNetwork
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.backbones.timm_backbone import TimmBackbone, plain_transformer
from geopeft.models.backbones.transformer import VitBackbone
from geopeft.models.spec import ModelSpec


class VitAdapter:
    """Trains and stores the side network and nothing else.

    Its batch statistics are set from the first training chips and stay: batches here are small and runs short, and
    statistics that follow the weights would be of other weights than the averaged ones that are kept.
    """

    trains_statistics = False
    stores_backbone = False

    def apply(self, backbone: Backbone, spec: ModelSpec) -> None:
        carrier, dim, patch_px = _suitable(backbone, spec)
        carrier.requires_grad_(False)
        side = InteractionNetwork(carrier.in_channels, dim, patch_px)
        carrier.side = side
        carrier.unsettled = [module for module in side.modules() if isinstance(module, nn.BatchNorm2d)]
        carrier.out_channels, carrier.strides = [dim] * len(side.strides), side.strides

    def state(self, backbone: Backbone) -> State:
        return _side(backbone).state_dict()

    def load(self, backbone: Backbone, state: Mapping[str, Tensor]) -> None:
        require_fit(state, {key: tuple(value.shape) for key, value in self.state(backbone).items()}, "adapter")
        _side(backbone).load_state_dict(dict(state))

    def merge(self, backbone: Backbone, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
        self.apply(backbone, spec)
        self.load(backbone, state)


def _suitable(backbone: Backbone, spec: ModelSpec) -> tuple[VitBackbone | TimmBackbone, int, int]:
    """The backbone, its channels and its patch in pixels, if it is a transformer with blocks for each interaction and
    one row of channels; else JobError."""
    if isinstance(backbone, VitBackbone) and len(backbone.taps) == GROUPS:
        if backbone.out_channels[0] == backbone.dim:
            return backbone, backbone.dim, backbone.patch_px
        raise JobError(
            f"A ViT-Adapter takes one date of {spec.backbone}, whose maps keep the dates apart.",
            "Give one date, or choose the adapter 'lora', 'vpt', 'full' or 'frozen'.",
            "ADAPTER_UNSUITABLE",
        )
    if isinstance(backbone, TimmBackbone) and len(backbone.taps) == GROUPS:
        net = plain_transformer(backbone)
        if net is not None:
            return backbone, int(net.embed_dim), int(net.patch_embed.patch_size[0])
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
