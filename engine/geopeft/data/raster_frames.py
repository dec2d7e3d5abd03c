"""Frames of rasters: where they lie in their own and in other CRSs, and how far labels are from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import ProjError

from geopeft.data.raster import RasterInfo, apply_affine
from geopeft.errors import LabelError


def frame_bounds(info: RasterInfo, pad_px: float) -> NDArray[np.float64]:
    """(left, bottom, right, top) of the raster in its CRS, padded."""
    affine = info.geobox.affine
    xs, ys = zip(
        *(
            apply_affine(affine, col, row)
            for col in (-pad_px, info.width + pad_px)
            for row in (-pad_px, info.height + pad_px)
        ),
        strict=True,
    )
    return np.array([min(xs), min(ys), max(xs), max(ys)], np.float64)


def transform_bounds(source: pyproj.CRS, target: pyproj.CRS, box: NDArray[np.float64]) -> NDArray[np.float64]:
    """The box that holds a box (left, bottom, right, top) in another CRS; infinite where there is none."""
    try:
        transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)
        left, bottom, right, top = box.tolist()
        return np.array(transformer.transform_bounds(left, bottom, right, top, densify_pts=21), np.float64)
    except ProjError:
        return np.full(4, np.inf)


def move_shapes(affine: Affine, geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    """The geometries with the affine applied: pixels to the ground, or back with its inverse."""
    a, b, c, d, e, f = affine[:6]
    matrix = np.array([[a, b], [d, e]])
    return np.asarray(shapely.transform(geometries, lambda xy: xy @ matrix.T + (c, f)), np.object_)


def raise_outside(path: str, bounds: NDArray[np.float64], crs: pyproj.CRS, rasters: Sequence[RasterInfo]) -> None:
    """Refuses labels (bounds in their CRS) that touch no raster, and says how far away they are."""
    distances = [_distance_m(bounds, crs, info) for info in rasters]
    nearest = min((d for d in distances if math.isfinite(d)), default=math.inf)
    where = f"about {nearest / 1000:,.3g} km away" if math.isfinite(nearest) else "at coordinates its CRS does not have"
    raster_crs = " or ".join(dict.fromkeys(pyproj.CRS.from_wkt(info.crs.to_wkt()).name for info in rasters))
    raise LabelError(
        f"The labels of {path} lie outside the raster{'s' * (len(rasters) > 1)}, {where} "
        f"(labels: {crs.name}; raster: {raster_crs}).",
        "Choose the raster that the labels were drawn on; or the layer may have the wrong CRS assigned.",
        "LABELS_OUTSIDE",
    )


def _distance_m(bounds: NDArray[np.float64], crs: pyproj.CRS, info: RasterInfo) -> float:
    """Metres between the boxes of labels and raster; infinite where the labels have no place on the globe."""
    degrees = pyproj.CRS.from_epsg(4326)
    labels = transform_bounds(crs, degrees, bounds)
    raster = transform_bounds(pyproj.CRS.from_wkt(info.crs.to_wkt()), degrees, frame_bounds(info, 0))
    if not (np.isfinite(labels).all() and np.isfinite(raster).all() and abs(labels[[1, 3]]).max() <= 90):
        return math.inf

    def nearest(axis: int) -> tuple[float, float]:
        if labels[axis] > raster[axis + 2]:
            return float(labels[axis]), float(raster[axis + 2])
        if labels[axis + 2] < raster[axis]:
            return float(labels[axis + 2]), float(raster[axis])
        shared = float(max(labels[axis], raster[axis]))
        return shared, shared

    (lon0, lon1), (lat0, lat1) = nearest(0), nearest(1)
    return float(pyproj.Geod(ellps="WGS84").inv(lon0, lat0, lon1, lat1)[2])
