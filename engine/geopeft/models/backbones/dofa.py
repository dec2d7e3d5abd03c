"""DOFA v1 (arXiv 2403.15356): a vision transformer for the bands of any optical sensor, told by their wavelengths.

Layout and encodings follow the published checkpoints as torchgeo 0.8 reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from geopeft.models.backbones.backbone import Scene, load_exactly
from geopeft.models.backbones.dynamic_embed import DynamicVit, KernelGenerator, own_names, require_optical, sines
from geopeft.models.backbones.transformer import Block, split_qkv
from geopeft.models.registry import BackboneCard

# Parts of a classifier, which not every published file holds.
HEAD = ("fc_norm.", "head.")
WAVE_DIM = 128
NM_PER_UM = 1000
EPS = 1e-6


def build(
    card: BackboneCard,
    band_names: tuple[str, ...],
    *,
    dim: int,
    depth: int,
    heads: int,
    patch_size_px: int = 16,
    image_px: int = 224,
    wavelengths_um: Sequence[float],
) -> DofaBackbone:
    """An encoder with random weights for bands of these wavelengths; BandError where there is none.

    Args:
        image_px: side of the images of pre-training, which fixes the position table.
    """
    require_optical(card, wavelengths_um)
    made = DofaBackbone(card.network, patch_size_px, dim, depth, heads, image_px // patch_size_px)
    made.set_wavelengths(wavelengths_um)
    return made


class DofaBackbone(DynamicVit):
    """(B, C, H, W) normalised -> four maps (B, D, H / patch, W / patch), as the blocks give them.

    Attributes:
        pos_embed: (1, 1 + grid * grid, D) fixed position table, CLS first.
    """

    # The published kernels see the image one pixel further up and left than patches lie.
    padding_px = 1
    pos_embed: Tensor

    def __init__(self, title: str, patch_px: int, dim: int, depth: int, heads: int, grid: int) -> None:
        super().__init__(KernelGenerator(WAVE_DIM, dim, patch_px), patch_px, depth, lambda: Block(dim, heads, eps=EPS))
        self.title = title
        self.grid = grid
        self.register_buffer("pos_embed", torch.zeros(1, 1 + grid**2, dim))

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """With or without the classifier's parts."""
        encoder = {key: value for key, value in state.items() if not key.startswith(HEAD)}
        load_exactly(self, split_qkv(own_names(encoder, "patch_embed.")), self.title)

    def encode_wavelengths(self, wavelengths_um: Sequence[float]) -> Tensor:
        lengths = torch.tensor(wavelengths_um, dtype=torch.float32) * NM_PER_UM
        return sines(lengths, WAVE_DIM, WAVE_DIM // 2)

    def embed(self, x: Tensor, gsd_m: float, scene: Scene | None) -> Tensor:
        rows, cols = x.shape[-2] // self.patch_px, x.shape[-1] // self.patch_px
        tokens = self.patches(x) + self._positions(rows, cols)
        return torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1), tokens], dim=1)

    def _positions(self, rows: int, cols: int) -> Tensor:
        """(1, rows * cols, D): the table of pre-training, stretched over the grid at hand."""
        table = self.pos_embed[:, 1:]
        if (rows, cols) == (self.grid, self.grid):
            return table
        grid = table.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        resized = F.interpolate(grid, size=(rows, cols), mode="bilinear", align_corners=False)
        return resized.flatten(2).transpose(1, 2)
