"""Chips of unlabelled rasters: standardised, resampled and turned at random, with whole blocks held out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rasterio.windows import Window
from torch.nn import functional as F

from geopeft.data.bands import Band
from geopeft.data.chips import turn
from geopeft.data.normalize import OUTLIER
from geopeft.data.raster import BandStatistics, RasterInfo, open_raster

READ_PX = 256
HELD_OUT_PX = 64
HELD_OUT_SHARE = 0.1
CACHE_BYTES = 1 << 30
# Chips with less valid pixels than this part are drawn again, a few times.
ENOUGH_VALID = 0.5
_TRIES = 6


@dataclass(frozen=True, eq=False)
class Scene:
    """A raster to learn from.

    Args:
        info: the raster.
        bands: those in use, C of them.
        statistics: of these bands.
        valid_px: about how many pixels have data.
    """

    info: RasterInfo
    bands: tuple[Band, ...]
    statistics: BandStatistics
    valid_px: float


@dataclass(frozen=True, eq=False)
class Chips:
    """Chips of one scene.

    Args:
        values: (B, C, s, s) float32, standardised by the scene's statistics, 0 where not valid.
        valid: (B, C, s, s) bool, where the network may look.
        counted: (B, C, s, s) bool, where it is judged; part of `valid`.
        gsd_m: side of a pixel.
    """

    values: np.ndarray
    valid: np.ndarray
    counted: np.ndarray
    gsd_m: float


class SceneReader:
    """Reads chips; blocks of 256 px stay in memory up to a fixed budget, no file stays open.

    A tenth of the squares of 64 px is held out over all scenes together, at least one of each scene of eight squares;
    chips for training do not show their pixels.
    """

    def __init__(self, scenes: Sequence[Scene], seed: int) -> None:
        self.scenes = tuple(scenes)
        self._cache: OrderedDict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._bytes = 0
        self.held_out = [_held_out(scene.info, np.random.default_rng((seed, n))) for n, scene in enumerate(scenes)]

    def draw(
        self,
        scene: int,
        rng: np.random.Generator,
        count: int,
        size_px: int,
        gsd_range_m: tuple[float, float],
        bands: Sequence[int],
    ) -> Chips:
        """`count` chips of one scene for training, all at one pixel size drawn from `gsd_range_m` (log-uniform).

        Args:
            size_px: their side at most, a multiple of 32; less where the raster is smaller.
            bands: positions among the scene's bands.
        """
        info = self.scenes[scene].info
        low, high = (np.log(limit / info.gsd_m) for limit in gsd_range_m)
        factor = float(np.exp(rng.uniform(low, high)))
        window = max(8, min(round(size_px * factor), max(info.height, info.width)))
        side = int(np.clip(32 * round(window / factor / 32), 32, size_px))
        values, valid = [], []
        for _ in range(count):
            chip, good = self._draw_one(scene, rng, window, bands)
            number = int(rng.integers(8))
            values.append(turn(chip, number))
            valid.append(turn(good, number))
        gsd_m = info.gsd_m * window / side
        return _resampled(np.stack(values), np.stack(valid), side, gsd_m)

    def held_out_chips(self, scene: int, size_px: int, most: int, bands: Sequence[int]) -> Chips | None:
        """Chips around held-out squares at the raster's own pixel size; only the squares count. None: there are none.

        The surroundings, which training has seen, are context.
        """
        info = self.scenes[scene].info
        size = min(size_px, 32 * -(-max(info.height, info.width) // 32))
        squares = np.argwhere(self.held_out[scene])[:most]
        chips = []
        for row, col in squares * HELD_OUT_PX:
            top, left = (
                min(max(at + HELD_OUT_PX // 2 - size // 2, 0), max(length - size, 0))
                for at, length in ((row, info.height), (col, info.width))
            )
            values, valid = self.read(scene, top, left, size, bands)
            inside = np.zeros((size, size), bool)
            inside[row - top : row - top + HELD_OUT_PX, col - left : col - left + HELD_OUT_PX] = True
            if (valid & inside).any():
                chips.append((values, valid, valid & inside))
        if not chips:
            return None
        values, valid, counted = (np.stack(part) for part in zip(*chips, strict=True))
        return Chips(values, valid, counted, info.gsd_m)

    def read(self, scene: int, row: int, col: int, size: int, bands: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Standardised values (C, size, size) and valid mask of each band; what lies outside is not valid."""
        info = self.scenes[scene].info
        values = np.zeros((len(bands), size, size), np.float32)
        valid = np.zeros((len(bands), size, size), bool)
        for block_row in range(max(row, 0) // READ_PX, -(-min(row + size, info.height) // READ_PX)):
            for block_col in range(max(col, 0) // READ_PX, -(-min(col + size, info.width) // READ_PX)):
                block, good = self._block(scene, block_row, block_col)
                at_row, at_col = block_row * READ_PX, block_col * READ_PX
                top, left = max(row, at_row), max(col, at_col)
                bottom = min(row + size, at_row + block.shape[1])
                right = min(col + size, at_col + block.shape[2])
                source = (slice(top - at_row, bottom - at_row), slice(left - at_col, right - at_col))
                target = (slice(None), slice(top - row, bottom - row), slice(left - col, right - col))
                values[target] = block[(list(bands), *source)]
                valid[target] = good[(list(bands), *source)]
        return values, valid

    def _draw_one(
        self, scene: int, rng: np.random.Generator, window: int, bands: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        info = self.scenes[scene].info
        best = np.zeros((len(bands), window, window), np.float32), np.zeros((len(bands), window, window), bool)
        for _ in range(_TRIES):
            row, col = (
                int(rng.integers(length - window + 1)) if length > window else (length - window) // 2
                for length in (info.height, info.width)
            )
            values, valid = self.read(scene, row, col, window, bands)
            valid &= ~self._held_pixels(scene, row, col, window)
            if valid.sum() > best[1].sum():
                best = values, valid
            if valid.mean() >= ENOUGH_VALID:
                break
        return np.where(best[1], best[0], 0), best[1]

    def _held_pixels(self, scene: int, row: int, col: int, size: int) -> np.ndarray:
        squares = self.held_out[scene]
        rows = np.clip((np.arange(size) + row) // HELD_OUT_PX, 0, squares.shape[0] - 1)
        cols = np.clip((np.arange(size) + col) // HELD_OUT_PX, 0, squares.shape[1] - 1)
        held: np.ndarray = squares[np.ix_(rows, cols)]
        return held

    def _block(self, scene: int, block_row: int, block_col: int) -> tuple[np.ndarray, np.ndarray]:
        key = (scene, block_row, block_col)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        own = self.scenes[scene]
        row, col = block_row * READ_PX, block_col * READ_PX
        window = Window(col, row, min(READ_PX, own.info.width - col), min(READ_PX, own.info.height - row))
        with open_raster(own.info, [band.index for band in own.bands]) as reader:
            values, valid = reader.read_bands(window)
        mean, std = own.statistics.mean[:, None, None], np.maximum(own.statistics.std, 1e-12)[:, None, None]
        values = np.where(valid, np.clip((values - mean) / std, -OUTLIER, OUTLIER), 0).astype(np.float32)
        self._cache[key] = values, valid
        self._bytes += values.nbytes + valid.nbytes
        while self._bytes > CACHE_BYTES and len(self._cache) > 1:
            self._bytes -= sum(part.nbytes for part in self._cache.popitem(last=False)[1])
        return values, valid


def _held_out(info: RasterInfo, rng: np.random.Generator) -> np.ndarray:
    """(rows, cols) bool of the raster's squares."""
    shape = (-(-info.height // HELD_OUT_PX), -(-info.width // HELD_OUT_PX))
    held = np.zeros(shape, bool)
    count = max(1, round(HELD_OUT_SHARE * held.size)) if held.size >= 8 else 0
    held.flat[rng.permutation(held.size)[:count]] = True
    return held


def _resampled(values: np.ndarray, valid: np.ndarray, side: int, gsd_m: float) -> Chips:
    """Chips brought to a side; a pixel is valid where all that it is made of was."""
    if values.shape[-1] != side:
        both = torch.from_numpy(np.concatenate([values, valid.astype(np.float32)], axis=1))
        both = F.interpolate(both, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        values, share = (part.numpy() for part in both.chunk(2, dim=1))
        valid = share > 0.99
        values = np.where(valid, values, 0).astype(np.float32)
    return Chips(values, valid, valid, gsd_m)
