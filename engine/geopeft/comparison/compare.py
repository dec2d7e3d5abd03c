"""The `compare` job: two maps or models judged on the same labels, and the map of where they disagree."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geopeft import __version__
from geopeft.accuracy import FEWEST_BLOCKS, class_differences, confusion, differences, figures
from geopeft.comparison.class_maps import (
    ClassMap,
    MapReader,
    UnitedClass,
    is_model,
    labels_to_united,
    map_with_model,
    read_class_raster,
    strips,
    unite,
)
from geopeft.comparison.disagreement import count_pairs, no_overlap, write_disagreement
from geopeft.comparison.independence import known_places, places_of, sentence
from geopeft.data.labels import IGNORE, Labels, read_labels
from geopeft.data.raster import RasterInfo, describe, still_same
from geopeft.data.raster_labels import covered
from geopeft.errors import JobError, LabelError
from geopeft.evaluate import BlockKeys, label_block_px
from geopeft.events import Reporter
from geopeft.job import CompareJob
from geopeft.runtime import peak_memory_mb
from geopeft.writing import check_target, keep_inputs, write_bytes

# Blocks of labels that are new to both models, from which on those that are not are left out.
ENOUGH_BLOCKS = 4
Wanted = Callable[[Window], bool]


@dataclass(frozen=True)
class _Duel:
    """Two maps on the grids of the first.

    Args:
        maps: the one and the other.
        names: what they are called.
        classes: of both.
        grids: of the first map.
        readers: of both on these grids.
    """

    maps: tuple[ClassMap, ClassMap]
    names: tuple[str, str]
    classes: tuple[UnitedClass, ...]
    grids: tuple[RasterInfo, ...]
    readers: tuple[MapReader, MapReader]


@dataclass
class _Counts:
    """Confusion matrices of both maps by block of ground: of labels that are new to both, and of the others."""

    new: dict[tuple[int, int, int], list[np.ndarray]] = field(default_factory=dict)
    known: dict[tuple[int, int, int], list[np.ndarray]] = field(default_factory=dict)
    without_map: int = 0

    def all(self) -> dict[tuple[int, int, int], list[np.ndarray]]:
        """Both together."""
        result = dict(self.new)
        for key, pair in self.known.items():
            result[key] = [a + b for a, b in zip(result[key], pair, strict=True)] if key in result else pair
        return result


def run(job: CompareJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a compare job.

    Returns:
        `one` and `other` (path, name, kind), `classes` (name and who knows it), `only_in_one`, `only_in_other`,
        `figures` (with labels; `one`, `other`, `difference`, `classes`, `better`, `sentence`, ...), `disagreement`
        (with `out`), `sentences`, `seconds`, `peak_memory_mb`.

    Raises:
        JobError: COMPARE_NOTHING, COMPARE_NO_RASTER, COMPARE_ONE_RASTER, OUTPUT_IS_INPUT.
        RasterError: RASTER_NOT_CLASSES, MAPS_NO_OVERLAP.
        LabelError: LABELS_OTHER_CLASSES, LABELS_EMPTY, or as `read_labels`.
    """
    start = time.monotonic()
    _check(job)
    heard: list[str] = []
    with tempfile.TemporaryDirectory(prefix="geopeft-") as folder:
        rasters = tuple(describe(path) for path in job.rasters) if _needs_rasters(job) else ()
        if job.rasters and not rasters:
            reporter.warn("The rasters have no effect: neither of the two is a model.")
        grids = rasters if is_model(job.one) else (describe(job.one, classes=True),)
        _check_target(job, (*rasters, *grids))
        labels = _labels(job, grids, reporter) if job.labels else None
        duel = _open(job, rasters, grids, labels, Path(folder), reporter)
        result = _describe(duel)
        heard += _class_notes(duel, reporter)
        if labels is not None:
            result["figures"] = _figures(duel, labels, reporter)
            heard += [*result["figures"]["notes"], result["figures"]["sentence"]]
        if job.out:
            result["disagreement"] = _disagreement(job, duel, reporter)
            heard.append(result["disagreement"]["sentence"])
        for info in (*rasters, *(sheet for known in duel.maps if not known.rasters for sheet in known.sheets)):
            still_same(info)
    result |= {"sentences": heard, "seconds": round(time.monotonic() - start, 2), "peak_memory_mb": peak_memory_mb()}
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(result, indent=1, ensure_ascii=False).encode())
        result["json"] = job.json_file
    return result


def _check(job: CompareJob) -> None:
    if not job.labels and not job.out:
        raise JobError(
            "There is nothing to compare by: neither labels nor an output are given.",
            "Give labels to judge both maps on, or an output for the map of where they disagree.",
            "COMPARE_NOTHING",
        )
    if _needs_rasters(job) and not job.rasters:
        name = next(Path(path).name for path in (job.one, job.other) if is_model(path))
        raise JobError(
            f"{name} is a model: it needs a raster to map.",
            "Give the rasters to map, beside the two models or maps.",
            "COMPARE_NO_RASTER",
        )
    if job.out and is_model(job.one) and len(job.rasters) > 1:
        message = f"The map of disagreement is of one raster; {len(job.rasters)} are given."
        raise JobError(message, "Give one raster, or leave out the map of disagreement.", "COMPARE_ONE_RASTER")
    if job.out and Path(job.out).suffix.lower() not in (".tif", ".tiff"):
        raise JobError(f"The map of disagreement {job.out} does not end with .tif.", "Give it a name that does.")


def _needs_rasters(job: CompareJob) -> bool:
    return is_model(job.one) or is_model(job.other)


def _check_target(job: CompareJob, infos: Sequence[RasterInfo]) -> None:
    if not job.out:
        return
    out = Path(job.out)
    read = [job.one, job.other, job.labels, *(file for info in infos for file in info.files)]
    keep_inputs([out, Path(f"{out}.aux.xml")], read, "The map of disagreement")
    check_target(out, infos[-1].height * infos[-1].width)


def _labels(job: CompareJob, grids: Sequence[RasterInfo], reporter: Reporter) -> Labels:
    return read_labels(
        job.labels,
        job.class_field,
        grids,
        background=job.background,
        area=job.area,
        line_width_px=job.line_width_px,
        minimum_classes=1,
        reporter=reporter,
    )


def _open(
    job: CompareJob,
    rasters: tuple[RasterInfo, ...],
    grids: tuple[RasterInfo, ...],
    labels: Labels | None,
    folder: Path,
    reporter: Reporter,
) -> _Duel:
    """Both maps, where a model is one of them mapped as far as that is compared."""
    paths, maps = (job.one, job.other), []
    sheets = {path: read_class_raster(path, reporter) for path in paths if not is_model(path)}
    options = {"device": job.device, "weights_dir": job.weights_dir, "bands": job.bands}
    for path, rest in zip(paths, reversed(paths), strict=True):
        if path in sheets:
            maps.append(sheets[path])
            continue
        against = sheets[rest].sheets if rest in sheets else ()
        only_labels = labels if not job.out and rasters == grids else None
        wanted = [_wanted(info, index, against, only_labels) for index, info in enumerate(rasters)]
        own, stage = folder / str(len(maps)), "predict second" if maps else "predict"
        own.mkdir()
        maps.append(map_with_model(path, rasters, wanted, own, options, reporter, stage))
    one, other = maps
    if not any(_meets(sheet, grid) for sheet in other.sheets for grid in grids):
        raise no_overlap()
    classes = unite(one.classes, other.classes)
    numbers = [
        {known.value: at for at, united in enumerate(classes) if (known := getattr(united, side)) is not None}
        for side in ("one", "other")
    ]
    is_same = len(other.sheets) == len(grids) and all(
        sheet.geobox == grid.geobox for sheet, grid in zip(other.sheets, grids, strict=True)
    )
    readers = MapReader(one.sheets, grids, numbers[0], True), MapReader(other.sheets, grids, numbers[1], is_same)
    return _Duel((one, other), _names(job), classes, grids, readers)


def _wanted(info: RasterInfo, index: int, against: Sequence[RasterInfo], labels: Labels | None) -> Wanted:
    """Which windows of a raster a model has to map: where the other map lies; where labels are if only they count."""
    boxes = [covered(sheet, info) for sheet in against]

    def wanted(window: Window) -> bool:
        row, col = int(window.row_off), int(window.col_off)
        if boxes and not any(
            row < row1 and row0 < row + window.height and col < col1 and col0 < col + window.width
            for row0, col0, row1, col1 in boxes
        ):
            return False
        return labels is None or bool((labels.burn(index, window)[0] != IGNORE).any())

    return wanted


def _meets(sheet: RasterInfo, grid: RasterInfo) -> bool:
    row0, col0, row1, col1 = covered(sheet, grid)
    return row1 > row0 and col1 > col0


def _names(job: CompareJob) -> tuple[str, str]:
    one, other = Path(job.one).name, Path(job.other).name
    return (one, other) if one != other else (f"{one} (the first)", f"{other} (the second)")


def _describe(duel: _Duel) -> dict[str, Any]:
    result: dict[str, Any] = {
        side: {"path": known.path, "name": name, "kind": known.kind}
        for side, known, name in zip(("one", "other"), duel.maps, duel.names, strict=True)
    }
    return result | {
        "only_in_one": [known.name for known in duel.classes if known.other is None],
        "only_in_other": [known.name for known in duel.classes if known.one is None],
    }


def _class_notes(duel: _Duel, reporter: Reporter) -> list[str]:
    """Sentences on classes that only one map has."""
    notes = []
    if all(known.one is None or known.other is None for known in duel.classes):
        text = "The maps have no class in common, neither by name nor by value: they differ everywhere."
        reporter.warn(text)
        notes.append(text)
    for side, name in zip(("other", "one"), duel.names, strict=True):
        alone = [known.name for known in duel.classes if getattr(known, side) is None]
        if alone:
            notes.append(f"Only {name} has: {', '.join(alone)}.")
            reporter.message(notes[-1])
    return notes


def _figures(duel: _Duel, labels: Labels, reporter: Reporter) -> dict[str, Any]:
    """Both maps on the same labels, and their difference."""
    table = labels_to_united(labels.classes, duel.classes)
    notes = _label_notes(duel, labels, table, reporter)
    known = [known_places(labels, duel.grids, of, reporter) for of in duel.maps]
    sides = [label_block_px(labels, index) for index in range(len(duel.grids))]
    counts = _count(duel, labels, table, sides, known, reporter)
    every = counts.all()
    if not every:
        message = "No labelled pixel lies where both maps have a class."
        raise LabelError(message, "Check that the labels lie on both maps.", "LABELS_EMPTY")
    independence = [sentence(of, name, at) for of, name, at in zip(duel.maps, duel.names, known, strict=True)]
    is_left_out = bool(counts.known) and _enough(counts.new, every)
    used = counts.new if is_left_out else every
    flattered = [name for name, at in zip(duel.names, known, strict=True) if at and any(map(len, at))]
    if is_left_out:
        independence.append(f"These places are left out; {_pixels(counts.new)} labelled pixels are new to both.")
        flattered = []
    elif flattered:
        independence.append(f"Too few others remain to leave them out: the figures flatter {' and '.join(flattered)}.")
        reporter.warn(" ".join(independence))
    names = [united.name for united in duel.classes]
    ones, others = ([used[key][side] for key in sorted(used)] for side in (0, 1))
    block_m = round(float(np.mean([s * grid.gsd_m for s, grid in zip(sides, duel.grids, strict=True)])), 1)
    result: dict[str, Any] = {
        "one": figures(ones, names, block_m),
        "other": figures(others, names, block_m),
        "difference": differences(ones, others),
    }
    result["classes"] = _class_rows(duel, result, class_differences(ones, others))
    for side in ("one", "other"):
        result[side].pop("left_out")
    result |= {"labels": result["one"]["labels"], "blocks": len(used), "block_m": block_m}
    result |= {"independence": independence, "flattered": flattered, "labels_without_map": counts.without_map}
    left_out = [row["reason"] for row in result["classes"] if row["reason"]]
    result["better"], result["sentence"] = _verdict(duel, result, flattered)
    result["notes"] = [*notes, *independence, *left_out]
    for text in (*([] if flattered else independence), *left_out, result["sentence"]):
        reporter.message(text)
    return result


def _label_notes(duel: _Duel, labels: Labels, table: np.ndarray, reporter: Reporter) -> list[str]:
    """Sentences on labelled classes that one map or both do not know."""
    foreign = [known.name for number, known in enumerate(labels.classes) if table[number] == IGNORE]
    if len(foreign) == len(labels.classes):
        raise LabelError(
            f"None of the labels' classes ({', '.join(foreign)}) is a class of the maps.",
            f"The maps have: {', '.join(known.name for known in duel.classes)}.",
            "LABELS_OTHER_CLASSES",
        )
    notes = []
    if foreign:
        notes.append(f"Neither map knows these classes; their labels are left out: {', '.join(foreign)}.")
    for side, name in zip(("one", "other"), duel.names, strict=True):
        there = [duel.classes[at] for at in np.unique(table[table != IGNORE])]
        lacking = [known.name for known in there if getattr(known, side) is None]
        if lacking:
            notes.append(f"{name} does not know {', '.join(lacking)}: all labels of it count as wrong for that map.")
    for note in notes:
        reporter.warn(note)
    return notes


def _count(
    duel: _Duel,
    labels: Labels,
    table: np.ndarray,
    sides: Sequence[float],
    known: Sequence[list[np.ndarray] | None],
    reporter: Reporter,
) -> _Counts:
    """Confusion matrices of both maps by block of ground."""
    counts = _Counts()
    for index in range(len(duel.grids)):
        blocks = BlockKeys(sides[index], labels, index)
        taught = np.unique(np.concatenate([at[index] for at in known if at is not None] or [np.zeros(0, np.int64)]))
        windows = strips(labels.extent_px(index))
        for number, window in enumerate(windows):
            ids, shapes = labels.burn(index, window)
            truth = table[ids]
            maps = [reader.read(index, window) for reader in duel.readers]
            there = truth != IGNORE
            both = there & (maps[0] != IGNORE) & (maps[1] != IGNORE)
            counts.without_map += int((there & ~both).sum())
            rows, cols = np.nonzero(both)
            owners = shapes[rows, cols]
            at = rows + int(window.row_off), cols + int(window.col_off), owners
            keys, is_known = blocks.of(*at), np.isin(places_of(*at), taught)
            found = truth[rows, cols], maps[0][rows, cols], maps[1][rows, cols]
            _add(counts, index, keys, is_known, found, len(duel.classes))
            reporter.progress("judge", number + 1, len(windows))
    return counts


def _add(
    counts: _Counts,
    index: int,
    keys: np.ndarray,
    is_known: np.ndarray,
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
    num_classes: int,
) -> None:
    truth, one, other = found
    for key in np.unique(keys, axis=0):
        of_block = (keys == key).all(1)
        for into, chosen in ((counts.new, of_block & ~is_known), (counts.known, of_block & is_known)):
            if chosen.any():
                pair = [confusion(truth[chosen], mapped[chosen], num_classes) for mapped in (one, other)]
                place = (index, int(key[0]), int(key[1]))
                into[place] = [a + b for a, b in zip(into[place], pair, strict=True)] if place in into else pair


def _enough(
    new: dict[tuple[int, int, int], list[np.ndarray]], every: dict[tuple[int, int, int], list[np.ndarray]]
) -> bool:
    """Whether labels that are new to both models say enough alone: of every class that all of them judge."""
    if len(new) < ENOUGH_BLOCKS:
        return False
    judged = [np.sum([pair[0].sum(1) > 0 for pair in blocks.values()], 0) >= FEWEST_BLOCKS for blocks in (new, every)]
    return bool(judged[0][judged[1]].all())


def _pixels(blocks: dict[tuple[int, int, int], list[np.ndarray]]) -> int:
    return sum(int(pair[0].sum()) for pair in blocks.values())


def _class_rows(duel: _Duel, result: dict[str, Any], gaps: Sequence[dict[str, float | None]]) -> list[dict[str, Any]]:
    """The IoU of each class in both maps, and its difference."""
    rows = []
    both = zip(duel.classes, result["one"]["classes"], result["other"]["classes"], gaps, strict=True)
    for united, one, other, gap in both:
        sides = [{"value": r["iou"], "low": r["iou_low"], "high": r["iou_high"]} for r in (one, other)]
        where = f"{united.name}: all its labels lie in one block of ground, which tells nothing of others."
        rows.append(
            {
                "name": united.name,
                "one": sides[0],
                "other": sides[1],
                "difference": gap,
                "support": one["support"],
                "blocks": one["blocks"],
                "known_to_one": united.one is not None,
                "known_to_other": united.other is not None,
                "reason": where if one["blocks"] == 1 else "",
            }
        )
    return rows


def _verdict(duel: _Duel, result: dict[str, Any], flattered: Sequence[str]) -> tuple[str | None, str]:
    """Which map is better, `one` or `other`, as far as the labels tell, and the sentence that says so."""
    gap = result["difference"]["miou"]
    if gap["value"] is None:
        return (
            None,
            "The labels cannot tell which map is better: they lie in one place, or each class in one place only.",
        )
    one, other = (f"{result[side]['miou']['value']:.3f}" for side in ("one", "other"))
    interval = f"{gap['low']:+.3f} to {gap['high']:+.3f}"
    told = f"mIoU {one} for {duel.names[0]}, {other} for {duel.names[1]}"
    figure = f"{told}; difference {gap['value']:+.3f}, 95 % interval {interval}"
    if flattered:
        return None, f"No claim is made which map is better, since labels taught {' and '.join(flattered)}. {figure}."
    if gap["low"] <= 0 <= gap["high"]:
        return None, f"The labels cannot tell the maps apart: the interval holds 0. {figure}."
    better = 0 if gap["value"] > 0 else 1
    return ("one", "other")[better], f"{duel.names[better]} is better. {figure}."


def _disagreement(job: CompareJob, duel: _Duel, reporter: Reporter) -> dict[str, Any]:
    one, other = duel.readers
    pairs = count_pairs(one, other, duel.grids[0], len(duel.classes), reporter)
    text = f"Where {duel.names[0]} and {duel.names[1]} disagree (first → second), compared by GeoPEFT {__version__}."
    origin = {
        "GEOPEFT_COMPARED": " | ".join(duel.names),
        "GEOPEFT_ENGINE": __version__,
        "TIFFTAG_SOFTWARE": f"GeoPEFT {__version__}",
        "TIFFTAG_IMAGEDESCRIPTION": text,
    }
    result = write_disagreement(Path(job.out), one, other, duel.grids[0], duel.classes, pairs, origin, reporter)
    reporter.message(result["sentence"])
    return result
