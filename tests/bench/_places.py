"""An analyst who labels squares of ground one round after the other, played on labelled sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _sets  # type: ignore[import-not-found]
import numpy as np
import shapely
from numpy.typing import NDArray

START, PER_ROUND = 3, 10
# Pixels of the unseen area that are scored.
SCORED = 20_000
MOST_PX = 768
IGNORE = 255
# Features of all tiles stay in memory from round to round.
CACHE_BYTES = 4 << 30
# A square is labelled as what covers most of its known pixels; the shape drawn is that part of it.
LEAST_KNOWN_PX = 8


@dataclass(frozen=True, eq=False)
class Scene:
    """A region whose squares can be labelled, and pixels elsewhere that score the map.

    Args:
        ground, sights, tiles, areas, side: as the engine's `suggest.look` takes them.
        corners: (n, 3) raster, row and column of the squares whose truth is known.
        classes: (n,) their classes, numbers of `names`.
        shapes: (n,) what an analyst would draw in them, in their raster's reference system.
        scored: features (m, F) of pixels in the unseen area, and their classes (m,).
    """

    ground: Any
    sights: Sequence[Any]
    tiles: Any
    areas: Any
    side: int
    names: tuple[str, ...]
    corners: NDArray[np.int64]
    classes: NDArray[np.int64]
    shapes: NDArray[np.object_]
    scored: tuple[NDArray[np.float32], NDArray[np.int64]]


@contextmanager
def open_scene(
    training: _sets.Region, unseen: _sets.Region, background: str, scratch: Path, split: bool = False
) -> Iterator[Scene]:
    """The squares of the training region that are known, and pixels of the unseen region.

    Args:
        split: the western half of the training region is labelled, and the eastern one scored, a tile apart.
    """
    from geopeft.advice import sights as sights_module
    from geopeft.advice.squares import square_px
    from geopeft.data.labels import read_area, read_labels
    from geopeft.events import Reporter
    from geopeft.job import SuggestJob
    from geopeft.texture_tiles import TextureTiles

    quiet = Reporter()
    options = {"class_field": "class", "background": background}
    rasters = training.rasters if split else (*training.rasters, *unseen.rasters)
    job = SuggestJob(rasters=rasters, labels=training.labels, out="unused", **options)  # type: ignore[arg-type]
    both = sights_module.describe_ground(job, 1, quiet)
    own = len(training.rasters)
    ground = sights_module.Ground(both.infos[:own], both.bands[:own], both.labels, both.inputs, both.units[:own])
    truth = read_labels(training.labels, reporter=quiet, rasters=ground.infos, minimum_classes=1, **options)  # type: ignore[arg-type]
    names = tuple(known.name for known in truth.classes)
    side = square_px(ground.infos[0].gsd_m)
    areas = read_area(_area(truth, ground.infos, background, split, side, scratch), ground.infos, quiet)
    with sights_module.open_sights(both) as sights:
        tiles = TextureTiles(CACHE_BYTES)
        if split:
            scored = _pixels(sights, truth, names, tiles, True)
        else:
            infos = both.infos[own:]
            other = read_labels(unseen.labels, reporter=quiet, rasters=infos, minimum_classes=1, **options)  # type: ignore[arg-type]
            scored = _pixels(sights[own:], other, names, tiles, False)
        found = _known_squares(ground, truth, areas, side)
        yield Scene(ground, sights[:own], tiles, areas, side, names, *found, scored)


def _area(truth: Any, infos: Sequence[Any], background: str, split: bool, side: int, scratch: Path) -> str:
    """FILE:layer of where truth is known: the labels, their extent where the rest is a class, or western halves."""
    parts = []
    for number, info in enumerate(infos):
        if not (background or split):
            # Polygons may be smaller than squares: those around them are candidates too.
            own = [shape.geometry for shape in truth.shapes if shape.raster_index == number]
            parts.append(
                (info.crs.to_wkt(), [shapely.union_all(shapely.buffer(own, side * info.geobox.affine.a))], ["all"])
            )
            continue
        row0, col0, row1, col1 = (0, 0, info.height, info.width // 2) if split else _middle(truth.extent_px(number))
        corners = [info.geobox.affine * at for at in ((col0, row0), (col1, row0), (col1, row1), (col0, row1))]
        parts.append((info.crs.to_wkt(), [shapely.Polygon(corners)], ["all"]))
    return str(_sets.write_labels(scratch / "area.gpkg", parts))


def _middle(extent: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """At most `MOST_PX` of an extent along each axis: every square of it is looked at in every round."""
    row0, col0, row1, col1 = extent
    row0, col0 = max(row0, (row0 + row1 - MOST_PX) // 2), max(col0, (col0 + col1 - MOST_PX) // 2)
    return row0, col0, min(row1, row0 + MOST_PX), min(col1, col0 + MOST_PX)


def _known_squares(
    ground: Any, truth: Any, areas: Any, side: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.object_]]:
    from geopeft.advice.squares import LEAST_SEEN
    from rasterio.windows import Window

    corners, classes, shapes = [], [], []
    for number, info in enumerate(ground.infos):
        window = Window(0, 0, info.width, info.height)
        known = truth.burn(number, window)[0]
        inside = np.zeros(known.shape, np.bool_)
        for _, where, mask in areas[number].masks(window):
            inside[where] |= mask
        for row in range(0, info.height - side + 1, side):
            for col in range(0, info.width - side + 1, side):
                cut = np.s_[row : row + side, col : col + side]
                own = known[cut][known[cut] != IGNORE]
                if inside[cut].mean() < LEAST_SEEN or len(own) < LEAST_KNOWN_PX:
                    continue
                most = int(np.bincount(own).argmax())
                corners.append((number, row, col))
                classes.append(most)
                shapes.append(_drawn(known[cut] == most, row, col, info.geobox.affine))
    return np.array(corners, np.int64), np.array(classes, np.int64), np.array(shapes, object)


def _drawn(mask: NDArray[np.bool_], row: int, col: int, affine: Any) -> shapely.Geometry:
    rows, cols = np.nonzero(mask)
    if mask.all():
        pixels = shapely.box(col, row, col + mask.shape[1], row + mask.shape[0])
    else:
        pixels = shapely.union_all(shapely.box(col + cols, row + rows, col + cols + 1, row + rows + 1))
    return shapely.transform(pixels, lambda xy: np.stack(affine * (xy[:, 0], xy[:, 1]), 1))


def _pixels(
    sights: Sequence[Any], truth: Any, names: Sequence[str], tiles: Any, eastern: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features and classes of a sample of the pixels whose class is known, and is one of `names`."""
    from geopeft.advice.sights import tile_window
    from geopeft.texture_tiles import TILE_PX

    table = np.full(256, IGNORE)
    for number, known in enumerate(truth.classes):
        table[number] = names.index(known.name) if known.name in names else IGNORE
    features, classes = [], []
    for raster, sight in enumerate(sights):
        for row in range(-(-sight.info.height // TILE_PX)):
            for col in range(-(-sight.info.width // TILE_PX)):
                if eastern and col * TILE_PX < sight.info.width // 2 + TILE_PX // 4:
                    continue
                own = table[truth.burn(raster, tile_window(sight.info, row, col))[0]]
                tile = tiles.row(sight.view, sight.reader, row, col, 1, lambda: None)[0]
                at = np.nonzero((own != IGNORE) & tile.valid)
                features.append(tile.features[at].float().numpy())
                classes.append(own[at])
    x, y = np.concatenate(features), np.concatenate(classes)
    kept = np.random.default_rng(0).permutation(len(y))[:SCORED]
    return x[kept], y[kept]


def simulate(
    scene: Scene, suggesting: bool, seed: int, rounds: int, scratch: Path, per_round: int = PER_ROUND
) -> list[float]:
    """mIoU after the first labels, `START` squares of each class, and after each round of some more.

    Both ways of placing begin with the same squares of a seed.
    """
    from geopeft.advice import suggest
    from geopeft.advice.squares import look_at, spread_tiles
    from geopeft.events import Reporter

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(scene.classes))
    taken = [int(at) for number in range(len(scene.names)) for at in order[scene.classes[order] == number][:START]]
    where = {tuple(corner): number for number, corner in enumerate(scene.corners.tolist())}
    tiles_with_truth = spread_tiles(scene.ground.infos, scene.areas, seed)
    reached = []
    for number in range(rounds + 1):
        ground = replace(scene.ground, labels=_labels(scene, taken, scratch))
        classical, taught = suggest.teach(scene.sights, ground, scene.tiles, seed, Reporter())
        reached.append(miou(classical, scene, ground.labels))
        if number == rounds:
            break
        if suggesting:
            found = look_at(scene.sights, tiles_with_truth, ground.labels, scene.areas, classical, scene.tiles,
                            scene.side, Reporter())  # fmt: skip
            known = np.array([tuple(corner) in where for corner in found.corners.tolist()], np.bool_)
            chosen = suggest.choose(found.of(known), taught, per_round, seed)
            taken += [where[tuple(corner)] for corner in chosen.squares.corners.tolist()]
        else:
            free = np.setdiff1d(np.arange(len(scene.classes)), taken)
            taken += rng.permutation(free)[:per_round].tolist()
    return reached


def _labels(scene: Scene, taken: Sequence[int], scratch: Path) -> Any:
    from geopeft.data.labels import read_labels
    from geopeft.events import Reporter

    parts = []
    for raster, info in enumerate(scene.ground.infos):
        own = [at for at in taken if scene.corners[at, 0] == raster]
        parts.append((info.crs.to_wkt(), scene.shapes[own], [scene.names[scene.classes[at]] for at in own]))
    path = scratch / "taken.gpkg"
    path.unlink(missing_ok=True)
    return read_labels(_sets.write_labels(path, parts), "class", scene.ground.infos, reporter=Reporter())


def miou(classical: Any, scene: Scene, labels: Any) -> float:
    """Mean intersection over union of the classes in the unseen pixels."""
    features, truth = scene.scored
    names = np.array([scene.names.index(known.name) for known in labels.classes])
    found = names[classical.of_features(features).argmax(1)]
    size = len(scene.names)
    matrix = np.bincount(truth * size + found, minlength=size * size).reshape(size, size)
    return float(_sets.whole_figures({"confusion_matrix": matrix.tolist()})["miou"])
