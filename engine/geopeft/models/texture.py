"""What a classical classifier sees of a pixel: its bands, their ratios, and mean and spread of its neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.data.normalize import OUTLIER
from geopeft.models.spec import InputBand, TextureSpec

# Pairs whose normalised difference is an index in use: NDVI, NDWI, NDBI or NDMI, NBR, MNDWI, red edge; then colours.
RATIOS = (
    ("nir", "red"), ("green", "nir"), ("swir16", "nir"), ("swir22", "nir"), ("green", "swir16"), ("nir", "rededge1"),
    ("red", "green"), ("green", "blue"), ("red", "blue"),
)  # fmt: skip
# More bands than this are first brought to their principal components before their texture is taken.
MOST_BANDS = 12
COMPONENTS = 4
# Buildings and crowns in fine imagery are wider than a field's edge in coarse.
WINDOWS_PX = {"fine": (3, 7, 17), "coarse": (3, 5, 9)}
FINE_GSD_M = 4.0


def describe_texture(bands: Sequence[InputBand], gsd_m: float) -> TextureSpec:
    """The features for these bands: ratios of those whose roles are known, windows by the pixel size."""
    where = {band.common: position for position, band in enumerate(bands) if band.common}
    ratios = tuple((where[a], where[b]) for a, b in RATIOS if a in where and b in where)
    windows = WINDOWS_PX["fine" if gsd_m < FINE_GSD_M else "coarse"]
    count = COMPONENTS if len(bands) > MOST_BANDS else len(bands)
    return TextureSpec(windows_px=windows, ratios=ratios, components=count)


class Texture(nn.Module):
    """Raw chips (B, C, H, W) float32 in raster units, invalid pixels filled -> features (B, F, H, W) float32.

    F = C + ratios + 2 * windows * components: the standardised bands; normalised differences (a - b) / (|a| + |b|) of
    bands; mean and standard deviation of the bands, or of their principal components, in square windows that are cut
    at the edges of the chip.

    Args:
        spec: which features.
        bands: the model's input bands.
        projection: (components, C), the identity where the bands themselves are taken.
    """

    def __init__(self, spec: TextureSpec, bands: Sequence[InputBand], projection: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.projected = spec.components != len(bands)
        for name in ("scale", "offset", "mean", "std"):
            values = torch.tensor([getattr(band, name) for band in bands], dtype=torch.float32)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("projection", projection.float().view(spec.components, len(bands), 1, 1))
        self.scale: Tensor
        self.offset: Tensor
        self.mean: Tensor
        self.std: Tensor
        self.projection: Tensor

    @property
    def count(self) -> int:
        """F."""
        spec = self.spec
        return self.mean.shape[1] + len(spec.ratios) + 2 * len(spec.windows_px) * spec.components

    @property
    def radius_px(self) -> int:
        """How far from a pixel its features reach."""
        return max(self.spec.windows_px, default=1) // 2

    def standardise(self, raw: Tensor) -> Tensor:
        """The bands with mean 0 and deviation 1, outliers cut."""
        return ((raw * self.scale + self.offset - self.mean) / self.std).clamp(-OUTLIER, OUTLIER)

    def forward(self, raw: Tensor) -> Tensor:
        canonical = raw * self.scale + self.offset
        standardised = self.standardise(raw)
        parts = [standardised]
        for first, second in self.spec.ratios:
            a, b = canonical[:, first : first + 1], canonical[:, second : second + 1]
            parts.append((a - b) / (a.abs() + b.abs() + 1e-3))
        base = F.conv2d(standardised, self.projection) if self.projected else standardised
        for window in self.spec.windows_px:
            mean = box_mean(base, window)
            parts += [mean, (box_mean(base * base, window) - mean * mean).clamp_min(0).sqrt()]
        return torch.cat(parts, dim=1)


def box_mean(x: Tensor, window: int) -> Tensor:
    """Mean of the odd window around every pixel of x (B, D, H, W); at the edges of what is there."""
    half = window // 2
    rows = F.avg_pool2d(x, (window, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, half), count_include_pad=False)


def principal_components(standardised: Tensor, count: int) -> Tensor:
    """(count, C) directions of the largest variance of pixels (n, C), each scaled to give deviation 1.

    The sign is fixed by the largest entry, so that equal pixels give equal features.
    """
    bands = standardised.shape[1]
    if count == bands:
        return torch.eye(bands)
    centred = standardised.double() - standardised.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(len(centred) - 1, 1))
    chosen = vectors[:, -count:].flip(1) / values[-count:].flip(0).clamp_min(1e-6).sqrt()
    signs = chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()
    result: Tensor = (chosen * signs).T.float().contiguous()
    return result
