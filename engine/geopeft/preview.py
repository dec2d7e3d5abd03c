"""The `preview` job: the first map of a part of a raster, from labels that change while it is looked at.

The map is the classical part of a model, fitted on all labels. In a process that stays, what does not depend on the
labels is kept from one job to the next.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from geopeft.class_raster import class_raster, legend_of
from geopeft.classical import Classical
from geopeft.data.decimated import open_decimated
from geopeft.data.labels import Labels, read_labels
from geopeft.data.raster import RasterInfo, RasterReader, apply_affine, still_same
from geopeft.errors import JobError, LabelError
from geopeft.events import Reporter
from geopeft.forest import fit_classical
from geopeft.job import PreviewJob
from geopeft.labelled_pixels import gather_ground_tiles, gather_tiles
from geopeft.mapping.strips import Strip
from geopeft.package import ClassInfo
from geopeft.scenes import Scene, Scenes
from geopeft.texture_tiles import TILE_PX, TextureTiles, Tile, View
from geopeft.watched import side_by_side, watched
from geopeft.writing import check_target

# What the part of the raster that is looked at may take of the features' memory; labels elsewhere need the rest.
EXTENT_SHARE = 0.6


@dataclass(frozen=True)
class Box:
    """Rows and columns of a pixel grid: row0 and col0 are in it, row1 and col1 are not."""

    row0: int
    col0: int
    row1: int
    col1: int

    @property
    def pixels(self) -> int:
        """How many there are."""
        return (self.row1 - self.row0) * (self.col1 - self.col0)

    def at(self, factor: int, grid: RasterInfo) -> Box:
        """The same place on a grid whose pixels are `factor` times as wide; at least one pixel of it."""
        row0, col0 = min(self.row0 // factor, grid.height - 1), min(self.col0 // factor, grid.width - 1)
        row1, col1 = min(-(-self.row1 // factor), grid.height), min(-(-self.col1 // factor), grid.width)
        return Box(row0, col0, max(row1, row0 + 1), max(col1, col0 + 1))


@dataclass(frozen=True, eq=False)
class Taught:
    """A classifier, and what it was made from: equal keys make the same one."""

    key: str
    classes: tuple[ClassInfo, ...]
    classical: Classical


class Warm:
    """What is kept from one job to the next; its size is bounded."""

    def __init__(self, tiles: TextureTiles | None = None) -> None:
        self.tiles = tiles or TextureTiles()
        self.scenes = Scenes()
        self.taught: Taught | None = None
        self._ground: tuple[str, np.ndarray] = ("", np.zeros((0, 0), np.float32))

    def ground(self, view: View, reader: RasterReader, reporter: Reporter) -> np.ndarray:
        """(m, F) features of pixels all over the raster; those of the last view are kept."""
        if self._ground[0] != view.key:
            self._ground = view.key, gather_ground_tiles(view, reader, self.tiles, reporter.check_canceled)
        return self._ground[1]


WARM = Warm()


def run(job: PreviewJob, reporter: Reporter, warm: Warm = WARM) -> dict[str, Any]:
    """Runs a preview job.

    Args:
        warm: what earlier jobs have left.

    Returns:
        `class_raster`, `confidence` (None unless asked for), `classes` (value, name, color), `factor` (so many pixels
        of the raster, along each axis, to one of the map), `seconds`.
    """
    start = time.monotonic()
    out = Path(job.out)
    check_target(out)
    scene = warm.scenes.get(job.raster, job.bands, job.radiometry, reporter)
    window = _window(scene.info, job.extent)
    factor = _factor(window, scene, job, warm.tiles)
    with open_decimated(scene.info, factor, scene.indexes) as reader:
        view = warm.scenes.view(scene, factor, reader)
        shown = window.at(factor, view.grid)
        keep = shown.pixels * view.bytes_per_pixel <= EXTENT_SHARE * warm.tiles.budget_bytes
        if keep:
            # First what needs no labels: where these cannot teach yet, the next ones will not have to wait for it.
            for top, found in _strips(view, reader, shown, warm.tiles, reporter):
                reporter.progress("features", top + len(found[0].valid), shown.row1 - shown.row0)
        taught = _teach(job, view, reader, warm, reporter)
        confidence = out.with_name(f"{out.stem}_confidence.tif") if job.confidence else None
        layers = {"confidence": confidence} if confidence else {}
        legend = legend_of(taught.classes, False)
        with class_raster(out, layers, _cut(view.grid, shown), legend, {}) as written:
            for strip in _mapped(view, reader, shown, taught.classical, warm.tiles, reporter, keep):
                written.add(strip, strip.mapped)
    still_same(scene.info)
    return {
        "class_raster": str(out),
        "confidence": str(confidence) if confidence else None,
        "classes": legend,
        "factor": factor,
        "seconds": round(time.monotonic() - start, 3),
    }


def _window(info: RasterInfo, extent: tuple[float, ...]) -> Box:
    """The pixels that an extent (left, bottom, right, top) touches; all where it is empty."""
    if not extent:
        return Box(0, 0, info.height, info.width)
    left, bottom, right, top = extent
    corners = [apply_affine(~info.geobox.affine, x, y) for x in (left, right) for y in (bottom, top)]
    cols, rows = zip(*corners, strict=True)
    row0, col0 = max(math.floor(min(rows)), 0), max(math.floor(min(cols)), 0)
    row1, col1 = min(math.ceil(max(rows)), info.height), min(math.ceil(max(cols)), info.width)
    if row1 <= row0 or col1 <= col0:
        raise JobError(
            f"The extent {left:g}, {bottom:g}, {right:g}, {top:g} does not touch {info.path}.",
            "Give an extent in the raster's coordinates that lies on the raster.",
            "EXTENT_OUTSIDE",
        )
    return Box(row0, col0, row1, col1)


def _factor(window: Box, scene: Scene, job: PreviewJob, tiles: TextureTiles) -> int:
    """By how much the raster is seen from further away, so that neither time nor memory grow with the extent.

    Where nobody says how many pixels are wanted, it is at most as many as can be kept for the next job.
    """
    most = job.max_pixels
    if "max_pixels" not in job.model_fields_set:
        most = min(most, int(EXTENT_SHARE * tiles.budget_bytes / scene.most_bytes_per_pixel))
    return max(1, math.ceil(math.sqrt(window.pixels / max(most, 1))))


def _cut(grid: RasterInfo, box: Box) -> RasterInfo:
    """The part of a grid that is shown."""
    affine = grid.geobox.affine * Affine.translation(box.col0, box.row0)
    shape = (box.row1 - box.row0, box.col1 - box.col0)
    return replace(grid, geobox=GeoBox(shape, affine, grid.geobox.crs))


def _teach(job: PreviewJob, view: View, reader: RasterReader, warm: Warm, reporter: Reporter) -> Taught:
    """The classifier of the labels as they are now; the last one where nothing has changed but the extent."""
    key = repr((_state(job.labels), _state(job.area), view.key, job.class_field, job.classes, job.background, job.seed,
                job.line_width_px))  # fmt: skip
    if warm.taught is not None and warm.taught.key == key:
        return warm.taught
    labels = _labels(job, view.grid, reporter)
    pixels = gather_tiles(view, reader, labels, warm.tiles, reporter.check_canceled)
    names = [known.name for known in labels.classes]
    there = set(pixels.classes.tolist())
    if len(there) < 2:
        raise _cannot_teach(job, view, [name for index, name in enumerate(names) if index not in there], reporter)
    pixels = replace(pixels, ground=warm.ground(view, reader, reporter))
    model = watched(lambda: fit_classical(pixels, len(names), len(view.indexes), job.seed), reporter)
    classes = tuple(
        ClassInfo(value=index + 1, name=known.name, color=known.color, label=known.value)
        for index, known in enumerate(labels.classes)
    )
    warm.taught = Taught(key, classes, Classical(view.texture, model, len(names)))
    return warm.taught


def _state(spec: str) -> tuple[str, int, int]:
    """Changes when the file of FILE or FILE:layer does."""
    path = spec if os.path.exists(spec) else spec.rpartition(":")[0]
    try:
        stat = os.stat(path)
    except OSError:
        return spec, 0, 0
    return spec, stat.st_size, stat.st_mtime_ns


class _Quiet(Reporter):
    """Says nothing: what is wrong with a label would be said again at every other one. Cancels as usual."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def check_canceled(self) -> None:
        self._reporter.check_canceled()


def _labels(job: PreviewJob, grid: RasterInfo, reporter: Reporter, counted: bool = False) -> Labels:
    return read_labels(
        job.labels,
        job.class_field,
        [grid],
        classes=job.classes,
        background=job.background,
        area=job.area,
        line_width_px=job.line_width_px,
        counted=counted,
        reporter=_Quiet(reporter),
    )


def _cannot_teach(job: PreviewJob, view: View, missing: Sequence[str], reporter: Reporter) -> LabelError:
    """Why labels show fewer than two classes; raised where that is known already from counting their pixels."""
    try:
        _labels(job, view.grid, reporter, counted=True)
    except LabelError:
        _labels(job, view.info, reporter, counted=True)
        return LabelError(
            "The labels are too small to be told apart at this scale.", "Look at a smaller extent.", "LABELS_TOO_SMALL"
        )
    return LabelError(
        f"No valid pixel of the raster is labelled as {', '.join(missing)}.",
        "Draw labels of at least two classes where the raster has data.",
        "LABELS_EMPTY",
    )


def _strips(
    view: View, reader: RasterReader, box: Box, tiles: TextureTiles, reporter: Reporter, keep: bool = True
) -> Iterator[tuple[int, list[Tile]]]:
    """(first row in the box, tiles from left to right, cut to the box) from top to bottom."""
    first, last = box.col0 // TILE_PX, -(-box.col1 // TILE_PX)
    for tile_row in range(box.row0 // TILE_PX, -(-box.row1 // TILE_PX)):
        reporter.check_canceled()
        found = tiles.row(view, reader, tile_row, first, last - first, reporter.check_canceled, keep)
        top = tile_row * TILE_PX
        rows = slice(max(box.row0 - top, 0), min(box.row1 - top, TILE_PX))
        cut = []
        for tile, left in zip(found, range(first * TILE_PX, last * TILE_PX, TILE_PX), strict=True):
            cols = slice(max(box.col0 - left, 0), min(box.col1 - left, TILE_PX))
            cut.append(Tile(tile.features[rows, cols], tile.valid[rows, cols]))
        yield top + rows.start - box.row0, cut


def _mapped(
    view: View,
    reader: RasterReader,
    box: Box,
    classical: Classical,
    tiles: TextureTiles,
    reporter: Reporter,
    keep: bool,
) -> Iterator[Strip]:
    """The map of the box in strips."""

    def probabilities(tile: Tile) -> np.ndarray:
        height, width, count = tile.features.shape
        return classical.of_features(tile.features.reshape(-1, count).float().numpy()).reshape(height, width, -1)

    # The trees run on one core however many they are given, so it takes several tiles at once to use the others.
    for top, strip in _strips(view, reader, box, tiles, reporter, keep):
        found = np.concatenate(side_by_side(probabilities, strip, torch.get_num_threads()), 1)
        valid = np.concatenate([tile.valid for tile in strip], 1)
        yield Strip(top, np.moveaxis(found, -1, 0), valid)
        reporter.progress("preview", top + len(valid), box.row1 - box.row0)
