"""Seconds an analyst waits: the default fit on a 10-band scene of 1000 x 1000 px with 20 polygons, and the first map.

    build.py bench speed [--runs N]

The scene is a Sentinel-2 patch of the shared data, mirrored to 1000 x 1000 px. The first map is the classical part
alone: its features, its fit on the pixels of 20 places, and its map of every pixel. The previews are those of a worker
process: the first one with its start, then one after each further polygon.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import _sets  # type: ignore[import-not-found]
import numpy as np
import pyogrio
import rasterio
import shapely
import torch
from geopeft.classical import Classical
from geopeft.events import TERMINAL
from geopeft.forest import Pixels, fit_classical
from geopeft.models.spec import InputBand
from geopeft.models.texture import Texture, describe_texture

SIDE_PX, POLYGONS = 1000, 20
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
ROLES = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the medians of several runs."""
    parser = argparse.ArgumentParser(prog="build.py bench speed", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    shared = _sets.shared_folder()
    if shared is None:
        return 2
    with tempfile.TemporaryDirectory() as folder:
        scene, labels, values = make_scene(shared / "data" / "terramind_s2_lulc" / "train_433D_629L", Path(folder))
        fits = [fit_seconds(scene, labels, shared, Path(folder)) for _ in range(options.runs)]
        previews = [preview_seconds(scene, labels, Path(folder)) for _ in range(options.runs)]
    first = [first_map_seconds(values) for _ in range(options.runs)]
    names = ("texture features", "fit of trees and linear model", "their map of every pixel")
    print(f"{torch.get_num_threads()} threads, medians of {options.runs} runs")
    print(f"default fit, 10 bands, {SIDE_PX} x {SIDE_PX} px, {POLYGONS} polygons: {statistics.median(fits):.0f} s")
    for name, seconds in zip(names, zip(*first, strict=True), strict=True):
        print(f"first map, {name}: {statistics.median(seconds):.2f} s")
    names = ("worker ready after", "first preview after (start included)", "preview after a further polygon")
    *seconds_of, memory = zip(*previews, strict=True)
    for name, seconds in zip(names, seconds_of, strict=True):
        print(f"{name}: {statistics.median(seconds):.2f} s")
    print(f"memory of the worker: {statistics.median(memory):.0f} MiB")
    return 0


def make_scene(source: Path, folder: Path) -> tuple[Path, Path, np.ndarray]:
    """A GeoTIFF of ten bands, a GeoPackage of 20 polygons of its classes, and the values (10, n, n)."""
    with rasterio.open(source / "s2l2a.tif") as raster:
        where = [raster.descriptions.index(name) + 1 for name in BANDS]
        part, profile = raster.read(where), raster.profile
        tags = raster.tags()
    with rasterio.open(source / "lulc.tif") as raster:
        classes = raster.read(1)
    wide = ((0, SIDE_PX - part.shape[1]), (0, SIDE_PX - part.shape[2]))
    values = np.pad(part, ((0, 0), *wide), mode="symmetric")
    classes = np.pad(classes, wide, mode="symmetric")
    profile.update(height=SIDE_PX, width=SIDE_PX, count=len(BANDS), driver="GTiff")
    scene, labels = folder / "scene.tif", folder / "labels.gpkg"
    with rasterio.open(scene, "w", **profile) as raster:
        raster.write(values)
        raster.descriptions = BANDS
        raster.update_tags(**tags)
    rng = np.random.default_rng(0)
    shapes: list[shapely.Geometry] = []
    names: list[str] = []
    common = [c for c in np.unique(classes) if (classes == c).mean() > 0.02]
    while len(shapes) < POLYGONS:
        row, col = rng.integers(10, SIDE_PX - 10, 2)
        name = common[len(shapes) % len(common)]
        if (classes[row - 4 : row + 5, col - 4 : col + 5] == name).all():
            shapes.append(shapely.Point(*(profile["transform"] * (col + 0.5, row + 0.5))).buffer(40))
            names.append(f"class {name}")
    pyogrio.raw.write(labels, shapely.to_wkb(np.array(shapes)), [np.array(names, object)], ["class"], layer="labels",
                      driver="GPKG", geometry_type="Polygon", crs=str(profile["crs"]))  # fmt: skip
    return scene, labels, values


def fit_seconds(scene: Path, labels: Path, shared: Path, folder: Path) -> float:
    """Wall time of the command, imports included."""
    start = time.monotonic()
    _sets.engine("fit", str(scene), "--labels", str(labels), "--class-field", "class", "--out", str(folder / "m"),
                 "--weights-dir", str(shared / "weights"), "--json", str(folder / "fit.json"))  # fmt: skip
    seconds = time.monotonic() - start
    print(json.dumps({"fit s": round(seconds, 1)}), flush=True)
    return seconds


def preview_seconds(scene: Path, labels: Path, folder: Path) -> tuple[float, float, float, float]:
    """Seconds until the worker is ready, until its first preview, of a preview after a polygon was added; its MiB."""
    from geopeft.data.raster import describe

    _, _, shapes, (classes,) = pyogrio.raw.read(labels, layer="labels", columns=["class"])
    crs = describe(str(scene)).crs.to_wkt()
    start, later = time.monotonic(), []
    command = [sys.executable, "-m", "geopeft", "worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdout.readline()
        ready = time.monotonic() - start
        for count in range(len(shapes) - 5, len(shapes) + 1):
            drawn, asked = folder / f"drawn-{count}.gpkg", time.monotonic()
            pyogrio.raw.write(drawn, shapes[:count], [classes[:count]], ["class"], layer="labels", driver="GPKG",
                              geometry_type="Polygon", crs=crs)  # fmt: skip
            job = {"job": "preview", "raster": str(scene), "labels": str(drawn), "out": str(folder / "preview.tif")}
            (folder / "job.json").write_text(json.dumps(job))
            worker.stdin.write(f"{folder / 'job.json'}\n".encode())
            worker.stdin.flush()
            while (event := json.loads(worker.stdout.readline()))["event"] not in TERMINAL:
                pass
            if event["event"] != "completed":
                raise _sets.EngineFailed(str(event))
            later.append(time.monotonic() - asked)
            if len(later) == 1:
                first = time.monotonic() - start
        memory = _memory_mb(worker.pid)
        worker.stdin.close()
    return ready, first, statistics.median(later[1:]), memory


def _memory_mb(pid: int) -> float:
    """Resident memory of a process, NaN where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), math.nan)


def first_map_seconds(values: np.ndarray) -> tuple[float, float, float]:
    """Seconds for the features, the fit on 20 places, and the map."""
    mean, std = values.mean((1, 2)), values.std((1, 2))
    bands = tuple(
        InputBand(name=n, common=r, mean=float(m), std=float(s))
        for n, r, m, s in zip(BANDS, ROLES, mean, std, strict=True)
    )
    texture = Texture(describe_texture(bands, 10), bands, torch.eye(len(bands)))
    start = time.monotonic()
    with torch.inference_mode():
        features = texture(torch.from_numpy(values.astype(np.float32))[None])[0].flatten(1).T.contiguous().numpy()
    described = time.monotonic()
    rng = np.random.default_rng(0)
    taught = rng.integers(len(features), size=20 * 50)
    truth = np.digitize(features[taught, 6], np.quantile(features[:, 6], (0.25, 0.5, 0.75)))
    weights, places = np.ones(len(taught)), np.arange(len(taught)) // 50
    model = fit_classical(Pixels(features[taught], features[taught, :0], truth, weights, places), 4, 10, 0)
    fitted = time.monotonic()
    Classical(texture, model, 4).of_features(features)
    return described - start, fitted - described, time.monotonic() - fitted


if __name__ == "__main__":
    sys.exit(main())
