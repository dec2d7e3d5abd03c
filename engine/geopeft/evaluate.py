"""The `evaluate` job: a model package scored on labels."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geopeft.data.labels import IGNORE, Labels, read_labels
from geopeft.data.raster import RasterInfo, describe, still_same
from geopeft.errors import LabelError
from geopeft.events import Reporter
from geopeft.job import ClassStyle, EvaluateJob
from geopeft.objective import confusion, figures
from geopeft.runtime import Runtime, Strip, map_raster, peak_memory_mb
from geopeft.writing import write_bytes


def run(job: EvaluateJob, reporter: Reporter) -> dict[str, Any]:
    """Runs an evaluate job: maps the windows that hold labels exactly as predict does, and compares."""
    start = time.monotonic()
    runtime = Runtime.open(Path(job.model), job.device, job.weights_dir, reporter, job.part)
    infos = [describe(path) for path in job.rasters]
    labels = read_labels(
        job.labels,
        job.class_field,
        infos,
        classes=_styles(runtime),
        background=job.background,
        area=job.area,
        line_width_px=job.line_width_px,
        minimum_classes=1,
        reporter=reporter,
    )
    to_model = _class_table(runtime, labels, reporter)
    blocks: dict[tuple[int, int, int], np.ndarray] = {}
    for index, info in enumerate(infos):
        _score_raster(runtime, info, index, labels, to_model, job.bands, blocks, reporter)
        still_same(info)
    names = [c.name for c in runtime.manifest.classes]
    result = figures([blocks[key] for key in sorted(blocks)], names)
    if not result["labels"]:
        message = "No labelled pixel lies where the raster has data and the model has a class."
        raise LabelError(message, "Check that labels and raster overlap.", "LABELS_EMPTY")
    result |= {"seconds": round(time.monotonic() - start, 2), "peak_memory_mb": peak_memory_mb()}
    outputs: dict[str, Any] = {"figures": result}
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(result, indent=1).encode())
        outputs["json"] = job.json_file
    reporter.message(_sentence(result))
    return outputs


def _styles(runtime: Runtime) -> list[ClassStyle]:
    return [ClassStyle(value=c.label, name=c.name, color=c.color) for c in runtime.manifest.classes]


def _class_table(runtime: Runtime, labels: Labels, reporter: Reporter) -> np.ndarray:
    """(256,) uint8: class index of the labels -> class index of the model; 255 for classes the model does not know."""
    known = {key: i for i, c in enumerate(runtime.manifest.classes) for key in (c.label, c.name)}
    table = np.full(256, IGNORE, np.uint8)
    unknown = []
    for index, label in enumerate(labels.classes):
        if label.value in known or label.name in known:
            table[index] = known.get(label.value, known.get(label.name, IGNORE))
        else:
            unknown.append(label.name)
    if unknown and len(unknown) == len(labels.classes):
        raise LabelError(
            f"None of the labels' classes ({', '.join(unknown)}) is a class of the model.",
            f"The model knows: {', '.join(c.name for c in runtime.manifest.classes)}.",
            "LABELS_OTHER_CLASSES",
        )
    if unknown:
        reporter.warn(f"The model does not know these classes; their labels are left out: {', '.join(unknown)}.")
    return table


def _score_raster(
    runtime: Runtime,
    info: RasterInfo,
    raster_index: int,
    labels: Labels,
    to_model: np.ndarray,
    bands: Sequence[str],
    blocks: dict[tuple[int, int, int], np.ndarray],
    reporter: Reporter,
) -> None:
    """Adds this raster's confusion matrices to `blocks`, by squares of one chip; a shape counts where it begins."""
    side = runtime.manifest.spec.chip_size_px
    home: dict[int, tuple[int, int]] = {}

    def has_labels(window: Window) -> bool:
        return bool((labels.burn(raster_index, window)[0] != IGNORE).any())

    for strip in map_raster(runtime, info, bands, reporter, has_labels, "evaluate"):
        truth, shapes, predicted = _labelled(strip, labels, raster_index, to_model)
        rows, cols = np.nonzero(truth != IGNORE)
        keys = np.stack([(rows + strip.row) // side, cols // side], 1)
        owners = shapes[rows, cols]
        for shape in np.unique(owners[owners >= 0]):
            of_shape = owners == shape
            keys[of_shape] = home.setdefault(int(shape), (int(keys[of_shape][0, 0]), int(keys[of_shape][0, 1])))
        for key in np.unique(keys, axis=0):
            chosen = (keys == key).all(1)
            matrix = confusion(truth[rows, cols][chosen], predicted[rows, cols][chosen], len(runtime.manifest.classes))
            place = (raster_index, int(key[0]), int(key[1]))
            blocks[place] = blocks.get(place, 0) + matrix


def _labelled(
    strip: Strip, labels: Labels, raster_index: int, to_model: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(truth, shape ids, mapped class) of a strip, each (h, W); truth is 255 where nothing is to be compared."""
    height, width = strip.mapped.shape
    ids, shapes = labels.burn(raster_index, Window(0, strip.row, width, height))
    truth = np.where(strip.mapped, to_model[ids], IGNORE)
    return truth, shapes, strip.probabilities.argmax(0)


def _sentence(result: dict[str, Any]) -> str:
    value = result["miou"]
    interval = f" ({value['low']:.2f} to {value['high']:.2f})" if value["low"] is not None else ""
    accuracy = result["overall_accuracy"]["value"]
    return f"mIoU {value['value']:.3f}{interval}, overall accuracy {accuracy:.3f}, {result['labels']} labelled pixels."
