"""A training step of Prithvi-sized networks: LoRA, full, frozen and prompts, in seconds and memory, beside TerraTorch.

    build.py bench step [--sizes tiny,100,300] [--runs N] [--terratorch PYTHON]

Every run is a process of its own, and the sides take turns. The weights are random: time and memory do not ask for
their values. `--terratorch` is the Python of an environment with TerraTorch, for which the script of the shared data
(peers/peer_terratorch.py) makes the same step with the settings of the study. A step is forward, cross-entropy,
backward and AdamW on a batch of two chips of 224 px with six bands, on two threads. Seconds of the processor are given
beside those of the wall, since they do not ask what else the machine does. `floor` multiplies the matrices alone that
no LoRA step gets around: those of the encoder's blocks, forward and for the gradients of what they were given. It has
no decoder, no norm and no softmax.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _sets  # type: ignore[import-not-found]

RESULTS = Path(__file__).parents[2] / "resources" / "results"
SIZES = {"tiny": "prithvi_eo_v2_tiny_tl", "100": "prithvi_eo_v2_100_tl", "300": "prithvi_eo_v2_300"}
PEER_SIZES = {"tiny": "tiny", "100": "v2_100", "300": "v2_300"}
PEER_METHODS = {"lora": "lora", "full": "full", "frozen": "linear", "vpt": "vpt"}
BATCH, SIDE_PX, CLASSES, STEPS, THREADS = 2, 224, 2, 3, 2
# What is compared: who, adapter, decoder, precision.
SIDES = (
    ("GeoPEFT", "lora", "light", "float32"),
    ("GeoPEFT", "lora", "study", "float32"),
    ("GeoPEFT", "lora", "light", "as trained"),
    ("GeoPEFT", "lora", "light", "low memory"),
    ("GeoPEFT", "full", "light", "float32"),
    ("GeoPEFT", "frozen", "light", "float32"),
    ("GeoPEFT", "vpt", "light", "float32"),
    ("floor", "lora", "none", "float32"),
    ("floor", "lora", "none", "bfloat16"),
    ("TerraTorch", "lora", "study", "float32"),
    ("TerraTorch", "full", "study", "float32"),
    ("TerraTorch", "frozen", "study", "float32"),
)
COLUMNS = ("step_s", "step_cpu_s", "peak_mb", "above_model_mb", "trained_m")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and keeps it in resources/results/step.md."""
    parser = argparse.ArgumentParser(prog="build.py bench step", description=__doc__)
    parser.add_argument("--sizes", default="tiny,100,300")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--terratorch", default="", help="Python of an environment with TerraTorch")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        work = floor if options.one[2] == "none" else step
        print(json.dumps(work(*options.one)))
        return 0
    lines = [f"{BATCH} chips of {SIDE_PX} px, six bands, {THREADS} threads, medians of {options.runs} runs."]
    for size in options.sizes.split(","):
        lines += ["", *table(size, measured(size, options.runs, options.terratorch))]
        print("\n".join(lines), flush=True)
    text = "# A training step\n\nMade by `python3 build.py bench step`; random weights. The ratio is of the processor's"
    text += " seconds to those of LoRA with the light decoder in single precision.\n\n"
    (RESULTS / "step.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


def measured(size: str, runs: int, terratorch: str) -> dict[tuple[str, ...], list[dict[str, float]]]:
    """What every side has taken, run after run, in turns."""
    found: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for _ in range(runs):
        for side in SIDES:
            rival = side[0] == "TerraTorch"
            command = peers(size, side[1], terratorch) if rival else ours(size, side)
            if command:
                # Each side has its own packages.
                clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or not rival}
                answer = subprocess.run(command, env=clean, stdout=subprocess.PIPE, check=True)
                found.setdefault(side, []).append(read(json.loads(answer.stdout.splitlines()[-1])))
                print(size, *side, found[side][-1], file=sys.stderr, flush=True)
    return found


def ours(size: str, side: tuple[str, ...]) -> list[str]:
    """The command of one of our steps."""
    return [sys.executable, __file__, "--one", SIZES[size], *side[1:]]


def peers(size: str, adapter: str, python: str) -> list[str]:
    """The command of TerraTorch's step; empty where it is not there."""
    shared = _sets.shared_folder()
    if not python or shared is None:
        return []
    script = str(shared / "peers" / "peer_terratorch.py")
    return [python, script, "--model", PEER_SIZES[size], "--method", PEER_METHODS[adapter], "--steps", str(STEPS)]


def read(row: dict[str, Any]) -> dict[str, float]:
    """The columns, of ours or of the peer's answer."""
    if "terratorch" not in row:
        return {name: float(row[name]) for name in COLUMNS}
    above = row["peak_rss_mib"] - row["rss_build_mib"]
    values = (row["step_s_min"], row["step_cpu_s_min"], row["peak_rss_mib"], above, row["params_trainable"] / 1e6)
    return dict(zip(COLUMNS, map(float, values), strict=True))


def table(size: str, found: dict[tuple[str, ...], list[dict[str, float]]]) -> list[str]:
    """Lines of Markdown."""
    middle = {side: {c: statistics.median(row[c] for row in rows) for c in COLUMNS} for side, rows in found.items()}
    unit = middle[SIDES[0]]["step_cpu_s"]
    lines = [
        f"## {SIZES[size]}",
        "",
        "| who | adapter | decoder | precision | step s | processor s | ratio | peak MB | above model MB | trained M |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for side, row in middle.items():
        numbers = (f"{row['step_s']:.2f}", f"{row['step_cpu_s']:.2f}", f"{row['step_cpu_s'] / unit:.2f}",
                   f"{row['peak_mb']:.0f}", f"{row['above_model_mb']:.0f}", f"{row['trained_m']:.2f}")  # fmt: skip
        lines.append(f"| {' | '.join((*side, *numbers))} |")
    return lines


def step(backbone: str, adapter: str, decoder_size: str, precision: str) -> dict[str, float]:
    """The shortest of a few steps, and the memory, in MiB, of this process."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import numpy as np
    import torch
    from geopeft.data.batches import Batch
    from geopeft.models import ModelSpec, build, describe_parameters
    from geopeft.models.backbones import BACKBONES
    from geopeft.models.backbones.transformer import keep_little
    from geopeft.models.spec import InputBand
    from geopeft.training.learning import Computed, Learner

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    bands = tuple(InputBand(name=band.name, backbone_band=band.name) for band in BACKBONES[backbone].bands)
    fields = {"backbone": backbone, "adapter": adapter, "decoder": "unet", "decoder_size": decoder_size, "bands": bands}
    spec = ModelSpec.model_validate({**fields, "num_classes": CLASSES, "gsd_m": 30, "chip_size_px": SIDE_PX})
    model = build(spec, pretrained=False)
    built = now_mb()
    keep_little(model.backbone, precision == "low memory")
    learner = Learner(model.to(memory_format=torch.channels_last), Computed(model))
    if precision != "as trained":
        learner.single_precision()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    chips, rng = torch.randn(BATCH, len(bands), SIDE_PX, SIDE_PX), np.random.default_rng(0)
    class_ids = rng.integers(0, CLASSES, (BATCH, SIDE_PX, SIDE_PX)).astype(np.uint8)
    batch = Batch(chips.numpy(), np.ones(class_ids.shape, bool), class_ids)
    taken = []
    for _ in range(1 + STEPS):
        begun, used = time.perf_counter(), time.process_time()
        learner.step(batch, chips, optimizer)
        taken.append((time.perf_counter() - begun, time.process_time() - used))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    walls, processor = zip(*taken[1:], strict=True)
    count = describe_parameters(model)["trainable"] / 1e6
    return dict(zip(COLUMNS, (min(walls), min(processor), peak, peak - built, count), strict=True))


def floor(backbone: str, adapter: str, decoder_size: str, precision: str) -> dict[str, float]:
    """The shortest of a few rounds through the encoder's products; columns as of `step`."""
    import torch
    from geopeft.models.backbones import BACKBONES

    torch.set_num_threads(THREADS)
    options = BACKBONES[backbone].options
    dim, heads, tokens = options["dim"], options["heads"], (SIDE_PX // 16) ** 2 + 1
    dtype = getattr(torch, precision)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype)

    rows, wide = numbers(BATCH * tokens, dim), numbers(BATCH * tokens, 4 * dim)
    qkv, proj, fc1, fc2 = numbers(3 * dim, dim), numbers(dim, dim), numbers(4 * dim, dim), numbers(dim, 4 * dim)
    triple, head = numbers(BATCH * tokens, 3 * dim), numbers(BATCH * heads, tokens, dim // heads)
    square = numbers(BATCH * heads, tokens, tokens)
    taken = []
    with torch.inference_mode():
        for _ in range(1 + STEPS):
            begun, used = time.perf_counter(), time.process_time()
            for _ in range(options["depth"]):
                _ = rows @ qkv.T, head @ head.mT, square @ head, rows @ proj.T, rows @ fc1.T, wide @ fc2.T
                _ = rows @ fc2, wide @ fc1, rows @ proj, triple @ qkv
                # Gradients of values, attention, queries and keys.
                _ = square.mT @ head, head @ head.mT, square @ head, square.mT @ head
            taken.append((time.perf_counter() - begun, time.process_time() - used))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    walls, processor = zip(*taken[1:], strict=True)
    return dict(zip(COLUMNS, (min(walls), min(processor), peak, 0.0, 0.0), strict=True))


def now_mb() -> float:
    """Resident memory of this process in MiB."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
