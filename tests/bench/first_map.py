"""From 20 polygons to the first map of a whole scene of 2048 x 2048 px and ten bands: seconds and accuracy.

    build.py bench first-map [--runs N] [--terratorch PYTHON]

Sides, in turns: our preview in a worker that is warm; a random forest on the bands (150 trees, scikit-learn); a frozen
network's features with a forest, as IAMAP works: Galileo nano's features of every patch of 4 px, the map at that width;
and TerraTorch's training of a decoder on a frozen network and its tiled prediction, times only, since its weights are
random: `--terratorch` is the Python of an environment with it, for the scripts of the shared data. All have two threads
of the processor. The scenes are labelled Sentinel-2 patches, mirrored; mIoU counts pixels whose original lies 16 px or
more from every polygon.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import _mirrored  # type: ignore[import-not-found]
import _sets  # type: ignore[import-not-found]
import _warm  # type: ignore[import-not-found]
import numpy as np
import rasterio
import torch
from geopeft.events import Reporter
from numpy.typing import NDArray

RESULTS = Path(__file__).parents[2] / "resources" / "results"
SIDE_PX, POLYGONS, THREADS = 2048, 20, 2
TREES, CHIP_PX, CHIPS, PATCH_PX = 150, 32, 32, 4
# What TerraTorch's training is taken to be: so many steps of two chips, with the smallest of its networks.
PEER_STEPS, PEER_SIZE = 100, "tiny"
OURS, FOREST, FEATURES, PEER = (
    "GeoPEFT, preview",
    "random forest on the bands",
    "Galileo nano's features and a forest",
    f"TerraTorch, {PEER_STEPS} steps of a decoder and tiled prediction",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and keeps it in resources/results/first_map.md."""
    parser = argparse.ArgumentParser(prog="build.py bench first-map", description=__doc__)
    parser.add_argument("--runs", type=int, default=1, help="of every scene")
    parser.add_argument("--terratorch", default="", help="Python of an environment with TerraTorch")
    parser.add_argument("--side", type=int, default=SIDE_PX, help="rows and columns of a scene")
    parser.add_argument("--scenes", type=int, default=len(_mirrored.PATCHES))
    options = parser.parse_args(arguments)
    shared = _sets.shared_folder()
    if shared is None:
        return 2
    torch.set_num_threads(THREADS)
    seconds: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch, _warm.warm_engine(Path(scratch), THREADS) as engine:
        warm_up(engine, shared, Path(scratch))
        for number, patch in enumerate(_mirrored.PATCHES[: options.scenes] * options.runs):
            folder = Path(scratch, str(number))
            folder.mkdir()
            scene = _mirrored.make(
                shared / "data" / "terramind_s2_lulc" / patch, folder, options.side, POLYGONS, number
            )
            for side, work in sides(scene, engine, shared).items():
                started = time.monotonic()
                found = work()
                seconds.setdefault(side, []).append(time.monotonic() - started)
                scores.setdefault(side, []).append(miou(found, scene))
                print(patch, side, f"{seconds[side][-1]:.1f} s, mIoU {scores[side][-1]:.3f}", flush=True)
        if options.terratorch:
            seconds[PEER] = [peer_seconds(shared / "peers", options.terratorch, options.side)]
    text = table(seconds, scores, options.side)
    print(text)
    (RESULTS / "first_map.md").write_text(text, encoding="utf-8")
    return 0


def warm_up(engine: _warm.Warm, shared: Path, scratch: Path) -> None:
    """A preview of another scene, after which the worker has everything loaded."""
    folder = scratch / "other"
    folder.mkdir()
    patch = shared / "data" / "terramind_s2_lulc" / _mirrored.PATCHES[0]
    preview(_mirrored.make(patch, folder, 224, POLYGONS, 99), engine)


def sides(scene: _mirrored.Mirrored, engine: _warm.Warm, shared: Path) -> dict[str, Callable[[], NDArray[np.uint8]]]:
    """By name: from the raster and the polygons on disk to a map (n, n) of the classes' numbers."""
    return {
        OURS: lambda: preview(scene, engine),
        FOREST: lambda: forest(scene),
        FEATURES: lambda: features_and_forest(scene, shared),
    }


def preview(scene: _mirrored.Mirrored, engine: _warm.Warm) -> NDArray[np.uint8]:
    """Our first map, every pixel of it."""
    out = scene.raster.with_name("map.tif")
    job = {"job": "preview", "raster": str(scene.raster), "labels": scene.labels, "class_field": "class"}
    outputs = engine.run({**job, "out": str(out), "max_pixels": SIDE_PX**2}).outputs
    assert outputs["factor"] == 1
    number = np.zeros(256, np.uint8)
    for row in outputs["classes"]:
        number[row["value"]] = int(row["name"].split()[1])
    with rasterio.open(out) as raster:
        return number[raster.read(1)]


def forest(scene: _mirrored.Mirrored) -> NDArray[np.uint8]:
    """A random forest on the bands."""
    with rasterio.open(scene.raster) as raster:
        values = raster.read().astype(np.float32)
    return taught_forest(values, _mirrored.burned(scene))


def features_and_forest(scene: _mirrored.Mirrored, shared: Path) -> NDArray[np.uint8]:
    """A forest on a frozen network's features of every patch, which has the label of a pixel in it."""
    from geopeft.data.raster import band_statistics, describe
    from geopeft.models.backbones import BACKBONES
    from geopeft.models.segmentation import build_backbone
    from geopeft.models.weights import fetch, load_state

    card = BACKBONES["galileo_nano"]
    backbone = build_backbone(card, _mirrored.BANDS, []).eval()
    backbone.load_weights(load_state(fetch(card, str(shared / "weights"), Reporter()).path, card))
    info = describe(str(scene.raster))
    statistics_ = band_statistics(info, [band.index for band in info.bands])
    with rasterio.open(scene.raster) as raster:
        values = raster.read().astype(np.float32)
    # As its authors bring a band to about 0 to 1, with the scene's own figures.
    mean, std = (getattr(statistics_, name)[:, None, None].astype(np.float32) for name in ("mean", "std"))
    values = (values - (mean - 2 * std)) / (4 * std)
    rows = values.shape[1] // CHIP_PX
    chips = torch.from_numpy(values).unfold(1, CHIP_PX, CHIP_PX).unfold(2, CHIP_PX, CHIP_PX).permute(1, 2, 0, 3, 4)
    chips = chips.flatten(0, 1)
    with torch.inference_mode():
        maps = torch.cat([backbone(part.contiguous())[-1].half() for part in chips.split(CHIPS)])
    grid = maps.unflatten(0, (rows, rows)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2).float().numpy()
    labels = label_of(_mirrored.burned(scene), PATCH_PX)
    return np.repeat(np.repeat(taught_forest(grid, labels), PATCH_PX, 0), PATCH_PX, 1)


def label_of(labels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Of every square of labels (0: none) the highest."""
    rows = labels.shape[0] // side
    found: NDArray[np.uint8] = labels.reshape(rows, side, rows, side).max((1, 3))
    return found


def taught_forest(values: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w) classes of values (F, h, w), by a forest taught where labels (h, w) are not 0."""
    from sklearn.ensemble import RandomForestClassifier

    pixels = np.moveaxis(values, 0, -1)
    taught = RandomForestClassifier(TREES, n_jobs=THREADS, random_state=0).fit(pixels[labels > 0], labels[labels > 0])
    found: NDArray[np.uint8] = np.concatenate(
        [taught.predict(row) for row in np.array_split(pixels.reshape(-1, len(values)), 8)]
    )
    return found.reshape(labels.shape)


def miou(found: NDArray[np.uint8], scene: _mirrored.Mirrored) -> float:
    """Over the drawn classes, where truth is known and no polygon is near."""
    counts = scene.apart & (scene.truth > 0)
    ious = []
    for number in np.unique(scene.truth[counts]):
        ours, true = (found == number) & counts, (scene.truth == number) & counts
        ious.append((ours & true).sum() / (ours | true).sum())
    return float(np.mean(ious))


def peer_seconds(peers: Path, python: str, side_px: int) -> float:
    """TerraTorch's steps of a decoder on a frozen network, and its map of the scene."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def row(script: str, *options: str) -> dict[str, float]:
        command = [python, str(peers / script), "--model", PEER_SIZE, "--threads", str(THREADS), *options]
        done = subprocess.run(command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return answer

    step = row("peer_terratorch.py", "--method", "linear", "--classes", "5")["step_s_min"]
    tiled = row("peer_tiled.py", "--n", str(side_px), "--classes", "5")["wall_s"]
    print(f"TerraTorch: {step:.2f} s a step, {tiled:.1f} s for the map", flush=True)
    return PEER_STEPS * step + tiled


def table(seconds: dict[str, list[float]], scores: dict[str, list[float]], side_px: int) -> str:
    """The page."""
    lines = [
        "# The first map",
        "",
        f"Made by `python3 build.py bench first-map`: from {POLYGONS} polygons to a map of all {side_px} x {side_px} px"
        f" of a scene with {len(_mirrored.BANDS)} bands, on {THREADS} threads; medians over {len(seconds[OURS])} "
        "scenes. Times are from the raster and the polygons on disk to the map. The worker of the engine is warm, "
        "scikit-learn and the networks are loaded. TerraTorch's network is random, so its map is not scored.",
        "",
        "| who | seconds | mIoU, mean | mIoU of each scene |",
        "|---|---|---|---|",
    ]
    for side, taken in seconds.items():
        own = scores.get(side, [])
        means = f"{statistics.mean(own):.3f}" if own else "-"
        lines.append(
            f"| {side} | {statistics.median(taken):.1f} | {means} | {', '.join(f'{s:.3f}' for s in own) or '-'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
