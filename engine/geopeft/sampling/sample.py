"""The `sample` job: draws a stratified random sample of a class raster, for its areas to be estimated from."""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from geopeft.data.label_classes import choose_color
from geopeft.data.label_shapes import grid_windows, row_col_size
from geopeft.data.labels import read_area
from geopeft.data.pixel_area import PixelAreas
from geopeft.data.pixel_shapes import PixelShapes
from geopeft.data.raster import RasterInfo, RasterReader, apply_affine, describe, open_raster, still_same
from geopeft.data.raster_labels import raster_classes, unlabelled_values
from geopeft.errors import JobError, LabelError, RasterError
from geopeft.events import Reporter
from geopeft.job import SampleJob
from geopeft.sampling.design import Design, Stratum, check_outputs, refuse_labelled, write_sample
from geopeft.sampling.stratified import allocate, points_needed
from geopeft.writing import write_bytes

WINDOW_PX = 1024
# What is expected of every class (Olofsson et al. 2014, section 5.1), where nothing is known yet.
EXPECTED_ACCURACY = 0.8
FEWEST_IN_ALL, MOST_POINTS, MOST_STRATA = 50, 100_000, 200


@dataclass(frozen=True)
class _Window:
    """A window of the map.

    Args:
        window: pixels.
        counts: pixels of each class value in it.
    """

    window: Window
    counts: dict[int, int]


class _Population:
    """The pixels that are drawn from: those of a map that have a class, and lie in an area."""

    def __init__(self, info: RasterInfo, reader: RasterReader, left_out: set[int], area: PixelShapes | None) -> None:
        self._reader, self._area = reader, area
        self._left_out = np.array(sorted(left_out))
        # Pixels of values other than 0 that are no class, as far as they have been read.
        self.without_class: Counter[int] = Counter()
        self.windows = grid_windows((0, 0, info.height, info.width), WINDOW_PX)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values and which of the pixels count, both (h, w)."""
        (values,), (there,) = self._reader.read_native(window)
        if self._area is not None:
            inside = np.zeros(there.shape, bool)
            for _, where, mask in self._area.masks(window):
                inside[where] |= mask
            there = there & inside
        without = there & np.isin(values, self._left_out)
        self.without_class.update(values[without & (values != 0)].tolist())
        return values, there & ~without


def run(job: SampleJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a sample job.

    Returns:
        `sample` (the GeoPackage), `points`, `strata` (value, name, color, pixels, area_m2, points of each), `why` (how
        many points, as a sentence), `classes` (name and colour of what the points may be labelled as), `seconds`.

    Raises:
        RasterError: MAP_NOT_CLASSES, MAP_EMPTY, or as of `describe`.
        JobError: SAMPLE_TOO_LARGE, SAMPLE_HAS_LABELS, AREA_OUTSIDE, OUTPUT_IS_INPUT.
        LabelError: as of `read_area`.
    """
    start = time.monotonic()
    check_outputs([job.out, job.json_file], [job.map, job.aoi])
    refuse_labelled(Path(job.out))
    with _open(job, reporter) as (info, population, names, colors):
        areas = PixelAreas(info)
        windows, square_m, checksum = _count(population, areas, info, reporter)
        for value, count in sorted(population.without_class.items()):
            reporter.warn(
                f"{count} pixels of value {value} have no class and are left out; name the value to draw them."
            )
        strata, why = _share_out(job, windows, square_m, names, colors)
        reporter.message(why)
        design = _draw(job, info, population, areas, windows, strata, checksum, reporter)
    still_same(info)
    write_sample(Path(job.out), design)
    result: dict[str, Any] = {
        "points": len(design.stratum),
        "strata": [dict(vars(one)) for one in strata],
        "classes": [{"name": one.name, "color": one.color} for one in strata if not is_unknown(one)],
        "why": why,
        "seconds": round(time.monotonic() - start, 2),
    }
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(result, indent=1, ensure_ascii=False).encode())
        result["json"] = job.json_file
    reporter.message("Label the points in the order of their numbers, without looking at the map; leave none out.")
    return {"sample": job.out, **result}


def is_unknown(stratum: Stratum) -> bool:
    """Whether a stratum is what a map of ours was too unsure of, which is no class of the ground."""
    return stratum.value == 255 and "unknown" in stratum.name.casefold()


@contextmanager
def _open(
    job: SampleJob, reporter: Reporter
) -> Iterator[tuple[RasterInfo, _Population, dict[int, str], dict[int, str]]]:
    info = describe(job.map, classes=True)
    if len(info.bands) != 1 or np.dtype(info.dtype).kind not in "iu":
        raise RasterError(
            f"{job.map} is no map of classes: it has {len(info.bands)} bands of {info.dtype}.",
            "Choose a raster of one band that holds whole numbers, one for each class.",
            "MAP_NOT_CLASSES",
        )
    names, colors = raster_classes(info)
    left_out = unlabelled_values(info, names, set())
    area = _area(job, info, reporter)
    with open_raster(info, (info.bands[0].index,)) as reader:
        yield info, _Population(info, reader, left_out, area), names, colors


def _area(job: SampleJob, info: RasterInfo, reporter: Reporter) -> PixelShapes | None:
    if not job.aoi:
        return None
    try:
        (area,) = read_area(job.aoi, [info], reporter)
    except LabelError as error:
        if error.code != "LABELS_OUTSIDE":
            raise
        message = f"{job.map} lies outside the area of interest {job.aoi}."
        raise JobError(message, "Choose another area, or another map.", "AREA_OUTSIDE") from error
    return area


def _count(
    population: _Population, areas: PixelAreas, info: RasterInfo, reporter: Reporter
) -> tuple[list[_Window], dict[int, float], str]:
    """The first pass: pixels of each class in each window, the classes' areas in m2, and a checksum of the classes."""
    windows: list[_Window] = []
    square_m: dict[int, float] = {}
    checksum = 0
    for number, window in enumerate(population.windows):
        reporter.progress("count", number, len(population.windows))
        values, there = population.read(window)
        row, col, height, width = row_col_size(window)
        ground = areas.of(np.arange(row, row + height)[:, None], np.arange(col, col + width)[None, :])
        found, counts, sums = _tally(values[there], ground[there])
        for value, area in zip(found.tolist(), sums.tolist(), strict=True):
            square_m[value] = square_m.get(value, 0.0) + area
        windows.append(_Window(window, dict(zip(found.tolist(), counts.tolist(), strict=True))))
        checksum = zlib.crc32(np.where(there, values, 0).astype(np.int64).tobytes(), checksum)
        if len(square_m) > MOST_STRATA:
            raise RasterError(
                f"{info.path} holds more than {MOST_STRATA} different values: it is no map of classes.",
                "Choose a raster of class numbers.",
                "MAP_NOT_CLASSES",
            )
    reporter.progress("count", len(windows), len(windows))
    if not square_m:
        raise RasterError(
            f"{info.path} has no pixel with a class in the area to draw from.",
            "Choose another map, or another area of interest.",
            "MAP_EMPTY",
        )
    return windows, square_m, f"{checksum:08x}"


def _tally(values: NDArray[Any], ground: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The different values (v,), how often each is there, and its area."""
    if values.dtype.itemsize == 1 and values.dtype.kind == "u":
        counts = np.bincount(values, minlength=256)
        found = np.flatnonzero(counts)
        return found, counts[found], np.bincount(values, ground, 256)[found]
    found, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return found, counts, np.bincount(inverse, ground, len(found))


def _share_out(
    job: SampleJob,
    windows: Sequence[_Window],
    square_m: dict[int, float],
    names: dict[int, str],
    colors: dict[int, str],
) -> tuple[tuple[Stratum, ...], str]:
    """The strata with their points, and why so many."""
    values = sorted(square_m)
    pixels = np.array([sum(one.counts.get(value, 0) for one in windows) for value in values])
    areas = np.array([square_m[value] for value in values])
    needed = points_needed(areas, pixels, job.standard_error, EXPECTED_ACCURACY)
    total = min(job.points or max(needed, FEWEST_IN_ALL), int(pixels.sum()))
    points = allocate(total, areas, pixels, job.fewest)
    if points.sum() > MOST_POINTS:
        raise JobError(
            f"The sample would have {points.sum()} points, more than {MOST_POINTS}.",
            "Ask for fewer points, or for a larger standard error.",
            "SAMPLE_TOO_LARGE",
        )
    named = [names.get(value, "").strip() or f"class {value}" for value in values]
    used = dict(colors)
    for value, name in zip(values, named, strict=True):
        if value not in used:
            used[value] = choose_color(name, list(used.values()))
    strata = tuple(
        Stratum(value, name, used[value], int(count), float(area), int(drawn))
        for value, name, count, area, drawn in zip(values, named, pixels, areas, points, strict=True)
    )
    return strata, _why(job, needed, points, np.minimum(job.fewest, pixels))


def _why(job: SampleJob, needed: int, points: np.ndarray, least: np.ndarray) -> str:
    total = int(points.sum())
    if job.points:
        reason = f"{job.points} were asked for"
    else:
        reason = (
            f"{needed} are needed for a standard error of {job.standard_error:g} of the overall accuracy if "
            f"{EXPECTED_ACCURACY:.0%} of each class are right"
        )
        reason += f", and a sample has at least {FEWEST_IN_ALL}" if needed < FEWEST_IN_ALL else ""
    lifted = int((points == least).sum())
    few = f"the least, {job.fewest} or all"
    some = "in proportion to area"
    if lifted == len(points):
        some = f"each class gets {few} of its pixels"
    elif lifted:
        some = f"{lifted} of {len(points)} classes get {few} of their pixels, the others share the rest by area"
    return f"{total} points in {len(points)} mapped classes: {reason}; {some}."


def _draw(
    job: SampleJob,
    info: RasterInfo,
    population: _Population,
    areas: PixelAreas,
    windows: Sequence[_Window],
    strata: Sequence[Stratum],
    checksum: str,
    reporter: Reporter,
) -> Design:
    """The second pass: pixels are chosen by their rank within their stratum, and found where they are."""
    rng = np.random.default_rng(job.seed)
    chosen = [np.sort(rng.choice(one.pixels, one.points, replace=False)) for one in strata]
    found: list[NDArray[np.int64]] = []
    before = [0] * len(strata)
    for number, one in enumerate(windows):
        reporter.progress("draw", number, len(windows))
        wanted = []
        for at, stratum in enumerate(strata):
            count = one.counts.get(stratum.value, 0)
            low, high = np.searchsorted(chosen[at], [before[at], before[at] + count])
            wanted.append(chosen[at][low:high] - before[at])
            before[at] += count
        if any(map(len, wanted)):
            found.append(_pixels(population, one.window, strata, wanted))
    reporter.progress("draw", len(windows), len(windows))
    # In random order the first points of each stratum that are labelled are a random sample themselves.
    stratum, rows, cols = rng.permutation(np.concatenate(found)).T
    x, y = apply_affine(info.geobox.affine, cols + 0.5, rows + 0.5)
    facts = {
        "map": Path(info.path).name,
        "map_checksum": checksum,
        "area_of_interest": Path(job.aoi.rpartition(":")[0] or job.aoi).name,
        "seed": job.seed,
        "mean_pixel_m2": sum(one.area_m2 for one in strata) / sum(one.pixels for one in strata),
    }
    return Design(tuple(strata), stratum, x, y, areas.of(rows, cols), info.geobox.affine, info.crs.to_wkt(), facts)


def _pixels(
    population: _Population, window: Window, strata: Sequence[Stratum], wanted: Sequence[np.ndarray]
) -> NDArray[np.int64]:
    """(n, 3) stratum, row and column of pixels that are wanted by their rank within a window."""
    values, there = population.read(window)
    row, col, _, width = row_col_size(window)
    parts = []
    for at, (stratum, ranks) in enumerate(zip(strata, wanted, strict=True)):
        if len(ranks):
            flat = np.flatnonzero((values == stratum.value) & there)[ranks]
            parts.append(np.stack([np.full(len(flat), at), row + flat // width, col + flat % width], 1))
    return np.concatenate(parts)
