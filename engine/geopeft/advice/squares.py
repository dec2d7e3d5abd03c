"""Squares of ground that a person can look at and label: what is in them, and what a classifier says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from geopeft.advice.sights import Sight, tile_window
from geopeft.classical import Classical
from geopeft.data.labels import Labels
from geopeft.data.pixel_shapes import PixelShapes
from geopeft.data.raster import RasterInfo, apply_affine
from geopeft.events import Reporter
from geopeft.models.texture import FINE_GSD_M
from geopeft.texture_tiles import TILE_PX, TextureTiles, Tile

# Sides that divide a tile. In fine imagery a thing is many pixels wide, and so is the neighbourhood that tells it.
COARSE_PX, FINE_PX = 8, 16
# Tiles that are looked at, over all rasters: some ten seconds' work.
MOST_TILES = 400
# Of a square, the part that must be valid and inside the area.
LEAST_SEEN = 0.75


@dataclass(frozen=True, eq=False)
class Squares:
    """Squares without labels.

    Args:
        corners: (n, 3) int64, raster, and row and column of the upper left pixel.
        features: (n, F) float32, means over the valid pixels.
        mixture: (n, F) variance of the four quarters' means: high on an edge, low on one thing, smooth or rough.
        probabilities: (n, K) means over the valid pixels.
        doubt: (n,) from 0 to 1: one less the margin between the two likeliest classes, mean over the valid pixels.
    """

    corners: np.ndarray
    features: np.ndarray
    mixture: np.ndarray
    probabilities: np.ndarray
    doubt: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All of them, in this order."""
        return (self.corners, self.features, self.mixture, self.probabilities, self.doubt)

    def of(self, kept: np.ndarray) -> Squares:
        """Those at these positions, or where `kept` is true."""
        return Squares(*(array[kept] for array in self.arrays))


def square_px(gsd_m: float) -> int:
    """The side of a square in pixels, by the pixel size."""
    return FINE_PX if gsd_m < FINE_GSD_M else COARSE_PX


def spread_tiles(
    infos: Sequence[RasterInfo], areas: Sequence[PixelShapes] | None, seed: int, most: int = MOST_TILES
) -> list[tuple[int, int, int]]:
    """(raster, row, column) of at most `most` tiles, spread over the rasters or over what the areas touch."""
    boxes = [
        (number, *(row0 // TILE_PX, col0 // TILE_PX, -(-row1 // TILE_PX), -(-col1 // TILE_PX)))
        for number, info in enumerate(infos)
        for row0, col0, row1, col1 in ([(0, 0, info.height, info.width)] if areas is None else areas[number].bounds)
    ]
    rng = np.random.default_rng(seed)
    step = max(1, math.ceil(math.sqrt(sum((r1 - r0) * (c1 - c0) for _, r0, c0, r1, c1 in boxes) / most)))
    found: set[tuple[int, int, int]] = set()
    for number, row0, col0, row1, col1 in boxes:
        for row in range(int(row0), int(row1), step):
            for col in range(int(col0), int(col1), step):
                # One anywhere in its cell of the grid: what repeats on the ground would meet a regular grid.
                down, right = rng.integers(step, size=2).tolist()
                found.add((number, min(row + down, int(row1) - 1), min(col + right, int(col1) - 1)))
    places = sorted(found)
    if len(places) > most:
        places = [places[at] for at in sorted(rng.choice(len(places), most, replace=False).tolist())]
    return places


def look_at(
    sights: Sequence[Sight],
    where: Sequence[tuple[int, int, int]],
    labels: Labels,
    areas: Sequence[PixelShapes] | None,
    classical: Classical,
    tiles: TextureTiles,
    side: int,
    reporter: Reporter,
) -> Squares:
    """The squares of these tiles that no shape touches and that are seen well enough.

    Args:
        where: (raster, row, column) of the tiles.
        areas: squares outside of them are left out; None: there is no limit.
        side: of a square, in pixels; divides a tile.
    """
    found = [_nothing(classical.texture.count, len(labels.classes))]
    for number, (raster, row, col) in enumerate(where):
        reporter.check_canceled()
        reporter.progress("suggest", number, len(where))
        sight = sights[raster]
        window = tile_window(sight.info, row, col)
        shapes = labels.burn(raster, window)[1]
        inside = np.ones(shapes.shape, np.bool_) if areas is None else _inside(areas[raster], window)
        wanted = (_blocks(shapes, side) < 0).all(2) & (_blocks(inside, side).mean(2) >= LEAST_SEEN)
        if not wanted.any():
            continue
        tile = tiles.row(sight.view, sight.reader, row, col, 1, lambda: None)[0]
        wanted &= _blocks(tile.valid, side).mean(2) >= LEAST_SEEN
        if wanted.any():
            at = np.array([raster, row * TILE_PX, col * TILE_PX])
            found.append(_squares(tile, wanted, classical, side, at))
    return Squares(*(np.concatenate(arrays) for arrays in zip(*(one.arrays for one in found), strict=True)))


def outline(square: np.ndarray, side: int, info: RasterInfo) -> BaseGeometry:
    """A square, (raster, row, column), as a polygon in its raster's CRS."""
    row, col = int(square[1]), int(square[2])
    corners = ((col, row), (col + side, row), (col + side, row + side), (col, row + side))
    return shapely.Polygon([apply_affine(info.geobox.affine, x, y) for x, y in corners])


def _nothing(features: int, num_classes: int) -> Squares:
    wide = np.zeros((0, features), np.float32), np.zeros((0, features)), np.zeros((0, num_classes)), np.zeros(0)
    return Squares(np.zeros((0, 3), np.int64), *wide)


def _inside(area: PixelShapes, window: Window) -> np.ndarray:
    inside = np.zeros((int(window.height), int(window.width)), np.bool_)
    for _, where, mask in area.masks(window):
        inside[where] |= mask
    return inside


def _blocks(pixels: np.ndarray, side: int) -> np.ndarray:
    """(h, w, ...) -> (rows, columns, side * side, ...) of whole squares; what is left at the edges is cut off."""
    rows, cols, rest = pixels.shape[0] // side, pixels.shape[1] // side, pixels.shape[2:]
    cut = pixels[: rows * side, : cols * side].reshape(rows, side, cols, side, *rest)
    return np.swapaxes(cut, 1, 2).reshape(rows, cols, side * side, *rest)


def _squares(tile: Tile, wanted: np.ndarray, classical: Classical, side: int, at: np.ndarray) -> Squares:
    """The wanted squares of a tile that begins `at` (raster, row, column)."""
    features = _blocks(tile.features.float().numpy(), side)[wanted]
    valid = _blocks(tile.valid, side)[wanted]
    count = valid.sum(1)[:, None]
    found = classical.of_features(features.reshape(-1, features.shape[2])).reshape(*valid.shape, -1)
    second, first = np.moveaxis(np.sort(found, 2)[..., -2:], 2, 0)
    seen = valid[..., None]
    mean = (features * seen).sum(1) / count
    rows, cols = np.nonzero(wanted)
    return Squares(
        np.stack([np.full(len(rows), at[0]), at[1] + rows * side, at[2] + cols * side], 1).astype(np.int64),
        mean.astype(np.float32),
        _mixture(features * seen, valid, mean, side),
        (found * seen).sum(1) / count,
        ((1 - first + second) * valid).sum(1) / count[:, 0],
    )


def _mixture(features: np.ndarray, valid: np.ndarray, mean: np.ndarray, side: int) -> np.ndarray:
    """`Squares.mixture`, (n, F): of features (n, side * side, F), which are 0 where they are not valid."""
    total = np.zeros_like(mean)
    quarter = np.arange(side * side) // side // (side // 2) * 2 + np.arange(side * side) % side // (side // 2)
    for number in range(4):
        own = quarter == number
        count = valid[:, own].sum(1)[:, None]
        part = features[:, own].sum(1) / np.maximum(count, 1)
        total += np.where(count > 0, (part - mean) ** 2, 0)
    return total / 4
