"""Windows a second of `predict` on worker processes of Dask, beside one process without it, and what follows for many.

    build.py bench cluster [--runs N] [--side PX] [--few N] [--many N]

Every run is a process of its own, and the sides take turns; each process that maps has one thread of torch. A run maps
few rasters or many, and the difference is what a raster takes: so the start of the processes, which is told beside it,
does not blur the rate. The model is the one in the box with LoRA and the light decoder. The seconds of the processor
that the coordinating process spends on a raster tell how many workers it can keep busy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "resources" / "results"
SIDES = {"predict": "", "1 worker": "local:1", "2 workers": "local:2"}
BANDS, CLASSES, CHIP_PX = ("blue", "green", "red", "nir", "swir16", "swir22"), 4, 128
TILE_PX, TILES, WORKERS = 10_980, 1000, 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and keeps it in resources/results/cluster.md."""
    parser = argparse.ArgumentParser(prog="build.py bench cluster", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--few", type=int, default=2)
    parser.add_argument("--many", type=int, default=6)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(mapped(options.one[0], int(options.one[1]), Path(options.one[2]))))
        return 0
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        windows = prepare(Path(name), options.side, options.many)
        for _ in range(options.runs):
            for side in SIDES:
                few, many = (one_run(side, count, Path(name)) for count in (options.few, options.many))
                found.setdefault(side, []).append(per_raster(few, many, options.many - options.few, options.few))
                print(side, found[side][-1], file=sys.stderr, flush=True)
    middle = {side: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
              for side, rows in found.items()}  # fmt: skip
    lines = [*table(options, windows, middle), "", *projection(windows, middle)]
    text = "# Prediction on a cluster\n\nMade by `python3 build.py bench cluster`.\n\n" + "\n".join(lines) + "\n"
    (RESULTS / "cluster.md").write_text(text, encoding="utf-8")
    print("\n".join(lines))
    return 0


def prepare(folder: Path, side: int, count: int) -> tuple[int, int]:
    """Writes model and rasters; how many windows a raster has, and how many a tile of Sentinel-2 has."""
    import numpy as np
    import rasterio
    import torch
    from affine import Affine
    from geopeft import package
    from geopeft.mapping.strips import axes_of
    from geopeft.models import ModelSpec, build
    from geopeft.models.spec import InputBand
    from geopeft.runtime import Runtime, choose_device

    torch.manual_seed(0)
    bands = tuple(InputBand(name=name, common=name, mean=1700, std=700) for name in BANDS)
    spec = ModelSpec(backbone="geopeft_small", adapter="lora", decoder="unet", bands=bands, num_classes=CLASSES,
                     gsd_m=10, chip_size_px=CHIP_PX)  # fmt: skip
    classes = tuple(
        package.ClassInfo(value=n + 1, name=f"c{n}", color="#0000ff", label=f"c{n}") for n in range(CLASSES)
    )
    manifest = package.Manifest(
        engine_version="0", created="2026-01-01T00:00:00+00:00", name="m", spec=spec, classes=classes,
        base_weights=package.BaseWeights(backbone="geopeft_small", licence="Apache-2.0"), radiometry="unknown",
        dtype="uint16",
    )  # fmt: skip
    model = build(spec)
    package.write(folder / "m.geopeft", manifest, {name: t.numpy() for name, t in model.trainable_state().items()})
    coarse = np.random.default_rng(0).integers(500, 3000, (len(BANDS), side // 32 + 1, side // 32 + 1))
    values = coarse.repeat(32, 1).repeat(32, 2)[:, :side, :side].astype(np.uint16)
    with rasterio.open(
        folder / "r0.tif", "w", driver="GTiff", count=len(BANDS), height=side, width=side, dtype="uint16",
        crs="EPSG:32633", transform=Affine(10, 0, 300_000, 0, -10, 5_800_000), tiled=True, compress="deflate",
    ) as raster:  # fmt: skip
        raster.write(values)
        raster.descriptions = BANDS
    for number in range(1, count):
        shutil.copy(folder / "r0.tif", folder / f"r{number}.tif")
    runtime = Runtime(manifest, model, choose_device("cpu"))
    axes = [axes_of(runtime, (length, length)) for length in (side, TILE_PX)]
    return len(axes[0][0]) * len(axes[0][1]), len(axes[1][0]) * len(axes[1][1])


def one_run(side: str, count: int, folder: Path) -> dict[str, float]:
    """`count` rasters mapped in a process of its own."""
    command = [sys.executable, __file__, "--one", SIDES[side], str(count), str(folder)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    row: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return row


def mapped(scheduler: str, count: int, folder: Path) -> dict[str, float]:
    """Seconds of the job and of the processor, of this process and of those that it has started."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from geopeft import predict
    from geopeft.events import Reporter
    from geopeft.job import PredictJob

    rasters = tuple(str(folder / f"r{number}.tif") for number in range(count))
    with tempfile.TemporaryDirectory(dir=folder) as out:
        begun, used = time.perf_counter(), time.process_time()
        job = PredictJob(model=str(folder / "m.geopeft"), rasters=rasters, out=out, device="cpu", scheduler=scheduler)
        predict.run(job, Reporter())
        own = time.process_time() - used
        return {"s": time.perf_counter() - begun, "own_s": own,
                "cpu_s": own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime}  # fmt: skip


def per_raster(few: dict[str, float], many: dict[str, float], between: int, count: int) -> dict[str, float]:
    """What one more raster takes, and what is left for the start."""
    row = {key: (many[key] - few[key]) / between for key in few}
    return {**row, "start_s": few["s"] - count * row["s"]}


def table(options: argparse.Namespace, windows: tuple[int, int], middle: dict[str, dict[str, float]]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"Rasters of {options.side} x {options.side} px, six bands, {windows[0]} windows each; {options.few} against "
        f"{options.many} rasters, medians of {options.runs} runs, {os.cpu_count()} cores.",
        "",
        "| who | windows a second | ratio | processor ms a window | of the coordinator, ms a raster | start, s |",
        "|---|---|---|---|---|---|",
    ]
    for side, row in middle.items():
        numbers = (f"{windows[0] / row['s']:.1f}", f"{middle['predict']['s'] / row['s']:.2f}",
                   f"{1000 * row['cpu_s'] / windows[0]:.1f}",
                   f"{1000 * row['own_s']:.1f}" if SIDES[side] else "", f"{row['start_s']:.1f}")  # fmt: skip
        lines.append(f"| {' | '.join((side, *numbers))} |")
    return lines


def projection(windows: tuple[int, int], middle: dict[str, dict[str, float]]) -> list[str]:
    """The arithmetic to many workers."""
    one = middle["1 worker"]["s"] / windows[0]
    own = max(middle[side]["own_s"] for side in ("1 worker", "2 workers"))
    tile = one * windows[1]
    hours = TILES * tile / 3600
    most = tile / own if own > 0 else float("inf")
    return [
        f"A Sentinel-2 tile of {TILE_PX} x {TILE_PX} px has {windows[1]} windows: {tile / 60:.1f} min of one worker. "
        f"{TILES} tiles are {hours:.0f} worker hours: {hours / WORKERS:.2f} h on {WORKERS} workers, the last tiles cut "
        f"into parts. The coordinator spends {1000 * own:.1f} ms on a raster: enough for {most:.0f} workers.",
        "",
        f"Assumed: cores like these, each with a worker of one thread; storage that serves {WORKERS} tiles at a time "
        "as fast as this disk serves one; time grows with the number of windows alone.",
    ]


if __name__ == "__main__":
    sys.exit(main())
