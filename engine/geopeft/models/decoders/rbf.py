"""Radial basis functions (Broomhead and Lowe 1988): a pixel belongs to the class whose prototypes it is like.

All is learned by gradients: where the prototypes are, how far each reaches, and what it says for every class. A group
penalty (Yuan and Lin 2006) takes prototypes out that say nothing, so that those that are left can be read one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.decoders.blocks import MAX_STRIDE, PixelNorm
from geopeft.models.sizes import resize_to_grid

# Dimensions of the space in which pixels are compared, and prototypes of each class at the start.
SIZES = {"light": (16, 8), "study": (64, 32)}
# A prototype whose weights have a smaller norm has no say; the penalty pushes norms there.
THRESHOLD = 0.05
PENALTY = 1e-4
# Where training begins: a prototype says this for its own class, and its reach is one standard deviation.
FIRST_WEIGHT = 1.0


def build(
    out_channels: Sequence[int],
    strides: Sequence[int],
    raw_channels: int,
    *,
    num_classes: int,
    size: str = "light",
) -> RbfDecoder:
    """ "light": 8 prototypes a class in 16 dimensions; "study": 32 in 64. As many output channels as classes."""
    dimensions, count = SIZES[size]
    return RbfDecoder(out_channels, strides, raw_channels, num_classes, dimensions, count)


class Prototype(NamedTuple):
    """A prototype that has a say: where it is (D,), how far it reaches, and its weight for each class (K,)."""

    centre: Tensor
    reach: float
    weights: Tensor


class RbfDecoder(nn.Module):
    """Maps and raw bands are projected to a few dimensions, at every pixel; z is where a pixel lies there.

    logit of class c = offset of c + sum over prototypes k of w[k, c] exp(-|z - centre[k]|^2 / (2 D reach[k]^2))

    A pixel that is unlike all prototypes gets the offsets alone. Maps of cells wider than 16 px are not used.

    Args:
        dimensions: D.
        count: prototypes of each class at the start.
    """

    def __init__(
        self,
        out_channels: Sequence[int],
        strides: Sequence[int],
        raw_channels: int,
        num_classes: int,
        dimensions: int,
        count: int,
    ) -> None:
        super().__init__()
        self.out_channels = num_classes
        self._used = [i for i, stride in enumerate(strides) if stride <= MAX_STRIDE] or [0]
        self._strides = [strides[i] for i in self._used]
        self.norms = nn.ModuleList(PixelNorm(out_channels[i]) for i in self._used)
        # Together of about unit variance, however many maps there are.
        sources = [out_channels[i] for i in self._used] + [raw_channels]
        layers = [nn.Conv2d(channels, dimensions, 1, bias=False) for channels in sources]
        for layer, channels in zip(layers, sources, strict=True):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(channels * len(sources)))
        self.maps, self.raw = nn.ModuleList(layers[:-1]), layers[-1]
        self.centres = nn.Parameter(torch.randn(count * num_classes, dimensions))
        self.log_reach = nn.Parameter(torch.zeros(count * num_classes))
        self.weights = nn.Parameter(FIRST_WEIGHT * torch.eye(num_classes).repeat(count, 1))
        self.offsets = nn.Parameter(torch.zeros(num_classes))

    def forward(self, features: list[Tensor], raw: Tensor) -> Tensor:
        """features as the backbone gives them, raw (B, C, H, W) standardised -> (B, classes, H, W)."""
        where = self.project(features, raw)
        likeness = self._likeness(where, self.centres, self.log_reach)
        weights: Tensor = _Penalised.apply(self.weights) if self.training else self.weights
        return F.conv2d(likeness, thresholded(weights).T[:, :, None, None], self.offsets)

    def project(self, features: list[Tensor], raw: Tensor) -> Tensor:
        """Where each pixel lies, (B, D, H, W)."""
        where: Tensor = self.raw(raw)
        for i, stride, norm, layer in zip(self._used, self._strides, self.norms, self.maps, strict=True):
            where = where + resize_to_grid(layer(norm(features[i])), stride, *raw.shape[-2:])
        return where

    def prototypes(self) -> list[Prototype]:
        """Those that have a say; all others can go without a change of the map."""
        weights = thresholded(self.weights.detach())
        reach = self.log_reach.detach().exp()
        kept = weights.norm(dim=1).nonzero().flatten().tolist()
        return [Prototype(self.centres.detach()[k], float(reach[k]), weights[k]) for k in kept]

    def _likeness(self, where: Tensor, centres: Tensor, log_reach: Tensor) -> Tensor:
        """(B, prototypes, H, W), 1 at the prototype itself."""
        squares = centres.square().sum(1)[:, None, None]
        products = F.conv2d(where, centres[:, :, None, None])
        distance = (where.square().sum(1, keepdim=True) - 2 * products + squares).clamp_min(0) / centres.shape[1]
        return torch.exp(-0.5 * distance * torch.exp(-2 * log_reach)[:, None, None])


def thresholded(weights: Tensor) -> Tensor:
    """(prototypes, K), each row shortened by the threshold; a shorter row is 0, so that pruning changes nothing."""
    norms = weights.norm(dim=1, keepdim=True)
    shortened: Tensor = weights * (1 - THRESHOLD / norms.clamp_min(THRESHOLD))
    return shortened


class _Penalised(torch.autograd.Function):
    """The weights as they are; their gradient also has that of the penalty, PENALTY * sum of the rows' norms.

    So the loss that is shown stays that of the labels.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        return weights.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        pull: Tensor = weights / weights.norm(dim=1, keepdim=True).clamp_min(1e-6)
        return gradient + PENALTY * pull
