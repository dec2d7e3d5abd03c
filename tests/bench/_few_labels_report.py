"""What the few-labels bench found: tables, the issue's claims and the plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import _few_labels_plot as plot  # type: ignore[import-not-found]
import numpy as np

Row = dict[str, Any]
SIZES = ("1", "3", "10", "all")
TITLES = {
    "forest": "forest, bands",
    "forest_texture": "forest, bands + texture",
    "unet": "UNet from scratch",
    "frozen": "frozen backbone",
    "full": "full fine-tuning",
    "tier1": "tier 1: classical",
    "tier2": "tier 2: with frozen network",
    "tier3": "tier 3: LoRA network",
    "default": "default: blend",
    "box": "box network",
    "box_random": "box network, random weights",
}
METHODS = tuple(TITLES)
FEW_BUT_NOT_ONE = ("3", "10", "all")
LARGE_BACKBONE_M = 100.0


def key(row: Row) -> tuple[str, str, str, str]:
    """What a row measures."""
    return row["set"], row["size"], row["seed"], row["method"]


def place(row: Row) -> tuple[int, str, int, int]:
    """Where a row stands among all rows."""
    return int(row["seed"]), row["set"], SIZES.index(row["size"]), METHODS.index(row["method"])


class Scores:
    """mIoU in percent of all runs, by set, size and method."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.sets = sorted({row["set"] for row in rows})
        there = {row["method"] for row in rows}
        self.methods = [name for name in METHODS if name in there]
        self._cells: dict[tuple[str, str, str], dict[str, float]] = {}
        for row in rows:
            cell = self._cells.setdefault((row["set"], row["size"], row["method"]), {})
            cell[row["seed"]] = float(row["miou"]) * 100

    def cell(self, name: str, size: str, method: str) -> list[float]:
        """One score for each seed."""
        return list(self._cells.get((name, size, method), {}).values())

    def over_sets(self, size: str, method: str) -> tuple[float, float, int]:
        """Mean over sets of the mean over seeds, sd over the seeds that have all these sets, number of sets."""
        own = [c for name in self.sets if (c := self._cells.get((name, size, method)))]
        if not own:
            return math.nan, math.nan, 0
        seeds = set.intersection(*(set(cell) for cell in own))
        by_seed = [float(np.mean([cell[seed] for cell in own])) for seed in seeds]
        return float(np.mean([np.mean(list(cell.values())) for cell in own])), deviation(by_seed), len(own)

    def differences(self, method: str, other: str, sizes: Sequence[str]) -> list[tuple[str, str, float, float]]:
        """(set, size, mean of the method less that of the other, the larger of their sds) where both are measured.

        Only seeds that both have count.
        """
        found = []
        for name in self.sets:
            for size in sizes:
                one, two = (self._cells.get((name, size, which), {}) for which in (method, other))
                seeds = sorted(set(one) & set(two))
                if seeds:
                    a, b = [one[seed] for seed in seeds], [two[seed] for seed in seeds]
                    spread = max(deviation(a), deviation(b))
                    found.append((name, size, float(np.mean(a) - np.mean(b)), spread))
        return found


def deviation(values: Sequence[float]) -> float:
    """The sample's standard deviation; not known of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def write(rows: Sequence[Row], stem: Path) -> str:
    """Writes STEM.md and STEM.png; returns the text."""
    scores = Scores(rows)
    seeds = len({row["seed"] for row in rows})
    parts = [
        f"# Accuracy from few labels\n\nmIoU in % on the unseen regions; {len(scores.sets)} sets, "
        f"{seeds} seed{'s' if seeds > 1 else ''}. Labels per class in the training region, mean ± sd over seeds.",
        "## Mean over the sets\n\n" + "\n".join(_mean_table(scores)),
        "## By set\n\n" + "\n".join(_set_table(scores)),
        "## Cost of the fit, mean over all runs\n\nThe seconds depend on what ran beside, other shards too.\n\n"
        + "\n".join(_cost_table(scores)),
        "## Claims\n\n" + "\n".join(_claims_table(scores)),
    ]
    text = "\n\n".join(parts) + "\n"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    plot.draw(scores, SIZES, TITLES, stem.with_suffix(".png"))
    return text


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _with_deviation(mean: float, sd: float) -> str:
    return "-" if math.isnan(mean) else f"{mean:.1f}" + ("" if math.isnan(sd) else f" ± {sd:.1f}")


def _cell(values: Sequence[float]) -> str:
    return _with_deviation(float(np.mean(values)), deviation(values)) if values else "-"


def _mean_table(scores: Scores) -> list[str]:
    body = []
    for size in SIZES:
        line = [size]
        for method in scores.methods:
            mean, sd, sets = scores.over_sets(size, method)
            partly = f" ({sets} of {len(scores.sets)} sets)" if 0 < sets < len(scores.sets) else ""
            line.append(_with_deviation(mean, sd) + partly)
        body.append(line)
    return _table(["labels per class", *(TITLES[m] for m in scores.methods)], body)


def _set_table(scores: Scores) -> list[str]:
    body = []
    for name in scores.sets:
        for size in SIZES:
            cells = [scores.cell(name, size, method) for method in scores.methods]
            if any(cells):
                body.append([name, size, *map(_cell, cells)])
    return _table(["set", "labels per class", *(TITLES[m] for m in scores.methods)], body)


def _cost_table(scores: Scores) -> list[str]:
    body = []
    for method in scores.methods:
        own = [row for row in scores.rows if row["method"] == method]
        seconds, memory, scoring = (
            np.mean([float(row[name]) for row in own]) for name in ("seconds", "peak_memory_mb", "evaluate_seconds")
        )
        backbones = ", ".join(sorted({row["backbone"] for row in own if row["backbone"]}))
        body.append([TITLES[method], f"{seconds:.0f}", f"{memory:.0f}", f"{scoring:.0f}", str(len(own)), backbones])
    return _table(["method", "fit s", "peak memory MB", "scoring s", "runs", "backbones"], body)


Claim = tuple[str, str, Callable[[Scores], str]]
UP_TO_TEN, UP_TO_THREE = ("1", "3", "10"), ("1", "3")
NOT_MEASURED = "not measured"


def claims() -> Iterator[Claim]:
    """(claim, at least, what was reached)."""
    yield ("default against random forest on bands, mean over sets and sizes", "+10",
           lambda s: _gain(s, "default", "forest", SIZES, 10))  # fmt: skip
    yield ("default against random forest on bands + texture, likewise", "+6",
           lambda s: _gain(s, "default", "forest_texture", SIZES, 6))  # fmt: skip
    yield ("... on no set worse by more than one sd (the larger of the two) from 3 labels per class on", "none",
           lambda s: _never_worse(s, "default", "forest_texture", FEW_BUT_NOT_ONE))  # fmt: skip
    yield ("LoRA network of the default against full fine-tuning of the same backbone", "better",
           lambda s: _gain(_same_backbone(s, "tier3", "full"), "tier3", "full", SIZES, 0))  # fmt: skip
    yield ("default (blend) against full fine-tuning of the same backbone", "better",
           lambda s: _gain(_same_backbone(s, "default", "full"), "default", "full", SIZES, 0))  # fmt: skip
    yield (f"... its peak memory, backbones of {LARGE_BACKBONE_M:.0f} M parameters and more", "at most 0.7x",
           lambda s: _memory(s, "default", "full", 0.7))  # fmt: skip
    yield ("default against UNet from scratch, up to 10 labels per class", "+6",
           lambda s: _gain(s, "default", "unet", UP_TO_TEN, 6))  # fmt: skip
    yield ("the box against the same network from random weights, up to 3 labels per class", "+3",
           lambda s: _gain(s, "box", "box_random", UP_TO_THREE, 3))  # fmt: skip
    yield "tier 1 after features are cached, 1000 x 1000 extent", "under 1 s", lambda s: f"{NOT_MEASURED} here"
    yield "default fit, 20 polygons, 10-band 1000 x 1000", "under 2 minutes", lambda s: f"{NOT_MEASURED} here"


def _claims_table(scores: Scores) -> list[str]:
    body = [[claim, least, reached(scores)] for claim, least, reached in claims()]
    return _table(["claim", "wanted", "reached"], body)


def _gain(scores: Scores, method: str, other: str, sizes: Sequence[str], least: float) -> str:
    found = scores.differences(method, other, sizes)
    if not found:
        return NOT_MEASURED
    mean = float(np.mean([difference for _, _, difference, _ in found]))
    met = mean >= least if least else mean > 0
    return f"{mean:+.1f} points: {_verdict(met)}{_cells(len(found), len(scores.sets) * len(sizes))}"


def _never_worse(scores: Scores, method: str, other: str, sizes: Sequence[str]) -> str:
    found = [each for each in scores.differences(method, other, sizes) if math.isfinite(each[3])]
    if not found:
        return f"{NOT_MEASURED}: it takes two seeds"
    worse = sorted((d, name, size, sd) for name, size, d, sd in found if d < -sd)
    listed = ", ".join(f"{name} {size} ({d:+.1f}, sd {sd:.1f})" for d, name, size, sd in worse)
    total = _cells(len(found), len(scores.sets) * len(sizes))
    return f"{len(worse)} of {len(found)}{': ' + listed if worse else ''}: {_verdict(not worse)}{total}"


def _same_backbone(scores: Scores, method: str, other: str) -> Scores:
    """Only those rows of the two whose set, size and seed had the same backbone in both."""
    backbones = {key(row): row["backbone"] for row in scores.rows}
    kept = []
    for row in scores.rows:
        one, two = (backbones.get((*key(row)[:3], which)) for which in (method, other))
        if row["method"] in (method, other) and one and one == two:
            kept.append(row)
    same = Scores(kept)
    same.sets = scores.sets
    return same


def _memory(scores: Scores, method: str, other: str, most: float) -> str:
    large = [row for row in scores.rows if row["parameters_m"] and float(row["parameters_m"]) >= LARGE_BACKBONE_M]
    memory = {key(row): float(row["peak_memory_mb"]) for row in _same_backbone(Scores(large), method, other).rows}
    ratios = [memory[(*k[:3], method)] / memory[(*k[:3], other)] for k in memory if k[3] == method]
    if not ratios:
        return f"{NOT_MEASURED}: no such backbone in these runs"
    return f"{np.mean(ratios):.2f}x: {_verdict(float(np.mean(ratios)) <= most)} ({len(ratios)} runs)"


def _verdict(met: bool) -> str:
    return "met" if met else "not met"


def _cells(there: int, all_of_them: int) -> str:
    return "" if there == all_of_them else f" ({there} of {all_of_them} sets x sizes)"
