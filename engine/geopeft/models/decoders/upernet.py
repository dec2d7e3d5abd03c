"""UPerNet (arXiv 1807.10221): a feature pyramid whose coarsest map also knows its surroundings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.decoders.blocks import ConvBlock, PixelNorm
from geopeft.models.decoders.pyramid import Pyramid, is_plain
from geopeft.models.sizes import resize_to_grid

WIDTHS = {"light": 64, "study": 256}
LIGHT_LAST = 32
MOST_LEVELS = 4
# Sides of the squares, in cells of the coarsest map, whose means are taken.
SURROUNDINGS = (3, 5, 7)


def build(
    out_channels: Sequence[int],
    strides: Sequence[int],
    raw_channels: int,
    *,
    num_classes: int,
    size: str = "light",
) -> UperNetDecoder:
    """ "study": 256 channels (arXiv 2504.17397). "light": 64 channels, 32 at full resolution."""
    width = WIDTHS[size]
    pyramid = Pyramid(out_channels, strides, 0 if size == "study" else width) if is_plain(strides) else None
    return UperNetDecoder(out_channels, strides, width, width if size == "study" else LIGHT_LAST, pyramid)


class UperNetDecoder(nn.Module):
    """The four coarsest sizes of map, top-down, then all together at the finest of them, then enlarged to the pixels.

    The original pools the coarsest map to 1, 2, 3 and 6 cells, so that what a pixel gets depends on how large the
    image is. Here means of 3, 5 and 7 cells around each cell take their place: a pixel gets the same in a window as
    in the whole raster. A plain transformer's maps are first made a pyramid. The raw bands are not used.

    Args:
        width: of the pyramid.
        last: channels at full resolution.
        pyramid: makes maps of one size several; None: they are a pyramid already.
    """

    def __init__(
        self, out_channels: Sequence[int], strides: Sequence[int], width: int, last: int, pyramid: Pyramid | None
    ) -> None:
        super().__init__()
        self.out_channels = last
        self.pyramid = pyramid
        if pyramid is not None:
            out_channels, strides = pyramid.out_channels, pyramid.strides
        self._strides = sorted(set(strides))[-MOST_LEVELS:]
        self._maps = [[i for i, own in enumerate(strides) if own == s] for s in self._strides]
        channels = [sum(out_channels[i] for i in own) for own in self._maps]
        self.norms = nn.ModuleDict({str(i): PixelNorm(out_channels[i]) for own in self._maps for i in own})
        self.laterals = nn.ModuleList(_pointwise(count, width) for count in channels[:-1])
        self.surroundings = nn.ModuleList(_pointwise(channels[-1], width // 4) for _ in SURROUNDINGS)
        self.top = ConvBlock(channels[-1] + width // 4 * len(SURROUNDINGS), width)
        self.smooth = nn.ModuleList(ConvBlock(width, width) for _ in channels[:-1])
        self.fuse = ConvBlock(width * len(channels), width)
        self.narrow = nn.Conv2d(width, last, 1) if last != width else nn.Identity()

    def forward(self, features: list[Tensor], raw: Tensor) -> Tensor:
        """features as the backbone gives them, raw (B, C, H, W) -> (B, last, H, W)."""
        height, width = raw.shape[-2:]
        if self.pyramid is not None:
            features = self.pyramid(features, height, width)
        grids = [(-(-height // s), -(-width // s)) for s in self._strides]
        normed = [torch.cat([self.norms[str(i)](features[i]) for i in own], dim=1) for own in self._maps]
        levels = [lateral(x) for lateral, x in zip(self.laterals, normed, strict=False)]
        levels.append(self._top(normed[-1]))
        for i in range(len(levels) - 2, -1, -1):
            factor = self._strides[i + 1] / self._strides[i]
            levels[i] = levels[i] + resize_to_grid(levels[i + 1], factor, *grids[i])
        levels = [*(smooth(x) for smooth, x in zip(self.smooth, levels, strict=False)), levels[-1]]
        finest = self._strides[0]
        level = [resize_to_grid(x, s / finest, *grids[0]) for x, s in zip(levels, self._strides, strict=True)]
        return resize_to_grid(self.narrow(self.fuse(torch.cat(level, dim=1))), finest, height, width)

    def _top(self, x: Tensor) -> Tensor:
        """The coarsest map and the means around each of its cells; beyond the edge there is nothing to take."""
        parts = [x]
        for side, reduce in zip(SURROUNDINGS, self.surroundings, strict=True):
            mean = F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)
            parts.append(reduce(mean))
        top: Tensor = self.top(torch.cat(parts, dim=1))
        return top


def _pointwise(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, bias=False), PixelNorm(channels_out), nn.GELU())
