"""A drawn sample as a GeoPackage: the points to be labelled, and beside them the design, which figures rest on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from affine import Affine

from geopeft.errors import JobError, LabelError
from geopeft.writing import check_target, keep_inputs, whole_file, write_failed

LAYER, STRATA, DRAWN, DESIGN = "sample", "strata", "drawn", "design"
_VERSION = 1
_READ_ERRORS = (
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
    pyogrio.errors.FieldError,
    pyogrio.errors.FeatureError,
    ValueError,
    RuntimeError,
)


@dataclass(frozen=True)
class Stratum:
    """A mapped class, as it was drawn from.

    Args:
        value, name, color: in the map; the colour is #rrggbb.
        pixels, area_m2: that the map has of it.
        points: that were drawn.
    """

    value: int
    name: str
    color: str
    pixels: int
    area_m2: float
    points: int


@dataclass(frozen=True, eq=False)
class Design:
    """How a sample was drawn.

    Args:
        strata: mapped classes, by value.
        stratum: (n,) position in `strata` of each point, in the order of the points' numbers, which begin with 1.
        x, y: (n,) coordinates in `crs`.
        area_m2: (n,) of each point's pixel.
        affine, crs: of the map's grid; the CRS as WKT.
        facts: what else is known: seed, map, checksum of its classes, and the like.
    """

    strata: tuple[Stratum, ...]
    stratum: np.ndarray
    x: np.ndarray
    y: np.ndarray
    area_m2: np.ndarray
    affine: Affine
    crs: str
    facts: Mapping[str, Any]

    def checksum(self) -> str:
        """Of everything that the figures rest on."""
        digest = hashlib.sha256(json.dumps([list(vars(one).values()) for one in self.strata]).encode())
        for column in (self.stratum.astype(np.int64), self.x, self.y, self.area_m2):
            digest.update(np.ascontiguousarray(column).tobytes())
        digest.update(json.dumps([*self.affine[:6], self.crs]).encode())
        return digest.hexdigest()


def check_outputs(outputs: Sequence[str], inputs: Sequence[str]) -> None:
    """Raises JobError (OUTPUT_IS_INPUT) or OutputError before the work begins, where a file could not be written.

    Args:
        outputs, inputs: files, inputs perhaps as FILE:layer; empty ones do not count.
    """
    for path in (Path(name) for name in outputs if name):
        check_target(path)
        keep_inputs([path], inputs)


def refuse_labelled(path: Path) -> None:
    """Raises JobError (SAMPLE_HAS_LABELS) where a sample would be replaced that somebody has begun to label."""
    if not path.exists():
        return
    try:
        _, _, _, (classes,) = pyogrio.raw.read(path, layer=LAYER, columns=["class"], read_geometry=False)
    except _READ_ERRORS:
        return
    count = sum(isinstance(value, str) and bool(value.strip()) for value in classes.tolist())
    if count:
        raise JobError(
            f"{path} is a sample in which {count} points are labelled already; a new one would replace it.",
            "Choose another output, or delete the file.",
            "SAMPLE_HAS_LABELS",
        )


def write_sample(path: Path, design: Design) -> None:
    """Writes the points, with their class still empty, and the design; OutputError where that fails."""
    count = len(design.stratum)
    numbers = np.arange(1, count + 1)
    values = np.array([one.value for one in design.strata])
    weights = np.array([one.pixels / one.points if one.points else 0.0 for one in design.strata])
    empty, nothing = np.full(count, "", object), np.ones(count, bool)
    strata = [list(column) for column in zip(*(vars(one).values() for one in design.strata), strict=True)]
    facts = {
        "version": _VERSION,
        "affine": list(design.affine[:6]),
        "crs": design.crs,
        **design.facts,
        "checksum": design.checksum(),
    }
    with whole_file(path) as part:
        try:
            pyogrio.raw.write(
                part,
                shapely.to_wkb(shapely.points(design.x, design.y)),
                [numbers, values[design.stratum], empty, weights[design.stratum], empty],
                ["number", "stratum", "class", "weight", "note"],
                field_mask=[None, None, nothing, None, nothing],
                layer=LAYER,
                driver="GPKG",
                geometry_type="Point",
                crs=design.crs,
                # QGIS 3.22 too must be able to edit it, and its GDAL knows no newer ones.
                dataset_options={"VERSION": "1.2"},
            )
            _add(part, STRATA, dict(zip(Stratum.__dataclass_fields__, map(_column, strata), strict=True)))
            columns = {"x": design.x, "y": design.y, "area_m2": design.area_m2}
            _add(part, DRAWN, {"number": numbers, "stratum": values[design.stratum], **columns})
            _add(part, DESIGN, {"name": _column(list(facts)), "value": _column(list(map(json.dumps, facts.values())))})
        except (*_READ_ERRORS, OSError) as error:
            raise write_failed("layer", path, str(error)) from error
        _, _, shapes, _ = pyogrio.raw.read(part, layer=LAYER, columns=[])
        if len(shapes) != count or read_design(part).checksum() != design.checksum():
            raise write_failed("layer", path, "it read back differently from what was written")


def _column(values: list[Any]) -> np.ndarray:
    return np.array(values, object if values and isinstance(values[0], str) else None)


def _add(path: Path, table: str, columns: Mapping[str, np.ndarray]) -> None:
    pyogrio.raw.write(
        path, None, list(columns.values()), list(columns), layer=table, driver="GPKG", geometry_type=None, append=True
    )


def read_design(path: Path) -> Design:
    """The design in a sample's file.

    Raises:
        LabelError: SAMPLE_NO_DESIGN where it was not drawn by `sample`, SAMPLE_BROKEN where its design was changed.
    """
    _refuse_without_design(path)
    try:
        found = {name: _table(path, name) for name in (STRATA, DRAWN, DESIGN)}
        facts = {name: json.loads(text) for name, text in zip(*found[DESIGN].values(), strict=True)}
        rows = zip(*(found[STRATA][name].tolist() for name in Stratum.__dataclass_fields__), strict=True)
        strata = tuple(Stratum(*row) for row in rows)
        drawn = found[DRAWN]
        order = np.argsort(drawn["number"])
        position = {one.value: at for at, one in enumerate(strata)}
        design = Design(
            strata=strata,
            stratum=np.array([position[value] for value in drawn["stratum"][order].tolist()], np.int64),
            x=drawn["x"][order],
            y=drawn["y"][order],
            area_m2=drawn["area_m2"][order],
            affine=Affine(*facts.pop("affine")),
            crs=facts.pop("crs"),
            facts=facts,
        )
        intact = facts["checksum"] == design.checksum()
    except (*_READ_ERRORS, KeyError, TypeError) as error:
        raise _broken(path) from error
    if not intact:
        raise _broken(path)
    return design


def _table(path: Path, name: str) -> dict[str, np.ndarray]:
    meta, _, _, columns = pyogrio.raw.read(path, layer=name, read_geometry=False)
    return dict(zip(meta["fields"].tolist(), columns, strict=True))


def _refuse_without_design(path: Path) -> None:
    if not path.exists():
        raise LabelError(f"There is no sample at {path}.", "Check the path.", "LABELS_MISSING")
    try:
        layers = {str(name) for name, _ in pyogrio.list_layers(path).tolist()}
    except _READ_ERRORS as error:
        raise LabelError(
            f"{path} cannot be read: {error}.", "Choose the file that sample wrote.", "LABELS_OPEN"
        ) from error
    if not {LAYER, STRATA, DRAWN, DESIGN} <= layers:
        raise LabelError(
            f"{path} does not say how its points were drawn, so no area can be stood by: only a random sample whose "
            "design is known speaks for the whole map.",
            "Draw a sample of the map, label its points in the file that this writes (a copy of the layer alone loses "
            "the design), and choose that file.",
            "SAMPLE_NO_DESIGN",
        )


def _broken(path: Path) -> LabelError:
    return LabelError(
        f"The design in {path} is not the one that was written with it.",
        f"Change nothing in its tables {STRATA}, {DRAWN} and {DESIGN}; draw the sample again with the same seed, and "
        "copy the classes into it.",
        "SAMPLE_BROKEN",
    )
