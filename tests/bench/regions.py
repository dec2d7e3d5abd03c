"""Accuracy on unseen regions: the default fit beside a forest, a frozen backbone, full tuning and no pretraining.

    build.py bench regions [--sets NAME,...] [--methods NAME,...] [--seeds N] [--out FOLDER]

Every labelled set of the shared data: fit on its training region, scored by `evaluate` on its unseen region with the
same labels for all. The forest (150 trees, at most 4 000 pixels a class) sees the raw bands at the labelled pixels.
Finished runs are kept in OUT/regions.csv, so that a stopped sweep goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely

FIELDS = ("set", "method", "seed", "miou", "low", "high", "overall_accuracy", "seconds", "peak_memory_mb", "backbone")
METHODS: dict[str, list[str]] = {
    "default": [],
    "frozen": ["--adapter", "frozen"],
    "full": ["--adapter", "full"],
    "scratch": ["--backbone", "scratch_unet", "--adapter", "full"],
}


@dataclass(frozen=True)
class Region:
    """Rasters of one region and its labels."""

    rasters: tuple[str, ...]
    labels: str


@dataclass(frozen=True)
class LabelledSet:
    """A training and an unseen region."""

    name: str
    training: tuple[str, ...]
    unseen: tuple[str, ...]
    raster: str
    labels: str
    background: str = ""


SETS = (
    LabelledSet("urban_trees_naip", ("train_longbeach", "train_chico"), ("unseen_palmsprings", "unseen_claremont"),
                "*_2020_*.tif", "labels.gpkg:train_discs"),
    LabelledSet("nc_landsat7", ("train_west",), ("unseen_mid",), "lsat7_2000.tif", "labels.gpkg:polygons"),
    LabelledSet("terramind_s2_lulc", ("train_433D_629L", "train_38D_378R"), ("unseen_282D_485L",), "s2l2a.tif",
                "labels.gpkg:lulc"),
    LabelledSet("sen1floods11_spain", ("train_west",), ("unseen_mid",), "s2_l1c.tif", "labels.gpkg:polygons"),
    LabelledSet("kampala_oam_buildings", ("train_west",), ("unseen_mid",), "ortho_rgb.tif", "labels.gpkg:buildings",
                "other"),
    LabelledSet("banepa_oam_buildings", ("train_west",), ("unseen_mid",), "ortho_rgb.tif", "labels.gpkg:buildings",
                "other"),
    LabelledSet("enmap_potsdam", ("train_west",), ("unseen_mid",), "enmap_l2a.tif", "labels.gpkg:polygons"),
    LabelledSet("rstoolbox_lsat5_amazon", ("train_west",), ("unseen_mid",), "lsat5.tif", "labels.gpkg:polygons"),
    LabelledSet("leipzig_s2_points", ("all",), ("all",), "leipzig_s2.tif", "labels.gpkg:points"),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is not there yet and prints the table."""
    parser = argparse.ArgumentParser(prog="build.py bench regions", description=__doc__)
    parser.add_argument("--sets", default="")
    parser.add_argument("--methods", default="forest,default,frozen,full,scratch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--forest-set", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    shared = os.environ.get("GEOPEFT_SHARED", "")
    if not shared or not Path(shared, "data").is_dir():
        print("The shared data are not there: set GEOPEFT_SHARED.")
        return 2
    chosen = [s for s in SETS if not options.sets or s.name in options.sets.split(",")]
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "regions.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    done = {(row["set"], row["method"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            for labelled in chosen:
                regions = _regions(labelled, Path(shared, "data"), Path(scratch))
                for method in options.methods.split(","):
                    if (labelled.name, method, str(seed)) in done:
                        continue
                    row = _measure(labelled, regions, method, seed, Path(shared), Path(scratch))
                    rows.append(row)
                    print(" ".join(f"{row[field]}" for field in FIELDS), flush=True)
                    _save(table, rows)
    text = _summary(rows, options.methods.split(","))
    (options.out / "regions.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _regions(labelled: LabelledSet, data: Path, scratch: Path) -> tuple[Region, Region]:
    training, unseen = (
        _region(labelled, [data / labelled.name / name for name in names], scratch / f"{labelled.name}_{kind}.gpkg")
        for kind, names in (("training", labelled.training), ("unseen", labelled.unseen))
    )
    if labelled.training == labelled.unseen:
        _diagonals(training.labels, scratch / "training.gpkg", scratch / "unseen.gpkg")
        training = Region(training.rasters, str(scratch / "training.gpkg"))
        unseen = Region(unseen.rasters, str(scratch / "unseen.gpkg"))
    return training, unseen


def _region(labelled: LabelledSet, folders: Sequence[Path], merged: Path) -> Region:
    """One labels file for the folders: labels of several reference systems are brought to longitude and latitude."""
    rasters = tuple(str(path) for folder in folders for path in sorted(folder.glob(labelled.raster)))
    name, _, layer = labelled.labels.partition(":")
    if len(folders) == 1:
        return Region(rasters, f"{folders[0] / name}:{layer}")
    from pyproj import Transformer

    shapes, classes = [], []
    for folder in folders:
        meta, _, geometry, (values,) = pyogrio.raw.read(folder / name, layer=layer, columns=["class"])
        turn = Transformer.from_crs(meta["crs"], "EPSG:4326", always_xy=True)
        parts = shapely.from_wkb(geometry)
        shapes += [shapely.transform(g, lambda xy: np.stack(turn.transform(*xy.T), 1)) for g in parts]  # noqa: B023
        classes += list(values)
    pyogrio.raw.write(merged, shapely.to_wkb(np.array(shapes)), [np.array(classes, object)], ["class"], layer="labels",
                      driver="GPKG", geometry_type="Unknown", crs="EPSG:4326")  # fmt: skip
    return Region(rasters, str(merged))


def _diagonals(labels: str, training: Path, unseen: Path) -> None:
    """Points of one scene in 2 x 2 blocks: one diagonal trains, the other is unseen."""
    path, _, layer = labels.rpartition(":")
    meta, _, geometry, (values,) = pyogrio.raw.read(path, layer=layer, columns=["class"])
    xy = shapely.get_coordinates(shapely.from_wkb(geometry))
    side = (xy > (xy.min(0) + xy.max(0)) / 2).astype(int)
    first = side[:, 0] == side[:, 1]
    for target, chosen in ((training, first), (unseen, ~first)):
        pyogrio.raw.write(target, geometry[chosen], [values[chosen]], ["class"], layer="labels", driver="GPKG",
                          geometry_type="Point", crs=meta["crs"])  # fmt: skip


def _measure(
    labelled: LabelledSet, regions: tuple[Region, Region], method: str, seed: int, shared: Path, scratch: Path
) -> dict[str, Any]:
    training, unseen = regions
    model, fitted, scored = scratch / "m.geopeft", scratch / "fit.json", scratch / "evaluate.json"
    background = ["--background", labelled.background] if labelled.background else []
    weights = ["--weights-dir", str(shared / "weights")]
    if method == "forest":
        figures = _forest(training, unseen, labelled.background, seed)
        return _row(labelled, method, seed, figures, figures, "")
    _engine("fit", *training.rasters, "--labels", training.labels, "--class-field", "class", "--out", str(model),
            "--seed", str(seed), "--json", str(fitted), *background, *weights, *METHODS[method])  # fmt: skip
    _engine("evaluate", str(model), *unseen.rasters, "--labels", unseen.labels, "--class-field", "class",
            "--json", str(scored), *background, *weights)  # fmt: skip
    backbone = json.loads(_engine("inspect", str(model)))["spec"]["backbone"]
    return _row(labelled, method, seed, json.loads(scored.read_text()), json.loads(fitted.read_text()), backbone)


def _row(
    labelled: LabelledSet, method: str, seed: int, scored: dict[str, Any], fitted: dict[str, Any], backbone: str
) -> dict[str, Any]:
    return {
        "set": labelled.name,
        "method": method,
        "seed": str(seed),
        "miou": scored["miou"]["value"],
        "low": scored["miou"]["low"],
        "high": scored["miou"]["high"],
        "overall_accuracy": scored["overall_accuracy"]["value"],
        "seconds": fitted["seconds"],
        "peak_memory_mb": fitted["peak_memory_mb"],
        "backbone": backbone,
    }


def _engine(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "geopeft", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stderr}")
    return done.stdout


def _forest(training: Region, unseen: Region, background: str, seed: int) -> dict[str, Any]:
    """A random forest on the bands, units and labels that `fit` would take."""
    from geopeft.events import Reporter
    from geopeft.fit import prepare
    from geopeft.job import FitJob
    from geopeft.objective import confusion, figures
    from sklearn.ensemble import RandomForestClassifier

    start = time.monotonic()
    fields = {"rasters": training.rasters, "labels": training.labels, "class_field": "class", "background": background}
    job = FitJob.model_validate({**fields, "out": "unused", "backbone": "scratch_unet", "adapter": "full"})
    prepared = prepare(job, Reporter())
    names = [c.name for c in prepared.labels.classes]
    x, y = _pixels(prepared.infos, prepared.bands, prepared.labels, prepared.units)
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(y == c) for c in np.unique(y)]
    kept = np.concatenate([rng.choice(own, min(4000, len(own)), replace=False) for own in groups])
    forest = RandomForestClassifier(150, n_jobs=-1, random_state=seed).fit(x[kept], y[kept])
    seconds = time.monotonic() - start
    x, y = _unseen_pixels(unseen, background, prepared, names)
    # No blocks here: the interval of the forest is not needed, only its figure.
    result = figures([confusion(y, forest.predict(x), len(names))], names)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result | {"seconds": round(seconds, 2), "peak_memory_mb": round(peak, 1)}


def _unseen_pixels(
    unseen: Region, background: str, prepared: Any, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the unseen region with the class numbers of the training region; 255 for other classes."""
    from geopeft.data.bands import resolve_bands
    from geopeft.data.labels import read_labels
    from geopeft.data.normalize import assume_radiometry, between
    from geopeft.data.raster import band_statistics, describe
    from geopeft.events import Reporter

    infos = [describe(path) for path in unseen.rasters]
    bands = [resolve_bands(info, prepared.bands[0]) for info in infos]
    labels = read_labels(unseen.labels, "class", infos, background=background, minimum_classes=1, reporter=Reporter())
    units = []
    for info, own in zip(infos, bands, strict=True):
        now = assume_radiometry(info, own, band_statistics(info, [band.index for band in own]))
        same = [now.for_band(band) == (now.scale, now.offset) for band in own]
        scale, offset = between(now, prepared.radiometry)
        units.append((np.where(same, scale, 1.0), np.where(same, offset, 0.0)))
    x, y = _pixels(infos, bands, labels, units)
    table = np.array([names.index(c.name) if c.name in names else 255 for c in labels.classes], np.uint8)
    return x, table[y]


def _pixels(infos: Any, bands: Any, labels: Any, units: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bands (n, C) and class numbers (n,) of all labelled pixels."""
    from geopeft.data.chips import ChipReader

    values, classes = [], []
    with ChipReader(infos, bands, labels, units) as reader:
        for index in range(len(infos)):
            for _, _, block in reader.labelled_blocks(index):
                known = block.class_ids != 255
                values.append(block.values[:, known].T)
                classes.append(block.class_ids[known])
    return np.concatenate(values), np.concatenate(classes)


def _save(table: Path, rows: Sequence[dict[str, Any]]) -> None:
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


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
    sys.exit(main())
