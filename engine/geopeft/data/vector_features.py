"""Features of a vector layer: read, repaired, and placed on the pixels of rasters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

from geopeft.data.label_sources import LabelSource
from geopeft.data.pixel_shapes import PixelShapes
from geopeft.data.raster import RasterInfo
from geopeft.data.raster_frames import frame_bounds, move_shapes, transform_bounds
from geopeft.errors import LabelError
from geopeft.events import Reporter


@dataclass(frozen=True, eq=False)
class Features:
    """Valid geometries of a layer, with their numbers in the file."""

    geometries: NDArray[np.object_]
    fids: NDArray[np.int64]
    crs: pyproj.CRS
    columns: Mapping[str, NDArray[Any]]

    def only(self, keep: NDArray[np.bool_]) -> Features:
        columns = {name: column[keep] for name, column in self.columns.items()}
        return Features(self.geometries[keep], self.fids[keep], self.crs, columns)


def load_features(source: LabelSource, columns: Sequence[str], reporter: Reporter) -> Features:
    """The features of a layer that can be used; what had to be repaired or left out is said."""
    try:
        meta, fids, blobs, data = pyogrio.raw.read(
            source.path, layer=source.layer, columns=list(columns), force_2d=True, return_fids=True
        )
    except (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.FeatureError,
        pyogrio.errors.GeometryError,
        ValueError,
        RuntimeError,
    ) as error:
        raise LabelError(f"{source.path} cannot be read: {error}.", "Export the layer again.", "LABELS_OPEN") from error
    crs = _label_crs(source.path, meta["crs"])
    named = {str(name): column for name, column in zip(meta["fields"], data, strict=True)}
    with np.errstate(invalid="ignore"):  # coordinates that are no numbers are looked for in _repair
        geometries = np.asarray(shapely.from_wkb(blobs, on_invalid="ignore"), np.object_).reshape(-1)
    features = Features(geometries, np.asarray(fids, np.int64), crs, named)
    return _repair(features, source.path, reporter)


def _label_crs(path: str, text: str | None) -> pyproj.CRS:
    hint = "Set its CRS (Layer > Set CRS of Layer(s)), then save it again."
    if not text:
        raise LabelError(f"{path} has no coordinate reference system.", hint, "LABELS_NO_CRS")
    try:
        crs = pyproj.CRS.from_user_input(text)
    except CRSError as error:
        raise LabelError(f"The coordinate reference system of {path} is not known.", hint, "LABELS_NO_CRS") from error
    if not (crs.is_projected or crs.is_geographic or crs.is_bound):
        raise LabelError(f"{path} has a local coordinate system only: {crs.name}.", hint, "LABELS_NO_CRS")
    return crs


def _repair(features: Features, path: str, reporter: Reporter) -> Features:
    geometries = features.geometries.copy()
    empty = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    coordinates, owner = shapely.get_coordinates(geometries, return_index=True)
    broken = np.zeros(len(geometries), np.bool_)
    broken[owner[~np.isfinite(coordinates).all(axis=1)]] = True
    invalid = ~empty & ~broken & ~shapely.is_valid(geometries)
    for at in np.flatnonzero(invalid).tolist():
        geometries[at] = _make_valid(geometries[at])
    lost = broken | (invalid & (shapely.is_missing(geometries) | shapely.is_empty(geometries)))
    repaired = invalid & ~lost
    if repaired.any():
        reporter.message(f"Repaired the geometry of {_named(features.fids[repaired])} in {path}.")
    if lost.any():
        reporter.warn(f"Left out {_named(features.fids[lost])} of {path}: the geometry cannot be repaired.")
    if empty.any():
        reporter.warn(f"Left out {_named(features.fids[empty])} of {path}: no geometry.")
    good = ~(empty | lost)
    if not good.any():
        raise LabelError(f"No feature of {path} has a usable geometry.", "Draw the labels again.", "LABELS_EMPTY")
    return replace(features, geometries=geometries).only(good)


def _make_valid(geometry: BaseGeometry) -> BaseGeometry | None:
    """The same area as a valid geometry: the structure method keeps overlapping parts, which others drop."""
    try:
        return shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    except shapely.errors.GEOSException:
        return None


def _named(fids: NDArray[np.int64]) -> str:
    listed = ", ".join(str(fid) for fid in fids[:10].tolist())
    return f"{len(fids)} feature{'s' if len(fids) > 1 else ''} (fid {listed}{', ...' if len(fids) > 10 else ''})"


# From the layer's CRS to each raster's pixels


def place_features(
    features: Features, rasters: Sequence[RasterInfo], line_width_px: float
) -> tuple[list[PixelShapes], list[NDArray[np.int64]]]:
    """For each raster the shapes that touch it, and which features they are."""
    placed, members = [], []
    for info in rasters:
        shapes, numbers = _place(features, info, line_width_px)
        placed.append(shapes)
        members.append(numbers)
    return placed, members


def _place(features: Features, info: RasterInfo, line_width_px: float) -> tuple[PixelShapes, NDArray[np.int64]]:
    size = (info.height, info.width)
    numbers, on_ground = _near_raster(features, info, line_width_px)
    pixels = move_shapes(~info.geobox.affine, on_ground)
    for at, geometry in enumerate(pixels):
        pixels[at] = _as_polygons(geometry, line_width_px / 2)
    keep = np.array([geometry is not None for geometry in pixels], np.bool_)
    pixels, numbers = pixels[keep], numbers[keep]
    frame = shapely.box(0, 0, info.width, info.height)
    shapely.prepare(frame)
    hit = shapely.intersects(frame, pixels) & ~shapely.touches(frame, pixels)
    pixels, numbers = pixels[hit], numbers[hit]
    bounds = shapely.bounds(pixels).reshape(-1, 4)
    low = np.floor(np.maximum(bounds[:, [1, 0]], 0)).astype(np.int64)
    high = np.ceil(np.minimum(bounds[:, [3, 2]], size)).astype(np.int64)
    return PixelShapes(pixels, np.hstack([low, np.maximum(high, low + 1)]), size), numbers


def _near_raster(
    features: Features, info: RasterInfo, line_width_px: float
) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """The features whose box meets the raster's, in the raster's CRS, with long edges bent as the CRS asks."""
    target = pyproj.CRS.from_wkt(info.crs.to_wkt())
    same = bool(features.crs.equals(target, ignore_axis_order=True))
    box = frame_bounds(info, line_width_px + 1)
    if not same:
        box = transform_bounds(target, features.crs, box)
    bounds = shapely.bounds(features.geometries)
    near = np.ones(len(bounds), np.bool_)
    if np.isfinite(box).all() and box[0] <= box[2]:
        near = (bounds[:, 0] <= box[2]) & (bounds[:, 2] >= box[0]) & (bounds[:, 1] <= box[3]) & (bounds[:, 3] >= box[1])
    numbers = np.flatnonzero(near)
    geometries = features.geometries[near].copy()
    if same or not len(geometries):
        return numbers, geometries
    geometries = _cut_far(geometries, bounds[near], box)
    step = max(box[2] - box[0], box[3] - box[1]) / 256 if np.isfinite(box).all() and box[2] > box[0] else 1.0
    geometries = shapely.segmentize(geometries, step)
    geometries = _transform(features.crs, target, geometries)
    finite = np.isfinite(shapely.bounds(geometries)).all(axis=1)
    return numbers[finite], geometries[finite]


def _cut_far(
    geometries: NDArray[np.object_], bounds: NDArray[np.float64], box: NDArray[np.float64]
) -> NDArray[np.object_]:
    """Cuts shapes that reach far beyond the raster (a country, the world), which may leave the CRS's domain."""
    if not np.isfinite(box).all() or box[0] >= box[2]:
        return geometries
    size = np.array([box[2] - box[0], box[3] - box[1]])
    low, high = box[:2] - size, box[2:] + size
    far = (bounds[:, :2] < low).any(axis=1) | (bounds[:, 2:] > high).any(axis=1)
    geometries[far] = shapely.intersection(geometries[far], shapely.box(*low, *high))
    return geometries


def _as_polygons(geometry: BaseGeometry, half_width_px: float) -> BaseGeometry | None:
    """Polygons as they are, lines and points with their width, collections part by part; None where nothing is left."""
    if geometry.geom_type == "GeometryCollection":
        parts = [_as_polygons(part, half_width_px) for part in geometry.geoms]
        geometry = shapely.union_all([part for part in parts if part is not None])
    elif geometry.geom_type not in ("Polygon", "MultiPolygon"):
        geometry = shapely.buffer(geometry, half_width_px)
    if not geometry.is_valid:
        repaired = _make_valid(geometry)
        if repaired is None:
            return None
        geometry = repaired
    return None if geometry.is_empty or geometry.area == 0 else geometry


def _transform(source: pyproj.CRS, target: pyproj.CRS, geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)

    def moved(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[Any, Any]:
        return transformer.transform(x, y)

    return np.asarray(shapely.transform(geometries, moved, interleaved=False), np.object_)
