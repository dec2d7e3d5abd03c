"""What is trained beside a backbone in pretraining and left behind: the heads that rebuild hidden pixels and follow a
teacher's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.decoders.blocks import ConvBlock, PixelNorm
from geopeft.models.wavelengths import ANCHORS_UM, anchor_weights

WIDTH = 64
CELL_PX = 4


def grid_size(strides: Sequence[int]) -> tuple[int, int]:
    """(stride of the grid that features are joined on, side in pixels of the cells that are rebuilt).

    A cell has 4 px, or the stride of the finest map divided by a whole number where that is not possible.
    """
    grid = max(min(strides), CELL_PX)
    return grid, next(side for side in range(CELL_PX, grid + 1) if grid % side == 0)


class Reconstruction(nn.Module):
    """Feature maps -> the standardised value of every band in cells of a few pixels.

    The output's kernel for a band is a mix of kernels at fixed wavelengths, so all sensors share one head.
    """

    def __init__(self, out_channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.grid, self.cell_px = grid_size(strides)
        self._parts = self.grid // self.cell_px
        self._order = sorted(range(len(strides)), key=lambda i: -strides[i])
        self._strides = list(strides)
        self.laterals = nn.ModuleList(nn.Sequential(PixelNorm(c), nn.Conv2d(c, WIDTH, 1)) for c in out_channels)
        self.merges = nn.ModuleDict({str(s): ConvBlock(WIDTH, WIDTH) for s in set(strides) if s > self.grid})
        self.last = nn.Sequential(PixelNorm(WIDTH), nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 1), nn.GELU())
        self.kernels = nn.Parameter(torch.randn(len(ANCHORS_UM), self._parts**2, WIDTH) * 0.02)
        self.biases = nn.Parameter(torch.zeros(len(ANCHORS_UM), self._parts**2))

    def forward(self, maps: Sequence[Tensor], wavelengths_um: Sequence[float]) -> Tensor:
        """maps of a chip of side s -> (B, C, s / cell, s / cell)."""
        side = round(maps[0].shape[-1] * self._strides[0] / self.grid)
        x: Tensor | None = None
        previous = 0
        for index in self._order:
            stride = self._strides[index]
            own = self.laterals[index](maps[index])
            if stride < self.grid:
                own = F.adaptive_avg_pool2d(own, side)
            if x is not None and stride != previous:
                x = self.merges[str(previous)](x) if str(previous) in self.merges else x
                x = F.interpolate(x, size=own.shape[-2:], mode="bilinear", align_corners=False)
            x = own if x is None else x + own
            previous = stride
        dense = self.last(x)
        mix = torch.from_numpy(anchor_weights(wavelengths_um)).to(dense.device)
        kernel = torch.einsum("ck,kpd->cpd", mix, self.kernels).flatten(0, 1)[:, :, None, None]
        bias = torch.einsum("ck,kp->cp", mix, self.biases).flatten()
        return F.pixel_shuffle(F.conv2d(dense, kernel.to(dense.dtype), bias.to(dense.dtype)), self._parts)


class Following(nn.Module):
    """All of a student's maps, normalised, -> one of a teacher's by linear maps of each pixel, on the teacher's grid.

    Args:
        same: the student's map that has the architecture and so the meaning of the teacher's; -1: none. The difference
            to it is learned; without one that to the teacher's mean.
        mean, std: (D,) of the teacher's channels; differences are counted in `std`.
    """

    def __init__(self, out_channels: Sequence[int], same: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.same = same
        self.norms = nn.ModuleList(PixelNorm(channels) for channels in out_channels)
        self.maps = nn.ModuleList(_zero_conv(channels, len(mean)) for channels in out_channels)
        self.bias = nn.Parameter(torch.zeros_like(mean))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """maps of a chip -> (B, D, *size) in the teacher's own units."""
        total = self.bias.view(1, -1, 1, 1)
        for norm, layer, own in zip(self.norms, self.maps, maps, strict=True):
            total = total + (
                layer(F.adaptive_avg_pool2d(norm(own), size))
                if own.shape[-1] > size[-1]
                else F.interpolate(layer(norm(own)), size=size, mode="bilinear", align_corners=False)
            )
        start = self.mean if self.same < 0 else _at(maps[self.same], size)
        return start + self.std * total

    def loss(self, maps: Sequence[Tensor], wanted: Tensor, counted: Tensor) -> Tensor:
        """Smooth L1 between a teacher's map (B, D, h, w) and what follows it, in standard deviations of each channel.

        counted: (B, h, w), 1 where a cell counts.
        """
        off = (self(maps, (wanted.shape[-2], wanted.shape[-1])).float() - wanted) / self.std
        each = F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none").mean(1)
        return (each * counted).sum() / counted.sum().clamp_min(1.0)


def _zero_conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels_in, channels_out, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def _at(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
