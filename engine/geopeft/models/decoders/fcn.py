"""A fully convolutional decoder (arXiv 1411.4038), as in the study: one map doubled until it has the pixels' size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from geopeft.models.decoders.blocks import ConvBlock, Doubling, PixelNorm, last_fine_map
from geopeft.models.sizes import resize_to_grid

STUDY_WIDTH = 512
LIGHT_WIDTH, LIGHT_LAST = 64, 32


def build(
    out_channels: Sequence[int],
    strides: Sequence[int],
    raw_channels: int,
    *,
    num_classes: int,
    size: str = "light",
) -> FcnDecoder:
    """ "study": 512 channels at every step (arXiv 2504.17397). "light": the map is projected to 64, the last step has
    32."""
    index = last_fine_map(strides)
    steps = max(1, strides[index].bit_length() - 1)
    widths = [STUDY_WIDTH] * steps if size == "study" else [*[LIGHT_WIDTH] * (steps - 1), LIGHT_LAST]
    return FcnDecoder(index, out_channels[index], strides[index], widths, 0 if size == "study" else LIGHT_WIDTH)


class FcnDecoder(nn.Module):
    """Each step is a transposed convolution that doubles the map, a 3x3 convolution, normalisation and GELU.

    Four steps for patches of 16 px; what is missing at strides that are no power of 2 is interpolated. The raw bands
    are not used.

    Args:
        index: of the map that is used.
        channels, stride: of that map.
        widths: of the steps.
        projection: channels that the map is first projected to; 0: none.
    """

    def __init__(self, index: int, channels: int, stride: int, widths: Sequence[int], projection: int) -> None:
        super().__init__()
        self.index = index
        self.out_channels = widths[-1]
        self.norm = PixelNorm(channels)
        self.project = nn.Conv2d(channels, projection, 1) if projection else nn.Identity()
        inside = projection or channels
        self.steps = nn.ModuleList()
        for width in widths:
            larger = Doubling(inside, width) if stride > 1 else nn.Conv2d(inside, width, 1)
            self.steps.append(nn.Sequential(larger, ConvBlock(width, width)))
            inside = width
        self._rest = stride / 2.0 ** len(widths) if stride > 1 else 1.0

    def forward(self, features: list[Tensor], raw: Tensor) -> Tensor:
        """features as the backbone gives them, raw (B, C, H, W) -> (B, width of the last step, H, W)."""
        x = self.project(self.norm(features[self.index]))
        for step in self.steps:
            x = step(x)
        return resize_to_grid(x, self._rest, raw.shape[-2], raw.shape[-1])
