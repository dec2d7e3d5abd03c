"""How much ground a pixel covers, on the ellipsoid: in degrees and in web Mercator pixels differ."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyproj
from numpy.typing import NDArray
from pyproj.exceptions import ProjError

from geopeft.data.raster import RasterInfo, apply_affine

# Places along each side of a raster between which the scale of its CRS is interpolated.
_NODES = 129


class PixelAreas:
    """Areas of a raster's pixels, m2; true in any CRS, to some 1e-4 of the area."""

    def __init__(self, info: RasterInfo) -> None:
        self._rows, self._cols = (np.linspace(0, size, _NODES) for size in (info.height, info.width))
        cols, rows = np.meshgrid(self._cols, self._rows)
        x, y = apply_affine(info.geobox.affine, cols, rows)
        crs = pyproj.CRS.from_wkt(info.crs.to_wkt())
        size = abs(info.geobox.affine.determinant)
        unit = 1.0 if crs.is_geographic else float(info.crs.linear_units_factor[1])
        with np.errstate(invalid="ignore", divide="ignore"):
            density = _of_degrees(crs, y) if crs.is_geographic else unit**2 / _areal_scale(crs, x, y)
        # Corners of a raster of the whole world may lie where its projection says nothing.
        usable = np.isfinite(density) & (density > 0)
        fallback = float(np.median(density[usable])) if usable.any() else unit**2
        self._areas = np.where(usable, density, fallback) * size

    def of(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.float64]:
        """Areas of the pixels at (row, col); the two arrays broadcast."""
        row, down = _between(rows + 0.5, self._rows)
        col, across = _between(cols + 0.5, self._cols)
        areas = self._areas
        upper = areas[row, col] * (1 - across) + areas[row, col + 1] * across
        lower = areas[row + 1, col] * (1 - across) + areas[row + 1, col + 1] * across
        return np.asarray(upper * (1 - down) + lower * down)


def _between(at: NDArray[Any], nodes: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    step = nodes[1] - nodes[0]
    first = np.clip((at / step).astype(np.int64), 0, _NODES - 2)
    return first, at / step - first


def _of_degrees(crs: pyproj.CRS, latitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """m2 of a square of one unit of the CRS (a degree), by the radii of curvature of its ellipsoid."""
    geod = crs.get_geod() or pyproj.Geod(ellps="WGS84")
    to_radians = float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else math.pi / 180
    angle = latitude * to_radians
    narrowing = 1 - geod.es * np.sin(angle) ** 2
    meridian, normal = geod.a * (1 - geod.es) / narrowing**1.5, geod.a / np.sqrt(narrowing)
    return np.asarray(meridian * normal * np.cos(angle) * to_radians**2)


def _areal_scale(crs: pyproj.CRS, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many times larger a small area is in the projection than on the ground."""
    try:
        projection = pyproj.Proj(crs)
        longitude, latitude = projection(x, y, inverse=True)
        found = projection.get_factors(longitude, latitude).areal_scale
    except (ProjError, RuntimeError):
        return np.full(x.shape, np.nan)
    return np.asarray(found, np.float64)
