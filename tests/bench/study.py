"""The published study's methods on real sets with unseen regions: the `study` job with pretrained weights.

    build.py bench study [--sets NAME,...] [--seeds N] [--steps N] [--fractions 1,...] [--rates 1,...] [--out FOLDER]
                         [--merge]

Finished runs are kept in OUT/study_SET.csv, so that a stopped sweep goes on where it was. --merge runs nothing: it
joins the sets' tables as OUT/study.csv and writes OUT/study.md and OUT/study.png. Each set has its page,
OUT/study_SET.html.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _dots  # type: ignore[import-not-found]
import _sets  # type: ignore[import-not-found]

SEARCH_STEPS = 20
HEAD = """# The published study's methods on real sets

Made by `python3 build.py bench study`: each method trained on one region of a set, judged on labels held out there and
on those of an unseen region; networks alone, not blended with a forest. mIoU in percent over all classes with labels,
mean ± standard deviation over the seeds. A claim held where the 95 % interval of the paired difference is on its side.
The steps are few, so that a run takes a minute: what more training would change is not told.
"""


@dataclass(frozen=True)
class Task:
    """A set with the backbone that suits it, of which the weights are at hand, and the adapters that fit that."""

    labelled: str
    backbone: str
    adapters: tuple[str, ...]
    baselines: tuple[str, ...] = ("random-forest", "scratch_unet")


TASKS = (
    Task("sen1floods11_spain", "galileo_nano", ("frozen", "lora", "full", "vpt", "bitfit")),
    Task("urban_trees_naip", "tf_efficientnet_lite0", ("frozen", "lora", "full", "bitfit")),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is not there yet, and writes the tables."""
    parser = argparse.ArgumentParser(prog="build.py bench study", description=__doc__)
    parser.add_argument("--sets", default="")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--fractions", default="1")
    parser.add_argument("--rates", default="1", help="factors of the learning rates; one: no search")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--merge", action="store_true", help="run nothing, write the tables")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.merge:
        shared = _sets.shared_folder()
        if shared is None:
            return 2
        for task in TASKS:
            if not options.sets or task.labelled in options.sets.split(","):
                run(task, shared, options)
                write(options.out)
    print(write(options.out))
    return 0


def run(task: Task, shared: Path, options: argparse.Namespace) -> None:
    """The study of one set."""
    labelled = next(one for one in _sets.SETS if one.name == task.labelled)
    with tempfile.TemporaryDirectory() as scratch:
        training, unseen = _sets.regions_of(labelled, shared / "data", Path(scratch))
        _sets.engine(
            "study", *training.rasters, "--labels", training.labels, "--class-field", "class",
            "--unseen-rasters", ",".join(unseen.rasters), "--unseen-labels", unseen.labels,
            "--out", str(options.out / f"study_{task.labelled}.csv"), "--backbones", task.backbone,
            "--adapters", ",".join(task.adapters), "--baselines", ",".join(task.baselines),
            "--seeds", str(options.seeds), "--steps", str(options.steps), "--search-steps", str(SEARCH_STEPS),
            "--fractions", options.fractions, "--rates", options.rates, "--weights-dir", str(shared / "weights"),
            "--json", str(options.out / f"study_{task.labelled}.json"),
        )  # fmt: skip


def write(out: Path) -> str:
    """Joins the tables of the sets, and gives what they say as Markdown."""
    rows: list[dict[str, Any]] = []
    sections, panels = [], {}
    for task in TASKS:
        table, figures = (out / f"study_{task.labelled}{suffix}" for suffix in (".csv", ".json"))
        rows += [{"set": task.labelled, **row} for row in _sets.read_rows(table)]
        if figures.exists():
            found = json.loads(figures.read_text(encoding="utf-8"))
            sections.append(_section(task, found))
            panels[f"{task.labelled}, {task.backbone}: mIoU, %"] = _panel(found)
    if rows:
        _sets.write_rows(out / "study.csv", rows, list(rows[0]))
    if panels:
        _dots.draw(panels, KINDS, out / "study.png")
    text = "\n".join([HEAD, *sections])
    (out / "study.md").write_text(text, encoding="utf-8")
    return text


def _section(task: Task, found: dict[str, Any]) -> str:
    head = "| method | labels | mIoU in the region | mIoU unseen | trained | in all | processor s a step | MiB above "
    head += "the start | s a run |"
    lines = [f"## {task.labelled}, {task.backbone}", "", head, "|---" * 9 + "|"]
    for one in found["methods"]:
        cells = [one["method"], f"{100 * one['fraction']:g} %", *(_spread(one[name]) for name in ACCURACIES)]
        cells += [_mean(one[name], digits) for name, digits in NUMBERS.items()]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| claim | here | numbers | pairs |", "|---|---|---|---|"]
    lines += [f"| {one['claim']} | {one['verdict']} | {one['numbers']} | {one['pairs']} |" for one in found["claims"]]
    return "\n".join([*lines, ""])


def _panel(found: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Method -> mean and deviation in percent, in the region and in the unseen one; of those that have both."""
    return {
        _short(one["method"]): [(100 * one[name]["mean"], 100 * (one[name]["sd"] or 0)) for name in ACCURACIES]
        for one in found["methods"]
        if all(one[name]["mean"] is not None for name in ACCURACIES)
    }


def _short(method: str) -> str:
    """The name of a method without the decoder and the backbone that all of a set share."""
    parts = [part for part in method.split(" · ") if part != "unet"]
    return parts[0] if len(parts) == 1 or parts[0] == "scratch_unet" else parts[-1]


ACCURACIES = ("in_region", "unseen")
KINDS = (("in the region", (47, 94, 158)), ("unseen region", (214, 106, 34)))
NUMBERS = {"trainable": 0, "total": 0, "step_cpu_s": 3, "training_mb": 0, "seconds": 0}


def _spread(figure: dict[str, Any]) -> str:
    if figure["mean"] is None:
        return "–"
    return f"{100 * figure['mean']:.1f}" + ("" if figure["sd"] is None else f" ± {100 * figure['sd']:.1f}")


def _mean(figure: dict[str, Any], digits: int) -> str:
    return "–" if figure["mean"] is None else f"{figure['mean']:,.{digits}f}".replace(",", " ")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except _sets.EngineFailed as error:
        sys.exit(str(error))
