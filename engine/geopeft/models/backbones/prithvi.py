"""Prithvi-EO (arXiv 2310.18660, 2412.02732): a vision transformer on one or several dates of six bands.

Layout and encodings follow the published checkpoints as TerraTorch 1.2 reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.errors import BandError
from geopeft.models.backbones.backbone import Scene, load_exactly
from geopeft.models.backbones.transformer import Block, VitBackbone, split_qkv
from geopeft.models.registry import BackboneCard

# What the masked autoencoder has beside its encoder; in files of version 1 it stands on the same level.
DECODER = ("decoder.", "decoder_", "mask_token")
RENAMED = {
    "patch_embed.proj.weight": "patch_embed.weight",
    "patch_embed.proj.bias": "patch_embed.bias",
    "temporal_embed_enc.scale": "time_scale",
    "location_embed_enc.scale": "place_scale",
}
# Of the cubic convolution kernel that resizes position tables.
CUBIC_A = -0.75


def build(
    card: BackboneCard,
    band_names: tuple[str, ...],
    *,
    dim: int,
    depth: int,
    heads: int,
    patch_size_px: int = 16,
    image_px: int = 224,
    frames: int = 1,
) -> PrithviBackbone:
    """An encoder with random weights for these bands of its card, in this order.

    Args:
        image_px: side of the images of pre-training, which fixes the position encoding.
        frames: number of dates; the input is (B, frames * bands, H, W), date after date.

    Raises:
        BandError: BANDS_MISSING when none of the bands is the card's.
    """
    known = [band.name for band in card.bands]
    if not band_names or not set(band_names) <= set(known):
        raise BandError(
            f"{card.network} cannot use the bands {', '.join(band_names) or '(none)'}.",
            f"Name bands that match some of {', '.join(known)}, or choose another backbone.",
            "BANDS_MISSING",
        )
    channels = [known.index(name) for name in band_names]
    return PrithviBackbone(card, channels, dim, depth, heads, patch_size_px, image_px // patch_size_px, frames)


class PrithviBackbone(VitBackbone):
    """(B, frames * bands, H, W) normalised -> four maps (B, frames * D, H / patch, W / patch) of evenly spaced blocks.

    A map holds the features of the first date, then those of the next; the last one has passed the final normalisation.

    Attributes:
        time_scale, place_scale: learned weights of the terms that a TL network adds for a `Scene`; None: no such term.
            They are buffers, because without a scene nothing would train them.
    """

    order: Tensor
    time_scale: Tensor | None
    place_scale: Tensor | None

    def __init__(
        self,
        card: BackboneCard,
        channels: Sequence[int],
        dim: int,
        depth: int,
        heads: int,
        patch_px: int,
        native_grid: int,
        frames: int,
    ) -> None:
        super().__init__(patch_px, dim, depth, prefix=1)
        self.title = card.network
        self.frames = frames
        self.native_grid = native_grid
        self.out_channels = [frames * dim for _ in self.taps]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        # For all the card's bands, so that the same weights fit whichever of them a raster has.
        self.patch_embed = nn.Conv2d(len(card.bands), dim, patch_px, stride=patch_px)
        self.layers = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.register_buffer("order", torch.tensor(channels), persistent=False)
        self.register_buffer("time_scale", torch.zeros(1) if "time" in card.metadata else None)
        self.register_buffer("place_scale", torch.zeros(1) if "place" in card.metadata else None)
        nn.init.normal_(self.cls_token, std=0.02)

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """The encoder alone, or a whole masked autoencoder of version 1 (no prefix) or 2 (`encoder.`, `decoder.`).

        A stored `pos_embed` is ignored: it is fixed, and of the size and number of dates of pre-training.
        """
        load_exactly(self, split_qkv(_own_names(state)), self.title)

    @property
    def blocks(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return list(self.layers)

    def embed(self, x: Tensor, gsd_m: float, scene: Scene | None) -> Tensor:
        rows, cols = x.shape[-2] // self.patch_px, x.shape[-1] // self.patch_px
        where = position_table(self.frames, rows, cols, self.native_grid, self.dim)
        tokens = self.patches(x) + torch.tensor(where).to(self.cls_token)
        tokens = self._add_metadata(tokens, scene)
        return torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)

    def patches(self, x: Tensor) -> Tensor:
        """(B, frames * bands, H, W) -> (B, frames * patches, D), without encodings; ordered by date, row, column."""
        weight = self.patch_embed.weight.index_select(1, self.order)
        dates = x.unflatten(1, (self.frames, -1)).flatten(0, 1)
        grid = F.conv2d(dates, weight, self.patch_embed.bias, stride=self.patch_px)
        tokens: Tensor = grid.flatten(2).transpose(1, 2).unflatten(0, (-1, self.frames)).flatten(1, 2)
        return tokens

    def finish(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.norm(tokens)
        return normed

    def to_map(self, tokens: Tensor, rows: int, cols: int) -> Tensor:
        grid: Tensor = tokens.unflatten(1, (self.frames, rows, cols))
        return grid.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def spread(self, update: Tensor, tokens: int) -> Tensor:
        """A patch's tokens of several dates lie a whole image apart."""
        return update.repeat(1, tokens // update.shape[1], 1)

    def _add_metadata(self, tokens: Tensor, scene: Scene | None) -> Tensor:
        """tokens (B, frames * patches, D) with the terms for time and place where both network and scene have them."""
        if scene is not None and scene.time is not None and self.time_scale is not None:
            when = pair_encoding(scene.time[..., :2], self.dim).to(tokens)
            tokens = tokens + self.time_scale * when.repeat_interleave(tokens.shape[1] // self.frames, dim=1)
        if scene is not None and scene.place is not None and self.place_scale is not None:
            tokens = tokens + self.place_scale * pair_encoding(scene.place[:, None], self.dim).to(tokens)
        return tokens


def pair_encoding(pairs: Tensor, dim: int) -> Tensor:
    """(B, K, 2) year and day of the year, or latitude and longitude -> (B, K, dim): sines and cosines of each.

    A sample with a value that is not finite is all zero.
    """
    known = torch.isfinite(pairs).flatten(1).all(dim=1)[:, None, None]
    steps = torch.arange(dim // 4, dtype=torch.float32, device=pairs.device) / (dim // 4)
    # In single precision, as in pre-training: a year times a frequency is rounded.
    angles = torch.nan_to_num(pairs.float())[..., None] * (1 / 10_000**steps)
    encoded = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)
    return torch.where(known, encoded, 0.0)


@functools.lru_cache(maxsize=8)
def position_table(frames: int, rows: int, cols: int, native_grid: int, dim: int) -> np.ndarray:
    """(frames * rows * cols, dim) float32: 6/16 of the values tell the column, 6/16 the row, 4/16 the date.

    A grid of another size than in pre-training is stretched over the native one, corner on corner, bicubically. As each
    value depends on one of the three only, and the kernel's weights add up to 1, each can be resized by itself.
    """
    side, deep = dim // 16 * 6, dim // 16 * 4
    native = _sine_table(native_grid, side)
    column = (_cubic_matrix(native_grid, cols) @ native)[None, None]
    row = (_cubic_matrix(native_grid, rows) @ native)[None, :, None]
    date = _sine_table(frames, deep)[:, None, None]
    grid = (frames, rows, cols)
    parts = [np.broadcast_to(part, (*grid, part.shape[-1])) for part in (column, row, date)]
    table: np.ndarray = np.concatenate(parts, axis=-1).reshape(-1, dim).astype(np.float32)
    return table


def _sine_table(count: int, dim: int) -> np.ndarray:
    """(count, dim) sines, then cosines, of 0 .. count - 1 at dim / 2 frequencies."""
    angles = np.arange(count)[:, None] / 10_000 ** (np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _cubic_matrix(size: int, count: int) -> np.ndarray:
    """(count, size) weights of cubic convolution (Keys 1981); both ends on both ends, the border repeated."""
    places = np.arange(count) * ((size - 1) / (count - 1) if count > 1 else 0.0)
    first = np.floor(places).astype(int)
    matrix = np.zeros((count, size))
    for tap in (-1, 0, 1, 2):
        at = first + tap
        np.add.at(matrix, (np.arange(count), at.clip(0, size - 1)), _cubic(np.abs(places - at)))
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1
    far = CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names as ours, without what belongs to the decoder; names of neither stay and are refused."""
    plain = {key.replace("_timm_module.", ""): value for key, value in state.items()}
    own: dict[str, Tensor] = {}
    for key, value in plain.items():
        name = key.removeprefix("encoder.")
        if key.startswith(DECODER) or name == "pos_embed":
            continue
        if name.startswith("blocks."):
            name = f"layers.{name.removeprefix('blocks.')}"
        if name == "patch_embed.proj.weight" and value.ndim == 5:
            value = value.squeeze(2)
        own[RENAMED.get(name, name)] = value
    return own
