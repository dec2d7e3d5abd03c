"""How the cost of a preview, a training and a map grows with the raster, the labels, the classes and the bands.

    build.py bench growth [--sides 512,1024,2048,3072] [--axes raster,labels,classes,bands]

One of the four is varied at a time, in a worker that is warm, on made scenes: squares of classes with spectra of their
own and noise. A training has ten steps of a small network, so that what it costs besides its steps shows. Costs are
seconds of the processor, and the memory that a job takes above what the worker held before. The plot has logarithms
on both axes: a cost in proportion climbs by one for one, one that does not grow stays level.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _curves  # type: ignore[import-not-found]
import _mirrored  # type: ignore[import-not-found]
import _warm  # type: ignore[import-not-found]
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

RESULTS = Path(__file__).parents[2] / "resources" / "results"
THREADS, STEPS, FIELD_PX = 2, 10, 12
CRS, TRANSFORM = "EPSG:32633", Affine(10, 0, 300_000, 0, -10, 5_800_000)
BASE = {"raster": 768, "labels": 100, "classes": 4, "bands": 6}
AXES: dict[str, tuple[int, ...]] = {
    "raster": (512, 1024, 2048, 3072),
    "labels": (20, 100, 700, 4000),
    "classes": (2, 6, 20, 60),
    "bands": (3, 12, 50, 200),
}
UNITS = {"raster": "megapixels", "labels": "labels", "classes": "classes", "bands": "bands"}
JOBS = {"preview": ("preview", (38, 110, 190)), "fit": ("fit", (200, 90, 40)), "predict": ("predict", (60, 140, 70))}
Costs = dict[tuple[str, int, str], _warm.Taken]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and keeps it and the plot in resources/results/growth.md and growth.png."""
    parser = argparse.ArgumentParser(prog="build.py bench growth", description=__doc__)
    parser.add_argument("--sides", default=",".join(map(str, AXES["raster"])), help="rows and columns of the rasters")
    parser.add_argument("--axes", default=",".join(AXES))
    options = parser.parse_args(arguments)
    axes = {**AXES, "raster": tuple(int(side) for side in options.sides.split(","))}
    axes = {name: axes[name] for name in options.axes.split(",")}
    costs: Costs = {}
    with tempfile.TemporaryDirectory() as folder, _warm.warm_engine(Path(folder), THREADS) as engine:
        all_jobs(engine, Path(folder), {**BASE, "raster": 256})
        for axis, values in axes.items():
            for value in values:
                for job, taken in all_jobs(engine, Path(folder), {**BASE, axis: value}).items():
                    costs[axis, value, job] = taken
                    print(axis, value, job, f"{taken.processor_s:.1f} s, {taken.above_mb:.0f} MiB", flush=True)
    text = page(axes, costs)
    print(text)
    (RESULTS / "growth.md").write_text(text, encoding="utf-8")
    panels = {
        f"{UNITS[axis]}: {what}": {
            job: [(doublings(axis, value), level(costs[axis, value, job], what), 0) for value in values] for job in JOBS
        }
        for what in ("seconds of the processor", "MiB")
        for axis, values in axes.items()
    }
    _curves.draw(panels, JOBS, "log2 of their number", "log2", RESULTS / "growth.png")
    return 0


def doublings(axis: str, value: int) -> float:
    """log2 of a value, of a side's pixels in megapixels."""
    return math.log2(amount(axis, value))


def amount(axis: str, value: int) -> float:
    """The value in its unit."""
    return value**2 / 1e6 if axis == "raster" else float(value)


def level(taken: _warm.Taken, what: str) -> float:
    """log2 of a cost; less than 1 MiB counts as that."""
    return math.log2(max(taken.above_mb, 1.0) if what == "MiB" else max(taken.processor_s, 0.1))


def all_jobs(engine: _warm.Warm, folder: Path, sizes: Mapping[str, int]) -> dict[str, _warm.Taken]:
    """What preview, fit and predict take on a scene of these sizes."""
    make_scene(folder, sizes)
    raster, labels, model = str(folder / "scene.tif"), f"{folder / 'labels.gpkg'}:labels", folder / "m.geopeft"
    model.unlink(missing_ok=True)
    taught = {"labels": labels, "class_field": "class", "radiometry": "unknown"}
    jobs: dict[str, dict[str, Any]] = {
        "preview": {"raster": raster, "out": str(folder / "p.tif"), "max_pixels": sizes["raster"] ** 2, **taught},
        "fit": {"rasters": [raster], "out": str(model), "backbone": "scratch_unet", "adapter": "full", "steps": STEPS,
                "baselines": [], "folds": 1, "resume": False, "cache": False, "device": "cpu", **taught},
        "predict": {"model": str(model), "rasters": [raster], "out": str(folder / "map.tif"), "device": "cpu"},
    }  # fmt: skip
    return {name: engine.run({"job": name, **fields}) for name, fields in jobs.items()}


def make_scene(folder: Path, sizes: Mapping[str, int]) -> None:
    """Writes scene.tif and labels.gpkg: discs in the middle of fields of one class."""
    side, count = sizes["raster"], sizes["classes"]
    rng = np.random.default_rng(0)
    fields = -(-side // FIELD_PX)
    classes = rng.integers(0, count, (fields, fields))
    truth = np.kron(classes, np.ones((FIELD_PX, FIELD_PX), np.int64))[:side, :side]
    spectra = rng.uniform(500, 3000, (sizes["bands"], count))
    with rasterio.open(folder / "scene.tif", "w", driver="GTiff", height=side, width=side, count=sizes["bands"],
                       dtype="uint16", crs=CRS, transform=TRANSFORM, tiled=True, blockxsize=256, blockysize=256,
                       compress="deflate", zlevel=1) as raster:  # fmt: skip
        for band, own in enumerate(spectra, 1):
            values = own[truth] + rng.normal(0, 100, truth.shape)
            raster.write(values.clip(1).astype(np.uint16), band)
    (folder / "labels.gpkg").unlink(missing_ok=True)
    rows, cols = chosen(classes, sizes["labels"], side, rng)
    middle = FIELD_PX // 2
    names = [f"class {classes[row, col]}" for row, col in zip(rows, cols, strict=True)]
    at = rows * FIELD_PX + middle, cols * FIELD_PX + middle
    _mirrored.write_discs(folder / "labels.gpkg", *at, names, TRANSFORM, CRS)


def chosen(
    classes: NDArray[np.int64], labels: int, side: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of as many fields, the classes in turn as far as they go; none at the raster's edge."""
    whole = side // FIELD_PX
    inside = rng.permutation(np.argwhere(classes[:whole, :whole] >= 0))
    own = classes[inside[:, 0], inside[:, 1]]
    turn = np.empty(len(own), np.int64)
    for index in np.unique(own):
        turn[own == index] = np.arange((own == index).sum())
    taken = inside[np.argsort(turn, kind="stable")[:labels]]
    return taken[:, 0], taken[:, 1]


def page(axes: Mapping[str, Sequence[int]], costs: Costs) -> str:
    """The tables, with the steepest climb between two neighbours: 1 is in proportion."""
    lines = [
        "# Growth",
        "",
        "Made by `python3 build.py bench growth`: seconds of the processor (and MiB above what the warm worker held). "
        f"What is not varied: {BASE['raster']} x {BASE['raster']} px, {BASE['labels']} labels, {BASE['classes']} "
        f"classes, {BASE['bands']} bands. A training has {STEPS} steps. `climb` is that of the seconds over the last "
        "step of the row, in doublings for a doubling: 1 is in proportion, more is not.",
    ]
    for axis, values in axes.items():
        head = " | ".join(f"{amount(axis, value):.3g}" for value in values)
        lines += ["", f"| {UNITS[axis]} | {head} | climb |", f"|---{'|---' * len(values)}|---|"]
        for job in JOBS:
            own = [costs[axis, value, job] for value in values]
            cells = " | ".join(f"{taken.processor_s:.1f} s ({taken.above_mb:.0f})" for taken in own)
            lines.append(f"| {job} | {cells} | {climb(axis, values, own):.2f} |")
    return "\n".join(lines) + "\n"


def climb(axis: str, values: Sequence[int], taken: Sequence[_warm.Taken]) -> float:
    """Doublings of the seconds for a doubling of what is varied, between the last two."""
    if len(values) < 2:
        return math.nan
    up = math.log2(taken[-1].processor_s / max(taken[-2].processor_s, 0.01))
    return up / (doublings(axis, values[-1]) - doublings(axis, values[-2]))


if __name__ == "__main__":
    sys.exit(main())
