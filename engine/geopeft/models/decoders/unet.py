"""A U-Net decoder (arXiv 1505.04597) with a full-resolution skip from the raw bands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.decoders.blocks import ConvBlock, PixelNorm
from geopeft.models.decoders.pyramid import Pyramid, is_plain
from geopeft.models.sizes import pad_to_multiple, resize_to_grid

STEM_WIDTH = 32
MAX_STEM_BANDS = 32
# Channels of the levels, the coarsest first; the last counts for all that follow.
WIDTHS = {"light": (64,), "study": (512, 256, 128, 64)}


def build(
    out_channels: Sequence[int],
    strides: Sequence[int],
    raw_channels: int,
    *,
    num_classes: int,
    size: str = "light",
) -> UnetDecoder:
    """A decoder whose levels are as wide as `WIDTHS` says; 32 channels at full resolution.

    In the study's size the maps of a plain transformer are first made a pyramid of four sizes, as there.
    """
    pyramid = Pyramid(out_channels, strides) if size == "study" and is_plain(strides) else None
    return UnetDecoder(out_channels, strides, raw_channels, WIDTHS[size], pyramid)


class UnetDecoder(nn.Module):
    """From the coarsest map down to the pixels.

    Each level takes what comes from above, the maps of its stride (normalised, concatenated and projected) and, below
    the finest map, the raw bands pooled to its stride: so a plain transformer, whose maps all have the stride of its
    patch, gets its detail from the raw bands.
    """

    def __init__(
        self,
        out_channels: Sequence[int],
        strides: Sequence[int],
        raw_channels: int,
        widths: Sequence[int],
        pyramid: Pyramid | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = STEM_WIDTH
        self.pyramid = pyramid
        if pyramid is not None:
            out_channels, strides = pyramid.out_channels, pyramid.strides
        finest = min(strides)
        pooled = [2**i for i in range(1, 16) if 2**i < finest]
        self._maps = {s: [i for i, own in enumerate(strides) if own == s] for s in strides}
        self._levels = sorted({*strides, *pooled, 1}, reverse=True)
        self.stem = _stem(raw_channels)
        self.pooled = nn.ModuleDict({str(s): ConvBlock(STEM_WIDTH, STEM_WIDTH) for s in pooled})
        self.norms = nn.ModuleList(PixelNorm(channels) for channels in out_channels)
        width_at = {stride: widths[min(i, len(widths) - 1)] for i, stride in enumerate(self._levels)}
        self.laterals = nn.ModuleDict(
            {str(s): nn.Conv2d(sum(out_channels[i] for i in own), width_at[s], 1) for s, own in self._maps.items()}
        )
        self.merges = nn.ModuleDict()
        above = 0
        for stride in self._levels:
            width = width_at[stride]
            raw = STEM_WIDTH if stride in (1, *pooled) else 0
            inside = above + width * (stride in self._maps) + raw
            outside = STEM_WIDTH if stride == 1 else width
            blocks = [ConvBlock(inside, outside)]
            if above and stride > 1:
                blocks.append(ConvBlock(outside, outside))
            # What goes to full resolution is made narrow before it is made large.
            last = stride > 1 and stride == self._levels[-2]
            self.merges[str(stride)] = nn.Sequential(*blocks, *([nn.Conv2d(width, STEM_WIDTH, 1)] if last else []))
            above = STEM_WIDTH if last else outside

    def forward(self, features: list[Tensor], raw: Tensor) -> Tensor:
        """features as the backbone gives them, raw (B, C, H, W) standardised -> (B, 32, H, W)."""
        height, width = raw.shape[-2:]
        if self.pyramid is not None:
            features = self.pyramid(features, height, width)
        detail = self._detail(raw)
        x, previous = raw, 0
        for stride in self._levels:
            rows, cols = -(-height // stride), -(-width // stride)
            parts = [resize_to_grid(x, previous / stride, rows, cols)] if previous else []
            if stride in self._maps:
                normed = [self.norms[i](features[i]) for i in self._maps[stride]]
                parts.append(self.laterals[str(stride)](torch.cat(normed, dim=1)))
            if stride in detail:
                parts.append(detail[stride])
            x = self.merges[str(stride)](torch.cat(parts, dim=1))
            previous = stride
        return x

    def _detail(self, raw: Tensor) -> dict[int, Tensor]:
        """The raw bands at full resolution and at every stride below the finest map."""
        x = self.stem(raw)
        detail = {1: x}
        for stride, block in self.pooled.items():
            x = block(F.avg_pool2d(pad_to_multiple(x, 2), 2))
            detail[int(stride)] = x
        return detail


def _stem(raw_channels: int) -> nn.Sequential:
    """Two convolutions at full resolution; many bands are first projected to 32."""
    narrow = min(raw_channels, MAX_STEM_BANDS)
    project = [nn.Conv2d(raw_channels, narrow, 1)] if raw_channels > narrow else []
    return nn.Sequential(*project, ConvBlock(narrow, STEM_WIDTH), ConvBlock(STEM_WIDTH, STEM_WIDTH))
