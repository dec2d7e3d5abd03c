"""Accuracy from few labels: the default and its tiers beside forests, an untrained UNet, frozen and full backbones.

    build.py bench few-labels [--sets NAME,...] [--sizes 1,3,10,all] [--seeds N] [--methods NAME,...] [--out FOLDER]
                              [--shard I/N] [--merge]

Every labelled set of the shared data that has an unseen region: so many labels of each class are drawn in the training
region, or all are taken, and the map is scored on all labels of the unseen region. Methods that score one package (the
default and its two parts) share one fit. Finished runs are kept in OUT/few_labels.csv, so that a stopped sweep goes on
where it was; of shards that run side by side each keeps its own OUT/few_labels.I.csv and does its own part of the same
work. --merge runs nothing: it joins the shards' files and writes the tables and the plot. Runs that fail are told and
tried again the next time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _drawing  # type: ignore[import-not-found]
import _few_labels_report as report  # type: ignore[import-not-found]
import _forest  # type: ignore[import-not-found]
import _sets  # type: ignore[import-not-found]

FIELDS = ("set", "size", "seed", "method", "miou", "overall_accuracy", "seconds", "peak_memory_mb", "evaluate_seconds",
          "backbone", "parameters_m")  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """One fit and the methods that it serves: which part of the package each of them scores, empty for the blend.

    Args:
        sizes: those it is asked for, where not all.
    """

    options: tuple[str, ...]
    methods: Mapping[str, str]
    sizes: tuple[str, ...] = report.SIZES


FORESTS = {"forest": False, "forest_texture": True}
FITS = (
    Fit((), {"default": "", "tier1": "classical", "tier3": "network"}),
    Fit(("--adapter", "frozen"), {"frozen": "network", "tier2": ""}),
    Fit(("--adapter", "full"), {"full": "network"}),
    Fit(("--backbone", "scratch_unet", "--adapter", "full"), {"unet": "network"}),
    Fit(("--backbone", "geopeft_small"), {"box": "network"}, sizes=("1", "3")),
    # All of it is trained: random features that stay as they are would be too weak a rival.
    Fit(
        ("--backbone", "geopeft_small", "--adapter", "full", "--from-scratch"),
        {"box_random": "network"},
        sizes=("1", "3"),
    ),
)
# Those that take the least time first.
ORDER = ("rstoolbox_lsat5_amazon", "leipzig_s2_points", "nc_landsat7", "enmap_potsdam", "terramind_s2_lulc",
         "sen1floods11_spain", "urban_trees_naip", "banepa_oam_buildings", "kampala_oam_buildings")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One forest or one fit with the methods that are wanted of it."""

    labelled: _sets.LabelledSet
    size: str
    seed: int
    methods: tuple[str, ...]
    fit: Fit | None

    def keys(self) -> list[tuple[str, str, str, str]]:
        return [(self.labelled.name, self.size, str(self.seed), method) for method in self.methods]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is not there yet, then prints the tables and draws the plot."""
    options = _options(arguments)
    # Runs with another number of steps are trials: they never count among the others.
    stem = options.out / ("few_labels_trial" if options.steps else "few_labels")
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    if not options.merge:
        shared = _sets.shared_folder()
        if shared is None:
            return 2
        own = stem.with_suffix(f".{options.shard[0]}.csv") if options.shard[1] > 1 else stem.with_suffix(".csv")
        failed = _sweep(planned(options), own, stem, shared, ("--steps", str(options.steps)) if options.steps else ())
    rows = read_rows(stem)
    if options.merge:
        _sets.write_rows(stem.with_suffix(".csv"), rows, FIELDS)
    if rows:
        print(report.write(rows, stem))
    if failed:
        print(f"{failed} runs failed, see the lines above; the same command tries them again.")
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="build.py bench few-labels", description=__doc__)
    parser.add_argument("--sets", type=_names(ORDER), default=list(ORDER))
    parser.add_argument("--sizes", type=_names(report.SIZES), default=list(report.SIZES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", type=_names(report.METHODS), default=list(report.METHODS))
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help="part I (from 0) of N of the work")
    parser.add_argument("--merge", action="store_true", help="run nothing, join the shards' files")
    parser.add_argument("--steps", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _names(known: Sequence[str]) -> Any:
    def names(text: str) -> list[str]:
        given = [part.strip() for part in text.split(",") if part.strip()]
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'} is not among {', '.join(known)}")
        return given

    return names


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 0 to N - 1")
    return int(part), int(parts)


def planned(options: argparse.Namespace) -> list[Run]:
    """This shard's runs, seed 0 of everything first. Which shard does a run does not depend on what is done already."""
    sets = {labelled.name: labelled for labelled in _sets.SETS}
    mine, parts = options.shard
    runs = []
    groups = [(n, s, c) for n in range(options.seeds) for s in ORDER if s in options.sets for c in options.sizes]
    for group, (seed, name, size) in enumerate(groups):
        # Shifted from group to group, and from set to set: else one shard would always get the longest fits.
        turn = group + group // len(options.sizes)
        for position, (methods, fit) in enumerate(_fits(options.methods, size)):
            if (turn + position) % parts == mine:
                runs.append(Run(sets[name], size, seed, methods, fit))
    return runs


def _fits(methods: Sequence[str], size: str) -> Iterator[tuple[tuple[str, ...], Fit | None]]:
    for name in FORESTS:
        if name in methods:
            yield (name,), None
    for fit in FITS:
        wanted = tuple(name for name in fit.methods if name in methods)
        if wanted and size in fit.sizes:
            yield wanted, fit


def _sweep(runs: Sequence[Run], own: Path, stem: Path, shared: Path, more: tuple[str, ...]) -> int:
    """Does the runs that have no rows yet; returns how many failed."""
    done = {report.key(row) for row in read_rows(stem)}
    rows = _sets.read_rows(own)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for run in runs:
            missing = tuple(key[-1] for key in run.keys() if key not in done)
            if not missing:
                continue
            try:
                for row in _measure(replace(run, methods=missing), shared, scratch, more):
                    rows.append(row)
                    _sets.write_rows(own, rows, FIELDS)
                    print(" ".join(str(row[name]) for name in FIELDS), flush=True)
            except _sets.EngineFailed as error:
                failed += 1
                print(f"FAILED {run.labelled.name} {run.size} {run.seed} {','.join(missing)}: {error}", flush=True)
    return failed


def _measure(run: Run, shared: Path, scratch: Path, more: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of one run. A method that cannot be scored does not keep the others of its fit from being so.

    Raises:
        EngineFailed: the fit failed, or after the other rows, the scoring of a method.
    """
    labelled = run.labelled
    training, unseen = _sets.regions_of(labelled, shared / "data", scratch)
    taught = labelled.background
    if run.size != "all":
        drawn = _drawing.draw(labelled, training, int(run.size), run.seed, scratch / "drawn.gpkg")
        training = _sets.Region(training.rasters, drawn, ())
        # The class of the unlabelled pixels was drawn as well.
        taught = ""
    if run.fit is None:
        backgrounds = (taught, labelled.background)
        texture = FORESTS[run.methods[0]]
        figures = _forest.measure(training, unseen, backgrounds, run.seed, texture, scratch)
        yield _row(run, run.methods[0], figures, figures, figures["evaluate_seconds"])
        return
    model, fitted = scratch / "m.geopeft", scratch / "fit.json"
    weights = ("--weights-dir", str(shared / "weights"))
    _sets.engine("fit", *training.rasters, "--labels", training.labels, *_class(taught), "--out", str(model),
                 "--seed", str(run.seed), "--json", str(fitted), *weights, *run.fit.options, *more)  # fmt: skip
    manifest = json.loads(_sets.engine("inspect", str(model)))
    if "--from-scratch" in run.fit.options and manifest["base_weights"]["sha256"]:
        raise _sets.EngineFailed("The network should have begun with random weights, and weights were read.")
    parameters_m = round(manifest["hyperparameters"]["total"] / 1e6, 2)
    more_fields = {"backbone": manifest["spec"]["backbone"], "parameters_m": parameters_m}
    failed = None
    for method in run.methods:
        scored = scratch / "evaluate.json"
        part = ("--part", run.fit.methods[method]) if run.fit.methods[method] else ()
        try:
            _sets.engine("evaluate", str(model), *unseen.rasters, "--labels", unseen.labels,
                         *_class(labelled.background), "--json", str(scored), *weights, *part)  # fmt: skip
        except _sets.EngineFailed as error:
            failed = error
            continue
        figures = json.loads(scored.read_text())
        yield _row(run, method, figures, json.loads(fitted.read_text()), figures["seconds"]) | more_fields
    if failed:
        raise failed


def _class(background: str) -> tuple[str, ...]:
    return ("--class-field", "class", *(("--background", background) if background else ()))


def _row(
    run: Run, method: str, scored: dict[str, Any], fitted: dict[str, Any], evaluate_seconds: float
) -> dict[str, Any]:
    return {
        "set": run.labelled.name,
        "size": run.size,
        "seed": str(run.seed),
        "method": method,
        **_sets.whole_figures(scored),
        "seconds": fitted["seconds"],
        "peak_memory_mb": fitted["peak_memory_mb"],
        "evaluate_seconds": evaluate_seconds,
        "backbone": "",
        "parameters_m": "",
    }


def read_rows(stem: Path) -> list[dict[str, Any]]:
    """The rows of the sweep's file and of its shards' files, each run once."""
    paths = [stem.with_suffix(".csv"), *sorted(stem.parent.glob(f"{stem.name}.[0-9]*.csv"))]
    rows = {report.key(row): row for path in paths for row in _sets.read_rows(path)}
    return sorted(rows.values(), key=report.place)


if __name__ == "__main__":
    sys.exit(main())
