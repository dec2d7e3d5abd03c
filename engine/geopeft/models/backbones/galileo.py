"""Galileo for Sentinel-2-like scenes of one date or several: the fast path through its encoder, without masks.

A channel group takes part where all its bands are there. If no group is complete, every group with at least one band
takes part and its missing bands are at their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from geopeft.errors import BandError
from geopeft.models.backbones.backbone import Scene, load_exactly
from geopeft.models.backbones.galileo_encoder import SPACE_TIME, GalileoEncoder, kernel_resize, spatial_encoding
from geopeft.models.backbones.transformer import VitBackbone
from geopeft.models.registry import BackboneCard

GROUP_BANDS = {
    "S2_RGB": ("B02", "B03", "B04"),
    "S2_Red_Edge": ("B05", "B06", "B07"),
    "S2_NIR_10m": ("B08",),
    "S2_NIR_20m": ("B8A",),
    "S2_SWIR": ("B11", "B12"),
}
# Days of a year before each month from February on.
_FEBRUARY = 31
_MONTH_STARTS = (_FEBRUARY, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
# What a band at its mean becomes by (x - (mean - 2 std)) / (4 std).
NORMALISED_MEAN = 0.5


def build(
    card: BackboneCard,
    band_names: tuple[str, ...],
    *,
    dim: int,
    depth: int,
    heads: int,
    patch_size_px: int = 4,
    month: int = 6,
    frames: int = 1,
) -> GalileoBackbone:
    """A Galileo encoder with random weights, for so many dates; `month` counts from 0."""
    return GalileoBackbone(band_names, GalileoEncoder(dim, depth, heads), patch_size_px, month, frames)


class GalileoBackbone(VitBackbone):
    """(B, frames * bands, H, W) normalised, date after date -> four maps (B, D, H / patch, W / patch) after evenly
    spaced blocks.

    A map is the mean over dates and channel groups; the last one has passed the final normalisation. A date's month is
    that of `scene.time`, and `month` where that is not known.
    """

    def __init__(
        self, band_names: tuple[str, ...], encoder: GalileoEncoder, patch_px: int, month: int, frames: int = 1
    ) -> None:
        super().__init__(patch_px, encoder.dim, len(encoder.blocks), prefix=0)
        self.encoder = encoder
        self.month = month
        self.frames = frames
        self.groups = _groups(band_names)
        self._channels = {group: _channels(group, band_names) for group in self.groups}
        self.resize: Tensor
        self.register_buffer("resize", kernel_resize(patch_px), persistent=False)
        absent = tuple(f"encoder.space_time_embed.{g}." for g in SPACE_TIME if g not in self.groups)
        unused = (*absent, *(f"encoder.{kind}" for kind in ("space_embed", "time_embed", "static_embed")))
        unused = (*unused, *(f"encoder.{kind}_channel_embed" for kind in ("sp", "t", "st")))
        self.never_trained = frozenset(n for n, _ in self.named_parameters() if n.startswith(unused))

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """The published state dict; some sizes carry `.backbone` in their key names."""
        load_exactly(self.encoder, {key.replace(".backbone", ""): value for key, value in state.items()}, "Galileo")

    @property
    def blocks(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return list(self.encoder.blocks)

    def embed(self, x: Tensor, gsd_m: float, scene: Scene | None) -> Tensor:
        rows, cols = x.shape[-2] // self.patch_px, x.shape[-1] // self.patch_px
        dates = x.unflatten(1, (self.frames, -1)).flatten(0, 1)
        tokens = torch.stack([self._embed(group, dates) for group in self.groups], dim=2)
        by_date = tokens.unflatten(0, (-1, self.frames)).transpose(1, 2)
        placed: Tensor = (by_date + self._encoding(rows, cols, gsd_m, scene)).flatten(1, 3)
        return placed

    def finish(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.encoder.norm(tokens)
        return normed

    def to_map(self, tokens: Tensor, rows: int, cols: int) -> Tensor:
        grid: Tensor = tokens.unflatten(1, (rows, cols, self.frames * len(self.groups))).mean(dim=3)
        return grid.permute(0, 3, 1, 2)

    def _embed(self, group: str, x: Tensor) -> Tensor:
        """(B, patches, D) tokens of one group."""
        bands = [
            x[:, channel : channel + 1] if channel is not None else torch.full_like(x[:, :1], NORMALISED_MEAN)
            for channel in self._channels[group]
        ]
        embedded: Tensor = self.encoder.space_time_embed[group](torch.cat(bands, dim=1), self.patch_px, self.resize)
        return embedded.flatten(2).transpose(1, 2)

    def _encoding(self, rows: int, cols: int, gsd_m: float, scene: Scene | None) -> Tensor:
        """(1 or B, patches, dates, groups, D): channel group | time step | month | position."""
        order = [list(SPACE_TIME).index(group) for group in self.groups]
        channel = self.encoder.s_t_channel_embed[order]
        part = channel.shape[-1]
        where = spatial_encoding(rows, cols, gsd_m * self.patch_px, part).to(channel).flatten(0, 1)
        months = self._months(scene)
        shape = (len(months), rows * cols, self.frames, len(order), part)
        quarters = (
            channel,
            self.encoder.pos_embed[: self.frames, None],
            self.encoder.month_embed.weight[months][:, None, :, None],
            where[:, None, None],
        )
        return torch.cat([quarter.expand(shape) for quarter in quarters], dim=-1)

    def _months(self, scene: Scene | None) -> Tensor:
        """(1 or B, dates) months from 0."""
        device = self.encoder.pos_embed.device
        if scene is None or scene.time is None:
            return torch.full((1, self.frames), self.month, device=device)
        year, day = scene.time[..., 0].nan_to_num(), scene.time[..., 1]
        leap = ((year % 4 == 0) & (year % 100 != 0)) | (year % 400 == 0)
        starts = torch.tensor(_MONTH_STARTS, device=day.device)
        # In a leap year all months after February begin a day later.
        month = (day[..., None] > starts + leap[..., None] * (starts > _FEBRUARY)).sum(dim=-1)
        return torch.where(day.isnan(), self.month, month).to(device)


def _groups(band_names: tuple[str, ...]) -> tuple[str, ...]:
    complete = tuple(g for g, bands in GROUP_BANDS.items() if set(bands) <= set(band_names))
    partial = tuple(g for g, bands in GROUP_BANDS.items() if set(bands) & set(band_names))
    if not partial:
        known = ", ".join(band for bands in GROUP_BANDS.values() for band in bands)
        raise BandError(
            f"Galileo uses none of the bands {', '.join(band_names) or '(none)'}.",
            f"Name bands that match one of {known}, or choose another backbone.",
            "BANDS_MISSING",
        )
    return complete or partial


def _channels(group: str, band_names: tuple[str, ...]) -> tuple[int | None, ...]:
    return tuple(band_names.index(b) if b in band_names else None for b in GROUP_BANDS[group])
