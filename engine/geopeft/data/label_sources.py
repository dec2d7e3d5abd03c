"""Label sources: which vector layer or label raster a FILE or FILE:layer names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyogrio

from geopeft.data.raster import open_dataset, printable
from geopeft.errors import LabelError, RasterError


@dataclass(frozen=True)
class LabelSource:
    """A file, and its vector layer; None: a label raster."""

    path: str
    layer: str | None
    fields: Mapping[str, str] = field(default_factory=dict)


def find_source(spec: str, class_field: str, *, rasters: bool = True) -> LabelSource:
    """The vector layer or, with `rasters`, the label raster that FILE or FILE:layer names."""
    path, layer = _split_spec(spec)
    try:
        listed = [(str(name), kind) for name, kind in pyogrio.list_layers(path).tolist()]
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError, UnicodeError) as error:
        if rasters and not layer and _opens_as_raster(path):
            return LabelSource(path, None)
        size = " (it has 0 bytes)" if os.path.isfile(path) and os.path.getsize(path) == 0 else ""
        raise LabelError(
            f"{path} is neither a vector layer nor a raster GDAL can read{size}.",
            "Choose a layer that opens in QGIS.",
            "LABELS_OPEN",
        ) from error
    with_geometry = [name for name, kind in listed if kind is not None]
    if not with_geometry and rasters and not layer and _opens_as_raster(path):
        return LabelSource(path, None)
    name = _choose_layer(path, layer, with_geometry, class_field)
    if pyogrio.read_info(path, layer=name)["features"] == 0:
        raise LabelError(f"{path} has no features.", "Draw labels and save them.", "LABELS_EMPTY")
    return LabelSource(path, name, _fields(path, name))


def _split_spec(spec: str) -> tuple[str, str]:
    """(path, layer) of FILE or FILE:layer. A file that is called so wins; layers may hold ':'; C: is no file."""
    if not spec:
        raise LabelError("No labels are named.", "Name a label layer or a label raster.", "LABELS_MISSING")
    if printable(spec) != spec:
        message = f"The path {printable(spec)} holds bytes that are no text."
        raise LabelError(message, "Rename the file or folder.", "PATH_ENCODING")
    if os.path.exists(spec):
        return spec, ""
    for position in range(len(spec) - 1, 1, -1):
        if spec[position] == ":" and os.path.exists(spec[:position]):
            return spec[:position], spec[position + 1 :]
    if spec.startswith("/vsi"):
        return spec, ""
    raise LabelError(f"There are no labels at '{spec}'.", "Check the path; a layer is FILE:layer.", "LABELS_MISSING")


def _opens_as_raster(path: str) -> bool:
    try:
        with open_dataset(path) as dataset:
            return bool(dataset.count)
    except RasterError:
        return False


def _choose_layer(path: str, wanted: str, layers: Sequence[str], class_field: str) -> str:
    if wanted:
        exact = [name for name in layers if name == wanted] or [n for n in layers if n.lower() == wanted.lower()]
        if exact:
            return exact[0]
        raise LabelError(
            f"{path} has no layer '{wanted}' with geometries.",
            f"It has: {', '.join(layers) or 'none'}.",
            "LABELS_LAYER",
        )
    if not layers:
        raise LabelError(f"{path} has no layer with geometries.", "Choose another file.", "LABELS_LAYER")
    if len(layers) == 1:
        return layers[0]
    field_name = (class_field or "class").lower()
    fitting = [name for name in layers if field_name in map(str.lower, _fields(path, name))]
    if len(fitting) == 1:
        return fitting[0]
    raise LabelError(
        f"{path} has several layers: {', '.join(layers)}.",
        f"Name one: {path}:{(fitting or layers)[0]}.",
        "LABELS_LAYER",
    )


def _fields(path: str, layer: str) -> dict[str, str]:
    """Field names and their kinds: text, integer, number, bool or other."""
    info = pyogrio.read_info(path, layer=layer)
    kinds = {}
    for name, dtype, ogr in zip(info["fields"], info["dtypes"], info["ogr_types"], strict=True):
        kind = {"i": "integer", "u": "integer", "f": "number", "b": "bool"}.get(_dtype_kind(str(dtype)), "other")
        kinds[str(name)] = "text" if ogr == "OFTString" else kind
    return kinds


def _dtype_kind(name: str) -> str:
    try:
        return np.dtype(name).kind
    except TypeError:
        return "O"
