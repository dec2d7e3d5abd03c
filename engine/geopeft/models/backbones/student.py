"""A small network of plain convolutions, for models that `distil` makes: fast on any processor, of any bands.

A residual encoder (He et al. 2016, arXiv 1512.03385) down to a stride of 16 px and one way back up that adds maps
(Lin et al. 2017, arXiv 1612.03144). Channels are multiples of 16, as the kernels of ONNX Runtime take them; all batch
norms are gone once the network is opened for prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from geopeft.models.backbones.backbone import Backbone, Scene
from geopeft.models.registry import BackboneCard
from geopeft.models.sizes import crop_map, pad_to_multiple

# More bands are first made so many.
MOST_BANDS = 16


def build(
    card: BackboneCard, band_names: tuple[str, ...], *, widths: Sequence[int], blocks: Sequence[int]
) -> StudentNetwork:
    """A network for len(band_names) bands.

    Args:
        widths: channels at strides 2, 4, 8 and 16.
        blocks: residual blocks at strides 4, 8 and 16.
    """
    return StudentNetwork(len(band_names), widths, blocks)


class StudentNetwork(Backbone):
    """(B, bands, H, W) standardised -> maps at strides 2 and 4, which know what the coarser ones see."""

    strides = (2, 4)

    def __init__(self, bands: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = tuple(widths[:2])
        self.narrow = nn.Conv2d(bands, MOST_BANDS, 1) if bands > MOST_BANDS else nn.Identity()
        self.stem = NormedConv(min(bands, MOST_BANDS), widths[0], stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(NormedConv(inside, outside, stride=2), *(Residual(outside) for _ in range(count)))
            for inside, outside, count in zip(widths[:-1], widths[1:], blocks, strict=True)
        )
        self.ups = nn.ModuleList(
            NormedConv(above, below, side=1, active=False) for above, below in zip(widths[1:], widths[:-1], strict=True)
        )
        self.smooth = nn.ModuleList(NormedConv(width, width) for width in widths[:-1])

    def forward(self, x: Tensor, gsd_m: float = 10.0, scene: Scene | None = None) -> list[Tensor]:
        height, width = x.shape[-2:]
        maps = [self.stem(self.narrow(pad_to_multiple(x, 16)))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        for at in reversed(range(len(self.ups))):
            above = F.interpolate(self.ups[at](maps[at + 1]), scale_factor=2.0, mode="nearest")
            maps[at] = self.smooth[at](F.relu(maps[at] + above))
        return [crop_map(m, height, width, stride) for m, stride in zip(maps, self.strides, strict=False)]

    def bake(self) -> None:
        """Puts the norms into the convolutions before them."""
        for module in self.modules():
            if isinstance(module, NormedConv):
                module.bake()


class NormedConv(nn.Module):
    """A convolution, batch norm and, where it is active, ReLU."""

    def __init__(
        self, channels_in: int, channels_out: int, *, side: int = 3, stride: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, side, stride, side // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels_out)
        self._active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x) if self._active else x

    def bake(self) -> None:
        """Makes convolution and norm one; only in evaluation."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval()), nn.Identity()


class Residual(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = NormedConv(channels, channels)
        self.second = NormedConv(channels, channels, active=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))
