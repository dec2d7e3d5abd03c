"""Accuracy on unseen regions: the default fit beside a forest, a frozen backbone, full tuning and no pretraining.

    build.py bench regions [--sets NAME,...] [--methods NAME,...] [--seeds N] [--out FOLDER]

Every labelled set of the shared data: fit on its training region, scored by `evaluate` on its unseen region with the
same labels for all. The forest (150 trees, at most 4 000 pixels a class) sees the raw bands at the labelled pixels.
Finished runs are kept in OUT/regions.csv, so that a stopped sweep goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _forest  # type: ignore[import-not-found]
import _sets  # type: ignore[import-not-found]
import numpy as np

FIELDS = ("set", "method", "seed", "miou", "low", "high", "overall_accuracy", "seconds", "peak_memory_mb", "backbone")
METHODS: dict[str, list[str]] = {
    "default": [],
    "frozen": ["--adapter", "frozen"],
    "full": ["--adapter", "full"],
    "scratch": ["--backbone", "scratch_unet", "--adapter", "full"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is not there yet and prints the table."""
    parser = argparse.ArgumentParser(prog="build.py bench regions", description=__doc__)
    parser.add_argument("--sets", default="")
    parser.add_argument("--methods", default="forest,default,frozen,full,scratch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args(arguments)
    shared = _sets.shared_folder()
    if shared is None:
        return 2
    chosen = [s for s in _sets.SETS if not options.sets or s.name in options.sets.split(",")]
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "regions.csv"
    rows = _sets.read_rows(table)
    done = {(row["set"], row["method"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            for labelled in chosen:
                regions = _sets.regions_of(labelled, shared / "data", Path(scratch))
                for method in options.methods.split(","):
                    if (labelled.name, method, str(seed)) in done:
                        continue
                    row = _measure(labelled, regions, method, seed, shared, Path(scratch))
                    rows.append(row)
                    print(" ".join(f"{row[field]}" for field in FIELDS), flush=True)
                    _sets.write_rows(table, rows, FIELDS)
    text = _summary(rows, options.methods.split(","))
    (options.out / "regions.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _measure(
    labelled: _sets.LabelledSet,
    regions: tuple[_sets.Region, _sets.Region],
    method: str,
    seed: int,
    shared: Path,
    scratch: Path,
) -> dict[str, Any]:
    training, unseen = regions
    model, fitted, scored = scratch / "m.geopeft", scratch / "fit.json", scratch / "evaluate.json"
    background = ["--background", labelled.background] if labelled.background else []
    weights = ["--weights-dir", str(shared / "weights")]
    if method == "forest":
        figures = _forest.measure(training, unseen, (labelled.background,) * 2, seed, False, scratch)
        return _row(labelled, method, seed, figures, figures, "")
    _sets.engine("fit", *training.rasters, "--labels", training.labels, "--class-field", "class", "--out", str(model),
                 "--seed", str(seed), "--json", str(fitted), *background, *weights, *METHODS[method])  # fmt: skip
    _sets.engine("evaluate", str(model), *unseen.rasters, "--labels", unseen.labels, "--class-field", "class",
                 "--json", str(scored), *background, *weights)  # fmt: skip
    backbone = json.loads(_sets.engine("inspect", str(model)))["spec"]["backbone"]
    return _row(labelled, method, seed, json.loads(scored.read_text()), json.loads(fitted.read_text()), backbone)


def _row(
    labelled: _sets.LabelledSet, method: str, seed: int, scored: dict[str, Any], fitted: dict[str, Any], backbone: str
) -> dict[str, Any]:
    return {
        "set": labelled.name,
        "method": method,
        "seed": str(seed),
        **_sets.whole_figures(scored),
        "low": scored["miou"]["low"],
        "high": scored["miou"]["high"],
        "seconds": fitted["seconds"],
        "peak_memory_mb": fitted["peak_memory_mb"],
        "backbone": backbone,
    }


def _summary(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    """A table of mIoU (mean and standard deviation over seeds), and one of seconds and memory."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    lines = ["| set | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for name in names:
        cells = []
        for method in methods:
            own = [r for r in rows if r["set"] == name and r["method"] == method]
            if not own:
                cells.append("-")
                continue
            scores = np.array([float(r["miou"]) * 100 for r in own])
            seconds = np.mean([float(r["seconds"]) for r in own])
            memory = np.mean([float(r["peak_memory_mb"]) for r in own])
            cells.append(f"{scores.mean():.1f} ± {scores.std():.1f} ({seconds:.0f} s, {memory:.0f} MB)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    title = "mIoU % on the unseen region, mean ± sd over seeds (seconds and peak memory of the fit)"
    return "\n".join([title, "", *lines, ""])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except _sets.EngineFailed as error:
        sys.exit(str(error))
