"""The study's decoder: one transposed convolution whose kernel is the stride, so every patch is decoded by itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from geopeft.models.decoders.blocks import PixelNorm, last_fine_map


def build(
    out_channels: Sequence[int],
    strides: Sequence[int],
    raw_channels: int,
    *,
    num_classes: int,
    width: int = 0,
    size: str = "light",
) -> LinearDecoder:
    """A decoder with as many output channels as classes, so that the head adds nothing but a change of basis.

    `size` changes nothing: it is the study's as it is.
    """
    return LinearDecoder(out_channels, strides, width or num_classes)


class LinearDecoder(nn.Module):
    """Uses one map: of a transformer the last one, of a pyramid the coarsest with a stride of at most 16 px.

    A cell of 32 px is larger than most objects that are mapped. The map is normalised first, because a pyramid's are
    of any size; the raw bands are not used.
    """

    def __init__(self, out_channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        super().__init__()
        self.index = last_fine_map(strides)
        stride = strides[self.index]
        self.out_channels = width
        self.norm = PixelNorm(out_channels[self.index])
        self.up = nn.ConvTranspose2d(out_channels[self.index], width, stride, stride)
        nn.init.normal_(self.up.weight, std=0.02)
        if self.up.bias is not None:
            nn.init.zeros_(self.up.bias)

    def forward(self, features: list[Tensor], raw: Tensor) -> Tensor:
        """features as the backbone gives them, raw (B, C, H, W) -> (B, width, H, W)."""
        dense: Tensor = self.up(self.norm(features[self.index]))
        return dense[..., : raw.shape[-2], : raw.shape[-1]]
