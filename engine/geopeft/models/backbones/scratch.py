"""The encoder half of a small U-Net with random weights, on every input band: the baseline without pre-training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from geopeft.models.backbones.backbone import Backbone, Scene
from geopeft.models.decoders.blocks import ConvBlock
from geopeft.models.registry import BackboneCard
from geopeft.models.sizes import crop_map, pad_to_multiple

WIDTHS = (32, 64, 96, 128)


def build(card: BackboneCard, band_names: tuple[str, ...], widths: Sequence[int] = WIDTHS) -> ScratchEncoder:
    """An encoder for len(band_names) bands, whose four stages are so wide."""
    return ScratchEncoder(len(band_names), widths)


class ScratchEncoder(Backbone):
    """(B, bands, H, W) standardised -> maps at strides 2, 4, 8 and 16."""

    strides = (2, 4, 8, 16)

    def __init__(self, bands: int, out_channels: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.out_channels = tuple(out_channels)
        widths = (bands, *out_channels)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 2, stride=2), ConvBlock(o, o), ConvBlock(o, o))
            for i, o in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, x: Tensor, gsd_m: float = 10.0, scene: Scene | None = None) -> list[Tensor]:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, self.strides[-1])
        maps = []
        for stage, stride in zip(self.stages, self.strides, strict=True):
            x = stage(x)
            maps.append(crop_map(x, height, width, stride))
        return maps
