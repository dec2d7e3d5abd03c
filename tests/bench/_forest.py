"""A random forest on the bands, or on the bands and their texture, at the pixels that `fit` would see.

    python _forest.py JOB.json FIGURES.json

150 trees, at most 4 000 pixels a class. Texture: mean and standard deviation in windows of 3, 5 and 9 px of each band,
of the first three principal components where there are more than 12 bands.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _sets  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

TREES, PIXELS_OF_A_CLASS = 150, 4000
WINDOWS_PX = (3, 5, 9)
MOST_BANDS, COMPONENTS = 12, 3
REACH_PX = max(WINDOWS_PX) // 2
UNLABELLED = 255

Describe = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]


def measure(
    training: _sets.Region, unseen: _sets.Region, background: tuple[str, str], seed: int, texture: bool, scratch: Path
) -> dict[str, Any]:
    """Figures, seconds and peak memory of a forest, measured in a process of its own.

    Args:
        background: class of the unlabelled pixels in the training and in the unseen region; empty for none.
    """
    job, found = scratch / "forest.json", scratch / "forest_figures.json"
    sides = [
        {"rasters": region.rasters, "labels": region.labels, "background": name}
        for region, name in zip((training, unseen), background, strict=True)
    ]
    job.write_text(json.dumps({"training": sides[0], "unseen": sides[1], "seed": seed, "texture": texture}))
    _sets.run_python(__file__, str(job), str(found))
    figures: dict[str, Any] = json.loads(found.read_text())
    return figures


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Fits and scores the forest that `measure` asks for."""
    from geopeft.accuracy import confusion, figures
    from geopeft.events import Reporter
    from geopeft.job import FitJob
    from geopeft.prepare import prepare
    from sklearn.ensemble import RandomForestClassifier

    start = time.monotonic()
    fields = {**job["training"], "class_field": "class", "out": "unused", "backbone": "scratch_unet", "adapter": "full"}
    prepared = prepare(FitJob.model_validate(fields), Reporter())
    names = [c.name for c in prepared.labels.classes]
    source = (prepared.infos, prepared.bands, prepared.labels, prepared.units)
    describe = texture_of(*source) if job["texture"] else _bands_alone
    x, y = _pixels(*source, describe)
    rng = np.random.default_rng(job["seed"])
    groups = [np.flatnonzero(y == c) for c in np.unique(y)]
    kept = np.concatenate([rng.choice(own, min(PIXELS_OF_A_CLASS, len(own)), replace=False) for own in groups])
    threads = int(os.environ.get("OMP_NUM_THREADS") or -1)
    forest = RandomForestClassifier(TREES, n_jobs=threads, random_state=job["seed"]).fit(x[kept], y[kept])
    cost = {
        "seconds": round(time.monotonic() - start, 2),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    x, y = _unseen_pixels(job["unseen"], prepared, names, describe)
    # No blocks here: no interval is needed, and the figures are made of the matrix.
    result = figures([confusion(y, forest.predict(x), len(names))], names)
    return result | cost | {"evaluate_seconds": round(time.monotonic() - start - cost["seconds"], 2)}


def _unseen_pixels(
    unseen: dict[str, Any], prepared: Any, names: Sequence[str], describe: Describe
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Pixels of the unseen region with the class numbers of the training region; 255 for other classes."""
    from geopeft.data import raster
    from geopeft.data.bands import resolve_bands
    from geopeft.data.labels import read_labels
    from geopeft.data.normalize import assume_radiometry, between
    from geopeft.events import Reporter

    infos = [raster.describe(path) for path in unseen["rasters"]]
    bands = [resolve_bands(info, prepared.bands[0]) for info in infos]
    labels = read_labels(unseen["labels"], "class", infos, background=unseen["background"], minimum_classes=1,
                         reporter=Reporter())  # fmt: skip
    units = []
    for info, own in zip(infos, bands, strict=True):
        now = assume_radiometry(info, own, raster.band_statistics(info, [band.index for band in own]))
        same = [now.for_band(band) == (now.scale, now.offset) for band in own]
        scale, offset = between(now, prepared.radiometry)
        units.append((np.where(same, scale, 1.0), np.where(same, offset, 0.0)))
    x, y = _pixels(infos, bands, labels, units, describe)
    table = np.array([names.index(c.name) if c.name in names else UNLABELLED for c in labels.classes], np.uint8)
    return x, table[y]


def _pixels(
    infos: Any, bands: Any, labels: Any, units: Any, describe: Describe
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """What `describe` says (n, F) and class numbers (n,) of all labelled pixels."""
    from geopeft.data.chips import ChipReader

    values, classes = [], []
    with ChipReader(infos, bands, labels, units) as reader:
        for index in range(len(infos)):
            for row, col, block in reader.labelled_blocks(index):
                known = block.class_ids != UNLABELLED
                if not known.any():
                    continue
                height, width = known.shape
                wide = reader.read(index, row - REACH_PX, col - REACH_PX, height + 2 * REACH_PX, width + 2 * REACH_PX)
                inner = (slice(REACH_PX, REACH_PX + height), slice(REACH_PX, REACH_PX + width))
                values.append(describe(wide.values, wide.valid)[:, *inner][:, known].T)
                classes.append(block.class_ids[known])
    return np.concatenate(values), np.concatenate(classes)


def _bands_alone(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    return values


def texture_of(infos: Any, bands: Any, labels: Any, units: Any) -> Describe:
    """Bands and texture; the principal components are those of the pixels around these labels."""
    from geopeft.data.chips import ChipReader

    if len(bands[0]) <= MOST_BANDS:
        return lambda values, valid: np.concatenate([values, local_moments(values, valid)])
    with ChipReader(infos, bands, labels, units) as reader:
        blocks = [block for index in range(len(infos)) for _, _, block in reader.labelled_blocks(index)]
        pixels = np.concatenate([block.values[:, block.valid].T for block in blocks]).astype(np.float64)
    centre = pixels.mean(0)
    _, vectors = np.linalg.eigh(np.cov(pixels.T))
    axes = vectors[:, ::-1][:, :COMPONENTS].T

    def describe(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        components = np.einsum("kc,chw->khw", axes, values - centre[:, None, None]).astype(np.float32)
        return np.concatenate([values, local_moments(components, valid)])

    return describe


def local_moments(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean and standard deviation of the valid pixels in each window: (C, h, w) -> (6 C, h, w), 0 where there is none.

    Outside the array nothing is valid.
    """
    from scipy.ndimage import uniform_filter

    def share(x: NDArray[Any], size: int) -> NDArray[Any]:
        return np.asarray(uniform_filter(x, (*[0] * (x.ndim - 2), size, size), mode="constant"))

    mask = valid.astype(np.float64)
    # Squares of numbers far from 0 would lose the small differences that texture is made of.
    centre = (values * mask).sum((1, 2)) / max(mask.sum(), 1)
    moved = (values - centre[:, None, None]) * mask
    features = []
    for size in WINDOWS_PX:
        weight = share(mask, size)
        weight = np.where(weight * size * size > 0.5, weight, np.inf)
        mean = share(moved, size) / weight
        deviation = np.sqrt(np.maximum(share(moved**2, size) / weight - mean**2, 0))
        features += [np.where(np.isfinite(weight), mean + centre[:, None, None], 0), deviation]
    return np.concatenate(features).astype(np.float32)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
