"""The `predict` job: rasters mapped with a model package."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window

from geopeft.data.labels import read_area
from geopeft.data.raster import RasterInfo, describe, still_same
from geopeft.errors import GeopeftError, JobError
from geopeft.events import Reporter
from geopeft.job import PredictJob
from geopeft.package import ClassInfo
from geopeft.runtime import Runtime, Strip, map_raster, peak_memory_mb
from geopeft.vectorize import vectorize
from geopeft.writing import check_target, whole_raster, write_bytes

NODATA, CONFIDENCE_NODATA = 0, 255
_BLOCK_PX = 256
_RASTER_SUFFIXES = (".tif", ".tiff")


def run(job: PredictJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a predict job. With several rasters a failed one does not stop the rest; with one it fails the job."""
    start = time.monotonic()
    targets = _targets(job)
    runtime = Runtime.open(Path(job.model), job.device, job.weights_dir, reporter)
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for raster, target in zip(job.rasters, targets, strict=True):
        try:
            done.append(_map_one(job, runtime, raster, target, reporter))
        except GeopeftError as error:
            if len(targets) == 1:
                raise
            failed.append({"raster": raster, "code": error.code, "message": error.message, "hint": error.hint})
            reporter.warn(f"{Path(raster).name} was left out: {error.message} {error.hint}")
    if not done:
        raise JobError(f"None of the {len(targets)} rasters could be mapped.", failed[0]["message"], failed[0]["code"])
    figures = {"seconds": round(time.monotonic() - start, 2), "peak_memory_mb": peak_memory_mb()}
    outputs: dict[str, Any] = {"rasters": done, "failed": failed, **figures}
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(outputs, indent=1).encode())
        outputs["json"] = job.json_file
    return outputs


def _targets(job: PredictJob) -> list[Path]:
    """Where each raster's map goes: the file named, or a folder with one file a raster; never two to one name."""
    out = Path(job.out)
    if len(job.rasters) == 1 and out.suffix.lower() in _RASTER_SUFFIXES:
        targets = [out]
    elif out.suffix.lower() in _RASTER_SUFFIXES:
        message = f"{len(job.rasters)} rasters cannot be mapped into the one file {out}."
        raise JobError(message, "Give a folder as output.", "OUTPUT_NEEDS_FOLDER")
    else:
        targets, taken = [], set()
        for raster in job.rasters:
            name, number = f"{Path(raster).stem}_map", 2
            while (unique := name if number == 2 else f"{name}_{number - 1}") in taken:
                number += 1
            taken.add(unique)
            targets.append(out / f"{unique}.tif")
    for raster, target in zip(job.rasters, targets, strict=True):
        if target.exists() and Path(raster).exists() and target.samefile(raster):
            message = f"The map would overwrite its own raster {raster}."
            raise JobError(message, "Choose another output.", "OUTPUT_IS_INPUT")
    return targets


def _map_one(job: PredictJob, runtime: Runtime, raster: str, target: Path, reporter: Reporter) -> dict[str, Any]:
    info = describe(raster)
    height, width = info.geobox.shape
    check_target(target, height * width * (2 if job.confidence or job.polygons else 1))
    classes = runtime.manifest.classes
    confidence = target.with_name(f"{target.stem}_confidence.tif") if job.confidence or job.polygons else None
    clip = _Clip(job.aoi, info, reporter) if job.aoi else None
    mapped = 0
    with ExitStack() as stack:
        finish = _finisher(classes)
        write_class = stack.enter_context(whole_raster(target, finish, **_profile(info, NODATA)))
        write_confidence = (
            stack.enter_context(whole_raster(confidence, _overviews, **_profile(info, CONFIDENCE_NODATA)))
            if confidence
            else None
        )
        rows = _RowBuffer(write_class, write_confidence, width)
        for strip in map_raster(runtime, info, job.bands, reporter, clip.touches if clip else None):
            kept = strip.mapped & clip.inside(strip) if clip else strip.mapped
            mapped += int(kept.sum())
            rows.add(strip, kept)
        rows.flush()
        still_same(info)
    if mapped == 0:
        reporter.warn(f"{Path(raster).name} holds no pixel to map: the map is empty.")
    write_bytes(Path(f"{target}.aux.xml"), _categories(classes))
    result: dict[str, Any] = {
        "raster": raster,
        "class_raster": str(target),
        "confidence": str(confidence) if job.confidence else None,
        "polygons": None,
        "classes": [{"value": c.value, "name": c.name, "color": c.color} for c in classes],
    }
    if job.polygons and confidence:
        result["polygons"] = str(_polygons(target, confidence, classes, reporter))
        if not job.confidence:
            confidence.unlink()
    return result


class _RowBuffer:
    """Gathers strips to whole rows of the file's blocks, so that no block is compressed twice."""

    def __init__(
        self,
        write_class: Callable[[np.ndarray, Window], None],
        write_confidence: Callable[[np.ndarray, Window], None] | None,
        width: int,
    ) -> None:
        self._writers = [w for w in (write_class, write_confidence) if w is not None]
        self._width = width
        self._row = 0
        self._rows: list[np.ndarray] = []

    def add(self, strip: Strip, mapped: np.ndarray) -> None:
        """Turns probabilities (K, h, W) into class values and percents, and writes the blocks that are complete."""
        best = strip.probabilities.argmax(0)
        sure = np.take_along_axis(strip.probabilities, best[None], 0)[0]
        values = np.where(mapped, best + 1, NODATA).astype(np.uint8)
        percent = np.where(mapped, np.rint(sure * 100), CONFIDENCE_NODATA).astype(np.uint8)
        self._rows.append(np.stack([values, percent][: len(self._writers)]))
        ready = sum(part.shape[1] for part in self._rows) // _BLOCK_PX * _BLOCK_PX
        if ready:
            self._write(ready)

    def flush(self) -> None:
        """Writes what is left."""
        rest = sum(part.shape[1] for part in self._rows)
        if rest:
            self._write(rest)

    def _write(self, count: int) -> None:
        rows = np.concatenate(self._rows, 1)
        for writer, array in zip(self._writers, rows[:, :count], strict=True):
            writer(array, Window(0, self._row, self._width, count))
        self._row += count
        self._rows = [rows[:, count:]]


class _Clip:
    """The area of interest on one raster."""

    def __init__(self, aoi: str, info: RasterInfo, reporter: Reporter) -> None:
        (self._shapes,) = read_area(aoi, [info], reporter)

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


def _profile(info: RasterInfo, nodata: int) -> dict[str, Any]:
    height, width = info.geobox.shape
    return {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": height,
        "width": width,
        "crs": info.crs,
        "transform": info.geobox.affine,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": _BLOCK_PX,
        "blockysize": _BLOCK_PX,
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
    }


def _finisher(classes: Sequence[ClassInfo]) -> Callable[[Path], None]:
    """Adds colours, class names and overviews to a closed class raster."""

    def finish(part: Path) -> None:
        with rasterio.open(part, "r+") as raster:
            raster.write_colormap(1, {0: (0, 0, 0, 0), **{c.value: _rgba(c.color) for c in classes}})
            raster.colorinterp = [ColorInterp.palette]
            names = {str(c.value): c.name for c in classes}
            raster.update_tags(1, CLASSES=json.dumps(names, ensure_ascii=False))
        _overviews(part, Resampling.mode)

    return finish


def _overviews(part: Path, resampling: Resampling = Resampling.average) -> None:
    with rasterio.open(part, "r+") as raster:
        factors = [2**n for n in range(1, 12) if max(raster.shape) / 2**n >= _BLOCK_PX / 2]
        if factors:
            raster.build_overviews(factors, resampling)


def _rgba(color: str) -> tuple[int, int, int, int]:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue, 255


def _categories(classes: Sequence[ClassInfo]) -> bytes:
    """GDAL's sidecar with the category names, which a GeoTIFF itself cannot hold."""
    names = {c.value: c.name for c in classes}
    rows = "".join(
        f"      <Category>{html.escape(names.get(value, 'nodata' if value == 0 else ''))}</Category>\n"
        for value in range(max(names) + 1)
    )
    return (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{rows}    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    ).encode()


def _polygons(target: Path, confidence: Path, classes: Sequence[ClassInfo], reporter: Reporter) -> Path:
    out = target.with_name(f"{target.stem}_polygons.gpkg")
    count = vectorize(target, confidence, {c.value: c.name for c in classes}, out, reporter)
    reporter.message(f"{count} polygons written.")
    return out
