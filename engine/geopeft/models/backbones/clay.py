"""Clay v1 and v1.5 (clay-foundation.github.io): a vision transformer that is told wavelengths, pixel size, time, place.

Layout and encodings follow the published checkpoints as TerraTorch 1.2 reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.models.backbones.backbone import Scene, load_exactly
from geopeft.models.backbones.days import iso_week
from geopeft.models.backbones.dynamic_embed import DynamicVit, KernelGenerator, own_names, require_optical, sines
from geopeft.models.backbones.transformer import Block, split_qkv
from geopeft.models.registry import BackboneCard

# The encoder in a training program's checkpoint, and as TerraTorch wraps it.
PREFIXES = ("model.encoder.", "clay_encoder.")
# Below this name such a checkpoint keeps what stands beside it too: the decoder and the network that it learned from.
WHOLE = "model."
RENAMED = (
    (".0.norm.", ".norm1."),
    (".0.to_qkv.", ".attn.qkv."),
    (".0.to_out.", ".attn.proj."),
    (".1.net.0.", ".norm2."),
    (".1.net.1.", ".mlp.fc1."),
    (".1.net.3.", ".mlp.fc2."),
)
WAVE_DIM = 128
# Behind the position: sine and cosine of week and hour, of latitude and longitude.
TOLD = 8
WEEKS, HOURS = 52, 24


def build(
    card: BackboneCard,
    band_names: tuple[str, ...],
    *,
    dim: int,
    depth: int,
    heads: int,
    head_dim: int = 0,
    patch_size_px: int = 8,
    wavelengths_um: Sequence[float],
) -> ClayBackbone:
    """An encoder with random weights for bands of these wavelengths; BandError where there is none.

    Args:
        head_dim: of each head; 0: dim / heads.
    """
    require_optical(card, wavelengths_um)
    made = ClayBackbone(card.network, patch_size_px, dim, depth, heads, head_dim)
    made.set_wavelengths(wavelengths_um)
    return made


class ClayBackbone(DynamicVit):
    """(B, C, H, W) normalised -> four maps (B, D, H / patch, W / patch); the last has passed the final norm."""

    def __init__(self, title: str, patch_px: int, dim: int, depth: int, heads: int, head_dim: int) -> None:
        generator = KernelGenerator(
            WAVE_DIM, dim, patch_px, activation=F.gelu, channels_last=False, kernel_scale=0.02, bias_scale=1.0
        )
        super().__init__(
            generator,
            patch_px,
            depth,
            lambda: Block(dim, heads, head_dim=head_dim, qkv_bias=False, proj_bias=False),
        )
        self.title = title
        self.norm = nn.LayerNorm(dim)

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """The encoder alone, or a whole checkpoint of the training program."""
        load_exactly(self, split_qkv(_own_names(state)), self.title)

    def encode_wavelengths(self, wavelengths_um: Sequence[float]) -> Tensor:
        return sines(torch.tensor(wavelengths_um, dtype=torch.float32), WAVE_DIM, WAVE_DIM // 2 - 1)

    def embed(self, x: Tensor, gsd_m: float, scene: Scene | None) -> Tensor:
        rows, cols = x.shape[-2] // self.patch_px, x.shape[-1] // self.patch_px
        tokens = self.patches(x)
        where = torch.tensor(position_table(rows, cols, self.dim - TOLD, gsd_m)).to(tokens)
        told = self._told(scene, x.shape[0]).to(tokens)
        tokens = tokens + torch.cat(
            [where.expand(x.shape[0], -1, -1), told[:, None].expand(-1, tokens.shape[1], -1)], dim=-1
        )
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], dim=1)

    def finish(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.norm(tokens)
        return normed

    def _told(self, scene: Scene | None, batch: int) -> Tensor:
        """(B, 8) of time and place; zero where they are not known."""
        angles = torch.full((batch, TOLD // 2), torch.nan)
        if scene is not None and scene.time is not None:
            time = scene.time[:, 0].float().cpu()
            angles[:, 0] = iso_week(time) * (2 * torch.pi / WEEKS)
            # Whole hours, as in pre-training.
            angles[:, 1] = torch.floor(time[:, 2]) * (2 * torch.pi / HOURS)
        if scene is not None and scene.place is not None:
            angles[:, 2:] = torch.deg2rad(scene.place.float().cpu())
        return torch.nan_to_num(torch.stack([angles.sin(), angles.cos()], dim=-1)).flatten(1)


@functools.lru_cache(maxsize=8)
def position_table(rows: int, cols: int, dim: int, gsd_m: float) -> np.ndarray:
    """(rows * cols, dim) float32: sines and cosines of the column, then of the row, at dim / 4 frequencies each.

    The frequencies lie between the pixel size and a little less: 10 000 to the power of at most 2 / dim divides it.
    """
    steps = np.arange(dim // 4, dtype=np.float32) / np.float32(dim // 4 - 1)
    frequencies = (1 / np.float32(10_000) ** (2 * steps / np.float32(dim)) * np.float32(gsd_m)).astype(np.float32)
    row, col = (axis.ravel()[:, None].astype(np.float32) for axis in np.mgrid[:rows, :cols])
    angles = (col * frequencies, row * frequencies)
    table: np.ndarray = np.concatenate([part for a in angles for part in (np.sin(a), np.cos(a))], axis=1)
    return table


def _own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names as ours, without what stands beside the encoder; other names stay and are refused."""
    own: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(WHOLE) and not key.startswith(PREFIXES):
            continue
        name = key
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if name.startswith("transformer."):
            name = name.removeprefix("transformer.")
            for published, ours in RENAMED:
                name = name.replace(published, ours)
        own[name] = value
    return own_names(own, "patch_embedding.")
