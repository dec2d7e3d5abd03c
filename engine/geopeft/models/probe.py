"""A linear probe of the backbone's feature maps, at every pixel: where fine-tuning starts from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geopeft.models.sizes import resize_to_grid

# Maps of coarser cells say little of a pixel.
MAX_STRIDE_PX = 16


class Probe(nn.Module):
    """Logits (B, K, H, W) = offsets + weights * feature maps brought to the pixels.

    Linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054): training that starts from the probe's
    solution distorts pretrained features less and generalises better to other places than a head from nothing.
    Weights are applied before the maps are enlarged, which gives the same and costs K channels instead of D.

    Args:
        out_channels, strides: of the backbone's maps, in pixels of the raster.
    """

    def __init__(self, out_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.used = [i for i, stride in enumerate(strides) if stride <= MAX_STRIDE_PX] or [0]
        self.strides = [strides[i] for i in self.used]
        self.maps = nn.ModuleList(nn.Conv2d(out_channels[i], num_classes, 1, bias=False) for i in self.used)
        self.offsets = nn.Parameter(torch.zeros(num_classes))
        for layer in self.parameters():
            nn.init.zeros_(layer)
        self.channels = [out_channels[i] for i in self.used]

    def features(self, maps: Sequence[Tensor], height: int, width: int) -> Tensor:
        """(B, D, H, W): the maps that are used, enlarged to the pixels."""
        used = zip(self.used, self.strides, strict=True)
        return torch.cat([resize_to_grid(maps[i].float(), stride, height, width) for i, stride in used], dim=1)

    def forward(self, maps: Sequence[Tensor], height: int, width: int) -> Tensor:
        logits = self.offsets.view(1, -1, 1, 1)
        for layer, i, stride in zip(self.maps, self.used, self.strides, strict=True):
            logits = logits + resize_to_grid(layer(maps[i]), stride, height, width)
        return logits

    def taken(self) -> tuple[Tensor, Tensor]:
        """Its (K, D) weights and (K,) offsets, as copies."""
        weights = [weight.detach().flatten(1) for name, weight in self.named_parameters() if name != "offsets"]
        return torch.cat(weights, dim=1), self.offsets.detach().clone()

    def put(self, weights: Tensor, offsets: Tensor) -> None:
        """Takes (K, D) weights of `features` and (K,) offsets."""
        with torch.no_grad():
            for layer, part in zip(self.maps, weights.split(self.channels, dim=1), strict=True):
                layer.weight.copy_(part[:, :, None, None])  # type: ignore[operator]
            self.offsets.copy_(offsets)
