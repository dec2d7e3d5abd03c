"""The finest map, enlarged to the pixels, and the raw bands beside it: few channels, no norms, for small models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.sizes import resize_to_grid

WIDTHS = {"light": 16, "study": 64}


def build(
    out_channels: Sequence[int],
    strides: Sequence[int],
    raw_channels: int,
    *,
    num_classes: int,
    size: str = "light",
) -> NarrowDecoder:
    """ "light": 16 channels at full resolution, "study": 64."""
    return NarrowDecoder(out_channels, strides, raw_channels, WIDTHS[size])


class NarrowDecoder(nn.Module):
    """What the backbone says is made narrow before it is made large; the bands sharpen it."""

    def __init__(self, out_channels: Sequence[int], strides: Sequence[int], raw_channels: int, width: int) -> None:
        super().__init__()
        self.out_channels = width
        self._stride = strides[0]
        self.coarse = nn.Conv2d(out_channels[0], width, 1)
        fewer = [nn.Conv2d(raw_channels, width, 1)] if raw_channels > width else []
        first = nn.Conv2d(min(raw_channels, width), width, 3, padding=1)
        self.fine = nn.Sequential(*fewer, first, nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, features: list[Tensor], raw: Tensor) -> Tensor:
        """features as the backbone gives them, raw (B, C, H, W) standardised -> (B, width, H, W)."""
        height, width = raw.shape[-2:]
        coarse = resize_to_grid(self.coarse(features[0]), self._stride, height, width)
        return F.relu(self.mix(F.relu(coarse + self.fine(raw))))
