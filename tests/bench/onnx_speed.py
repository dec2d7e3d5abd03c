"""A chip through our models: PyTorch against ONNX Runtime in single precision and in eight bits, the sides in turns.

    build.py bench onnx-speed [--models galileo_nano,...] [--runs N] [--packages A.geopeft,...] [--raster FILE]

The network alone, as prediction calls it: raster values in, probabilities out. The weights are random, since time does
not ask for their values. Then whole models, trees and all: `predict` on a raster with a package and with its exports,
in single precision and in eight bits, and how many pixels these change. Beside the seconds of the wall those of the
processor are given, which ask less what else the machine does.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

RESOURCES = Path(__file__).parents[2] / "resources"
RESULTS, SAMPLE = RESOURCES / "results", RESOURCES / "sample" / "itaipu_landsat8.tif"
MODELS = ("galileo_nano", "tf_efficientnet_lite0", "geopeft_small", "prithvi_eo_v2_tiny_tl", "prithvi_eo_v2_100_tl")
BATCHES, THREADS = (1, 4), (1, 2)
OPTICAL_UM = (0.49, 0.56, 0.665, 0.842, 1.61, 2.2)
CLASSES = 5
# ONNX Runtime learns in the first run how much memory a shape takes, and takes it at once in the second.
WARM_UP = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and keeps it in resources/results/onnx_speed.md."""
    parser = argparse.ArgumentParser(prog="build.py bench onnx-speed", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--packages", default="", help="model packages, for whole models")
    parser.add_argument("--raster", type=Path, default=SAMPLE, help="what these map")
    parser.add_argument("--weights-dir", default="")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    lines = [
        "# ONNX Runtime and PyTorch",
        "",
        "Made by `python3 build.py bench onnx-speed`: the network alone, decoder `unet`, random weights, medians of "
        f"{options.runs} runs in turns, after {WARM_UP} that do not count. Milliseconds a chip, on the wall; the "
        "ratios are PyTorch's time by that of the other, on the wall and of the processor.",
        "",
        "| backbone | window px | threads | batch | PyTorch ms | ONNX ms | ratio | processor | int8 ms | ratio "
        "| processor |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in options.models.split(","):
        for row in rows(name, options.runs):
            lines.append(row)
            print(row, flush=True)
    for text in whole_models(options) if options.packages else ():
        lines.append(text)
        print(text, flush=True)
    (RESULTS / "onnx_speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def rows(name: str, runs: int) -> list[str]:
    """Lines of the table for one backbone."""
    import torch
    from geopeft.onnx import export, quantise

    runtime = open_runtime(name)
    side = runtime.window_px
    chips = export._example(runtime, max(BATCHES), side)
    logging.disable(logging.WARNING)
    whole = export._graph(chips[:2], runtime)
    small = quantise.calibrated(whole, "probabilities", chips.numpy())
    network = export._Network(runtime).eval()
    found = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        sessions = [session(model.SerializeToString(), threads) for model in (whole, small)]
        for batch in BATCHES:
            part = chips[:batch]
            calls = [partial(network, part), *(partial(s.run, None, {"raster": part.numpy()}) for s in sessions)]
            with torch.inference_mode():
                wall, processor = in_turns(calls, runs)
            per_chip = [f"{seconds / batch * 1000:.1f}" for seconds in wall]
            ratios = [(wall[0] / wall[i], processor[0] / processor[i]) for i in (1, 2)]
            (one, one_cpu), (eight, eight_cpu) = ratios
            found.append(
                f"| {name} | {side} | {threads} | {batch} | {per_chip[0]} | {per_chip[1]} | {one:.2f} | {one_cpu:.2f} "
                f"| {per_chip[2]} | {eight:.2f} | {eight_cpu:.2f} |"
            )
    return found


def whole_models(options: argparse.Namespace) -> Iterator[str]:
    """Lines of the table of `predict` on a raster, opening the model included."""
    import torch
    from geopeft import predict
    from geopeft.events import Reporter
    from geopeft.job import ExportJob, PredictJob
    from geopeft.onnx import export

    yield from (
        "",
        f"`predict` on `{options.raster.name}` with whole models, opening them included: seconds of the processor.",
        "",
        "| model | threads | package | ONNX | ratio | on the wall | pixels changed | int8 | ratio | on the wall "
        "| pixels changed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    )
    with tempfile.TemporaryDirectory() as place:
        folder, raster = Path(place), str(options.raster)
        for package in map(Path, options.packages.split(",")):
            sides = [package, folder / f"{package.stem}.onnx", folder / f"{package.stem}.int8.onnx"]
            for out, in_eight_bits in zip(sides[1:], (False, True), strict=True):
                fields = {"model": str(package), "onnx": str(out), "weights_dir": options.weights_dir}
                rasters = (raster,) if in_eight_bits else ()
                export.run(ExportJob.model_validate(fields | {"int8": in_eight_bits, "rasters": rasters}), Reporter())
            calls = []
            for number, model in enumerate(sides):
                fields = {"model": str(model), "out": str(folder / f"{number}.tif"), "device": "cpu"}
                job = PredictJob.model_validate(fields | {"rasters": (raster,), "weights_dir": options.weights_dir})
                calls.append(partial(predict.run, job, Reporter()))
            for threads in THREADS:
                torch.set_num_threads(threads)
                wall, processor = in_turns(calls, options.runs, warm_up=1)
                cells = [package.stem, str(threads), f"{processor[0]:.1f}"]
                for number in (1, 2):
                    cells += [
                        f"{processor[number]:.1f}", f"{processor[0] / processor[number]:.2f}",
                        f"{wall[0] / wall[number]:.2f}", f"{changed(folder, number):.2%}",
                    ]  # fmt: skip
                yield f"| {' | '.join(cells)} |"


def changed(folder: Path, number: int) -> float:
    """Share of pixels in which a map differs from the first."""
    import rasterio

    with rasterio.open(folder / "0.tif") as one, rasterio.open(folder / f"{number}.tif") as other:
        return float((one.read(1) != other.read(1)).mean())


def in_turns(
    calls: Sequence[Callable[[], object]], runs: int, warm_up: int = WARM_UP
) -> tuple[list[float], list[float]]:
    """Medians of the seconds on the wall, and of the processor, of each call; the first rounds do not count."""
    wall: list[list[float]] = [[] for _ in calls]
    processor: list[list[float]] = [[] for _ in calls]
    for _ in range(warm_up + runs):
        for place, call in enumerate(calls):
            begun, used = time.perf_counter(), time.process_time()
            call()
            wall[place].append(time.perf_counter() - begun)
            processor[place].append(time.process_time() - used)
    return [statistics.median(s[warm_up:]) for s in wall], [statistics.median(s[warm_up:]) for s in processor]


def session(model: bytes, threads: int) -> Any:
    """As prediction opens a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_runtime(name: str) -> Any:
    """A model with random weights, opened as a package is."""
    import torch
    from geopeft import package
    from geopeft.models import ModelSpec, build
    from geopeft.models.backbones import BACKBONES
    from geopeft.models.spec import InputBand
    from geopeft.runtime import Runtime

    torch.manual_seed(0)
    card = BACKBONES[name]
    fed = [(band.name, band.name, band.wavelength_um) for band in card.bands]
    bands = [
        InputBand(name=name, backbone_band=own, wavelength_um=length, scale=1e-4, mean=0.3, std=0.1)
        for name, own, length in fed or [(f"b{i}", "", length) for i, length in enumerate(OPTICAL_UM)]
    ]
    fields = {"backbone": name, "adapter": "frozen", "decoder": "unet", "bands": tuple(bands), "gsd_m": 10}
    spec = ModelSpec.model_validate({**fields, "num_classes": CLASSES, "chip_size_px": card.chip_size_px})
    model = build(spec, pretrained=False)
    model.backbone.requires_grad_(False)
    model.backbone.bake()
    classes = tuple(
        package.ClassInfo(value=i + 1, name=f"class {i}", color="#000000", label=str(i)) for i in range(CLASSES)
    )
    manifest = package.Manifest(
        engine_version="", created="", name=name, spec=spec, dtype="uint16", radiometry="reflectance", classes=classes,
        base_weights=package.BaseWeights(backbone=name, licence=""),
    )  # fmt: skip
    return Runtime(manifest, model, torch.device("cpu"), part="network")


if __name__ == "__main__":
    sys.exit(main())
