"""A few labels drawn as an analyst draws them: small discs inside labelled areas, from places far from each other.

The places of a class come one after the other, so that of one seed the first three are also the first three of ten.
Each next place is the farthest from those before it among a few polygons not used yet, which were drawn by the root of
their size: neither the largest only nor slivers (Mitchell 1991, best candidate). Polygons are used again, on ground
not yet labelled, where a class has no more of them; a class that is all labelled gets no more.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import _sets  # type: ignore[import-not-found]
import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

RADIUS_PX = 4.0
# Ground this near to a background set's shapes is not drawn on: their outlines are not exact.
MARGIN_PX = 4.0
CANDIDATES = 6
SQUARE_PX = 64


@dataclass(frozen=True)
class Ground:
    """Pixels of one class that may be labelled, over all parts of a region.

    Args:
        xy: (n, 2) pixel centres in the part's reference system.
        part: (n,) which part of the region.
        place: (n,) which polygon, label or square of ground of the part the pixel lies in.
        pixel_size: (parts, 2) of the parts, in units of their reference systems.
    """

    xy: NDArray[np.float64]
    part: NDArray[np.int64]
    place: NDArray[np.int64]
    pixel_size: NDArray[np.float64]


@dataclass(frozen=True)
class _Frame:
    """A part's rasters and labels: the area of each class, and where no class may be drawn."""

    crs: str
    shapes: NDArray[np.object_]
    classes: NDArray[np.object_]
    rasters: tuple[str, ...]
    pixel_size: NDArray[np.float64]


def draw(labelled: _sets.LabelledSet, region: _sets.Region, number: int, seed: int, path: Path) -> str:
    """Writes `number` labels of each class, fewer where a class has no more room, and returns FILE:layer.

    Sets whose labels are discs or points already give some of these. In sets with a background class it is drawn too,
    inside the labels' extent and away from the shapes, so that the drawn labels need no background option.
    """
    frames = [_frame(part) for part in region.parts]
    radius = 0.0 if labelled.as_they_are else RADIUS_PX
    drawn: list[tuple[list[shapely.Geometry], list[str]]] = [([], []) for _ in frames]
    names = sorted({str(name) for frame in frames for name in frame.classes})
    for name in [*names, *([labelled.background] if labelled.background else [])]:
        areas = [_areas(frame, name, labelled.background) for frame in frames]
        ground = _ground(frames, areas, name, labelled)
        rng = np.random.default_rng([seed, zlib.crc32(f"{labelled.name}/{name}".encode())])
        for pixel in spread(ground, number, radius, rng):
            part = int(ground.part[pixel])
            if labelled.as_they_are:
                shape = frames[part].shapes[ground.place[pixel]]
            else:
                shape = _disc(ground.xy[pixel], frames[part].pixel_size, areas[part])
            drawn[part][0].append(shape)
            drawn[part][1].append(name)
    return str(_sets.write_labels(path, [(f.crs, *own) for f, own in zip(frames, drawn, strict=True)]))


def spread(ground: Ground, number: int, radius_px: float, rng: np.random.Generator) -> list[int]:
    """Pixels of up to `number` places far from each other, in the order in which they are drawn."""
    chosen: list[int] = []
    distance = np.full(len(ground.place), np.inf)
    used = np.zeros(len(ground.place), np.bool_)
    places, pixels_of = np.unique(ground.part << 50 | ground.place, return_inverse=True)
    while len(chosen) < number:
        free = distance > radius_px
        if (free & ~used).any():
            free &= ~used
        room = np.bincount(pixels_of[free], minlength=len(places))
        if not room.any():
            break
        odds = np.sqrt(room) / np.sqrt(room).sum()
        few = rng.choice(len(places), min(CANDIDATES, int((room > 0).sum())), replace=False, p=odds)
        candidates = [int(rng.choice(np.flatnonzero(free & (pixels_of == place)))) for place in few]
        best = max(candidates, key=lambda pixel: distance[pixel])
        chosen.append(best)
        used |= pixels_of == pixels_of[best]
        distance = np.minimum(distance, _distance_px(ground, best))
    return chosen


def _distance_px(ground: Ground, pixel: int) -> NDArray[np.float64]:
    """(n,) distance of all pixels to one, in pixels; without end from one part to another."""
    steps = (ground.xy - ground.xy[pixel]) / ground.pixel_size[ground.part[pixel]]
    return np.where(ground.part == ground.part[pixel], np.hypot(steps[:, 0], steps[:, 1]), np.inf)


def _frame(part: _sets.Part) -> _Frame:
    crs, shapes, classes = _sets.read_labels(part.labels)
    with rasterio.open(part.rasters[0]) as raster:
        pixel_size = np.abs(np.array(raster.res))
    return _Frame(crs, shapes, classes, part.rasters, pixel_size)


def _areas(frame: _Frame, name: str, background: str) -> NDArray[np.object_]:
    """Where a label of this class may lie: its shapes, or all ground away from the shapes inside their extent."""
    if name != background:
        return frame.shapes[frame.classes == name]
    extent = shapely.box(*shapely.total_bounds(frame.shapes))
    near = shapely.union_all(shapely.buffer(frame.shapes, MARGIN_PX * frame.pixel_size.max()))
    return np.array([shapely.difference(extent, near)], object)


def _ground(frames: list[_Frame], areas: list[NDArray[np.object_]], name: str, labelled: _sets.LabelledSet) -> Ground:
    xy, parts, places = [np.zeros((0, 2))], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number, (frame, own) in enumerate(zip(frames, areas, strict=True)):
        if labelled.as_they_are:
            found = [_labels_on_rasters(frame, name)]
        elif name == labelled.background:
            found = [_squares(_pixels_inside(path, frame, own, name), at) for at, path in enumerate(frame.rasters)]
        else:
            found = [_pixels_inside(path, frame, own, name)[:2] for path in frame.rasters]
        for points, inside in found:
            xy.append(points)
            parts.append(np.full(len(points), number))
            places.append(inside)
    sizes = np.stack([frame.pixel_size for frame in frames])
    return Ground(np.concatenate(xy), np.concatenate(parts), np.concatenate(places), sizes)


def _labels_on_rasters(frame: _Frame, name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Centres and numbers of the labels of a class that lie where a raster has data."""
    numbers = np.flatnonzero(frame.classes == name)
    centres = shapely.get_coordinates(shapely.centroid(frame.shapes[numbers]))
    on = np.zeros(len(numbers), np.bool_)
    for path in frame.rasters:
        valid, transform = _valid(path)
        cols, rows = np.floor(np.stack(~transform * centres.T)).astype(np.int64)
        inside = (rows >= 0) & (rows < valid.shape[0]) & (cols >= 0) & (cols < valid.shape[1])
        on[inside] |= valid[rows[inside], cols[inside]]
    return centres[on], numbers[on]


def _pixels_inside(
    path: str, frame: _Frame, own: NDArray[np.object_], name: str
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Centres of a raster's pixels with data inside the areas, which area each is in, and its (row, col).

    Pixels that another class claims too are left out.
    """
    valid, transform = _valid(path)
    numbers = _burn(own, valid.shape, transform)
    others = frame.shapes[frame.classes != name]
    rows, cols = np.nonzero(valid & (numbers > 0) & (_burn(others, valid.shape, transform) == 0))
    x, y = rasterio.transform.xy(transform, rows, cols)
    return np.stack([x, y], 1), numbers[rows, cols].astype(np.int64) - 1, np.stack([rows, cols], 1)


def _squares(
    pixels: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]], raster: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Ground without shapes has places too: squares of the raster."""
    rows, cols = pixels[2].T // SQUARE_PX
    return pixels[0], raster << 40 | rows << 20 | cols


def _burn(shapes: NDArray[np.object_], size: tuple[int, int], transform: Affine) -> NDArray[np.int32]:
    """(h, w): number of the shape from 1 on, 0 where there is none."""
    numbered: Iterator[tuple[shapely.Geometry, int]] = ((shape, index) for index, shape in enumerate(shapes, 1))
    if not len(shapes):
        return np.zeros(size, np.int32)
    return np.asarray(rasterize(numbered, out_shape=size, transform=transform, dtype="int32"))


def _valid(path: str) -> tuple[NDArray[np.bool_], Affine]:
    """(h, w) pixels where most bands have data (one that lacks more is not used by fit), and the raster's transform."""
    with rasterio.open(path) as raster:
        return (raster.read_masks() > 0).mean(0) > 0.5, raster.transform


def _disc(xy: NDArray[np.float64], pixel_size: NDArray[np.float64], areas: NDArray[np.object_]) -> shapely.Geometry:
    """A disc of RADIUS_PX around a pixel's centre, cut to the areas."""
    circle = shapely.buffer(shapely.Point(0, 0), RADIUS_PX, quad_segs=8)
    disc = shapely.transform(circle, lambda unit: unit * pixel_size + xy)
    near = areas[shapely.intersects(areas, disc)]
    return shapely.intersection(disc, shapely.union_all(near))
