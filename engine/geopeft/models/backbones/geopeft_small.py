"""The model in the box: EfficientNet-Lite0 behind a stem that knows wavelengths and pixel size.

The stem's kernel for a band is a mix of learned kernels at fixed wavelengths, so any set of optical bands can be fed
(the idea of DOFA, arXiv 2403.15356, with a fixed basis in place of a network). The rest is the ImageNet network that
its training started from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.errors import BandError
from geopeft.models.backbones.backbone import Backbone, Scene, load_exactly, resting
from geopeft.models.backbones.timm_backbone import TimmBackbone, lora_targets, make_net
from geopeft.models.registry import BackboneCard
from geopeft.models.sizes import crop_map, pad_to_multiple
from geopeft.models.wavelengths import ANCHORS_UM, anchor_weights

NETWORK = "tf_efficientnet_lite0"
# 6 cm to 128 m; beyond it every pixel size counts as the nearest of these.
LOG2_GSD = (-4.0, 7.0)
# Brightness as the network was trained on it deviates by about half a unit, standardised bands by one.
INPUT_SCALE = 0.5
RGB_UM = (0.665, 0.56, 0.49)


def build(card: BackboneCard, band_names: tuple[str, ...], *, wavelengths_um: Sequence[float]) -> GeopeftSmall:
    """The network with random weights for bands of these wavelengths; BandError where there is none."""
    if not wavelengths_um:
        raise BandError(
            f"{card.title} needs at least one optical band whose wavelength is known.",
            "Name the bands (red, nir, ...) or tag their wavelengths, or choose the backbone scratch_unet.",
            "BANDS_MISSING",
        )
    return GeopeftSmall(wavelengths_um)


class GeopeftSmall(Backbone):
    """(B, bands, H, W) standardised -> maps at strides 2, 4, 8, 16 and 32."""

    new_parts = ("stem",)

    def __init__(self, wavelengths_um: Sequence[float]) -> None:
        super().__init__()
        net = make_net(NETWORK)
        self.stem = WavelengthStem(net.conv_stem.out_channels)
        self.stem.set_wavelengths(wavelengths_um)
        pyramid = TimmBackbone(NETWORK, ("red", "green", "blue"), net, by_order=False)
        self.out_channels, self.strides = pyramid.out_channels, pyramid.strides
        self._taps = [net.stage_ends[tap] - 1 for tap in pyramid.taps]
        self.first = net.bn1
        self.stages = net.blocks
        self.adapter_targets = lora_targets(self)

    def set_wavelengths(self, wavelengths_um: Sequence[float]) -> None:
        """The bands of the next calls, by their wavelengths."""
        self.stem.set_wavelengths(wavelengths_um)

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        load_exactly(self, state, "geopeft_small")

    def start_from(self, other: Backbone) -> None:
        """Red, green and blue at their usual wavelengths give just what EfficientNet-Lite0 gives for a picture of
        usual contrast; the kernel of every other wavelength is the mean of the three."""
        if not (isinstance(other, TimmBackbone) and other.name == NETWORK):
            super().start_from(other)
        pruned = other.state_dict()
        stages = {key.removeprefix("net.blocks."): value for key, value in pruned.items() if "net.blocks." in key}
        first = {key.removeprefix("net.bn1."): value for key, value in pruned.items() if "net.bn1." in key}
        load_exactly(self.stages, stages, NETWORK)
        load_exactly(self.first, first, NETWORK)
        kernel = pruned["net.conv_stem.weight"] * INPUT_SCALE
        with torch.no_grad():
            self.stem.kernels.copy_(kernel.mean(1)[None].expand_as(self.stem.kernels))
            for channel, wavelength in enumerate(RGB_UM):
                self.stem.kernels[ANCHORS_UM.index(wavelength)] = kernel[:, channel]

    def forward(self, x: Tensor, gsd_m: float = 10.0, scene: Scene | None = None) -> list[Tensor]:
        height, width = x.shape[-2:]
        return self.go_on(self.begin(x, gsd_m, scene, 0), 0, height, width)

    def resting_blocks(self) -> int:
        """Its blocks are the network's stages."""
        return resting(self, self.stages)

    def begin(self, x: Tensor, gsd_m: float, scene: Scene | None, blocks: int) -> list[Tensor]:
        x = self.first(self.stem(pad_to_multiple(x, max(self.strides)), gsd_m))
        return self._run(x, range(blocks))

    def go_on(self, begun: Sequence[Tensor], blocks: int, height: int, width: int) -> list[Tensor]:
        maps = [*begun[1:], *self._run(begun[0], range(blocks, len(self.stages)))[1:]]
        return [crop_map(m, height, width, stride) for m, stride in zip(maps, self.strides, strict=True)]

    def _run(self, x: Tensor, stages: range) -> list[Tensor]:
        """These stages: what the next one gets, then the maps on the way."""
        maps = []
        for index in stages:
            x = self.stages[index](x)
            if index in self._taps:
                maps.append(x)
        return [x, *maps]


class WavelengthStem(nn.Module):
    """3 x 3 convolution of stride 2 whose kernels follow the bands' wavelengths, and whose response the pixel size.

    The result is divided by the number of bands, so that its size does not depend on it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.empty(len(ANCHORS_UM), width, 3, 3))
        nn.init.normal_(self.kernels, std=math.sqrt(2 / 27))
        self.size_in = nn.Linear(1, width)
        self.size_out = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.size_out.weight)
        nn.init.zeros_(self.size_out.bias)
        self.mix: Tensor
        self.register_buffer("mix", torch.zeros(0), persistent=False)

    def set_wavelengths(self, wavelengths_um: Sequence[float]) -> None:
        weights = torch.from_numpy(anchor_weights(wavelengths_um) * (3 / len(wavelengths_um)))
        self.mix = weights.to(self.kernels.device)

    def forward(self, x: Tensor, gsd_m: float) -> Tensor:
        """x (B, C, H, W), H and W even -> (B, width, H / 2, W / 2)."""
        kernel = torch.einsum("ck,kohw->ochw", self.mix, self.kernels)
        # As TensorFlow pads an even side for this kernel and stride: behind the last pixel only.
        x = F.conv2d(F.pad(x, (0, 1, 0, 1)), kernel.to(x.dtype), stride=2)
        low, high = LOG2_GSD
        size = min(max(math.log2(gsd_m), low), high)
        size = (size - low) / (high - low) * 2 - 1
        scale, shift = self.size_out(F.gelu(self.size_in(x.new_full((1, 1), size)))).view(2, 1, -1, 1, 1)
        adapted: Tensor = x * (1 + scale) + shift
        return adapted
