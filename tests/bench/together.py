"""One training on one process and on two, each of one thread: seconds a step, and how far the results lie apart.

    build.py bench together [--runs N] [--backbone NAME]

The sample scene, eight chips a batch. A step's time is what the twenty steps of a long
training take beyond a short one, so that reading, forests and validation do not count. The sides take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from geopeft import package

ROOT = Path(__file__).parents[2]
SAMPLE, RESULTS = ROOT / "resources" / "sample", ROOT / "resources" / "results"
SHORT, LONG = 2, 22


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and keeps it in resources/results/together.md."""
    parser = argparse.ArgumentParser(prog="build.py bench together", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--backbone", default="geopeft_small")
    options = parser.parse_args(arguments)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        out = {count: Path(folder) / f"{count}.geopeft" for count in seconds}
        for _ in range(options.runs):
            for count in seconds:
                short = fit_seconds(count, SHORT, options.backbone, out[count])
                long = fit_seconds(count, LONG, options.backbone, out[count])
                seconds[count].append((long - short) / (LONG - SHORT))
                print(count, f"{short:.1f} {long:.1f}", file=sys.stderr, flush=True)
        one, two = (
            np.concatenate([v.ravel() for _, v in sorted(package.read(p).weights.items())]) for p in out.values()
        )
    apart = float(np.linalg.norm(two - one) / np.linalg.norm(one))
    middle = {count: statistics.median(found) for count, found in seconds.items()}
    lines = [
        "# A training on several processes",
        "",
        f"Made by `python3 build.py bench together`: {options.backbone}, LoRA, batches of eight chips, one thread a "
        f"process, medians of {options.runs} runs.",
        "",
        "| processes | seconds a step | speed |",
        "|---|---|---|",
        *(f"| {count} | {found:.2f} | {middle[1] / found:.2f} |" for count, found in middle.items()),
        "",
        f"The trained weights lie {apart:.1e} apart, in parts of their length.",
    ]
    print("\n".join(lines))
    (RESULTS / "together.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def fit_seconds(count: int, steps: int, backbone: str, out: Path) -> float:
    """Of one whole job on so many processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    job = ["-m", "geopeft", "fit", str(SAMPLE / "itaipu_landsat8.tif"), "--labels", f"{SAMPLE / 'labels.gpkg'}:train"]
    job += ["--class-field", "class", "--backbone", backbone, "--adapter", "lora", "--device", "cpu"]
    job += ["--folds", "1", "--baselines", "", "--no-cache", "--no-resume", "--steps", str(steps), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    begun = time.monotonic()
    subprocess.run([sys.executable, *launch, *job], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())
