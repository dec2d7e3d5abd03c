"""The `evaluate` job: a model package scored on labels."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geopeft.accuracy import Reliability, confusion, figures
from geopeft.data.chips import SQUARE_PX
from geopeft.data.labels import IGNORE, Labels, read_labels
from geopeft.data.raster import RasterInfo, describe, still_same
from geopeft.data.split import block_side_px, squares_of
from geopeft.errors import JobError, LabelError
from geopeft.events import Reporter
from geopeft.job import EvaluateJob
from geopeft.mapping.strips import Strip, map_raster
from geopeft.report import page_path, write_beside
from geopeft.runtime import Runtime, peak_memory_mb
from geopeft.writing import write_bytes


def run(job: EvaluateJob, reporter: Reporter) -> dict[str, Any]:
    """Runs an evaluate job: maps the windows that hold labels exactly as predict does, and compares."""
    start = time.monotonic()
    if job.report:
        page_path(job.report)
        if job.part:
            raise JobError("A report is of the whole map, not of a part of the model.", "Leave out the part.")
    runtime = Runtime.open(Path(job.model), job.device, job.weights_dir, reporter, job.part)
    infos = [describe(path) for path in job.rasters]
    labels = read_labels(
        job.labels,
        job.class_field,
        infos,
        background=job.background,
        area=job.area,
        line_width_px=job.line_width_px,
        minimum_classes=1,
        reporter=reporter,
    )
    to_model = _class_table(runtime, labels, reporter)
    sides = [label_block_px(labels, index) for index in range(len(infos))]
    scores = _Scores(len(runtime.manifest.classes))
    for index, info in enumerate(infos):
        _score_raster(runtime, info, index, labels, to_model, job.bands, sides[index], scores, reporter)
        still_same(info)
    names = [c.name for c in runtime.manifest.classes]
    block_m = round(float(np.mean([side * info.gsd_m for side, info in zip(sides, infos, strict=True)])), 1)
    result = figures([scores.blocks[key] for key in sorted(scores.blocks)], names, block_m)
    result["calibration"] = scores.reliability.figures()
    blocks = result["blocks"]
    result["split"] = f"the labels given, counted in {blocks} block{'s' * (blocks != 1)} of ground; no shape is cut"
    if not result["labels"]:
        message = "No labelled pixel lies where the raster has data and the model has a class."
        raise LabelError(message, "Check that labels and raster overlap.", "LABELS_EMPTY")
    result |= {"seconds": round(time.monotonic() - start, 2), "peak_memory_mb": peak_memory_mb()}
    outputs: dict[str, Any] = {"figures": result}
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(result, indent=1).encode())
        outputs["json"] = job.json_file
    reporter.message(_sentence(result))
    return outputs | write_beside(job, Path(job.model), reporter, result)


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


class _Scores:
    """What is counted: a confusion matrix for each block of ground, and how sure the map was."""

    def __init__(self, classes: int) -> None:
        self.blocks: dict[tuple[int, int, int], np.ndarray] = {}
        self.reliability = Reliability(classes)
        self._classes = classes

    def add(self, place: tuple[int, int, int], truth: np.ndarray, probabilities: np.ndarray) -> None:
        """(n,) class numbers and (n, K) probabilities of a block's pixels."""
        matrix = confusion(truth, probabilities.argmax(1), self._classes)
        self.blocks[place] = self.blocks.get(place, 0) + matrix
        self.reliability.add(truth, probabilities)


def label_block_px(labels: Labels, raster_index: int) -> float:
    """Side of the blocks of ground that a raster's labels are counted by: as wide as those of a class keep together."""
    own, centres = _shape_centres(labels, raster_index)
    classes = np.array([labels.shapes[number].class_index for number in own], np.int64)
    return block_side_px(centres, classes, SQUARE_PX)


def _shape_centres(labels: Labels, raster_index: int) -> tuple[list[int], np.ndarray]:
    """Numbers of a raster's shapes, and row and column of the middle of each, (n, 2)."""
    own = [number for number, shape in enumerate(labels.shapes) if shape.raster_index == raster_index]
    boxes = np.array([labels.shapes[number].bounds_px for number in own], np.float64).reshape(-1, 4)
    return own, (boxes[:, :2] + boxes[:, 2:]) / 2


class BlockKeys:
    """In which block of ground labelled pixels of a raster are counted: squares of `side` pixels. A shape counts as a
    whole, in the square of its middle, with those close to it (`squares_of`)."""

    def __init__(self, side: float, labels: Labels, raster_index: int) -> None:
        self._side = side
        own, centres = _shape_centres(labels, raster_index)
        self._home = dict(zip(own, squares_of(centres, side), strict=True))

    def of(self, rows: np.ndarray, cols: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        """(n, 2) int64 from the rows and columns in the raster, and the shapes (-1: none), each (n,)."""
        keys = np.stack([rows // self._side, cols // self._side], 1).astype(np.int64)
        for shape in np.unique(shapes[shapes >= 0]):
            of_shape = shapes == shape
            keys[of_shape] = self._home[int(shape)]
        return keys


def _score_raster(
    runtime: Runtime,
    info: RasterInfo,
    raster_index: int,
    labels: Labels,
    to_model: np.ndarray,
    bands: Sequence[str],
    side: float,
    scores: _Scores,
    reporter: Reporter,
) -> None:
    """Counts this raster's labelled pixels by squares of `side` pixels; a shape counts as a whole."""
    blocks = BlockKeys(side, labels, raster_index)

    def has_labels(window: Window) -> bool:
        return bool((labels.burn(raster_index, window)[0] != IGNORE).any())

    for strip in map_raster(runtime, info, bands, reporter, has_labels, "evaluate"):
        truth, shapes = _labelled(strip, labels, raster_index, to_model)
        rows, cols = np.nonzero(truth != IGNORE)
        keys = blocks.of(rows + strip.row, cols, shapes[rows, cols])
        for key in np.unique(keys, axis=0):
            at = (keys == key).all(1)
            place = (raster_index, int(key[0]), int(key[1]))
            scores.add(place, truth[rows[at], cols[at]], strip.probabilities[:, rows[at], cols[at]].T)


def _labelled(strip: Strip, labels: Labels, raster_index: int, to_model: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(truth, shape ids) of a strip, each (h, W); truth is 255 where nothing is to be compared."""
    height, width = strip.mapped.shape
    ids, shapes = labels.burn(raster_index, Window(0, strip.row, width, height))
    return np.where(strip.mapped, to_model[ids], IGNORE), shapes


def _sentence(result: dict[str, Any]) -> str:
    value, accuracy = result["miou"], result["overall_accuracy"]["value"]
    if value["value"] is None:
        return " ".join(result["left_out"])
    interval = f"{value['low']:.2f} to {value['high']:.2f}"
    left_out = "".join(f" {sentence}" for sentence in result["left_out"])
    return (
        f"mIoU {value['value']:.3f} ({interval}), overall accuracy {accuracy:.3f}, {result['labels']} labelled pixels "
        f"in {result['blocks']} blocks.{left_out}"
    )
