"""What decoders are made of. Everything looks at near pixels only, so that windows of a raster blend without seams."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from geopeft.models.recompute import computed_again

MAX_STRIDE = 16


class PixelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel of (B, D, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


class NormedLayer(nn.Sequential):
    """A layer, normalisation, GELU. What the normalisation gives is not kept for the gradient."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__(layer, PixelNorm(channels), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        layer, norm, active = self
        mapped = layer(x)
        normed, kept = norm(mapped), mapped.detach()
        with computed_again(normed, lambda: norm(kept)):
            y: Tensor = active(normed)
        return y


class ConvBlock(NormedLayer):
    """3x3 convolution, normalisation, GELU; the size stays."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), channels_out)


class Doubling(NormedLayer):
    """A transposed convolution that makes a map twice as large, normalisation, GELU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(nn.ConvTranspose2d(channels_in, channels_out, 2, 2), channels_out)


def last_fine_map(strides: Sequence[int]) -> int:
    """Index of a transformer's last map, of a pyramid's coarsest with a stride of at most 16 px.

    A cell of 32 px is larger than most objects that are mapped.
    """
    fitting = [i for i, stride in enumerate(strides) if stride <= MAX_STRIDE]
    return fitting[-1] if fitting else 0
