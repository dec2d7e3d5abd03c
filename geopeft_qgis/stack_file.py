"""The file of a stack: a VRT that points to the rasters, or a GeoTIFF that holds their pixels."""

from __future__ import annotations

import contextlib
import math
import os
import re
import uuid
import xml.etree.ElementTree as ET  # nosec B405, only writes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from .language import tr
from .part_names import part_of
from .stack_bands import StackBand, StackError, StackGrid, load_gdal, opened, quiet, read_bands, same_crs, sensor_of
from .stack_dates import shared_time

# A value outside of what bands of a type usually hold, for the pixels that a band lacks.
ABSENT = {
    "Byte": ("Int16", -32768.0),
    "Int8": ("Int16", -32768.0),
    "UInt16": ("UInt16", 65535.0),
    "Int16": ("Int16", -32768.0),
    "UInt32": ("UInt32", 4294967295.0),
    "Int32": ("Int32", -2147483648.0),
    "Float32": ("Float32", math.nan),
    "Float64": ("Float64", math.nan),
}

Progress = Callable[[float], bool]


class StackCanceled(Exception):
    """The user stopped the work; nothing is left of it."""


def can_be_virtual(bands: Sequence[StackBand]) -> bool:
    """True where a VRT says all: one CRS, upright, pixels hidden by nodata only."""
    first = bands[0].crs
    return all(band.is_upright and not band.has_mask and same_crs(band.crs, first) for band in bands)


def write_stack(bands: Sequence[StackBand], grid: StackGrid, path: Path, progress: Progress) -> list[str]:
    """Writes the stack to a VRT or a GeoTIFF, as the path says; the file appears when it is whole.

    Where a VRT is asked for but cannot say all, it points to a GeoTIFF beside it.

    Args:
        bands, grid: as `read_bands` and `plan` give them.
        path: ends with .vrt, .tif or .tiff.
        progress: takes percent; False ends the work.

    Returns:
        Sentences about what is worth knowing.

    Raises:
        StackError, StackCanceled.
    """
    if path.suffix.lower() != ".vrt":
        write_geotiff(bands, grid, path, progress)
        return []
    if can_be_virtual(bands):
        write_text(path, vrt_text(bands, grid, path.parent))
        return []
    data = path.with_name(f"{path.stem}_data.tif")
    write_geotiff(bands, grid, data, progress)
    written = read_bands([str(data)])
    write_text(path, vrt_text(written, grid, path.parent, product_tags(bands)))
    text = tr("The rasters had to be brought to one grid: their pixels are in {path}, to which the stack points.")
    return [text.format(path=data)]


def write_text(path: Path, text: str) -> None:
    """Writes a small file under a temporary name, then moves it to its place."""
    part = part_of(path)
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def vrt_text(
    bands: Sequence[StackBand], grid: StackGrid, folder: Path, product: Optional[dict[str, str]] = None
) -> str:
    """The VRT of a stack whose bands have one CRS.

    Args:
        bands, grid: what it shows.
        folder: where it will be; files below that folder are named from there.
        product: tags of the dataset; None: what the files have in common.
    """
    root = ET.Element("VRTDataset", rasterXSize=str(grid.size[0]), rasterYSize=str(grid.size[1]))
    ET.SubElement(root, "SRS").text = grid.crs
    numbers = (grid.left, grid.pixel[0], 0.0, grid.top, 0.0, -grid.pixel[1])
    ET.SubElement(root, "GeoTransform").text = ", ".join(repr(float(number)) for number in numbers)
    _add_tags(root, product_tags(bands) if product is None else product)
    for number, band in enumerate(bands, 1):
        data_type, nodata = band.data_type, band.nodata
        if nodata is None and not _covers(band.box, grid):
            data_type, nodata = ABSENT.get(data_type, (data_type, 0.0))
        element = ET.SubElement(root, "VRTRasterBand", dataType=data_type, band=str(number))
        _add_tags(element, band.tags)
        ET.SubElement(element, "Description").text = band.name
        if nodata is not None:
            ET.SubElement(element, "NoDataValue").text = repr(float(nodata))
        for tag, value in zip(("Scale", "Offset", "UnitType"), band.scaling):
            if value not in (None, ""):
                ET.SubElement(element, tag).text = value if isinstance(value, str) else repr(float(value))
        _add_source(element, band, grid, folder)
    ET.indent(root) if hasattr(ET, "indent") else None
    return ET.tostring(root, encoding="unicode") + "\n"


def product_tags(bands: Sequence[StackBand]) -> dict[str, str]:
    """What the files have in common, and what their names say: with it the engine knows sensor and units."""
    files = [band.path for band in bands]
    shared = dict(bands[0].product)
    for band in bands[1:]:
        shared = {key: text for key, text in shared.items() if band.product.get(key) == text}
    sensor = sensor_of(files)
    known = [file for file in files if sensor and sensor_of([file]) == sensor] or files
    time = shared_time(bands)
    told = {**({"SENSOR": sensor} if sensor else {}), **({"DATETIME": time} if time else {})}
    return {**shared, **told, "SOURCE": re.split(r"[\\/]", known[0])[-1]}


def _add_tags(parent: ET.Element, tags: dict[str, str]) -> None:
    if tags:
        metadata = ET.SubElement(parent, "Metadata")
        for key, text in tags.items():
            ET.SubElement(metadata, "MDI", key=key).text = text


def _covers(box: tuple[float, float, float, float], grid: StackGrid) -> bool:
    slack = grid.pixel[0] * 0.01
    own = grid.box
    is_left_below = box[0] <= own[0] + slack and box[1] <= own[1] + slack
    return is_left_below and box[2] >= own[2] - slack and box[3] >= own[3] - slack


def _add_source(parent: ET.Element, band: StackBand, grid: StackGrid, folder: Path) -> None:
    """The part of the band that lies in the grid; a band of other pixels is resampled when it is read."""
    own, whole = band.box, grid.box
    left, bottom = max(own[0], whole[0]), max(own[1], whole[1])
    right, top = min(own[2], whole[2]), min(own[3], whole[3])
    if right <= left or top <= bottom:
        return
    source = ET.SubElement(parent, "SimpleSource", _resampling(band, grid))
    name, is_relative = _named_from(band.path, folder)
    ET.SubElement(source, "SourceFilename", relativeToVRT="1" if is_relative else "0").text = name
    ET.SubElement(source, "SourceBand").text = str(band.number)
    size = {"RasterXSize": band.size[0], "RasterYSize": band.size[1]}
    block = {"DataType": band.data_type, "BlockXSize": band.block[0], "BlockYSize": band.block[1]}
    ET.SubElement(source, "SourceProperties", {key: str(value) for key, value in {**size, **block}.items()})
    for tag, (x, y), (across, down) in (
        ("SrcRect", (own[0], own[3]), band.pixel),
        ("DstRect", (whole[0], whole[3]), grid.pixel),
    ):
        numbers = {
            "xOff": (left - x) / across,
            "yOff": (y - top) / down,
            "xSize": (right - left) / across,
            "ySize": (top - bottom) / down,
        }
        ET.SubElement(source, tag, {key: _number(value) for key, value in numbers.items()})


def _number(value: float) -> str:
    """A position in pixels; what is whole but for rounding is whole."""
    return str(round(value)) if abs(value - round(value)) < 1e-6 else repr(value)


def _resampling(band: StackBand, grid: StackGrid) -> dict[str, str]:
    """Nothing for the grid's own pixels; means where pixels get larger, slopes where they get smaller."""
    shift = [(band.box[0] - grid.left) / grid.pixel[0], (grid.top - band.box[3]) / grid.pixel[1]]
    same_size = all(math.isclose(own, new, rel_tol=1e-6) for own, new in zip(band.pixel, grid.pixel))
    if same_size and all(abs(part - round(part)) < 0.01 for part in shift):
        return {}
    if band.is_category:
        return {"resampling": "nearest"}
    grows = band.pixel[0] * band.pixel[1] < grid.pixel[0] * grid.pixel[1] * 0.999
    return {"resampling": "average" if grows else "bilinear"}


def _named_from(path: str, folder: Path) -> tuple[str, bool]:
    """(name, whether it is meant from the folder): files below the folder move along with it."""
    try:
        inside = Path(path).resolve().relative_to(folder.resolve())
    except (ValueError, OSError):
        return path, False
    return (inside.as_posix(), True) if os.path.exists(path) else (path, False)


def write_geotiff(bands: Sequence[StackBand], grid: StackGrid, path: Path, progress: Progress) -> None:
    """Resamples every band to the grid and writes one GeoTIFF with one data type and one nodata value.

    Raises:
        StackError, StackCanceled.
    """
    gdal = load_gdal()
    data_type, nodata = _common(gdal, bands)
    memory = f"/vsimem/geopeft-{uuid.uuid4().hex}"
    part = part_of(path)
    names = [f"{memory}/{number}.vrt" for number in range(len(bands))]
    try:
        with quiet(gdal) as messages:
            for band, name in zip(bands, names):
                _warp(gdal, band, grid, name, data_type, nodata, messages)
            moved = [
                band._replace(
                    path=name,
                    number=1,
                    data_type=data_type,
                    nodata=nodata,
                    transform=(grid.left, grid.pixel[0], 0.0, grid.top, 0.0, -grid.pixel[1]),
                    size=grid.size,
                    block=(128, 128),
                )
                for band, name in zip(bands, names)
            ]
            text = vrt_text(moved, grid, Path("/"), product_tags(bands))
            _translate(gdal, text, part, data_type, progress, messages)
            _read_back(gdal, part, len(bands), messages)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from error
    finally:
        for name in names:
            gdal.Unlink(name)
            gdal.Unlink(_picked(name))
        with contextlib.suppress(OSError):
            part.unlink()


def _common(gdal: Any, bands: Sequence[StackBand]) -> tuple[str, Optional[float]]:
    """A data type and a nodata value for all: the bands' own where they agree, else a value that no band holds."""
    kinds = [gdal.GetDataTypeByName(band.data_type) for band in bands]
    kind = kinds[0]
    for other in kinds[1:]:
        kind = gdal.DataTypeUnion(kind, other)
    name = gdal.GetDataTypeName(kind)
    first = bands[0].nodata
    agree = first is not None and all(band.nodata == first and band.data_type == name for band in bands)
    return (name, first) if agree else ABSENT.get(name, (name, None))


def _warp(
    gdal: Any,
    band: StackBand,
    grid: StackGrid,
    name: str,
    data_type: str,
    nodata: Optional[float],
    messages: list[str],
) -> None:
    """A band on the grid, as a virtual raster in memory."""
    # The warped raster only points to the picked band, which therefore must be a file too, in memory.
    picked = gdal.Translate(_picked(name), opened(gdal, band.path, messages), format="VRT", bandList=[band.number])
    del picked
    left, bottom, right, top = grid.box
    warped = gdal.Warp(
        name,
        _picked(name),
        format="VRT",
        srcSRS=band.crs,
        dstSRS=grid.crs,
        outputBounds=(left, bottom, right, top),
        width=grid.size[0],
        height=grid.size[1],
        outputType=gdal.GetDataTypeByName(data_type),
        dstNodata=nodata,
        resampleAlg="near" if band.is_category else "bilinear",
        errorThreshold=0.05,
    )
    if warped is None:
        text = tr("{path} cannot be brought to the grid of the stack ({reason}). Leave it out.")
        raise StackError(text.format(path=band.path, reason="; ".join(messages[-1:])))
    del warped


def _picked(name: str) -> str:
    return name.replace(".vrt", ".band.vrt")


def _translate(gdal: Any, text: str, part: Path, data_type: str, progress: Progress, messages: list[str]) -> None:
    """Writes the pixels."""
    canceled = []

    def step(done: float, *_: Any) -> int:
        if not progress(done * 90):
            canceled.append(True)
        return 0 if canceled else 1

    predictor = "PREDICTOR=3" if data_type.startswith("Float") else "PREDICTOR=2"
    options = ["TILED=YES", "COMPRESS=DEFLATE", predictor, "BIGTIFF=IF_SAFER", "INTERLEAVE=BAND"]
    try:
        written = gdal.Translate(str(part), text, format="GTiff", creationOptions=options, callback=step)
        if written is not None:
            written.FlushCache()
        complete = written is not None
        del written
    except RuntimeError as error:
        messages.append(str(error))
        complete = False
    if canceled:
        raise StackCanceled
    if not complete or messages:
        raise _cannot_write(part.with_suffix(""), "; ".join(messages[:1]))


def _read_back(gdal: Any, part: Path, count: int, messages: list[str]) -> None:
    """A full disk is not always reported when it fills: only what can be read again is there."""
    written = opened(gdal, str(part), messages)
    for index in range(1, count + 1):
        written.GetRasterBand(index).Checksum()
    if messages:
        raise _cannot_write(part.with_suffix(""), messages[0])


def _cannot_write(path: Path, reason: str) -> StackError:
    text = tr("{path} cannot be written ({reason}). Free space there, or choose another place.")
    return StackError(text.format(path=path, reason=reason or tr("no reason given")))
