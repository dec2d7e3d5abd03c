"""Imagery that may not travel: a model of several cities by rounds of fitting and averaging, beside pooled training.

    build.py bench federated [--seeds N] [--rounds N] [--steps N] [--set NAME] [--keep FOLDER]

Each training region of the set is a site of its own, which sees its own rasters and labels only. The first site fits
the common model; then, in each round, every site fits from the common model and `average` makes the next one. Pooled
training sees all sites at once, and each site alone its own; both do as many steps as all sites of the rounds together.
All are scored on the unseen region. What travels between the sites are model packages. Seeds run beside each other,
each on one thread. With --keep the packages stay in a folder, and those that a run finds there are not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _sets  # type: ignore[import-not-found]
from geopeft import package

RESULTS = Path(__file__).parents[2] / "resources" / "results"
# What every training here has: judged elsewhere, so no folds and no baselines.
QUICK = ("--class-field", "class", "--folds", "1", "--baselines", "", "--device", "cpu")
PARTS = ("", "network", "classical")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and keeps it in resources/results/federated.md."""
    parser = argparse.ArgumentParser(prog="build.py bench federated", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30, help="of a site in a round")
    parser.add_argument("--set", default="urban_trees_naip")
    parser.add_argument("--keep", default="", help="a folder for the packages; of the same settings only")
    parser.add_argument("--threads", type=int, default=0, help="seeds beside each other; 0: one on each core")
    options = parser.parse_args(arguments)
    shared = _sets.shared_folder()
    if shared is None:
        return 1
    labelled = next(one for one in _sets.SETS if one.name == options.set)
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        training, unseen = _sets.regions_of(labelled, shared / "data", Path(scratch))
        os.environ["OMP_NUM_THREADS"] = "1"

        def one(seed: int) -> list[tuple[str, dict[str, float]]]:
            own = Path(options.keep or scratch, str(seed)).absolute()
            own.mkdir(parents=True, exist_ok=True)
            models = trained(training, seed, options.rounds, options.steps, own)
            return [(name, scored(model, unseen, labelled.background)) for name, model in models]

        with ThreadPoolExecutor(options.threads or os.cpu_count() or 1) as pool:
            for rows in pool.map(one, range(options.seeds)):
                for name, figures in rows:
                    found.setdefault(name, []).append(figures)
    lines = table(found)
    total = options.steps * (1 + options.rounds * len(training.parts))
    head = f"{labelled.name}: {len(training.parts)} sites, {options.steps} steps at the first one, then "
    head += f"{options.rounds} rounds of {options.steps} steps at each; {total} steps for every other training. "
    head += f"mIoU in percent on the unseen region, means over the seeds ({options.seeds}), and each."
    print("\n".join((head, "", *lines)))
    text = (
        "# One model of several sites whose imagery stays where it is\n\nMade by `python3 build.py bench federated`.\n"
    )
    (RESULTS / "federated.md").write_text(f"{text}{head}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


def trained(training: _sets.Region, seed: int, rounds: int, steps: int, scratch: Path) -> list[tuple[str, Path]]:
    """(who, package) of every side, made in turns."""
    total = steps * (1 + rounds * len(training.parts))
    first = training.parts[0]
    common = fit("round_0", first.rasters, first.labels, seed, steps, scratch)
    models = [("the first site's steps before the first round", common)]
    for number in range(1, rounds + 1):
        own = [
            fit(f"round_{number}_site_{at}", part.rasters, part.labels, seed, steps, scratch, common)
            for at, part in enumerate(training.parts, 1)
        ]
        common = scratch / f"round_{number}.geopeft"
        _sets.engine("average", *map(str, own), "--out", str(common))
        models.append((f"average after round {number}", common))
    models.append(("pooled", fit("pooled", training.rasters, training.labels, seed, total, scratch)))
    for at, part in enumerate(training.parts, 1):
        alone = fit(f"alone_{at}", part.rasters, part.labels, seed, total, scratch)
        models.append((f"site {at} alone ({Path(part.rasters[0]).parent.name})", alone))
    return models


def fit(
    name: str, rasters: Sequence[str], labels: str, seed: int, steps: int, scratch: Path, start: Path | None = None
) -> Path:
    """Trains a model, unless it is there, and returns its package."""
    out, begun = scratch / f"{name}.geopeft", time.monotonic()
    if out.exists():
        return out
    more = ("--start", str(start)) if start is not None else ()
    numbers = ("--seed", str(seed), "--steps", str(steps))
    _sets.engine("fit", *rasters, "--labels", labels, *QUICK, *numbers, *more, "--out", str(out))
    print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return out


def scored(model: Path, unseen: _sets.Region, background: str) -> dict[str, float]:
    """mIoU of the map and of its parts on the unseen region."""
    figures = {}
    more = ("--background", background) if background else ()
    for part in PARTS:
        answer = model.with_suffix(".json")
        which = ("--part", part) if part else ()
        _sets.engine("evaluate", str(model), *unseen.rasters, "--labels", unseen.labels, "--class-field", "class",
                     *which, *more, "--json", str(answer), "--device", "cpu")  # fmt: skip
        figures[part or "map"] = 100 * _sets.whole_figures(json.loads(answer.read_text(encoding="utf-8")))["miou"]
    figures["share"] = 100 * package.read_manifest(model).blend.network
    return figures


def table(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| model | map | network alone | forest and linear model | network's share |", "|---|---|---|---|---|"]
    for name, rows in found.items():
        cells = []
        for part in ("map", "network", "classical", "share"):
            own = [row[part] for row in rows]
            cells.append(f"{statistics.mean(own):.1f} ({', '.join(f'{value:.1f}' for value in own)})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
