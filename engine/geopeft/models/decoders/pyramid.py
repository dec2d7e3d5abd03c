"""A plain transformer's maps, all of one size, made a pyramid, for decoders that want several sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.decoders.blocks import Doubling, PixelNorm
from geopeft.models.sizes import pad_to_multiple, resize_to_grid

LEVELS = 4
MOST_DOUBLINGS = 2
# Finer cells would cost more than they tell: the pixels themselves are not in these maps.
FINEST_PX = 3


def is_plain(strides: Sequence[int]) -> bool:
    """True where all maps have one size, as those of a plain transformer."""
    return len(set(strides)) == 1


class Pyramid(nn.Module):
    """Four maps at a stride of s / 4, s / 2, s and 2 s (from s, s / 2 ... where s / 4 would be below 3 px).

    Larger ones are made by transposed convolutions that halve the channels, smaller ones by the largest of four cells,
    as in the study (arXiv 2504.17397) and in ViTDet (arXiv 2203.16527). Fewer than four maps are used several times.

    Args:
        out_channels, strides: of the maps; one stride for all.
        width: the maps are first projected to this many channels, which stay; 0: as in the study.

    Attributes:
        out_channels, strides: of the pyramid, whole pixels, the finest first.
    """

    def __init__(self, out_channels: Sequence[int], strides: Sequence[int], width: int = 0) -> None:
        super().__init__()
        self.stride = strides[0]
        doublings = next(n for n in range(MOST_DOUBLINGS, -1, -1) if self.stride / 2**n >= FINEST_PX or n == 0)
        self._from = [i * len(out_channels) // LEVELS for i in range(LEVELS)]
        self.steps = [doublings - i for i in range(LEVELS)]
        self.strides = [max(1, round(self.stride / 2.0**step)) for step in self.steps]
        self.out_channels: list[int] = []
        self.levels = nn.ModuleList()
        for i, step in zip(self._from, self.steps, strict=True):
            channels = out_channels[i]
            parts: list[nn.Module] = [PixelNorm(channels)]
            if width:
                parts.append(nn.Conv2d(channels, width, 1))
                channels = width
            for _ in range(step):
                parts.append(Doubling(channels, channels if width else channels // 2))
                channels = channels if width else channels // 2
            self.levels.append(nn.Sequential(*parts))
            self.out_channels.append(channels)

    def forward(self, features: list[Tensor], height: int, width: int) -> list[Tensor]:
        """Maps (B, D, ceil(height / s), ceil(width / s)) of one stride s -> those of the pyramid."""
        maps = []
        for i, step, stride, level in zip(self._from, self.steps, self.strides, self.levels, strict=True):
            x = level(features[i])
            if step < 0:
                side = 2**-step
                x = F.max_pool2d(pad_to_multiple(x, side), side)
            rows, cols = -(-height // stride), -(-width // stride)
            maps.append(resize_to_grid(x, self.stride / 2.0**step / stride, rows, cols))
        return maps
