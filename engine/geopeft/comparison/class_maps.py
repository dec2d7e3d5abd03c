"""Maps of classes side by side: class rasters as they are, model packages as what they map; classes matched by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from geopeft.data.label_classes import IGNORE, MAX_CLASSES, LabelClass, choose_color
from geopeft.data.label_lookup import LabelLookup
from geopeft.data.label_shapes import row_col_size
from geopeft.data.memory import Memory
from geopeft.data.raster import RasterInfo, describe, open_raster
from geopeft.data.raster_labels import raster_classes, unlabelled_values
from geopeft.errors import RasterError
from geopeft.events import Reporter
from geopeft.mapping.strips import map_raster
from geopeft.package import read
from geopeft.runtime import Runtime
from geopeft.writing import check_target, whole_raster

MODEL_SUFFIX = ".geopeft"
MODEL, RASTER = "model", "class raster"
# Pixels of a strip that is read at once; a class raster is looked at in such strips, however large it is.
STRIP_PX = 1 << 21
_CHOOSE = "Choose a class raster: one band of whole numbers, each of which is a class."


@dataclass(frozen=True)
class MapClass:
    """A class of a map: its value there, its name, its colour, and its value in the labels (models only)."""

    value: int
    name: str
    color: str = ""
    label: str = ""

    @property
    def has_name(self) -> bool:
        """Whether it is called by more than its number."""
        return self.name != str(self.value)


@dataclass(frozen=True)
class ClassMap:
    """A map on disk.

    Args:
        path: of the class raster or model package.
        kind: MODEL or RASTER.
        sheets: the class rasters it is made of: itself, or what the model maps of each raster.
        classes: that it knows.
        rasters: what the model mapped; none of a class raster.
        memory: where the model has learned; None where that is not known.
    """

    path: str
    kind: str
    sheets: tuple[RasterInfo, ...]
    classes: tuple[MapClass, ...]
    rasters: tuple[RasterInfo, ...] = ()
    memory: Memory | None = None


@dataclass(frozen=True)
class UnitedClass:
    """A class of two maps: its name, its colour, and what it is in the one and in the other; None where unknown."""

    name: str
    color: str
    one: MapClass | None
    other: MapClass | None


def is_model(path: str) -> bool:
    """Whether a path is that of a model package."""
    return Path(path).suffix.lower() == MODEL_SUFFIX


def read_class_raster(path: str, reporter: Reporter) -> ClassMap:
    """A class raster: ours, or any with one band of whole numbers.

    Its classes are those that are named (tag CLASSES, category names), and the values that occur; nodata, and 0 and 255
    without a name, are none.

    Raises:
        RasterError: RASTER_NOT_CLASSES, or as `describe`.
    """
    info = describe(path, classes=True)
    if len(info.bands) != 1:
        raise RasterError(f"{path} has {len(info.bands)} bands: it is no class raster.", _CHOOSE, "RASTER_NOT_CLASSES")
    if np.dtype(info.dtype).kind not in "iu":
        raise RasterError(f"{path} holds {info.dtype} values: it is no class raster.", _CHOOSE, "RASTER_NOT_CLASSES")
    names, colors = raster_classes(info)
    none = unlabelled_values(info, names, set())
    there = _values(info, reporter) - none
    if not there:
        raise RasterError(f"{path} holds no class, only nodata.", "Choose another class raster.", "RASTER_NOT_CLASSES")
    named = set(names) - none
    values = sorted(there | named if len(there | named) <= MAX_CLASSES else there)
    classes = (MapClass(value, names.get(value, str(value)), colors.get(value, "")) for value in values)
    return ClassMap(path, RASTER, (info,), tuple(classes))


def map_with_model(
    path: str,
    infos: Sequence[RasterInfo],
    wanted: Sequence[Callable[[Window], bool]],
    folder: Path,
    options: Mapping[str, Any],
    reporter: Reporter,
    stage: str,
) -> ClassMap:
    """Maps rasters exactly as predict does, into files of a folder.

    Args:
        path: model package.
        infos: the rasters.
        wanted: for each, the windows to map.
        folder: where the class rasters go.
        options: `device`, `weights_dir`, `bands`.
        stage: name in the progress events.
    """
    opened = read(Path(path))
    runtime = Runtime.of(opened, options["device"], options["weights_dir"], reporter)
    memory = Memory.from_arrays(opened.start)
    sheets = []
    for number, (info, windows) in enumerate(zip(infos, wanted, strict=True)):
        target = folder / f"{number}.tif"
        _write_sheet(runtime, info, options["bands"], windows, target, reporter, stage)
        sheets.append(describe(str(target), classes=True))
    classes = tuple(MapClass(c.value, c.name, c.color, c.label) for c in runtime.manifest.classes)
    return ClassMap(path, MODEL, tuple(sheets), classes, tuple(infos), memory)


def _write_sheet(
    runtime: Runtime,
    info: RasterInfo,
    bands: Sequence[str],
    wanted: Callable[[Window], bool],
    target: Path,
    reporter: Reporter,
    stage: str,
) -> None:
    check_target(target, info.height * info.width)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": info.height, "width": info.width,
               "crs": info.crs, "transform": info.geobox.affine, "nodata": 0, "compress": "deflate",
               "BIGTIFF": "IF_SAFER"}  # fmt: skip
    with whole_raster(target, None, **profile) as write:
        for strip in map_raster(runtime, info, bands, reporter, wanted, stage):
            values = np.where(strip.mapped, strip.probabilities.argmax(0) + 1, 0).astype(np.uint8)
            write(values, Window(0, strip.row, info.width, len(values)))


def unite(one: Sequence[MapClass], other: Sequence[MapClass]) -> tuple[UnitedClass, ...]:
    """The classes of two maps: matched by name, whatever its case, else by value where one of them has no name.

    Raises:
        RasterError: RASTER_NOT_CLASSES where they are too many.
    """
    rest = list(other)
    found: list[UnitedClass] = []
    for alike in (_same_name, _same_value):
        taken = {united.one for united in found}
        for own in one:
            match = next((known for known in rest if alike(own, known)), None)
            if own not in taken and match is not None:
                rest.remove(match)
                name = own.name if own.has_name else match.name
                found.append(UnitedClass(name, own.color or match.color, own, match))
    taken = {united.one for united in found}
    found += [UnitedClass(known.name, known.color, known, None) for known in one if known not in taken]
    found.sort(key=lambda united: one.index(united.one) if united.one is not None else -1)
    found += [UnitedClass(known.name, known.color, None, known) for known in rest]
    if len(found) > MAX_CLASSES:
        message = f"The two maps have {len(found)} classes together; at most {MAX_CLASSES} can be compared."
        raise RasterError(message, _CHOOSE, "RASTER_NOT_CLASSES")
    colors: list[str] = []
    for united in found:
        colors.append(united.color or choose_color(united.name, colors))
    return tuple(replace(united, color=color) for united, color in zip(found, colors, strict=True))


def _same_name(one: MapClass, other: MapClass) -> bool:
    return one.name.strip().casefold() == other.name.strip().casefold()


def _same_value(one: MapClass, other: MapClass) -> bool:
    return one.value == other.value and not (one.has_name and other.has_name)


def labels_to_united(labels: Sequence[LabelClass], classes: Sequence[UnitedClass]) -> NDArray[np.uint8]:
    """(256,) class number of the labels -> of the maps: by name, else by value; 255 where neither map knows it."""
    table = np.full(256, IGNORE, np.uint8)
    for number, label in enumerate(labels):
        name = label.name.strip().casefold()
        by_name = [at for at, known in enumerate(classes) if known.name.strip().casefold() == name]
        by_value = [at for at, known in enumerate(classes) if any(label.value == text for text in _values_of(known))]
        table[number] = next(iter((*by_name, *by_value)), IGNORE)
    return table


def _values_of(united: UnitedClass) -> list[str]:
    """The label values that a class goes by: those that taught a model, else its value in a raster without names."""
    found = []
    for known in (united.one, united.other):
        if known is not None and (known.label or not known.has_name):
            found.append(known.label or str(known.value))
    return found


class MapReader:
    """The classes of a map on the grids of some rasters, at the pixels' centres (nearest).

    Args:
        sheets: the class rasters of the map.
        grids: the rasters.
        numbers: value in the map -> number of the class.
        is_own: each grid is that of the sheet in the same place.
    """

    def __init__(
        self, sheets: Sequence[RasterInfo], grids: Sequence[RasterInfo], numbers: Mapping[int, int], is_own: bool
    ) -> None:
        # As in a lookup, a value is a class or none whatever the file says of it.
        self._sheets = [replace(sheet, nodatas=(None,) * len(sheet.bands)) for sheet in sheets]
        self._lookups = [LabelLookup(sheet, grids) for sheet in sheets]
        self._values = np.array(sorted(numbers), np.int64)
        self._numbers = np.array([numbers[value] for value in sorted(numbers)], np.uint8)
        for lookup in self._lookups:
            lookup.set_classes(numbers)
        self._grids, self._is_own = tuple(grids), is_own

    def read(self, grid_index: int, window: Window) -> NDArray[np.uint8]:
        """(h, w) class numbers, 255 where the map has none; of a window inside the raster."""
        row, col, height, width = row_col_size(window)
        result = np.full((height, width), IGNORE, np.uint8)
        for at in [grid_index] if self._is_own else range(len(self._sheets)):
            missing = result == IGNORE
            if not missing.any():
                break
            if self._sheets[at].geobox == self._grids[grid_index].geobox:
                found = self._same_grid(self._sheets[at], window)
            else:
                found = self._lookups[at].classes(grid_index, row, col, row + height, col + width)
            result[missing] = found[missing]
        return result

    def _same_grid(self, sheet: RasterInfo, window: Window) -> NDArray[np.uint8]:
        """What a lookup gives, without asking for the place of every pixel."""
        with open_raster(sheet, [sheet.bands[0].index]) as reader:
            values, good = reader.read_native(window)
        at = np.minimum(np.searchsorted(self._values, values[0]), len(self._values) - 1)
        known = good[0] & (self._values[at] == values[0])
        return np.where(known, self._numbers[at], IGNORE).astype(np.uint8)


def strips(bounds: tuple[int, int, int, int]) -> list[Window]:
    """Windows of bounded size that cover (row0, col0, row1, col1) from the top down, each over its whole width."""
    row0, col0, row1, col1 = bounds
    height = max(1, min(256, STRIP_PX // max(col1 - col0, 1)))
    return [Window(col0, row, col1 - col0, min(height, row1 - row)) for row in range(row0, row1, height)]


def _values(info: RasterInfo, reporter: Reporter) -> set[int]:
    """The values of a raster, as far as the file does not say that they are none."""
    found: set[int] = set()
    with open_raster(info, [info.bands[0].index]) as reader:
        for window in strips((0, 0, info.height, info.width)):
            reporter.check_canceled()
            values, good = reader.read_native(window)
            found.update(np.unique(values[good]).tolist())
            if len(found) > MAX_CLASSES + 2:
                message = f"{info.path} holds more than {MAX_CLASSES} different values: it is no class raster."
                raise RasterError(message, _CHOOSE, "RASTER_NOT_CLASSES")
    return found
