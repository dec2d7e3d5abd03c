"""Labels likely wrong: how many of the labels that were made wrong come first in the list.

    build.py bench suspects [--sets NAME,...] [--draws N] [--out FOLDER]

Every labelled set of the shared data: of a tenth of the labels in its training region the class is changed to another
one, as a draw decides, and `geopeft suspects` ranks all of them. Counted are those that it has in the first fifth of
its list of judged labels; what it does not suspect at all is not in the list. What is measured is kept in
OUT/suspects.csv, so that a stopped run goes on where it was; suspects.md and suspects.png are written from it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _curves  # type: ignore[import-not-found]
import _sets  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

FIELDS = ("set", "draw", "labels", "judged", "flipped", "listed", "found", "flips_listed", "steps")
WRONG, FIRST, WANTED = 0.1, 0.2, 0.6
# Parts of the list at which it is told how many were found.
PARTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
CACHE_BYTES = 4 << 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the draws that are not there yet, and writes table and figure."""
    parser = argparse.ArgumentParser(prog="build.py bench suspects", description=__doc__)
    parser.add_argument("--sets", default=",".join(labelled.name for labelled in _sets.SETS))
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args(arguments)
    shared = _sets.shared_folder()
    if shared is None:
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "suspects.csv"
    rows = _sets.read_rows(path)
    with tempfile.TemporaryDirectory() as scratch:
        for name, row in _measured(options.sets.split(","), options.draws, rows, shared / "data", Path(scratch)):
            rows.append({"set": name, **row})
            print(name, row["draw"], f"{row['found']} of {row['flipped']}, {row['listed']} listed", flush=True)
            _sets.write_rows(path, rows, FIELDS)
    text = table(rows)
    (options.out / "suspects.md").write_text(text, encoding="utf-8", newline="\n")
    _draw(rows, options.out / "suspects.png")
    print(text)
    return 0


def _measured(
    names: Sequence[str], draws: int, rows: Sequence[dict[str, Any]], data: Path, scratch: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(set, row) of what is missing: a draw of every set, then the next, so that a stopped run is even."""
    done = {(row["set"], int(row["draw"])) for row in rows}
    waiting: dict[str, Iterator[dict[str, Any]]] = {}
    for name in names:
        labelled = next(one for one in _sets.SETS if one.name == name)
        folder = scratch / name
        folder.mkdir()
        training, _ = _sets.regions_of(labelled, data, folder)
        missing = [draw for draw in range(draws) if (name, draw) not in done]
        waiting[name] = measure(training, labelled.background, missing, folder)
    while waiting:
        for name in list(waiting):
            row = next(waiting[name], None)
            if row is None:
                del waiting[name]
            else:
                yield name, row


def measure(training: _sets.Region, background: str, draws: Sequence[int], scratch: Path) -> Iterator[dict[str, Any]]:
    """A row for each draw."""
    from geopeft.advice import sights as sights_module
    from geopeft.advice import suspects
    from geopeft.data.labels import read_labels
    from geopeft.events import Reporter
    from geopeft.job import SuspectsJob
    from geopeft.texture_tiles import TextureTiles

    if not draws:
        return
    crs, shapes, classes = _sets.read_labels(training.labels)
    options: dict[str, Any] = {"class_field": "class", "background": background}
    job = SuspectsJob(rasters=training.rasters, labels=training.labels, out="unused", **options)
    ground = sights_module.describe_ground(job, 1, Reporter())
    known = np.array(sorted({*classes.tolist(), background} - {""}), object)
    with sights_module.open_sights(ground) as sights:
        tiles = TextureTiles(CACHE_BYTES)
        for draw in draws:
            given, wrong = flip(classes, known, draw)
            path = scratch / "flipped.gpkg"
            path.unlink(missing_ok=True)
            labels = read_labels(_sets.write_labels(path, [(crs, shapes, given)]), rasters=ground.infos,
                                 reporter=Reporter(), **options)  # fmt: skip
            found = sights_module.gather_shapes(sights, labels, tiles, suspects.PIXELS_OF_A_PLACE,
                                                suspects.MOST_PIXELS, lambda: None)  # fmt: skip
            judged = suspects.judge(found, len(labels.classes), len(ground.inputs), draw)
            fids = np.array([labels.shapes[number].fid if number >= 0 else -1 for number in found.shapes])
            yield {"draw": draw, "labels": len(classes), **ranked(judged.scores, fids, wrong)}


def flip(classes: NDArray[np.object_], known: NDArray[np.object_], draw: int) -> tuple[NDArray[np.object_], set[int]]:
    """The classes with a tenth of them changed, and the features' numbers (from 1 on) of those."""
    rng = np.random.default_rng(draw)
    given = classes.copy()
    wrong = rng.choice(len(classes), max(1, round(WRONG * len(classes))), replace=False)
    for number in wrong:
        given[number] = rng.choice(known[known != classes[number]])
    return given, set((wrong + 1).tolist())


def ranked(scores: NDArray[np.float64], fids: NDArray[np.int64], wrong: set[int]) -> dict[str, Any]:
    """How many of the wrong are in the first fifth of the list, and in other parts of it.

    Args:
        scores: (p,) of places, NaN where they are not judged.
        fids: (p,) the feature of each place, -1 for none.
    """
    judged = set(fids[np.isfinite(scores)].tolist())
    order = [int(fids[at]) for at in np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable") if scores[at] > 0]
    listed = list(dict.fromkeys(order))
    there = wrong & judged
    steps = [len(there & set(listed[: int(part * len(judged))])) for part in PARTS]
    return {
        "judged": len(judged),
        "flipped": len(there),
        "listed": len(listed),
        "found": len(there & set(listed[: int(FIRST * len(judged))])),
        "flips_listed": len(there & set(listed)),
        "steps": " ".join(map(str, steps)),
    }


HEAD = """# Labels likely wrong

A tenth of the labels of each training region were given another class, {draws} draws a set, and `geopeft suspects`
ranked all of them. *Found* is the share of the changed labels in the first fifth of the list, mean ± sd over the
draws; at random it would be 20 %. Wanted: at least {wanted:.0f} %. *Listed* are labels that it suspects at all, as a
part of those that it judges. Labels that were wrong before count as false alarms. Made by
`python3 build.py bench suspects`.

| set | labels | changed | found in the first 20 % | listed | changed, of what is listed | at least {wanted:.0f} % |
| --- | --- | --- | --- | --- | --- | --- |
"""


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The findings as Markdown."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    lines, means = [], []
    for name in names:
        own = [row for row in rows if row["set"] == name]
        found, listed, right = (
            np.array([100 * int(row[a]) / max(int(row[b]), 1) for row in own])
            for a, b in (("found", "flipped"), ("listed", "judged"), ("flips_listed", "listed"))
        )
        means.append(found.mean())
        changed = np.mean([int(row["flipped"]) for row in own])
        met = "yes" if found.mean() >= 100 * WANTED else "no"
        lines.append(f"| {name} | {own[0]['labels']} | {changed:.0f} | {found.mean():.0f} ± {found.std():.0f} % "
                     f"| {listed.mean():.0f} % | {right.mean():.0f} % | {met} |")  # fmt: skip
    draws = min(sum(row["set"] == name for row in rows) for name in names)
    mean = (
        f"| mean of the sets | | | {np.mean(means):.0f} % | | | {'yes' if np.mean(means) >= 100 * WANTED else 'no'} |"
    )
    return HEAD.format(draws=draws, wanted=100 * WANTED) + "\n".join([*lines, mean]) + "\n"


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    panels = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        shares = np.array([np.array(row["steps"].split(), float) / max(int(row["flipped"]), 1) for row in own]) * 100
        found = [(100 * part, m, s) for part, m, s in zip(PARTS, shares.mean(0), shares.std(0), strict=True)]
        panels[name] = {"found": found, "chance": [(0.0, 0.0, 0.0), (100 * PARTS[-1], 100 * PARTS[-1], 0.0)]}
    lines = {"found": ("geopeft suspects", (213, 40, 0)), "chance": ("at random", (120, 120, 120))}
    _curves.draw(panels, lines, "part of the list looked at, %", "changed labels found, %", path)


if __name__ == "__main__":
    sys.exit(main())
