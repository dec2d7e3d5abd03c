"""Label here next: labels placed by suggestion against labels placed at random.

    build.py bench suggest [--sets NAME,...] [--simulations N] [--rounds N] [--out FOLDER]

Shared sets where enough ground has a known class, and the sample scene. A simulation begins with three labelled squares
of each class, drawn at random, and adds ten squares a round: those that `geopeft suggest` chooses, or random ones of
the same ground. Truth labels them: what covers most of a square is drawn in it. After each round the classical
classifier is taught all labels and scored on the unseen region (of terramind_s2_lulc, whose unseen region is another
continent, on the eastern halves). What is measured is kept in OUT/suggest.csv, so that a stopped run goes on where it
was; suggest.md and suggest.png are written from it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import _curves  # type: ignore[import-not-found]
import _places  # type: ignore[import-not-found]
import _sets  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

# Sets, and what of them is scored: the eastern halves of the training rasters, or the unseen region.
SETS = {
    "sen1floods11_spain": False, "terramind_s2_lulc": True, "kampala_oam_buildings": False,
    "banepa_oam_buildings": False, "sample": False,
}  # fmt: skip
SAMPLE = Path(__file__).resolve().parents[2] / "resources" / "sample"
WAYS = {"random": "at random", "suggested": "as suggested"}
FIELDS = ("set", "way", "simulation", "labels", "placed", "miou")
WANTED = 0.7
RESAMPLES = 1000
# What has to be reached, as a part of the mIoU that all random labels reach, and of the rise to it.
TARGETS = (("90 % of it", 0.9, False), ("half of the rise", 0.5, True), ("90 % of the rise", 0.9, True))

Curves = dict[tuple[str, str], dict[int, list[float]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the simulations that are not there yet, and writes table and figure."""
    parser = argparse.ArgumentParser(prog="build.py bench suggest", description=__doc__)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--simulations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args(arguments)
    shared = _sets.shared_folder()
    if shared is None:
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "suggest.csv"
    rows = _sets.read_rows(path)
    _measure(options.sets.split(","), shared / "data", options.simulations, options.rounds, rows, path)
    curves = gather(rows)
    text = table(curves)
    (options.out / "suggest.md").write_text(text, encoding="utf-8", newline="\n")
    _curves.draw(_panels(curves), {way: (title, COLORS[way]) for way, title in WAYS.items()}, "labels placed",
                 "mIoU in %", options.out / "suggest.png")  # fmt: skip
    print(text)
    return 0


COLORS = {"random": (120, 120, 120), "suggested": (213, 40, 0)}


def _measure(
    names: Sequence[str], data: Path, simulations: int, rounds: int, rows: list[dict[str, Any]], path: Path
) -> None:
    """Adds the rows that are missing: one simulation of every set, then the next, so that a stopped run is even."""
    done = {(row["set"], row["way"], int(row["simulation"])) for row in rows}
    missing = [(seed, name, way) for seed in range(simulations) for name in names for way in WAYS]
    with ExitStack() as stack:
        scenes: dict[str, tuple[Any, Path]] = {}
        for seed, name, way in missing:
            if (name, way, seed) in done:
                continue
            if name not in scenes:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                opened = _places.open_scene(*_regions(name, data, scratch), scratch, SETS[name])
                scenes[name] = stack.enter_context(opened), scratch
            scene, scratch = scenes[name]
            first = sum(min(_places.START, int((scene.classes == number).sum())) for number in range(len(scene.names)))
            reached = _places.simulate(scene, way == "suggested", seed, rounds, scratch)
            for number, value in enumerate(reached):
                placed = number * _places.PER_ROUND
                values = (name, way, seed, first + placed, placed, round(value, 5))
                rows.append(dict(zip(FIELDS, values, strict=True)))
            print(name, way, seed, *(f"{100 * value:.1f}" for value in reached), flush=True)
            _sets.write_rows(path, rows, FIELDS)


def _regions(name: str, data: Path, scratch: Path) -> tuple[_sets.Region, _sets.Region, str]:
    """The training region, the unseen region, and the class of unlabelled pixels."""
    if name == "sample":
        raster, labels = (str(SAMPLE / part) for part in ("itaipu_landsat8.tif", "labels.gpkg"))
        training, unseen = (_sets.Region((raster,), f"{labels}:{layer}", ()) for layer in ("train", "unseen"))
        return training, unseen, ""
    labelled = next(one for one in _sets.SETS if one.name == name)
    return *_sets.regions_of(labelled, data, scratch), labelled.background


def gather(rows: Sequence[dict[str, Any]]) -> Curves:
    """(set, way) -> labels placed -> mIoU of each simulation that has both ways, in order."""
    curves: Curves = {}
    there = [{(row["set"], row["simulation"]) for row in rows if row["way"] == way} for way in WAYS]
    both = [row for row in rows if all((row["set"], row["simulation"]) in own for own in there)]
    for row in sorted(both, key=lambda row: (int(row["simulation"]), int(row["placed"]))):
        curves.setdefault((row["set"], row["way"]), {}).setdefault(int(row["placed"]), []).append(float(row["miou"]))
    return curves


def needed(placed: NDArray[np.float64], reached: NDArray[np.float64], target: float) -> float:
    """Labels placed until a curve first reaches the target, between rounds in proportion; else infinite."""
    above = np.flatnonzero(reached >= target)
    if not len(above):
        return float("inf")
    at = int(above[0])
    if at == 0:
        return 0.0
    part = (target - reached[at - 1]) / (reached[at] - reached[at - 1])
    return float(placed[at - 1] + part * (placed[at] - placed[at - 1]))


def ratios(
    random: NDArray[np.float64], suggested: NDArray[np.float64], placed: NDArray[np.float64], part: float, rise: bool
) -> tuple[float, float, NDArray[np.float64]]:
    """Labels that random and suggested placement need, by their mean curves; and the ratio in resampled simulations.

    Args:
        random, suggested: (simulations, rounds) mIoU.
        part, rise: the target, as in `TARGETS`.
    """

    def labels(own: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
        low, high = (own[:, 0].mean() if rise else 0.0), own[:, -1].mean()
        target = low + part * (high - low)
        return needed(placed, own.mean(0), target), needed(placed, other.mean(0), target)

    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        picked = rng.integers(len(random), size=len(random))
        one, other = labels(random[picked], suggested[picked])
        if one > 0:
            drawn.append(other / one)
    return *labels(random, suggested), np.array(drawn)


def table(curves: Curves) -> str:
    """The findings as Markdown."""
    names = list(dict.fromkeys(name for name, _ in curves))
    count = min(len(values[0]) for values in curves.values())
    lines = [HEAD.format(count=count)]
    lines += ["| set | to be reached | mIoU % | random | suggested | ratio | ratio, mean ± sd | at most 70 % |",
              "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name in names:
        random, suggested, placed = arrays(curves, name)
        for title, part, rise in TARGETS:
            one, other, drawn = ratios(random, suggested, placed, part, rise)
            low = random[:, 0].mean() if rise else 0.0
            target = 100 * (low + part * (random[:, -1].mean() - low))
            lines.append(f"| {name} | {title} | {target:.1f} | {_row(one, other, drawn)} |")
    lines += ["", "## mIoU in %, mean ± sd over the simulations", ""]
    for name in names:
        random, suggested, placed = arrays(curves, name)
        lines += [f"| {name}, labels placed | " + " | ".join(f"{number:.0f}" for number in placed) + " |"]
        lines += ["| --- " * (len(placed) + 1) + "|"]
        for title, values in ((WAYS["random"], random), (WAYS["suggested"], suggested)):
            cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(100 * values.mean(0), 100 * values.std(0), strict=True)]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


HEAD = """# Label here next

Labels placed by `geopeft suggest` against labels placed at random on the same ground: {count} simulations a set, each
begun with three labelled squares of every class and going on with ten more a round. The classical classifier is taught
all labels and scored where it has seen none. *Random* and *suggested* are the labels placed until the mean curve
reaches the mIoU; the ratio's mean and deviation are over resampled simulations. "It" is the mIoU with all random
labels, the rise is from the first labels to it. Made by `python3 build.py bench suggest`.
"""


def _row(one: float, other: float, drawn: NDArray[np.float64]) -> str:
    if one == 0:
        return "0 | 0 | - | - | reached by the first labels"
    if not np.isfinite(other):
        return f"{one:.0f} | not reached | - | - | no"
    kept = drawn[np.isfinite(drawn)]
    spread = f"{100 * kept.mean():.0f} ± {100 * kept.std():.0f} %" if len(kept) > 0.9 * len(drawn) else "-"
    ratio = other / one
    return f"{one:.0f} | {other:.0f} | {100 * ratio:.0f} % | {spread} | {'yes' if ratio <= WANTED else 'no'}"


def arrays(curves: Curves, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """mIoU (simulations, rounds) of random and of suggested placement, and labels placed (rounds,)."""
    ways = [curves[name, way] for way in WAYS]
    random, suggested = (np.array([own[placed] for placed in sorted(own)]).T for own in ways)
    return random, suggested, np.array(sorted(ways[0]), np.float64)


def _panels(curves: Curves) -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for name in dict.fromkeys(name for name, _ in curves):
        random, suggested, placed = arrays(curves, name)
        panels[name] = {
            way: list(zip(placed.tolist(), (100 * v.mean(0)).tolist(), (100 * v.std(0)).tolist(), strict=True))
            for way, v in zip(WAYS, (random, suggested), strict=True)
        }
    return panels


if __name__ == "__main__":
    sys.exit(main())
