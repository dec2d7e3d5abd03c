"""Labelled pixels with their features out of texture tiles: a sample that a new label changes as little as possible."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from rasterio.windows import Window

from geopeft.data.labels import IGNORE, Labels
from geopeft.data.raster import RasterInfo, RasterReader
from geopeft.data.scattered import scattered
from geopeft.forest import Pixels
from geopeft.texture_tiles import TILE_PX, TextureTiles, Tile, View

# Enough for a first map within a second; training itself looks at more.
PIXELS_PER_CLASS, MOST_PIXELS = 500, 3000
# Tiles with labels that are looked at; for classes that have shown no pixel yet, so many times as many.
MOST_TILES, MORE_FOR_MISSING = 160, 3
# What they may take of the tiles' memory, so that they are there the next time.
LABEL_SHARE = 0.35
# Of a shape, or of the unlabelled pixels, tiles that may be looked at.
TILES_OF_A_SHAPE = 1024
# Of all ground, tiles along each axis, and pixels of each.
GROUND_TILES, PIXELS_OF_A_TILE = 5, 128


def gather_tiles(
    view: View, reader: RasterReader, labels: Labels, tiles: TextureTiles, before_run: Callable[[], None]
) -> Pixels:
    """A sample of the labelled pixels of one raster: every class weighs the same, within it a place by its root.

    Which tiles and pixels are taken follows from where they are, not from a random number: a label that is added
    leaves the others' sample as it was, so that the map changes where the label says something new.

    Args:
        labels: on the view's grid.
        before_run: as in `TextureTiles.row`.
    """
    places: dict[tuple[int, int], int] = {}
    parts = list(_parts(view, reader, labels, tiles, before_run, places))
    class_of_place = np.array([index for index, _ in places], np.int64)
    site = np.concatenate([part.places for part in parts] or [class_of_place])
    kept, weights = _sample(class_of_place, site, np.concatenate([part.order for part in parts] or [site]))
    starts = np.cumsum([0, *(len(part.rows) for part in parts)])
    features = [np.zeros((0, view.texture.count), np.float32)]
    for part, start, own in zip(parts, starts, np.split(kept, np.searchsorted(kept, starts[1:])), strict=False):
        features.append(part.tile.features[part.rows[own - start], part.cols[own - start]].float().numpy())
    deep = np.zeros((len(kept), 0), np.float32)
    return Pixels(np.concatenate(features), deep, class_of_place[site[kept]], weights, site[kept])


def gather_ground_tiles(
    view: View, reader: RasterReader, tiles: TextureTiles, before_run: Callable[[], None]
) -> np.ndarray:
    """(m, F) float32 features of pixels with data, from tiles that are spread over the raster."""
    found = [np.zeros((0, view.texture.count), np.float32)]
    ends = (-(-side // TILE_PX) - 1 for side in (view.grid.height, view.grid.width))
    for row, col in product(
        *(sorted(set(np.linspace(0, end, GROUND_TILES).round().astype(int).tolist())) for end in ends)
    ):
        tile = tiles.row(view, reader, row, col, 1, before_run, keep=False)[0]
        rows, cols = np.nonzero(tile.valid)
        some = np.argsort(scattered(rows + row * TILE_PX, cols + col * TILE_PX), kind="stable")[:PIXELS_OF_A_TILE]
        found.append(tile.features[rows[some], cols[some]].float().numpy())
    return np.concatenate(found)


@dataclass(frozen=True, eq=False)
class _Part:
    """The labelled pixels of a tile: where they are in it, and (n,) the place and the order of each."""

    tile: Tile
    rows: np.ndarray
    cols: np.ndarray
    places: np.ndarray
    order: np.ndarray


def _parts(
    view: View,
    reader: RasterReader,
    labels: Labels,
    tiles: TextureTiles,
    before_run: Callable[[], None],
    places: dict[tuple[int, int], int],
) -> Iterator[_Part]:
    """Tile by tile; `places` gets a number for each place, which is a class and a group."""
    most = min(MOST_TILES, int(LABEL_SHARE * tiles.budget_bytes / (TILE_PX**2 * view.bytes_per_pixel)))
    for row, col, class_ids, group_ids in _labelled_tiles(labels, view.grid, max(most, 1)):
        tile = tiles.row(view, reader, row, col, 1, before_run)[0]
        rows, cols = np.nonzero((class_ids != IGNORE) & tile.valid)
        pairs, where = np.unique(group_ids[rows, cols] * 256 + class_ids[rows, cols], return_inverse=True)
        numbers = [places.setdefault((pair % 256, pair // 256), len(places)) for pair in pairs.tolist()]
        order = scattered(rows + row * TILE_PX, cols + col * TILE_PX)
        yield _Part(tile, rows, cols, np.array(numbers, np.int64)[where], order)


def _labelled_tiles(labels: Labels, grid: RasterInfo, most: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """(row, col, class ids, group ids (h, w)) of at most about `most` tiles that hold labels, each class in turn."""
    queues = {index: iter(places) for index, places in enumerate(_candidates(labels)) if places}
    seen: set[tuple[int, int]] = set()
    there: set[int] = set()
    while queues:
        for index in list(queues):
            if len(seen) >= (most if index in there else MORE_FOR_MISSING * most):
                del queues[index]
                continue
            place = next((place for place in queues[index] if place not in seen), None)
            if place is None:
                del queues[index]
                continue
            seen.add(place)
            row, col = place
            top, left = row * TILE_PX, col * TILE_PX
            window = Window(left, top, min(TILE_PX, grid.width - left), min(TILE_PX, grid.height - top))
            class_ids, shape_ids = labels.burn(0, window)
            found = set(np.unique(class_ids).tolist()) - {IGNORE}
            if found:
                there |= found
                # Pixels without a shape, the background, belong to their tile.
                tile = -1 - (row * 1_000_000_000 + col)
                yield row, col, class_ids, np.where(shape_ids >= 0, shape_ids.astype(np.int64), tile)


def _candidates(labels: Labels) -> list[list[tuple[int, int]]]:
    """For each class the tiles that its shapes' boxes touch, in an order that scatters them."""
    places: list[set[tuple[int, int]]] = [set() for _ in labels.classes]
    for shape in labels.shapes:
        places[shape.class_index].update(_tiles_in(shape.bounds_px))
    if labels.background >= 0:
        places[labels.background].update(_tiles_in(labels.extent_px(0)))
    return [_ordered(sorted(found)) for found in places]


def _tiles_in(bounds_px: tuple[int, int, int, int]) -> Iterator[tuple[int, int]]:
    row0, col0, row1, col1 = bounds_px
    rows, cols = (range(low // TILE_PX, -(-high // TILE_PX)) for low, high in ((row0, row1), (col0, col1)))
    step = max(1, math.ceil(math.sqrt(len(rows) * len(cols) / TILES_OF_A_SHAPE)))
    return product(rows[::step], cols[::step])


def _ordered(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    if not places:
        return []
    rows, cols = np.array(places).T
    return [places[at] for at in np.argsort(scattered(rows, cols), kind="stable")]


def _sample(class_of_place: np.ndarray, place: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the pixels that are kept, and their weights, which are 1 on average.

    Args:
        class_of_place: (p,) the class of each place.
        place: (n,) the place of each pixel.
        order: (n,) pixels of a place are taken in this order.
    """
    sizes = np.bincount(place, minlength=len(class_of_place))
    roots = np.sqrt(sizes)
    per_class = min(PIXELS_PER_CLASS, MOST_PIXELS / max(len(np.unique(class_of_place)), 1))
    wanted = np.ceil(per_class * roots / np.bincount(class_of_place, roots)[class_of_place]).astype(np.int64)
    sequence = np.lexsort((order, place))
    rank = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = np.sort(sequence[rank < wanted[place[sequence]]])
    weights = roots[place[kept]] / np.bincount(place[kept], minlength=len(sizes))[place[kept]]
    weights /= np.bincount(class_of_place[place[kept]], weights)[class_of_place[place[kept]]]
    return kept, weights * len(kept) / max(weights.sum(), 1e-9)
