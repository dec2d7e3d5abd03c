"""OlmoEarth v1's encoder (https://github.com/allenai/olmoearth_pretrain) for one date of Sentinel-2 and 1.

Sentinel-2 has three tokens for each patch, for its bands of 10, 20 and 60 m, Sentinel-1 has one. All go through the
blocks together, and a map is their mean. A token takes part where all its bands are there; if none is complete, every
token with at least one band takes part, and a band that is missing is a copy of the nearest one in wavelength, as the
authors fill bands of Sentinel-2 (0 for Sentinel-1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from geopeft.errors import BandError
from geopeft.models.backbones.backbone import Scene, load_exactly
from geopeft.models.backbones.galileo_encoder import spatial_encoding
from geopeft.models.backbones.transformer import Block, VitBackbone
from geopeft.models.registry import BackboneCard, CardBand

KERNEL_PX = 8
MONTHS = 12
# Token -> its modality, its place among the modality's tokens, and its bands in the order of its patch embedding.
TOKENS = {
    "s2_10m": ("sentinel2_l2a", 0, ("B02", "B03", "B04", "B08")),
    "s2_20m": ("sentinel2_l2a", 1, ("B05", "B06", "B07", "B8A", "B11", "B12")),
    "s2_60m": ("sentinel2_l2a", 2, ("B01", "B09")),
    "s1": ("sentinel1", 0, ("VV", "VH")),
}
_COUNTS = {"sentinel2_l2a": 3, "sentinel1": 1}
_EMBEDDINGS = "patch_embeddings.per_modality_embeddings."
_CHANNELS = "composite_encodings.per_modality_channel_embeddings."
# Days before the first of each month but January, in a year of 365 days.
_DAYS_BEFORE = (31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)


def build(
    card: BackboneCard,
    band_names: tuple[str, ...],
    *,
    dim: int,
    depth: int,
    heads: int,
    patch_size_px: int = 4,
    month: int = 6,
) -> OlmoEarthBackbone:
    """An OlmoEarth v1 encoder with random weights; `month` counts from 0 and stands for an unknown one."""
    return OlmoEarthBackbone(card.bands, band_names, dim, depth, heads, patch_size_px, month)


class OlmoEarthBackbone(VitBackbone):
    """(B, bands, H, W) normalised -> four maps (B, D, H / patch, W / patch) after evenly spaced blocks.

    The last map has passed the final normalisation.
    """

    def __init__(
        self,
        known: Sequence[CardBand],
        band_names: tuple[str, ...],
        dim: int,
        depth: int,
        heads: int,
        patch_px: int,
        month: int,
    ) -> None:
        super().__init__(patch_px, dim, depth, prefix=0)
        self.month = month
        self.patches = nn.ModuleDict(
            {name: nn.Conv2d(len(bands), dim, KERNEL_PX, KERNEL_PX) for name, (_, _, bands) in TOKENS.items()}
        )
        self.channels = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(count, dim // 4) * 0.02) for name, count in _COUNTS.items()}
        )
        self.months: Tensor
        self.register_buffer("months", torch.randn(MONTHS, dim // 4) * 0.02)
        self.encoder = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.tokens = _tokens(band_names)
        self._sources = {name: _sources(TOKENS[name][2], band_names, known) for name in self.tokens}
        modalities = {TOKENS[name][0] for name in self.tokens}
        unused = (
            *(f"patches.{name}." for name in TOKENS if name not in self.tokens),
            *(f"channels.{name}" for name in _COUNTS if name not in modalities),
        )
        self.never_trained = frozenset(n for n, _ in self.named_parameters() if unused and n.startswith(unused))

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """The published file: the encoder's tensors are taken, its decoder and other modalities left."""
        load_exactly(self, _translated(state), "OlmoEarth v1")

    @property
    def blocks(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return list(self.encoder)

    def embed(self, x: Tensor, gsd_m: float, scene: Scene | None) -> Tensor:
        rows, cols = x.shape[-2] // self.patch_px, x.shape[-1] // self.patch_px
        large = enlarge(x, KERNEL_PX / self.patch_px) if self.patch_px != KERNEL_PX else x
        tokens = torch.stack([self._embed(name, large) for name in self.tokens], dim=2)
        return (tokens + self._encoding(rows, cols, gsd_m, scene)).flatten(1, 2)

    def finish(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.norm(tokens)
        return normed

    def to_map(self, tokens: Tensor, rows: int, cols: int) -> Tensor:
        grid: Tensor = tokens.unflatten(1, (rows, cols, len(self.tokens))).mean(dim=3)
        return grid.permute(0, 3, 1, 2)

    def _embed(self, name: str, large: Tensor) -> Tensor:
        """(B, patches, D) of one token; `large` has patches of 8 px."""
        bands = [
            large[:, channel : channel + 1] * scale + offset if (scale, offset) != (1.0, 0.0)
            else large[:, channel : channel + 1]
            for channel, scale, offset in self._sources[name]
        ]  # fmt: skip
        embedded: Tensor = self.patches[name](torch.cat(bands, dim=1))
        return embedded.flatten(2).transpose(1, 2)

    def _encoding(self, rows: int, cols: int, gsd_m: float, scene: Scene | None) -> Tensor:
        """(1 or B, patches, tokens, D): token | time step | month | position."""
        channel = torch.stack([self.channels[modality][at] for modality, at, _ in map(TOKENS.__getitem__, self.tokens)])
        part = channel.shape[-1]
        # The first time step: sines and cosines of 0.
        first = torch.cat([channel.new_zeros(part // 2), channel.new_ones(part // 2)])
        month = self.months[month_of(scene, self.month).to(channel.device)][:, None, None]
        where = spatial_encoding(rows, cols, gsd_m * self.patch_px, part).to(channel).flatten(0, 1)[None, :, None]
        shape = (len(month), rows * cols, len(channel), part)
        return torch.cat([quarter.expand(shape) for quarter in (channel, first, month, where)], dim=-1)


def month_of(scene: Scene | None, unknown: int) -> Tensor:
    """(B,) months from 0 of the first date, `unknown` where it is; (1,) where there is no time at all."""
    if scene is None or scene.time is None:
        return torch.tensor([unknown])
    year, day = scene.time[:, 0, 0], scene.time[:, 0, 1]
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    before = torch.tensor(_DAYS_BEFORE, dtype=day.dtype, device=day.device)
    # From March on a leap year is a day longer.
    starts = before + leap[:, None] * (before > _DAYS_BEFORE[0])
    months = (day[:, None] > starts).sum(dim=1)
    return torch.where(day.isnan(), torch.full_like(months, unknown), months)


def enlarge(x: Tensor, factor: float) -> Tensor:
    """Bicubic: (B, C, H, W) -> (B, C, H * factor, W * factor), factor >= 1, as torch's antialiased kernel does it."""
    # As products with fixed matrices, which ONNX computes alike.
    down = torch.tensor(_cubic_matrix(x.shape[-2], factor), dtype=x.dtype, device=x.device)
    across = torch.tensor(_cubic_matrix(x.shape[-1], factor), dtype=x.dtype, device=x.device)
    return down @ x @ across.T


@lru_cache(maxsize=64)
def _cubic_matrix(size: int, factor: float) -> np.ndarray:
    """(size * factor, size) weights of Keys' cubic kernel with a = -0.5; those of pixels there are sum to 1."""
    centres = (np.arange(round(size * factor)) + 0.5) / factor
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None])
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    normalised: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def _tokens(band_names: tuple[str, ...]) -> tuple[str, ...]:
    complete = tuple(name for name, (_, _, bands) in TOKENS.items() if set(bands) <= set(band_names))
    partial = tuple(name for name, (_, _, bands) in TOKENS.items() if set(bands) & set(band_names))
    if not partial:
        known = ", ".join(band for _, _, bands in TOKENS.values() for band in bands)
        raise BandError(
            f"OlmoEarth uses none of the bands {', '.join(band_names) or '(none)'}.",
            f"Name bands that match one of {known}, or choose another backbone.",
            "BANDS_MISSING",
        )
    return complete or partial


def _sources(
    bands: tuple[str, ...], band_names: tuple[str, ...], known: Sequence[CardBand]
) -> list[tuple[int, float, float]]:
    """For each band of a token: the channel that it is made of, and the scale and offset on the way."""
    rows = {row.name: row for row in known}
    sources = []
    for band in bands:
        if band in band_names:
            sources.append((band_names.index(band), 1.0, 0.0))
        elif rows[band].unit == "decibel":
            sources.append((0, 0.0, 0.0))
        else:
            own = rows[band]
            there = [rows[name] for name in band_names if not rows[name].unit]
            other = min(there, key=lambda row: (abs(row.wavelength_um - own.wavelength_um), row.wavelength_um))
            # From one band's place between mean -+ 2 std to the other's, for the same value.
            offset = (other.mean - 2 * other.std - own.mean + 2 * own.std) / (4 * own.std)
            sources.append((band_names.index(other.name), other.std / own.std, offset))
    return sources


def _translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names to ours."""
    if any(key.startswith("encoder.") for key in state):
        state = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    ours = {f"{_EMBEDDINGS}{mod}.{mod}__{at}.proj": f"patches.{name}" for name, (mod, at, _) in TOKENS.items()}
    named = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        if stem in ours:
            named[f"{ours[stem]}.{kind}"] = value
        elif key == "composite_encodings.month_embed.weight":
            named["months"] = value
        elif key.startswith(_CHANNELS) and key.removeprefix(_CHANNELS) in _COUNTS:
            named[f"channels.{key.removeprefix(_CHANNELS)}"] = value
        elif key.startswith("blocks."):
            named[f"encoder.{key.removeprefix('blocks.')}"] = value
        elif not key.startswith((_EMBEDDINGS, _CHANNELS, "project_and_aggregate.", "composite_encodings.pos_embed")):
            named[key] = value
    return named
