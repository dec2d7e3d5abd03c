"""The `predict` job: rasters mapped with a model package."""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

from geopeft.class_raster import origin_tags
from geopeft.data.raster import open_dataset
from geopeft.errors import Canceled, GeopeftError, JobError, PackageError, unknown_error
from geopeft.events import Level, Reporter
from geopeft.holding import hold
from geopeft.job import PredictJob
from geopeft.mapper import Mapper
from geopeft.mapping.strips import axes_of
from geopeft.maps import sharing
from geopeft.maps.one_map import map_one, written
from geopeft.maps.parts import name_of
from geopeft.onnx.model import open_mapper
from geopeft.runtime import peak_memory_mb
from geopeft.writing import identities, identity, keep_inputs, write_bytes

# Number of a raster, what became of it, and the seconds that it took.
Outcome: TypeAlias = tuple[int, "dict[str, Any] | Exception", float]
_RASTER_SUFFIXES = (".tif", ".tiff")
# What no file system takes in a name, and how much of a raster's name a map keeps, in bytes.
_UNFIT = re.compile(r'[<>:"/\\|?*\x00-\x1f]+')
_NAME_BYTES = 180


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
    # Where others do the work, no GPU is taken here.
    device = "cpu" if job.scheduler else job.device
    runtime = open_mapper(Path(job.model), device, job.weights_dir, reporter)
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
    done: dict[int, dict[str, Any]] = {}
    failed: dict[int, dict[str, str]] = {}
    first_error: Exception | None = None
    each = sharing.outcomes if job.scheduler else _one_after_another
    for index, outcome, seconds in each(job, runtime, targets, origin, ends, reporter):
        raster = job.rasters[index]
        if isinstance(outcome, Exception):
            first_error = first_error or outcome
            failed[index] = failure = _failure(raster, outcome)
            # The frames would keep whole strips of the map in memory until the end of the job.
            traceback.clear_frames(outcome.__traceback__)
            values = {"seconds": round(seconds, 2)}
            events.emit("metric", stage="raster", step=index + 1, values=values, raster=raster, failure=failure)
            if count > 1:
                reporter.warn(f"{name_of(raster)} is left out: {failure['message']} {failure['hint']}".strip())
        else:
            done[index] = outcome
            values = {"seconds": outcome["seconds"]}
            events.emit("metric", stage="raster", step=index + 1, values=values, raster=raster, outputs=outcome)
    if first_error is not None and not done:
        raise first_error
    failures = [failed[index] for index in sorted(failed)]
    if failures:
        names = ", ".join(name_of(failure["raster"]) for failure in failures)
        reporter.warn(f"{len(done)} of {count} rasters are mapped; left out: {names}.")
    return [done[index] for index in sorted(done)], failures


def _one_after_another(
    job: PredictJob,
    runtime: Mapper,
    targets: Sequence[Path],
    origin: Mapping[str, str],
    ends: Sequence[int],
    reporter: Reporter,
) -> Iterator[Outcome]:
    """Maps the rasters in this process.

    Args:
        ends: windows of the rasters up to each.
    """
    for index, (raster, target) in enumerate(zip(job.rasters, targets, strict=True)):
        start = time.monotonic()
        before = ends[index - 1] if index else 0
        part = _OneOfMany(reporter, before, ends[index] - before, ends[-1])
        if len(targets) > 1:
            reporter.message(f"Raster {index + 1} of {len(targets)}: {name_of(raster)}")
        outcome = _attempt(job, runtime, raster, target, origin, part)
        yield index, outcome, time.monotonic() - start
        reporter.progress("predict", ends[index], ends[-1])


def _attempt(
    job: PredictJob, runtime: Mapper, raster: str, target: Path, origin: Mapping[str, str], reporter: Reporter
) -> dict[str, Any] | Exception:
    """The entry of a raster, or what went wrong; a frame of its own, which ends before others are cleared with it."""
    try:
        with hold(target, *written(job, target)):
            return map_one(job, runtime, raster, target, origin, reporter)
    except Canceled:
        raise
    except Exception as error:
        return error


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
    rows, columns = axes_of(runtime, shape)
    return len(rows) * len(columns)


def _failure(raster: str, error: Exception) -> dict[str, str]:
    """An error as plain data; what is no sentence yet becomes one, and its traceback goes to the log."""
    if not isinstance(error, GeopeftError):
        traceback.print_exception(error, file=sys.stderr)
        error = unknown_error(error, "raster")
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
        keep_inputs(written(job, out), inputs, "The map")
        return [out]
    read = identities(inputs)
    targets: list[Path] = []
    taken: set[str] = set()
    for raster in job.rasters:
        stem, number = f"{_stem(raster)}_map", 1
        target = out / f"{stem}.tif"
        # Some file systems take A.tif and a.tif for one.
        while target.name.casefold() in taken or any(identity(path) in read for path in written(job, target)):
            number += 1
            target = out / f"{stem}_{number}.tif"
        taken.add(target.name.casefold())
        targets.append(target)
    return targets


def _stem(raster: str) -> str:
    stem = _UNFIT.sub("_", Path(name_of(raster)).stem).strip(" ._")
    return stem.encode()[:_NAME_BYTES].decode(errors="ignore") or "raster"
