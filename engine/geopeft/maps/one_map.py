"""One raster of a `predict` job: its map, the layers beside it, and what is told of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from geopeft.class_raster import PERCENT_LAYERS, RowBuffer, class_raster, legend_of
from geopeft.data.raster import RasterInfo, describe, still_same
from geopeft.errors import JobError
from geopeft.events import Reporter
from geopeft.holding import part_of
from geopeft.job import PredictJob
from geopeft.mapper import Mapper
from geopeft.mapping.pipeline import behind
from geopeft.mapping.strips import Seen
from geopeft.maps.drawing import Work
from geopeft.maps.parts import (
    Order,
    PartStore,
    Tally,
    identity_of,
    kept,
    name_of,
    order_of,
    parts_of,
)
from geopeft.vectorize import vectorize
from geopeft.writing import check_target, identity

# Of the rasters that a model was trained on, less than this lies outside what it has seen.
MUCH_OUTSIDE = 0.25
# Least and most memory for blocks of rasters.
CACHE_BYTES = 64 << 20, 384 << 20


def written(job: PredictJob, target: Path) -> list[Path]:
    """The files that a raster's map is made of."""
    polygons = [polygons_path(target)] if job.polygons else []
    return [target, Path(f"{target}.aux.xml"), *layer_paths(job, target).values(), *polygons]


def layer_paths(job: PredictJob, target: Path) -> dict[str, Path]:
    """The rasters beside the map that are asked for, by their names."""
    return {name: target.with_name(f"{target.stem}_{name}.tif") for name in PERCENT_LAYERS if getattr(job, name)}


def polygons_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}_polygons.gpkg")


def map_one(
    job: PredictJob, runtime: Mapper, raster: str, target: Path, origin: Mapping[str, str], reporter: Reporter
) -> dict[str, Any]:
    """Writes what is wanted of one raster and describes it. What a run before has mapped of it is not mapped again.

    Args:
        job: what is wanted.
        target: the class raster.
        origin: tags of `origin_tags`.
    """
    start = time.monotonic()
    info = describe(raster)
    order = order_of(job, info)
    store = PartStore.beside(target, identity_of(origin["GEOPEFT_MODEL_SHA256"], order), order)
    legend = legend_of(runtime.manifest.classes, job.unknown_below > 0)
    _refuse_overwriting(job, info, target)
    asked, polygons = layer_paths(job, target), polygons_path(target)
    # Polygons need the confidence; where nobody else does, it is a file that comes and goes.
    layers = asked if not job.polygons else {"confidence": part_of(target, ".confidence.tif")} | asked
    check_target(target, info.height * info.width * (1 + len(layers)))
    try:
        origin = {**origin, "GEOPEFT_RASTER": name_of(raster)}
        begin = partial(class_raster, target, layers, info, legend, origin, order.unknown_below)
        with rasterio.Env(GDAL_CACHEMAX=_cache_bytes(runtime, info)):
            tally = _write_map(runtime, order, store, begin, reporter)
        if job.polygons:
            names = {entry["value"]: entry["name"] for entry in legend}
            count = vectorize(target, layers["confidence"], names, polygons, reporter)
            reporter.message(f"{count} polygons written.")
    finally:
        for path in set(layers.values()) - set(asked.values()):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    store.remove()
    outside = tally.outside / tally.judged if tally.judged else None
    _tell(job, name_of(raster), tally, outside, reporter)
    return {
        "raster": raster,
        "class_raster": str(target),
        **{name: str(asked[name]) if name in asked else None for name in PERCENT_LAYERS},
        "polygons": str(polygons) if job.polygons else None,
        "mapped_share": round(tally.mapped / (info.height * info.width), 4),
        "unknown_share": round(tally.unknown / max(tally.mapped, 1), 4),
        "outside_share": round(outside, 4) if outside is not None else None,
        "seconds": round(time.monotonic() - start, 2),
        "classes": legend,
    }


def _cache_bytes(runtime: Mapper, info: RasterInfo) -> int:
    """Memory for GDAL's blocks: those that a row of windows touches, so that few are decompressed twice.

    GDAL would take a twentieth of the machine's memory.
    """
    height = info.block_shape[0]
    rows = (runtime.window_px // height + 2) * height
    bands = len(runtime.manifest.spec.bands) * np.dtype(info.dtype).itemsize
    return min(max(rows * info.width * bands, CACHE_BYTES[0]), CACHE_BYTES[1])


def _write_map(
    runtime: Mapper,
    order: Order,
    store: PartStore,
    begin: Callable[[], AbstractContextManager[RowBuffer]],
    reporter: Reporter,
) -> Tally:
    """Writes class raster and the layers beside it, while the windows further down are read and looked at."""
    info = order.info
    parts = parts_of(info)
    is_cut = len(parts) > 1
    groups = [(there, tuple(run)) for there, run in groupby(parts, lambda part: is_cut and store.has(part))]
    before = sum(len(run) for there, run in groups if there)
    if 0 < before < len(parts):
        reporter.message(
            f"{before} of {len(parts)} parts of {name_of(info.path)} were mapped before; it goes on there."
        )
    work = Work(runtime, order, reporter)
    total = len(work.mapping.rows) * len(work.mapping.columns)
    failures: list[str] = []

    def look() -> Generator[Seen, None, None]:
        for there, run in groups:
            if not there:
                yield from work.look(run, lambda windows: reporter.progress("predict", windows, total))

    def write(seen: Iterator[Seen]) -> Tally:
        tally = Tally()
        with begin() as raster:
            for there, run in groups:
                rows = chain.from_iterable(map(store.rows, run)) if there else work.rows(run, seen)
                if is_cut and not there:
                    rows = kept(store, run, info, rows, failures)
                for found in rows:
                    (raster.add_rows if found.tally.mapped else raster.skip)(found.values)
                    tally += found.tally
            # Nothing is put in its place before the other side is through: it may be canceled at its last window.
            for _ in seen:
                pass
            still_same(info)
        return tally

    tally = behind(look(), write)
    if failures:
        reporter.warn(f"If this job had been interrupted, it would have begun anew: {failures[0]}")
    return tally


def _tell(job: PredictJob, name: str, tally: Tally, outside: float | None, reporter: Reporter) -> None:
    """What should be known before a map is believed; `outside` is the part that is like nothing the model has seen."""
    if not tally.mapped:
        reporter.warn(f"{name} holds no pixel to map: the map is empty.")
        return
    if outside is not None and outside > MUCH_OUTSIDE:
        reporter.warn(
            f"{outside:.0%} of {name} lies outside what the model has seen: do not trust the map there; label some of "
            "it and train again."
        )
    if job.unknown_below > 0:
        sure = f"the model is less than {job.unknown_below:g} % sure there"
        reporter.message(f"{tally.unknown / tally.mapped:.0%} of the map of {name} is unknown: {sure}.")


def _refuse_overwriting(job: PredictJob, info: RasterInfo, target: Path) -> None:
    """A raster may be made of other files, such as those behind a VRT."""
    sources = {identity(path) for path in info.files} - {None}
    for path in written(job, target):
        if identity(path) in sources:
            message = f"The map of {info.path} would overwrite {path}, which it is made of."
            raise JobError(message, "Choose another output.", "OUTPUT_IS_INPUT")
