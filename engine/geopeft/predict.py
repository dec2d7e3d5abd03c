"""The `predict` job: rasters mapped with a model package."""

from __future__ import annotations

import json
import math
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geopeft.class_raster import PERCENT_LAYERS, class_raster, legend_of, origin_tags
from geopeft.data.labels import read_area
from geopeft.data.raster import RasterInfo, describe, open_dataset, still_same
from geopeft.errors import (
    Canceled,
    GeopeftError,
    JobError,
    LabelError,
    PackageError,
    is_out_of_memory,
    out_of_memory,
)
from geopeft.events import Level, Reporter
from geopeft.holding import hold, part_of
from geopeft.job import PredictJob
from geopeft.mapper import Mapper
from geopeft.onnx.model import open_mapper
from geopeft.runtime import Strip, map_raster, peak_memory_mb, window_starts
from geopeft.vectorize import vectorize
from geopeft.writing import check_target, identities, identity, keep_inputs, write_bytes

_RASTER_SUFFIXES = (".tif", ".tiff")
# What no file system takes in a name, and how much of a raster's name a map keeps, in bytes.
_UNFIT = re.compile(r'[<>:"/\\|?*\x00-\x1f]+')
_NAME_BYTES = 180
# Of the rasters that a model was trained on, less than this lies outside what it has seen.
MUCH_OUTSIDE = 0.25
ENOUGH_PIXELS, SPARSE_PX = 4000, 8


def run(job: PredictJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a predict job. A raster that fails does not stop the others; when none succeeds, the first error is raised.

    Besides the progress, which counts the windows of all rasters, `metric` events of the stage `raster` tell programs
    how each raster fares: step 0 with `shares` (the part of the job that is done after each raster), then one with
    `raster` and either `outputs` or `failure` whenever a raster is finished. They come where `out` is a folder.

    Returns:
        `rasters` (one entry for each map), `failures` (raster, code, message, hint), `seconds`, `peak_memory_mb`.
    """
    start = time.monotonic()
    targets = _targets(job)
    runtime = open_mapper(Path(job.model), job.device, job.weights_dir, reporter)
    if job.outside and runtime.seen is None:
        message = (
            f"{Path(job.model).name} does not tell what it has seen: its labels lay in too few places, or it is old."
        )
        raise PackageError(message, "Train it again with more places, or leave that layer out.", "PACKAGE_NO_OUTSIDE")
    done, failures = _map_all(job, runtime, targets, reporter)
    outputs: dict[str, Any] = {
        "rasters": done,
        "failures": failures,
        "seconds": round(time.monotonic() - start, 2),
        "peak_memory_mb": peak_memory_mb(),
    }
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(outputs, indent=1).encode())
        outputs["json"] = job.json_file
    return outputs


def _map_all(
    job: PredictJob, runtime: Mapper, targets: Sequence[Path], reporter: Reporter
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The maps that were made, and the rasters that failed."""
    count = len(targets)
    origin = origin_tags(Path(job.model), runtime.manifest)
    ends = list(accumulate(_window_count(raster, runtime, reporter) for raster in job.rasters))
    events = reporter if _is_folder(job) else Reporter()
    shares = [round(end / ends[-1], 6) for end in ends]
    events.emit("metric", stage="raster", step=0, values={"rasters": count}, shares=shares)
    done: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    first_error: Exception | None = None
    for index, (raster, target) in enumerate(zip(job.rasters, targets, strict=True)):
        before = ends[index - 1] if index else 0
        start = time.monotonic()
        part = _OneOfMany(reporter, before, ends[index] - before, ends[-1])
        if count > 1:
            reporter.message(f"Raster {index + 1} of {count}: {_name(raster)}")
        try:
            with hold(target, *_written(job, target)):
                entry = _map_one(job, runtime, raster, target, origin, part)
        except Canceled:
            raise
        except Exception as error:
            first_error = first_error or error
            failure = _failure(raster, error)
            # The frames would keep whole strips of the map in memory until the end of the job.
            traceback.clear_frames(error.__traceback__)
            failures.append(failure)
            values = {"seconds": round(time.monotonic() - start, 2)}
            events.emit("metric", stage="raster", step=index + 1, values=values, raster=raster, failure=failure)
            if count > 1:
                reporter.warn(f"{_name(raster)} is left out: {failure['message']} {failure['hint']}".strip())
        else:
            done.append(entry)
            values = {"seconds": entry["seconds"]}
            events.emit("metric", stage="raster", step=index + 1, values=values, raster=raster, outputs=entry)
        reporter.progress("predict", ends[index], ends[-1])
    if first_error is not None and not done:
        raise first_error
    if failures:
        names = ", ".join(_name(failure["raster"]) for failure in failures)
        reporter.warn(f"{len(done)} of {count} rasters are mapped; left out: {names}.")
    return done, failures


class _OneOfMany(Reporter):
    """What is reported of one raster, as a part of the whole job: its windows count after those before it."""

    def __init__(self, whole: Reporter, before: int, own: int, total: int) -> None:
        super().__init__()
        self._whole = whole
        self._before, self._own, self._total = before, own, total

    def emit(self, event: str, **fields: Any) -> None:
        self._whole.emit(event, **fields)

    def check_canceled(self) -> None:
        self._whole.check_canceled()

    def message(self, text: str, level: Level = "info") -> None:
        self._whole.message(text, level)

    def progress(self, stage: str, current: int, total: int, at_most_s: float = float("inf")) -> None:
        if stage == "predict":
            current, total = self._before + self._own * current // max(total, 1), self._total
        self._whole.progress(stage, current, total, at_most_s)


def _window_count(raster: str, runtime: Mapper, reporter: Reporter) -> int:
    """How many windows a raster is mapped in; 1 for a raster that cannot be opened, which is told later."""
    reporter.check_canceled()
    try:
        with open_dataset(raster, sidecars=True) as source:
            shape = source.shape
    except Exception:
        return 1
    window, overlap = runtime.window_px, runtime.overlap_px
    rows, columns = (len(window_starts(length, min(window, length), overlap)) for length in shape)
    return rows * columns


def _failure(raster: str, error: Exception) -> dict[str, str]:
    """An error as plain data; what is no sentence yet becomes one, and its traceback goes to the log."""
    if not isinstance(error, GeopeftError):
        traceback.print_exception(error, file=sys.stderr)
        if is_out_of_memory(error):
            error = out_of_memory("raster")
        else:
            what = f"The engine met an error that it does not know ({type(error).__name__}: {error})."
            error = GeopeftError(what, "The details are in the log; please report them.")
    return {"raster": raster, "code": error.code, "message": error.message, "hint": error.hint}


def _is_folder(job: PredictJob) -> bool:
    """Whether the output is a folder, and not the name of one map."""
    out = Path(job.out)
    return out.suffix.lower() not in _RASTER_SUFFIXES or out.is_dir()


def _targets(job: PredictJob) -> list[Path]:
    """Where each raster's map goes: the file named, or a folder with one file a raster.

    No two get one name, and no input is overwritten: not the raster itself, another one of the job, the model or the
    area.
    """
    out = Path(job.out)
    inputs = (*job.rasters, job.model, job.aoi)
    if not _is_folder(job):
        if len(job.rasters) > 1:
            message = f"{len(job.rasters)} rasters cannot be mapped into the one file {out}."
            raise JobError(message, "Give a folder as output.", "OUTPUT_NEEDS_FOLDER")
        keep_inputs(_written(job, out), inputs, "The map")
        return [out]
    read = identities(inputs)
    targets: list[Path] = []
    taken: set[str] = set()
    for raster in job.rasters:
        stem, number = f"{_stem(raster)}_map", 1
        target = out / f"{stem}.tif"
        # Some file systems take A.tif and a.tif for one.
        while target.name.casefold() in taken or any(identity(path) in read for path in _written(job, target)):
            number += 1
            target = out / f"{stem}_{number}.tif"
        taken.add(target.name.casefold())
        targets.append(target)
    return targets


def _written(job: PredictJob, target: Path) -> list[Path]:
    """The files that a raster's map is made of."""
    polygons = [_polygons_path(target)] if job.polygons else []
    return [target, Path(f"{target}.aux.xml"), *_layer_paths(job, target).values(), *polygons]


def _layer_paths(job: PredictJob, target: Path) -> dict[str, Path]:
    """The rasters beside the map that are asked for, by their names."""
    return {name: target.with_name(f"{target.stem}_{name}.tif") for name in PERCENT_LAYERS if getattr(job, name)}


def _polygons_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}_polygons.gpkg")


def _name(raster: str) -> str:
    """A raster's name for people: without its folder, and without what follows a web address, which may be secret."""
    return Path(raster.partition("?")[0]).name or raster


def _stem(raster: str) -> str:
    stem = _UNFIT.sub("_", Path(_name(raster)).stem).strip(" ._")
    return stem.encode()[:_NAME_BYTES].decode(errors="ignore") or "raster"


def _map_one(
    job: PredictJob, runtime: Mapper, raster: str, target: Path, origin: Mapping[str, str], reporter: Reporter
) -> dict[str, Any]:
    """Writes what is wanted of one raster and describes it."""
    start = time.monotonic()
    info = describe(raster)
    legend = legend_of(runtime.manifest.classes, job.unknown_below > 0)
    _refuse_overwriting(job, info, target)
    asked, polygons = _layer_paths(job, target), _polygons_path(target)
    # Polygons need the confidence; where nobody else does, it is a file that comes and goes.
    layers = asked if not job.polygons else {"confidence": part_of(target, ".confidence.tif")} | asked
    check_target(target, info.height * info.width * (1 + len(layers)))
    try:
        shares = _write_map(job, runtime, info, target, layers, {**origin, "GEOPEFT_RASTER": _name(raster)}, reporter)
        if job.polygons:
            names = {entry["value"]: entry["name"] for entry in legend}
            count = vectorize(target, layers["confidence"], names, polygons, reporter)
            reporter.message(f"{count} polygons written.")
    finally:
        for path in set(layers.values()) - set(asked.values()):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    _tell(job, _name(raster), shares, reporter)
    return {
        "raster": raster,
        "class_raster": str(target),
        **{name: str(asked[name]) if name in asked else None for name in PERCENT_LAYERS},
        "polygons": str(polygons) if job.polygons else None,
        "mapped_share": round(shares.mapped, 4),
        "unknown_share": round(shares.unknown, 4),
        "outside_share": round(shares.outside, 4) if shares.outside is not None else None,
        "seconds": round(time.monotonic() - start, 2),
        "classes": legend,
    }


@dataclass(frozen=True)
class _Shares:
    """Parts from 0 to 1.

    Args:
        mapped: of the raster.
        unknown: of what is mapped, that is not sure enough.
        outside: of what is mapped, that lies outside what the model has seen; None where that is not known.
    """

    mapped: float
    unknown: float
    outside: float | None


def _tell(job: PredictJob, name: str, shares: _Shares, reporter: Reporter) -> None:
    if shares.mapped == 0:
        reporter.warn(f"{name} holds no pixel to map: the map is empty.")
        return
    if shares.outside is not None and shares.outside > MUCH_OUTSIDE:
        reporter.warn(
            f"{shares.outside:.0%} of {name} lies outside what the model has seen: do not trust the map there; label "
            "some of it and train again."
        )
    if job.unknown_below > 0:
        sure = f"the model is less than {job.unknown_below:g} % sure there"
        reporter.message(f"{shares.unknown:.0%} of the map of {name} is unknown: {sure}.")


def _refuse_overwriting(job: PredictJob, info: RasterInfo, target: Path) -> None:
    """A raster may be made of other files, such as those behind a VRT."""
    sources = {identity(path) for path in info.files} - {None}
    for path in _written(job, target):
        if identity(path) in sources:
            message = f"The map of {info.path} would overwrite {path}, which it is made of."
            raise JobError(message, "Choose another output.", "OUTPUT_IS_INPUT")


def _write_map(
    job: PredictJob,
    runtime: Mapper,
    info: RasterInfo,
    target: Path,
    layers: Mapping[str, Path],
    origin: Mapping[str, str],
    reporter: Reporter,
) -> _Shares:
    """Writes class raster and the layers beside it."""
    clip = _Clip(job.aoi, info, reporter) if job.aoi else None
    every_px = 1 if job.outside else _sparse_px(info)
    mapped = judged = outside = 0
    legend = legend_of(runtime.manifest.classes, job.unknown_below > 0)
    with class_raster(target, layers, info, legend, origin, job.unknown_below / 100) as rows:
        wanted = clip.touches if clip else None
        for strip in map_raster(runtime, info, job.bands, reporter, wanted, every_px=every_px):
            kept = strip.mapped & clip.inside(strip) if clip else strip.mapped
            mapped += int(kept.sum())
            if strip.dissimilarity is not None:
                own = strip.dissimilarity[kept & np.isfinite(strip.dissimilarity)]
                judged, outside = judged + own.size, outside + int((own > 1).sum())
            rows.add(strip, kept)
        still_same(info)
    whole = info.height * info.width
    return _Shares(mapped / whole, rows.unknown / max(mapped, 1), outside / judged if judged else None)


def _sparse_px(info: RasterInfo) -> int:
    """Rows and columns to step over so that enough pixels, and no more, tell what part of a raster lies outside."""
    return min(max(math.isqrt(info.height * info.width // ENOUGH_PIXELS), 1), SPARSE_PX)


class _Clip:
    """The area of interest on one raster."""

    def __init__(self, aoi: str, info: RasterInfo, reporter: Reporter) -> None:
        try:
            (self._shapes,) = read_area(aoi, [info], reporter)
        except LabelError as error:
            if error.code != "LABELS_OUTSIDE":
                raise
            message = f"{_name(info.path)} lies outside the area of interest {aoi}."
            raise JobError(message, "Choose another area, or leave this raster out.", "AREA_OUTSIDE") from error

    def touches(self, window: Window) -> bool:
        """Whether any pixel centre of the window lies inside."""
        return any(mask.any() for _, _, mask in self._shapes.masks(window))

    def inside(self, strip: Strip) -> np.ndarray:
        """(h, W) bool: pixels whose centre lies inside."""
        height, width = strip.mapped.shape
        inside = np.zeros((height, width), bool)
        for _, where, mask in self._shapes.masks(Window(0, strip.row, width, height)):
            inside[where] |= mask
        return inside
