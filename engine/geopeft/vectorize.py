"""A class raster as polygons: class, area and mean confidence of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import shapely
from pyproj import CRS, Geod, Transformer
from rasterio.windows import Window, from_bounds

from geopeft.events import Reporter
from geopeft.writing import whole_layer

_BATCH = 20_000
_LAYER, _FIELDS = "polygons", ("class", "area_m2", "confidence")


def vectorize(class_raster: Path, confidence: Path, names: Mapping[int, str], out: Path, reporter: Reporter) -> int:
    """Writes the patches of a class raster as a GeoPackage.

    Args:
        class_raster: uint8, 0 = nodata.
        confidence: uint8 percent on the same grid, 255 = nodata.
        names: raster value -> class name.
        out: GeoPackage, layer `polygons`, with the fields class, area_m2 (on the ellipsoid) and confidence (percent).

    Returns:
        The number of polygons.
    """
    count = 0
    with (
        rasterio.open(class_raster) as source,
        rasterio.open(confidence) as sure,
        whole_layer(out, _LAYER, _FIELDS, source.crs.to_wkt()) as write,
    ):
        area = _AreaM2(source.crs)
        for batch in _batches(source):
            reporter.check_canceled()
            geometries = np.array([shape for shape, _ in batch])
            fields = [
                np.array([names.get(value, str(value)) for _, value in batch], object),
                np.array([area(shape) for shape in geometries]),
                np.array([_mean_confidence(shape, value, source, sure) for shape, value in batch]),
            ]
            write(shapely.to_wkb(geometries), fields)
            count += len(batch)
            reporter.message(f"{count} polygons.") if count % (_BATCH * 10) == 0 else None
        if count == 0:
            write(np.array([], object), [np.array([], object), np.array([]), np.array([])])
    return count


def _batches(source: rasterio.DatasetReader) -> Iterator[list[tuple[shapely.Polygon, int]]]:
    batch = []
    for shape, value in rasterio.features.shapes(rasterio.band(source, 1), transform=source.transform):
        if value:
            batch.append((shapely.geometry.shape(shape), int(value)))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class _AreaM2:
    """Area on the ellipsoid, so that it is true in any projection."""

    def __init__(self, crs: rasterio.crs.CRS) -> None:
        here = CRS.from_wkt(crs.to_wkt())
        geographic = here.geodetic_crs or CRS.from_epsg(4326)
        self._geod: Geod = here.get_geod() or Geod(ellps="WGS84")
        self._to_degrees = Transformer.from_crs(here, geographic, always_xy=True)

    def __call__(self, polygon: shapely.Polygon) -> float:
        turned = shapely.transform(polygon, lambda xy: np.stack(self._to_degrees.transform(xy[:, 0], xy[:, 1]), 1))
        return round(abs(self._geod.geometry_area_perimeter(turned)[0]), 2)


def _mean_confidence(
    polygon: shapely.Polygon, value: int, classes: rasterio.DatasetReader, sure: rasterio.DatasetReader
) -> float:
    """Mean percent over the pixels of the polygon's bounds that have its class and lie inside it."""
    window = from_bounds(*polygon.bounds, transform=classes.transform).round_offsets().round_lengths()
    window = Window(window.col_off, window.row_off, max(1, window.width), max(1, window.height))
    percent = sure.read(1, window=window)
    inside = rasterio.features.geometry_mask(
        [polygon], percent.shape, classes.window_transform(window), invert=True
    ) & (classes.read(1, window=window) == value)
    known = percent[inside & (percent != 255)]
    return round(float(known.mean()), 1) if known.size else 0.0
