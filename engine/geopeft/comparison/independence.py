"""Whether labels are new to a model: which of their places it has learned from, as far as its package tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pyproj import Transformer

from geopeft.comparison.class_maps import MODEL, ClassMap, strips
from geopeft.data.chips import SQUARE_PX, Site
from geopeft.data.labels import IGNORE, Labels
from geopeft.data.raster import RasterInfo, apply_affine
from geopeft.events import Reporter

# Pixels of a place that are looked up at once; places are remembered by cells of many pixels.
_MOST_POINTS = 4096


def places_of(rows: np.ndarray, cols: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """(n,) int64: the shape that each labelled pixel belongs to, or its square of the ground where there is none."""
    squares = -1 - (rows.astype(np.int64) // SQUARE_PX * 1_000_000 + cols // SQUARE_PX)
    return np.where(shapes >= 0, shapes.astype(np.int64), squares)


def known_places(
    labels: Labels, grids: Sequence[RasterInfo], of: ClassMap, reporter: Reporter
) -> list[np.ndarray] | None:
    """For each grid the places (of `places_of`) whose labels a model has learned from; None where nobody can tell.

    What was held out of a training counts too: it stopped the training and taught in its last steps.
    """
    memory = of.memory
    if memory is None:
        return None
    found: list[np.ndarray] = []
    for index, grid in enumerate(grids):
        # The ground is remembered in the CRS of the rasters that the model was trained on.
        others = {info.crs.to_wkt(): info for info in of.rasters if info.crs != grid.crs}
        known: set[int] = set()
        for window in strips(labels.extent_px(index)):
            reporter.check_canceled()
            classes, shapes = labels.burn(index, window)
            rows, cols = np.nonzero(classes != IGNORE)
            owners = shapes[rows, cols]
            rows, cols = rows + int(window.row_off), cols + int(window.col_off)
            places = places_of(rows, cols, owners)
            sites = _sites(rows, cols, places)
            for info in (grid, *others.values()):
                moved = sites if info is grid else [_moved(site, grid, info) for site in sites]
                roles = memory.roles([info], moved)
                known.update(site.group for site, role in zip(sites, roles, strict=True) if role)
        found.append(np.array(sorted(known), np.int64))
    return found


def sentence(of: ClassMap, name: str, known: Sequence[np.ndarray] | None) -> str:
    """What is known of the independence of the labels from a map."""
    if of.kind != MODEL:
        return f"{name} is a class raster: whether it was made from these labels cannot be checked."
    if known is None:
        return f"{name} does not say where it has learned: the independence of the labels cannot be checked."
    count = sum(map(len, known))
    return f"{name} has learned from {count} of the labelled places." if count else f"The labels are new to {name}."


def _sites(rows: np.ndarray, cols: np.ndarray, places: np.ndarray) -> list[Site]:
    order = np.argsort(places, kind="stable")
    numbers, starts = np.unique(places[order], return_index=True)
    points = np.stack([rows[order], cols[order]], 1)
    sites = []
    for number, own in zip(numbers.tolist(), np.split(points, starts[1:]), strict=True):
        sites.append(Site(0, number, 0, own[:: -(-len(own) // _MOST_POINTS)], len(own)))
    return sites


def _moved(site: Site, grid: RasterInfo, info: RasterInfo) -> Site:
    """A place by the pixels of a raster in another CRS."""
    rows, cols = site.points.T + 0.5
    x, y = apply_affine(grid.geobox.affine, cols, rows)
    x, y = Transformer.from_crs(grid.crs.to_wkt(), info.crs.to_wkt(), always_xy=True).transform(x, y)
    cols, rows = apply_affine(~info.geobox.affine, np.asarray(x), np.asarray(y))
    points = np.stack([rows, cols], 1) - 0.5
    return Site(0, site.group, 0, points[np.isfinite(points).all(1)], site.pixels)
