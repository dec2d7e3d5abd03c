"""The labelled sets of the shared data: which regions train and which are unseen, and the engine run on them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

LONGITUDE_LATITUDE = "EPSG:4326"


@dataclass(frozen=True)
class Part:
    """Rasters of one reference system and their labels, FILE:layer."""

    rasters: tuple[str, ...]
    labels: str


@dataclass(frozen=True)
class Region:
    """Rasters of one region and one label layer for all of them, and the same by folder."""

    rasters: tuple[str, ...]
    labels: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class LabelledSet:
    """A training and an unseen region.

    Args:
        background: class of the unlabelled pixels, where they are one.
        as_they_are: labels are discs or points already, none is drawn into them.
    """

    name: str
    training: tuple[str, ...]
    unseen: tuple[str, ...]
    raster: str
    labels: str
    background: str = ""
    as_they_are: bool = False


SETS = (
    LabelledSet("urban_trees_naip", ("train_longbeach", "train_chico"), ("unseen_palmsprings", "unseen_claremont"),
                "*_2020_*.tif", "labels.gpkg:train_discs", as_they_are=True),
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
    LabelledSet("leipzig_s2_points", ("all",), ("all",), "leipzig_s2.tif", "labels.gpkg:points", as_they_are=True),
)  # fmt: skip


def shared_folder() -> Path | None:
    """The folder with the shared data; None, with a sentence, where it is not there."""
    shared = os.environ.get("GEOPEFT_SHARED", "")
    if not shared or not Path(shared, "data").is_dir():
        print("The shared data are not there: set GEOPEFT_SHARED.")
        return None
    return Path(shared)


def regions_of(labelled: LabelledSet, data: Path, scratch: Path) -> tuple[Region, Region]:
    """The training and the unseen region; label layers that must be made are written to `scratch`."""
    training, unseen = (
        _region(labelled, [data / labelled.name / name for name in names], scratch / f"{labelled.name}_{kind}.gpkg")
        for kind, names in (("training", labelled.training), ("unseen", labelled.unseen))
    )
    if labelled.training == labelled.unseen:
        return _diagonals(
            training, scratch / f"{labelled.name}_training.gpkg", scratch / f"{labelled.name}_unseen.gpkg"
        )
    return training, unseen


def read_labels(spec: str) -> tuple[str, NDArray[np.object_], NDArray[np.object_]]:
    """Reference system, geometries and classes of FILE:layer."""
    path, _, layer = spec.rpartition(":")
    meta, _, geometry, (values,) = pyogrio.raw.read(path, layer=layer, columns=["class"])
    return str(meta["crs"]), shapely.from_wkb(geometry), values


def write_labels(
    path: Path, parts: Sequence[tuple[str, Sequence[Any] | NDArray[np.object_], Sequence[str] | NDArray[np.object_]]]
) -> str:
    """Writes (reference system, geometries, classes) of each part as one layer, several systems as longitude and
    latitude; returns FILE:layer."""
    systems = {crs for crs, _, _ in parts}
    target = systems.pop() if len(systems) == 1 else LONGITUDE_LATITUDE
    shapes: list[shapely.Geometry] = []
    for crs, geometries, _ in parts:
        turn = Transformer.from_crs(crs, target, always_xy=True)
        moved = [shapely.transform(g, lambda xy: np.stack(turn.transform(*xy.T), 1)) for g in geometries]  # noqa: B023
        shapes += moved if crs != target else list(geometries)
    classes = np.array([str(name) for _, _, names in parts for name in names], object)
    pyogrio.raw.write(path, shapely.to_wkb(np.array(shapes, object)), [classes], ["class"], layer="labels",
                      driver="GPKG", geometry_type="Unknown", crs=target)  # fmt: skip
    return f"{path}:labels"


def _region(labelled: LabelledSet, folders: Sequence[Path], merged: Path) -> Region:
    name, _, layer = labelled.labels.partition(":")
    parts = tuple(
        Part(tuple(str(path) for path in sorted(folder.glob(labelled.raster))), f"{folder / name}:{layer}")
        for folder in folders
    )
    labels = parts[0].labels if len(parts) == 1 else write_labels(merged, [read_labels(p.labels) for p in parts])
    return Region(tuple(path for part in parts for path in part.rasters), labels, parts)


def _diagonals(whole: Region, training: Path, unseen: Path) -> tuple[Region, Region]:
    """Points of one scene in 2 x 2 blocks: one diagonal trains, the other is unseen."""
    crs, points, classes = read_labels(whole.labels)
    xy = shapely.get_coordinates(points)
    side = (xy > (xy.min(0) + xy.max(0)) / 2).astype(int)
    first = side[:, 0] == side[:, 1]
    specs = [
        write_labels(path, [(crs, points[own], classes[own])]) for path, own in ((training, first), (unseen, ~first))
    ]
    one, other = (Region(whole.rasters, spec, (Part(whole.rasters, spec),)) for spec in specs)
    return one, other


class EngineFailed(Exception):
    """A job of the engine ended with an error; the text is what it said."""


def engine(*arguments: str) -> str:
    """Runs one command of the engine and returns what it printed.

    Raises:
        EngineFailed: the job failed.
        SystemExit: the engine does not know such an option.
    """
    return run_python("-m", "geopeft", *arguments)


def run_python(*arguments: str) -> str:
    """Runs this Python; see `engine`."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 2:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stderr}")
    if done.returncode:
        raise EngineFailed(f"{' '.join(arguments)}\n{done.stderr}")
    return done.stdout


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a bench's table, as text; none where it is not there yet."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[dict[str, Any]], fields: Sequence[str]) -> None:
    """Writes all rows beside the file and moves them there: a run that is stopped leaves the old or the new file."""
    fresh = path.with_suffix(".new")
    with fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(fresh, path)


def whole_figures(scored: dict[str, Any]) -> dict[str, float]:
    """mIoU and overall accuracy over all classes with labels, also those in one place: a benchmark compares maps.

    Args:
        scored: figures of the engine.
    """
    matrix = np.array(scored["confusion_matrix"], np.float64)
    hit, truth = np.diag(matrix), matrix.sum(1)
    union = truth + matrix.sum(0) - hit
    iou = hit[truth > 0] / union[truth > 0]
    return {"miou": round(float(iou.mean()), 5), "overall_accuracy": round(float(hit.sum() / matrix.sum()), 5)}
