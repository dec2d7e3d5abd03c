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
# Values of a few channels that are worked on while they are in the processor's cache.
CACHED_VALUES = 1 << 16


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
        standardised, windows = self.standardise(raw), self.spec.windows_px
        base = self._base(standardised)
        return self._joined(raw, standardised, box_means(base, windows), box_means(base * base, windows))

    def sparse(self, raw: Tensor, rows: slice, cols: slice) -> Tensor:
        """(B, F, r, c): as `forward`, of the pixels of some rows and columns, at a fraction of the work.

        Args:
            rows, cols: with all of start, stop and step.
        """
        standardised, windows = self.standardise(raw), self.spec.windows_px
        base = self._base(standardised)
        means, squares = (box_means_at(x, windows, rows, cols) for x in (base, base * base))
        return self._joined(raw[:, :, rows, cols], standardised[:, :, rows, cols], means, squares)

    def _base(self, standardised: Tensor) -> Tensor:
        """What texture is taken of."""
        return F.conv2d(standardised, self.projection) if self.projected else standardised

    def _joined(self, raw: Tensor, standardised: Tensor, means: Sequence[Tensor], squares: Sequence[Tensor]) -> Tensor:
        canonical = raw * self.scale + self.offset
        parts = [standardised]
        for first, second in self.spec.ratios:
            a, b = canonical[:, first : first + 1], canonical[:, second : second + 1]
            parts.append((a - b) / (a.abs() + b.abs() + 1e-3))
        for mean, square in zip(means, squares, strict=True):
            parts += [mean, (square - mean * mean).clamp_min(0).sqrt()]
        return torch.cat(parts, dim=1)


def box_means(x: Tensor, windows: Sequence[int]) -> list[Tensor]:
    """Means of odd windows around every pixel of x (B, D, H, W), without a gradient; at the edges of what is there.

    Sums over 1, 2, 4, ... pixels are made of each other, and those of a window of them: with a few additions of whole
    maps, five times as fast as pooling. Channels are taken one by one where a map is large, to stay in the cache.
    """
    if torch.compiler.is_exporting():  # a graph has pooling, and should be short
        return [box_mean(x, window) for window in windows]
    height, width = x.shape[-2:]
    counts = [_counts(height, window, x)[:, None] * _counts(width, window, x) for window in windows]
    means = [torch.empty_like(x) for _ in windows]
    together = max(1, CACHED_VALUES * torch.get_num_threads() * x.shape[1] // max(x.numel(), 1))
    for first in range(0, x.shape[1], together):
        channels = slice(first, first + together)
        for mean, count, window, down in zip(means, counts, windows, _sums(x[:, channels], windows, 2), strict=True):
            torch.div(_sums(down, (window,), 3)[0], count, out=mean[:, channels])
    return means


def box_means_at(x: Tensor, windows: Sequence[int], rows: slice, cols: slice) -> list[Tensor]:
    """As `box_means`, at the pixels of some rows and columns (start, stop, step): neighbour by neighbour."""
    counts = [_counts(x.shape[2], window, x)[rows, None] * _counts(x.shape[3], window, x)[cols] for window in windows]
    across = dict(zip(windows, _sums_at(x, windows, cols, 3), strict=True))
    sums = [_sums_at(across[window], (window,), rows, 2)[0] for window in windows]
    return [total / count for total, count in zip(sums, counts, strict=True)]


def _sums_at(x: Tensor, windows: Sequence[int], where: slice, axis: int) -> list[Tensor]:
    """For every window the sums of so many neighbours along an axis (2 or 3) around some of its places."""
    half, count = max(windows, default=1) // 2, len(range(where.start, where.stop, where.step))
    padded = F.pad(x, (half, half) if axis == 3 else (0, 0, half, half))
    reach = where.step * (count - 1) + 1

    def beside(offset: int) -> Tensor:
        whole = padded.narrow(axis, where.start + half + offset, reach)
        return whole[..., :: where.step] if axis == 3 else whole[..., :: where.step, :]

    found, total, done = {}, beside(0).clone(), 0
    for window in sorted(windows):
        for offset in range(done + 1, window // 2 + 1):
            total += beside(-offset)
            total += beside(offset)
        done = window // 2
        found[window] = total.clone()
    return [found[window] for window in windows]


def _sums(x: Tensor, windows: Sequence[int], axis: int) -> list[Tensor]:
    """For every window the sums of so many neighbours along an axis (2 or 3) of (B, D, H, W), zeros around."""
    half, length = max(windows, default=1) // 2, x.shape[axis]
    powers = [F.pad(x, (half, half) if axis == 3 else (0, 0, half, half))]
    while 2 ** len(powers) <= 2 * half + 1:
        last, step = powers[-1], 2 ** (len(powers) - 1)
        count = last.shape[axis] - step
        powers.append(last.narrow(axis, 0, count) + last.narrow(axis, step, count))
    found = []
    for window in windows:
        at = half - window // 2
        pieces = []
        for bit in range(len(powers)):
            if window >> bit & 1:
                pieces.append(powers[bit].narrow(axis, at, length))
                at += 2**bit
        found.append(sum(pieces[1:], pieces[0]))
    return found


def _counts(length: int, window: int, like: Tensor) -> Tensor:
    """(length,) how many of a window's positions lie inside."""
    at = torch.arange(length, device=like.device)
    first, last = (at - window // 2).clamp_min(0), (at + window // 2).clamp_max(length - 1)
    return (last - first + 1).to(like.dtype)


def box_mean(x: Tensor, window: int) -> Tensor:
    """As `box_means` of one window, by pooling."""
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
