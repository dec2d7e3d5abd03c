"""What kept features save: steps beside TerraTorch's, a second fit with more labels, and what it does to accuracy.

    build.py bench cache [--parts steps,second,accuracy] [--runs N] [--terratorch PYTHON] [--seeds N] [--steps N]

steps: training steps of a Prithvi-EO-2.0-100M-sized network with random weights, two chips of 224 px, two threads. The
features are on the disk already, as from the second round through the chips on; reading and checking them is part of
the step. TerraTorch makes its step as in `bench step`. Every run is a process of its own, and the sides take turns.

second: a fit on a part of the labels of a region, then one on all of them, with the features of the first kept (warm)
and in an empty folder (cold).

accuracy: fits with kept features, which draw chips from few windows, and fits that draw anew each time; mIoU of the
network in a region that no fit has seen.
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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _sets  # type: ignore[import-not-found]
import numpy as np
import step as steps_bench  # type: ignore[import-not-found]

RESULT = Path(__file__).parents[2] / "resources" / "results" / "cache.md"
BACKBONE, BATCH, SIDE_PX, THREADS, STEPS, BATCHES = "prithvi_eo_v2_100_tl", 2, 224, 2, 4, 4
# What is compared: who, adapter, decoder, last blocks, whether features are kept, precision.
SIDES = (
    ("GeoPEFT", "lora", "unet", 0, False, "float32"),
    ("GeoPEFT", "lora", "unet", 4, True, "float32"),
    ("GeoPEFT", "lora", "unet", 4, True, "as trained"),
    ("GeoPEFT", "frozen", "unet", 0, False, "float32"),
    ("GeoPEFT", "frozen", "unet", 0, True, "float32"),
    ("GeoPEFT", "frozen", "unet", 0, True, "as trained"),
    ("GeoPEFT", "frozen", "linear", 0, True, "float32"),
    ("TerraTorch", "lora", "unet", 0, False, "float32"),
    ("TerraTorch", "frozen", "unet", 0, False, "float32"),
    ("TerraTorch", "frozen", "linear", 0, False, "float32"),
)
# Set, backbone.
REGIONS = (("urban_trees_naip", "geopeft_small"), ("terramind_s2_lulc", "galileo_nano"))
TUNINGS = (("frozen", 0), ("lora", 0), ("lora", 4))
# Of the labels, in the first of two fits.
FIRST_PART = 0.7
PARTS = {
    "steps": "Training steps",
    "second": "A second fit with more labels",
    "accuracy": "Accuracy with chips from few windows",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables and keeps them in resources/results/cache.md; parts that are not asked for stay as they are."""
    parser = argparse.ArgumentParser(prog="build.py bench cache", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tunings", default="", help="such as frozen,lora4; empty: all")
    parser.add_argument("--terratorch", default="", help="Python of an environment with TerraTorch")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(one_side(*options.one)))
        return 0
    shared = _sets.shared_folder()
    if shared is None:
        return 2
    makers: dict[str, Callable[[], list[str]]] = {
        "steps": lambda: step_table(options.runs, options.terratorch),
        "second": lambda: second_table(shared, options.runs, options.steps),
        "accuracy": lambda: accuracy_table(shared, options.seeds, options.steps, options.tunings),
    }
    for part in options.parts.split(","):
        keep_section(PARTS[part], makers[part]())
    return 0


def keep_section(title: str, lines: Sequence[str]) -> None:
    """Prints a section and puts it into the file in the place of the one of the same title."""
    text = RESULT.read_text(encoding="utf-8") if RESULT.exists() else ""
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    sections[title] = "\n" + "\n".join(lines) + "\n"
    head = "# Kept features\n\nMade by `python3 build.py bench cache`, which says what is measured.\n"
    whole = [f"\n## {name}\n{sections[name]}" for name in PARTS.values() if name in sections]
    RESULT.write_text(head + "".join(whole).replace("\n\n\n", "\n\n"), encoding="utf-8")
    print("\n".join([f"## {title}", "", *lines, ""]), flush=True)


def step_table(runs: int, terratorch: str) -> list[str]:
    """Medians of what each side's step took."""
    found: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for _ in range(runs):
        for side in SIDES:
            who, adapter, decoder, last, kept, precision = side
            if who == "GeoPEFT":
                command = [sys.executable, __file__, "--one", adapter, decoder, str(last), str(int(kept)), precision]
            else:
                command = steps_bench.peers("100", adapter, terratorch)
                command += ["--decoder", decoder] if command else []
            if command:
                clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or who == "GeoPEFT"}
                answer = subprocess.run(command, env=clean, stdout=subprocess.PIPE, check=True)
                found.setdefault(side, []).append(steps_bench.read(json.loads(answer.stdout.splitlines()[-1])))
                print(*side, found[side][-1], file=sys.stderr, flush=True)
    middle = {
        side: {c: statistics.median(row[c] for row in rows) for c in steps_bench.COLUMNS}
        for side, rows in found.items()
    }
    lines = [
        f"{BACKBONE}, random weights, {BATCH} chips of {SIDE_PX} px, {THREADS} threads, medians of {runs} runs. The",
        "ratio is of TerraTorch's processor seconds with the same adapter and decoder to this row's.",
        "",
        "| who | adapter | decoder | features kept | precision | step s | processor s | ratio | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for side, row in middle.items():
        who, adapter, decoder, last, kept, precision = side
        peer = middle.get(("TerraTorch", adapter, decoder, 0, False, "float32"))
        ratio = f"{peer['step_cpu_s'] / row['step_cpu_s']:.1f}" if peer else ""
        cells = (who, tuning(adapter, last), decoder, "yes" if kept else "", precision, f"{row['step_s']:.3f}",
                 f"{row['step_cpu_s']:.3f}", ratio, f"{row['peak_mb']:.0f}")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def one_side(adapter: str, decoder: str, last_blocks: str, kept: str, precision: str) -> dict[str, float]:
    """The shortest of a few steps of ours, and the memory, in MiB, of this process."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from geopeft.data.batches import Batch
    from geopeft.events import Reporter
    from geopeft.features.kept import kept_features
    from geopeft.models import ModelSpec, build, describe_parameters
    from geopeft.models.backbones import BACKBONES
    from geopeft.models.spec import InputBand
    from geopeft.training import learning

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    bands = tuple(InputBand(name=band.name, backbone_band=band.name) for band in BACKBONES[BACKBONE].bands)
    fields = {"backbone": BACKBONE, "adapter": adapter, "decoder": decoder, "bands": bands, "num_classes": 2}
    spec = ModelSpec.model_validate({**fields, "gsd_m": 30, "chip_size_px": SIDE_PX, "last_blocks": int(last_blocks)})
    model = build(spec, pretrained=False).to(memory_format=torch.channels_last)
    model.base_weights = replace(model.base_weights, sha256="random")
    if precision == "float32":
        learning.multiplies_bfloat16 = lambda device: False
    built = steps_bench.now_mb()
    rng = np.random.default_rng(0)
    batches = [
        Batch(
            rng.normal(size=(BATCH, len(bands), SIDE_PX, SIDE_PX)).astype(np.float32),
            np.ones((BATCH, SIDE_PX, SIDE_PX), bool),
            rng.integers(0, 2, (BATCH, SIDE_PX, SIDE_PX)).astype(np.uint8),
        )
        for _ in range(BATCHES)
    ]
    with tempfile.TemporaryDirectory() as folder:
        features = kept_features(model, Reporter(), Path(folder)) if kept == "1" else None
        learner = learning.Learner(model, features or learning.Computed(model))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer, taken = torch.optim.AdamW(trained, lr=1e-4), []
        for number in range(BATCHES + STEPS):
            batch = batches[number % BATCHES]
            begun, used = time.perf_counter(), time.process_time()
            learner.step(batch, torch.from_numpy(batch.values), optimizer)
            taken.append((time.perf_counter() - begun, time.process_time() - used))
    walls, processor = zip(*taken[BATCHES:], strict=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count = describe_parameters(model)["trainable"] / 1e6
    columns = (min(walls), min(processor), peak, peak - built, count)
    return dict(zip(steps_bench.COLUMNS, columns, strict=True))


def second_table(shared: Path, runs: int, steps: int) -> list[str]:
    """Processor seconds of the second of two fits, its features kept or not."""
    lines = [
        f"{FIRST_PART:.0%} of the labels of the region, then all of them; {steps} steps, one thread, medians of {runs}",
        "runs. Processor seconds of the whole second fit, and of what comes before its first step.",
        "",
        "| set | backbone | adapter | whole fit, cold | warm | before the first step, cold | warm |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, backbone in REGIONS:
        for adapter, last in TUNINGS:
            rows = [seconds_of_fits(shared, name, backbone, adapter, last, steps) for _ in range(runs)]
            cells = [f"{statistics.median(values):.1f}" for values in zip(*rows, strict=True)]
            lines.append(f"| {' | '.join((name, backbone, tuning(adapter, last), *cells))} |")
    return lines


def seconds_of_fits(
    shared: Path, name: str, backbone: str, adapter: str, last: int, steps: int
) -> tuple[float, float, float, float]:
    """Processor seconds of a cold and a warm fit, and of what comes before their first step."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        labelled = next(found for found in _sets.SETS if found.name == name)
        region, _ = _sets.regions_of(labelled, shared / "data", scratch)
        crs, shapes, classes = _sets.read_labels(region.labels)
        kept = np.random.default_rng(0).random(len(shapes)) < FIRST_PART
        some = _sets.write_labels(scratch / "some.gpkg", [(crs, shapes[kept], classes[kept])])
        job = fit_job(shared, region, labelled, backbone, adapter, last, steps)
        run_fit({**job, "labels": some}, scratch / "features", scratch)
        warm = run_fit(job, scratch / "features", scratch)
        cold = run_fit(job, scratch / "empty", scratch)
    return cold[0], warm[0], cold[1], warm[1]


def fit_job(
    shared: Path, region: Any, labelled: Any, backbone: str, adapter: str, last: int, steps: int
) -> dict[str, Any]:
    """A fit of one fold, without what it is compared with."""
    return {
        "job": "fit", "rasters": region.rasters, "labels": region.labels, "class_field": "class", "baselines": (),
        "background": labelled.background, "backbone": backbone, "adapter": adapter, "last_blocks": last,
        "steps": steps, "folds": 1, "device": "cpu", "weights_dir": str(shared / "weights"),
    }  # fmt: skip


def run_fit(job: dict[str, Any], features: Path, scratch: Path) -> tuple[float, float]:
    """Processor seconds of a fit in a process of its own: in all, and before its first step."""
    script = (
        "import json, sys, time\nimport torch\ntorch.set_num_threads(1)\nfrom geopeft import fit\n"
        "from geopeft.events import Reporter\nfrom geopeft.job import parse\n"
        "class Watch(Reporter):\n    first = 0.0\n"
        "    def progress(self, stage, *parts): self.see(stage)\n"
        "    def metric(self, stage, *parts): self.see(stage)\n"
        "    def see(self, stage): self.first = self.first or (stage == 'fit' and time.process_time())\n"
        "watch, begun = Watch(), time.process_time()\nfit.run(parse(json.loads(sys.argv[1])), watch)\n"
        "print(json.dumps([time.process_time() - begun, watch.first - begun]))"
    )
    environment = {**os.environ, "GEOPEFT_FEATURES": str(features), "OMP_NUM_THREADS": "1"}
    text = json.dumps({**job, "out": str(scratch / "m.geopeft")})
    done = subprocess.run(
        [sys.executable, "-c", script, text], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    whole, before = json.loads(done.stdout.splitlines()[-1])
    return whole, before


def accuracy_table(shared: Path, seeds: int, steps: int, tunings: str) -> list[str]:
    """mIoU of the network in the unseen region, features kept or not."""
    lines = [
        f"{steps} steps, mean of {seeds} seeds. mIoU of the network alone in the unseen region, in points.",
        "",
        "| set | backbone | adapter | kept, few windows | computed, any window | difference | of each seed |",
        "|---|---|---|---|---|---|---|",
    ]
    gains = []
    for name, backbone in REGIONS:
        for adapter, last in TUNINGS:
            if tunings and f"{adapter}{last or ''}" not in tunings.split(","):
                continue
            with tempfile.TemporaryDirectory() as folder:
                rows = [
                    scores(shared, name, backbone, adapter, last, steps, seed, Path(folder)) for seed in range(seeds)
                ]
            one, other = np.mean(rows, 0)
            gains.append(one - other)
            each = ", ".join(f"{kept - computed:+.1f}" for kept, computed in rows)
            cells = (name, backbone, tuning(adapter, last), f"{one:.1f}", f"{other:.1f}", f"{one - other:+.1f}", each)
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return [*lines, "", f"Mean difference: {np.mean(gains):+.2f} points."]


def scores(
    shared: Path, name: str, backbone: str, adapter: str, last: int, steps: int, seed: int, scratch: Path
) -> tuple[float, float]:
    """mIoU in points with features kept and not."""
    labelled = next(found for found in _sets.SETS if found.name == name)
    place = scratch / str(seed)
    place.mkdir()
    region, unseen = _sets.regions_of(labelled, shared / "data", place)
    found = []
    for kept in (True, False):
        job = fit_job(shared, region, labelled, backbone, adapter, last, steps)
        run_fit({**job, "seed": seed, "cache": kept}, scratch / "features", place)
        matrices = []
        for part in unseen.parts:
            options = ["--background", labelled.background] if labelled.background else []
            _sets.engine("evaluate", str(place / "m.geopeft"), *part.rasters, "--labels", part.labels, "--class-field",
                         "class", "--part", "network", "--device", "cpu", "--weights-dir", str(shared / "weights"),
                         "--json", str(place / "figures.json"), *options)  # fmt: skip
            matrices.append(np.array(json.loads((place / "figures.json").read_text())["confusion_matrix"], float))
        found.append(100 * _sets.whole_figures({"confusion_matrix": sum(matrices)})["miou"])
    shutil.rmtree(place)
    return found[0], found[1]


def tuning(adapter: str, last: int) -> str:
    """How the backbone is tuned, in words."""
    return f"{adapter}, last {last} blocks" if last else adapter


if __name__ == "__main__":
    sys.exit(main())
