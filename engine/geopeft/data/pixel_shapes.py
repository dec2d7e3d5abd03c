"""Polygons in the pixel coordinates of a raster, and which pixels they hold.

A pixel belongs to a shape if its centre is inside; a shape that holds no centre gets the pixel under its representative
point. Pixel coordinates (col, row) leave no special case for rotated grids and for line widths in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from geopeft.data.label_shapes import row_col_size

CACHED_MASK_PX = 1 << 18  # largest shape (of its bounding box) whose mask is kept
CACHE_PX = 1 << 26
FEW_PX = 1 << 10
CENTRE = 0.5 + 1e-7  # off the edges of shapes drawn on half pixels, so that such a centre belongs to one side


class PixelShapes:
    """Polygons in the pixel coordinates (col, row) of one raster, and their masks on its grid."""

    def __init__(self, geometries: NDArray[np.object_], bounds: NDArray[np.int64], size: tuple[int, int]) -> None:
        self.geometries = geometries
        self.bounds = bounds
        self.size = size
        boxes = shapely.box(bounds[:, 1], bounds[:, 0], bounds[:, 3], bounds[:, 2]) if len(bounds) else []
        self._tree = shapely.STRtree(boxes)
        self._cache: dict[int, NDArray[np.bool_]] = {}
        self._cached_px = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_cached_px": 0}

    def masks(self, window: Window) -> Iterator[tuple[int, tuple[slice, slice], NDArray[np.bool_]]]:
        """(shape, where in the window, which of those pixels) of each shape that touches it, by rising number."""
        row, col, height, width = row_col_size(window)
        touching = np.sort(self._tree.query(shapely.box(col, row, col + width, row + height)))
        for number in touching.tolist():
            row0, col0, row1, col1 = self.bounds[number].tolist()
            top, left = max(row, row0), max(col, col0)
            bottom, right = min(row + height, row1), min(col + width, col1)
            if bottom <= top or right <= left:
                continue
            where = (slice(top - row, bottom - row), slice(left - col, right - col))
            if (row1 - row0) * (col1 - col0) <= CACHED_MASK_PX:
                whole = self._whole(number)
                yield number, where, whole[top - row0 : bottom - row0, left - col0 : right - col0]
            else:
                yield number, where, _rasterize(self.geometries[number], top, left, bottom, right)

    def _whole(self, number: int) -> NDArray[np.bool_]:
        mask = self._cache.get(number)
        if mask is None:
            row0, col0, row1, col1 = self.bounds[number].tolist()
            mask = _rasterize(self.geometries[number], row0, col0, row1, col1)
            if not mask.any():
                inside = shapely.clip_by_rect(self.geometries[number], 0, 0, self.size[1], self.size[0])
                point = shapely.point_on_surface(inside if not inside.is_empty else self.geometries[number])
                row = min(max(math.floor(point.y), row0), row1 - 1)
                col = min(max(math.floor(point.x), col0), col1 - 1)
                mask[row - row0, col - col0] = True
            if self._cached_px + mask.size > CACHE_PX:
                self._cache, self._cached_px = {}, 0
            self._cache[number] = mask
            self._cached_px += mask.size
        return mask


def _rasterize(geometry: BaseGeometry, top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    """Pixels whose centre is inside, of a rectangle of the grid. Of shapes that share an edge, one gets its centres."""
    if (bottom - top) * (right - left) <= FEW_PX:
        # GDAL takes 0.3 ms to begin: with many small labels that is most of the time.
        shapely.prepare(geometry)
        cols, rows = np.meshgrid(np.arange(left, right) + CENTRE, np.arange(top, bottom) + CENTRE)
        return np.asarray(shapely.contains_xy(geometry, cols, rows), np.bool_)
    # Cut first: turning all the vertices of a country's outline into a mapping takes longer than burning a window.
    near = shapely.clip_by_rect(geometry, left - 1, top - 1, right + 1, bottom + 1)
    if near.is_empty:
        return np.zeros((bottom - top, right - left), np.bool_)
    burned = rasterio.features.rasterize(
        [(near, 1)], out_shape=(bottom - top, right - left), transform=Affine.translation(left, top), dtype="uint8"
    )
    mask: NDArray[np.bool_] = burned.astype(np.bool_)
    return mask
