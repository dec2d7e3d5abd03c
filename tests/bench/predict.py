"""Whole-raster prediction: seconds, processor seconds beside the model, and memory, beside TerraTorch and a plain loop.

    build.py bench predict [--runs N] [--side PX] [--threads N] [--terratorch PYTHON] [--sparse PX]

Every run is a process of its own, and the sides take turns. The scene has six bands of 16 bits, compressed; the network
is Prithvi tiny with LoRA and the light decoder, its weights random: time and memory do not ask for their values.
`bare model` looks at the same windows as our prediction, in the same threads; they lie ready in memory, and what is
said of them is dropped. `in fours` does so in batches of four, one after the other. `without a model` is our prediction
with a network that gives a constant, so all that is left is reading, blending, drawing and writing. `plain loop` does
what Deepness does: a window is read, looked at alone and cropped, and the whole result stays in memory until it is
written.
TerraTorch is `peers/peer_tiled.py` of the shared data: an array in memory, and nothing written. `--sparse` is the side
of a raster of which all but nine squares are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _sets  # type: ignore[import-not-found]

RESULTS = Path(__file__).parents[2] / "resources" / "results"
BACKBONE, CLASSES, CHIP_PX = "prithvi_eo_v2_tiny_tl", 2, 224
SIDES = (
    "bare model",
    "bare model, in fours",
    "predict",
    "predict --outside",
    "without a model",
    "plain loop",
    "TerraTorch",
)
COLUMNS = ("wall_s", "cpu_s", "peak_mb", "above_mb")
SQUARE_PX = 512


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables and keeps them in resources/results/predict.md."""
    parser = argparse.ArgumentParser(prog="build.py bench predict", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--terratorch", default="", help="Python of an environment with TerraTorch")
    parser.add_argument("--sparse", type=int, default=100_000, help="0: leave it out")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options.one[0], Path(options.one[1]), options.threads, options.device)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        scene = write_scene(Path(folder) / "scene.tif", options.side)
        found = measured(options, scene)
        lines = table(options, found)
        if options.sparse:
            sparse = write_sparse(Path(folder) / "sparse.tif", options.sparse)
            lines += ["", *sparse_lines(options.sparse, run_side(options, "sparse", sparse))]
    text = "# Whole-raster prediction\n\nMade by `python3 build.py bench predict`; random weights.\n\n"
    (RESULTS / "predict.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


def measured(options: argparse.Namespace, scene: Path) -> dict[str, list[dict[str, float]]]:
    """What every side has taken, run after run, in turns."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.runs):
        for side in SIDES:
            if side != "TerraTorch":
                found.setdefault(side, []).append(run_side(options, side, scene))
            elif (row := run_peer(options)) is not None:
                found.setdefault(side, []).append(row)
            print(side, found.get(side, [None])[-1], file=sys.stderr, flush=True)
    return found


def run_side(options: argparse.Namespace, side: str, raster: Path) -> dict[str, float]:
    """One run of ours in a process of its own."""
    command = [sys.executable, __file__, "--one", side, str(raster), "--threads", str(options.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    command += ["--device", options.device]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    row: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return row


def run_peer(options: argparse.Namespace) -> dict[str, float] | None:
    """TerraTorch's run; None where it is not there."""
    shared = _sets.shared_folder()
    if not options.terratorch or shared is None:
        return None
    command = [options.terratorch, str(shared / "peers" / "peer_tiled.py"), "--model", "tiny", "--n", str(options.side)]
    command += ["--threads", str(options.threads), "--device", options.device]
    clean = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(command, env=clean, stdout=subprocess.PIPE, check=True)
    row = json.loads(answer.stdout.splitlines()[-1])
    above = row["peak_rss_mib"] - row["rss_before_mib"]
    return {"wall_s": row["wall_s"], "cpu_s": row["cpu_s"], "peak_mb": row["peak_rss_mib"], "above_mb": above}


def table(options: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Lines of Markdown."""
    middle = {side: {c: statistics.median(row[c] for row in rows) for c in COLUMNS} for side, rows in found.items()}
    pixels, bare = options.side**2 / 1e6, middle["bare model"]
    lines = [
        f"{options.side} x {options.side} px, six bands, {BACKBONE}, {options.threads} threads, {options.device}; "
        f"medians of {options.runs} runs. The ratios are to the bare model.",
        "",
        "| side | s | ratio | processor s | ratio | processor s per Mpx | peak MB | above the model MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side, row in middle.items():
        numbers = (f"{row['wall_s']:.1f}", f"{row['wall_s'] / bare['wall_s']:.2f}", f"{row['cpu_s']:.1f}",
                   f"{row['cpu_s'] / bare['cpu_s']:.2f}", f"{row['cpu_s'] / pixels:.3f}", f"{row['peak_mb']:.0f}",
                   f"{row['above_mb']:.0f}")  # fmt: skip
        lines.append(f"| {side} | {' | '.join(numbers)} |")
    return lines


def sparse_lines(side: int, row: dict[str, float]) -> list[str]:
    """What the sparse raster took, in a sentence."""
    return [
        f"A sparse raster of {side} x {side} px with {row['mapped_mpx']:.1f} Mpx of data: {row['wall_s']:.0f} s "
        f"({row['cpu_s']:.0f} processor s), {row['peak_mb']:.0f} MB at most, {row['above_mb']:.0f} MB above the model."
    ]


def write_scene(path: Path, side: int) -> Path:
    """A GeoTIFF of six bands with smooth ground and noise."""
    import numpy as np
    import rasterio

    rng = np.random.default_rng(0)
    with rasterio.open(path, "w", **_profile(side), nodata=None, compress="deflate", predictor=2) as raster:
        for row in range(0, side, 512):
            height = min(512, side - row)
            coarse = rng.integers(500, 3000, (6, height // 32 + 1, side // 32 + 1))
            values = coarse.repeat(32, 1).repeat(32, 2)[:, :height, :side] + rng.integers(0, 60, (6, height, side))
            raster.write(values.astype(np.uint16), window=rasterio.windows.Window(0, row, side, height))
        raster.descriptions = _names()
    return path


def write_sparse(path: Path, side: int) -> Path:
    """A GeoTIFF of which all but nine squares are missing."""
    import numpy as np
    import rasterio

    values = np.random.default_rng(0).integers(500, 3000, (6, SQUARE_PX, SQUARE_PX)).astype(np.uint16)
    profile = _profile(side) | {"SPARSE_OK": True, "BIGTIFF": "YES"}
    with rasterio.open(path, "w", **profile, nodata=0, compress="deflate") as raster:
        for row in np.linspace(0, side - SQUARE_PX, 3).astype(int).tolist():
            for col in np.linspace(0, side - SQUARE_PX, 3).astype(int).tolist():
                raster.write(values, window=rasterio.windows.Window(col, row, SQUARE_PX, SQUARE_PX))
        raster.descriptions = _names()
    return path


def _profile(side: int) -> dict[str, Any]:
    from affine import Affine

    return {"driver": "GTiff", "count": 6, "height": side, "width": side, "dtype": "uint16", "crs": "EPSG:32633",
            "transform": Affine(10, 0, 300_000, 0, -10, 5_800_000), "tiled": True, "blockxsize": 512,
            "blockysize": 512}  # fmt: skip


def _names() -> tuple[str, ...]:
    from geopeft.models.backbones import BACKBONES

    return tuple(band.name for band in BACKBONES[BACKBONE].bands)


def measure(side: str, raster: Path, threads: int, device: str) -> dict[str, float]:
    """One run in this process."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(threads)
    runtime, constant = make_runtime(device)
    with tempfile.TemporaryDirectory(dir=raster.parent) as folder:
        work = {
            "bare model": lambda: bare(runtime, raster),
            "bare model, in fours": lambda: bare(runtime, raster, in_fours=True),
            "plain loop": lambda: plain_loop(runtime, raster, Path(folder) / "map.tif"),
        }.get(side)
        if work is None:
            mapper = constant if side == "without a model" else runtime
            options = {"outside": True} if side == "predict --outside" else {}
            work = lambda: predicted(mapper, raster, Path(folder) / "map.tif", options)  # noqa: E731
        return timed(work)


def timed(work: Callable[[], Callable[[], dict[str, float]]]) -> dict[str, float]:
    """Prepares, then measures what `work` gives back."""
    ready = work()
    before = _peak_mb()
    begun, used = time.perf_counter(), time.process_time()
    more = ready()
    taken = time.perf_counter() - begun, time.process_time() - used
    return dict(zip(COLUMNS, (*taken, _peak_mb(), _peak_mb() - before), strict=True)) | more


def make_runtime(device: str) -> tuple[Any, Any]:
    """The network with random weights, with texture of the ground it knows; and a mapper that gives a constant."""
    import numpy as np
    import torch
    from geopeft import package
    from geopeft.applicability import Applicability
    from geopeft.classical import Classical, classical_graph
    from geopeft.models import ModelSpec, build
    from geopeft.models.spec import InputBand
    from geopeft.models.texture import Texture, describe_texture
    from geopeft.runtime import Runtime, choose_device

    torch.manual_seed(0)
    bands = tuple(InputBand(name=name, backbone_band=name, mean=1700, std=700) for name in _names())
    spec = ModelSpec(backbone=BACKBONE, adapter="lora", decoder="unet", bands=bands, num_classes=CLASSES, gsd_m=10,
                     chip_size_px=CHIP_PX)  # fmt: skip
    classes = tuple(
        package.ClassInfo(value=n + 1, name=f"c{n}", color="#0000ff", label=f"c{n}") for n in range(CLASSES)
    )
    known = describe_texture(bands, 10)
    manifest = package.Manifest(
        engine_version="0", created="2026-01-01T00:00:00+00:00", name="m", spec=spec, classes=classes,
        base_weights=package.BaseWeights(backbone=BACKBONE, licence="Apache-2.0"), radiometry="unknown", dtype="uint16",
    )  # fmt: skip
    texture = Texture(known, bands, torch.eye(known.components, len(bands)))
    points = np.random.default_rng(0).normal(size=(400, texture.count)).astype(np.float32)
    seen = Applicability(np.ones(texture.count, np.float32), points, 1.0)
    graph = classical_graph(_stumps(texture.count), np.arange(CLASSES), np.zeros((CLASSES, texture.count)),
                            np.zeros(CLASSES), 0.5)  # fmt: skip
    network = build(spec, pretrained=False, merged=True)
    runtime = Runtime(manifest, network, choose_device(device), Classical(texture, graph, CLASSES), "network", seen)

    class Constant(Runtime):
        def look(self, values: Any, valid: Any, asked: Any, taken: Any = None) -> Any:
            return np.full((len(values), CLASSES, *values.shape[-2:]), 1 / CLASSES, np.float32), []

    return runtime, Constant(manifest, network, choose_device(device))


def _stumps(features: int) -> list[Any]:
    """Two trees, which are not asked: the bench is of the network."""
    import numpy as np
    from sklearn.ensemble import ExtraTreesClassifier

    rng = np.random.default_rng(0)
    trees = ExtraTreesClassifier(2, max_depth=2, random_state=0)
    trees.fit(rng.normal(size=(50, features)).astype(np.float32), rng.integers(0, CLASSES, 50))
    return [tree.tree_ for tree in trees.estimators_]


def bare(runtime: Any, raster: Path, in_fours: bool = False) -> Callable[[], dict[str, float]]:
    """The model on every window of the raster; all of them are ready."""
    from geopeft.data.raster import describe
    from geopeft.events import Reporter
    from geopeft.mapping.strips import Mapping

    mapping = Mapping(runtime, describe(str(raster)), (), Reporter())
    if in_fours:
        type(runtime).batch = 4
    batches = list(mapping.read(range(len(mapping.rows))))

    def look() -> dict[str, float]:
        for _ in map(mapping.look, batches) if in_fours else mapping.looked_at(iter(batches)):
            pass
        return {}

    return look


def predicted(runtime: Any, raster: Path, target: Path, options: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """The raster's map, written."""
    from geopeft.events import Reporter
    from geopeft.job import parse
    from geopeft.maps.one_map import map_one

    job = parse({"job": "predict", "model": "m.geopeft", "rasters": [str(raster)], "out": str(target), **options})
    origin = {"GEOPEFT_MODEL": "m.geopeft", "GEOPEFT_MODEL_SHA256": "0" * 64}

    def work() -> dict[str, float]:
        entry = map_one(job, runtime, str(raster), target, origin, Reporter())  # type: ignore[arg-type]
        height, width = shape_of(raster)
        return {"mapped_mpx": entry["mapped_share"] * height * width / 1e6}

    return work


def shape_of(raster: Path) -> tuple[int, int]:
    """Rows and columns."""
    import rasterio

    with rasterio.open(raster) as source:
        height, width = source.shape
    return height, width


def plain_loop(runtime: Any, raster: Path, target: Path) -> Callable[[], dict[str, float]]:
    """Window by window, cropped by half of the overlap, into an array of the whole raster."""
    import numpy as np
    import rasterio
    from geopeft.mapping.windows import Axis
    from rasterio.windows import Window

    def work() -> dict[str, float]:
        with rasterio.open(raster) as source:
            result = np.zeros((CLASSES, *source.shape), np.float32)
            axes = [Axis.of(n, runtime.window_px, runtime.overlap_px, runtime.grain_px) for n in source.shape]
            for top in axes[0].starts:
                for left in axes[1].starts:
                    size = (axes[0].window_px, axes[1].window_px)
                    values = source.read(window=Window(left, top, size[1], size[0])).astype(np.float32)[None]
                    said = runtime.look(values, np.ones((1, *size), bool), ())[0][0]
                    half = runtime.overlap_px // 2
                    row0, col0 = (half if at else 0 for at in (top, left))
                    result[:, top + row0 : top + size[0], left + col0 : left + size[1]] = said[:, row0:, col0:]
            profile = source.profile | {"count": 1, "dtype": "uint8", "compress": "deflate", "predictor": 1}
        with rasterio.open(target, "w", **profile) as out:
            out.write((result.argmax(0) + 1).astype(np.uint8), 1)
        return {}

    return work


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
