"""The network of ViT-Adapter (arXiv 2205.08534): a small CNN beside a transformer, and what the two tell each other.

The CNN sees the image at a quarter, a half, once and twice the patch size. In front of each of four groups of blocks
its grids are injected into the tokens, behind it they extract from them; the sums of both are the four maps.
As in the study (Prithvi), prefix tokens and the final normalisation are left out, and there is no feed-forward part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.adapters.deformable import DeformableAttention, Grid, cell_centres
from geopeft.models.backbones.backbone import Scene
from geopeft.models.backbones.transformer import SideNetwork, Transformer
from geopeft.models.sizes import pad_to_multiple, resize

PRIOR_CHANNELS = 64
GROUPS = 4
MOST_HEADS = 16
HEAD_CHANNELS = 32
EPS = 1e-6


class SpatialPrior(nn.Module):
    """Convolutions, (B, C, H, W) -> four maps (B, D, h, w) at 1, 1/2, 1/4 and 1/8 of what `halvings` leave."""

    def __init__(self, in_channels: int, dim: int, halvings: int, channels: int = PRIOR_CHANNELS) -> None:
        super().__init__()
        c = channels
        pools = [nn.MaxPool2d(3, stride=2, padding=1) for _ in range(halvings - 1)]
        self.stem = nn.Sequential(
            *_convolution(in_channels, c, 2 if halvings else 1), *_convolution(c, c, 1), *_convolution(c, c, 1), *pools
        )
        steps = ((c, 2 * c), (2 * c, 4 * c), (4 * c, 4 * c))
        self.steps = nn.ModuleList([nn.Sequential(*_convolution(a, b, 2)) for a, b in steps])
        self.lateral = nn.ModuleList([nn.Conv2d(wide, dim, 1) for wide in (c, 2 * c, 4 * c, 4 * c)])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for step in self.steps:
            maps.append(step(maps[-1]))
        return [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]


class CrossAttention(nn.Module):
    """What queries (B, Q, D) see of values (B, N, D): both normalised, by deformable attention."""

    def __init__(self, dim: int, heads: int, levels: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=EPS)
        self.attn = DeformableAttention(dim, heads, levels)

    def forward(self, query: Tensor, reference: Tensor, values: Tensor, grids: Sequence[Grid]) -> Tensor:
        seen: Tensor = self.attn(self.query_norm(query), reference, self.feat_norm(values), grids)
        return seen


class Interaction(nn.Module):
    """One group's injector (three grids into the tokens, scaled by `gamma`) and extractors (tokens into the grids)."""

    def __init__(self, dim: int, heads: int, extractors: int) -> None:
        super().__init__()
        self.injector = CrossAttention(dim, heads, levels=3)
        # Nothing is injected at first: the transformer starts as it was published.
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.extractors = nn.ModuleList([CrossAttention(dim, heads, levels=1) for _ in range(extractors)])


class InteractionNetwork(SideNetwork):
    """Runs beside a transformer and gives maps (B, D, h, w) at a quarter, a half, once and twice the patch size.

    Strides are rounded to whole pixels, and maps brought to them, where a patch is not a multiple of 4 px.

    Args:
        in_channels: bands of the image.
        dim, patch_px: of the transformer.
        heads: of each attention; 0: as many of 32 channels as there is room for, 16 at most.
        channels: of the spatial prior.
    """

    def __init__(
        self, in_channels: int, dim: int, patch_px: int, heads: int = 0, channels: int = PRIOR_CHANNELS
    ) -> None:
        super().__init__()
        # The prior halves the image, so a patch is a power of two for it; the image is resized where it is not.
        self.prior_patch_px = max(4, 2 ** round(math.log2(patch_px)))
        self.native = [patch_px / 4, patch_px / 2, float(patch_px), 2.0 * patch_px]
        self.strides = [max(1, round(stride)) for stride in self.native]
        heads = heads or _heads(dim)
        self.prior = SpatialPrior(in_channels, dim, round(math.log2(self.prior_patch_px / 4)), channels)
        self.levels = nn.Parameter(torch.empty(3, dim))
        self.interactions = nn.ModuleList(
            [Interaction(dim, heads, extractors=3 if last else 1) for last in (False, False, False, True)]
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(dim) for _ in range(4)])
        self._start()

    def forward(self, backbone: Transformer, x: Tensor, gsd_m: float, scene: Scene | None) -> list[Tensor]:
        patch = backbone.patch_px
        x = pad_to_multiple(x, 2 * patch)
        rows, cols = x.shape[-2] // patch, x.shape[-1] // patch
        finest, *coarser = self.prior(resize(x, self.prior_patch_px / patch))
        grids = [(2 * rows, 2 * cols), (rows, cols), (rows // 2, cols // 2)]
        tokens = backbone.embed(x, gsd_m, scene)[:, backbone.prefix :]
        deep, spatial = self._interact(backbone, tokens, coarser, grids)
        half, same, double = (
            part.transpose(1, 2).unflatten(2, grid)
            for part, grid in zip(spatial.split([h * w for h, w in grids], dim=1), grids, strict=True)
        )
        own = [self.up(half) + finest, half, same, double]
        theirs = [_bilinear(deep[0], 4), _bilinear(deep[1], 2), deep[2], F.avg_pool2d(deep[3], 2)]
        return [
            resize(norm(a + b), native / stride)
            for norm, a, b, native, stride in zip(self.norms, own, theirs, self.native, self.strides, strict=True)
        ]

    def _interact(
        self, backbone: Transformer, tokens: Tensor, coarser: Sequence[Tensor], grids: Sequence[Grid]
    ) -> tuple[list[Tensor], Tensor]:
        """The transformer's map after each group of blocks, and the three grids (B, sum of h * w, D) at the end."""
        spatial = torch.cat([m.flatten(2).transpose(1, 2) + self.levels[i] for i, m in enumerate(coarser)], dim=1)
        own = grids[1:2]
        patches, cells = cell_centres(own, tokens.device), cell_centres(grids, tokens.device)
        first, deep = 0, []
        groups: Any = self.interactions
        for interaction, last in zip(groups, backbone.taps, strict=True):
            seen = backbone.to_map(tokens, *grids[1]).flatten(2).transpose(1, 2)
            update = interaction.gamma * interaction.injector(seen, patches, spatial, grids)
            tokens = tokens + backbone.spread(update, tokens.shape[1])
            for i in range(first, last + 1):
                tokens = backbone.blocks[i](tokens)
            first = last + 1
            deep.append(backbone.to_map(tokens, *grids[1]))
            seen = deep[-1].flatten(2).transpose(1, 2)
            for extractor in interaction.extractors:
                spatial = spatial + extractor(spatial, cells, seen, own)
        return deep, spatial

    def _start(self) -> None:
        """As published; the attentions have set themselves."""
        nn.init.normal_(self.levels)
        for module in (*self.prior.modules(), self.up):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                rows, cols = module.kernel_size
                nn.init.normal_(module.weight, std=math.sqrt(2 / (rows * cols * module.out_channels)))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _convolution(channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


def _heads(dim: int) -> int:
    """12 for 768 channels and 16 for 1024, as in the study; always a divisor of the values' width."""
    width = dim // 2
    return next(h for h in range(min(MOST_HEADS, max(1, width // HEAD_CHANNELS)), 0, -1) if width % h == 0)


def _bilinear(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
