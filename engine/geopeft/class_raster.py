"""Class raster and confidence raster: written by rows, with colours, names, overviews and where they come from."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window

from geopeft import __version__
from geopeft.data.raster import RasterInfo
from geopeft.errors import OutputError
from geopeft.package import ClassInfo, Manifest
from geopeft.runtime import Strip
from geopeft.writing import whole_raster, write_bytes

NODATA, CONFIDENCE_NODATA = 0, 255
_AGAIN = "Check the disk, then run again."
_BLOCK_PX = 256
_SIDECARS = (".ovr", ".msk", ".aux.xml")


@contextmanager
def class_raster(
    target: Path, confidence: Path | None, info: RasterInfo, classes: Sequence[ClassInfo], origin: Mapping[str, str]
) -> Iterator[RowBuffer]:
    """Yields what rows are added to; at the end the files are there, whole, or as they were before.

    Args:
        target: class raster, GeoTIFF.
        confidence: confidence raster, GeoTIFF; None: none.
        info: the raster that is mapped, for its grid.
        classes: their values, names and colours.
        origin: tags of `origin_tags`.
    """
    with ExitStack() as stack:
        finish = partial(_finish_class_raster, classes, origin)
        writers = [stack.enter_context(whole_raster(target, finish, **_profile(info, NODATA)))]
        if confidence is not None:
            finish = partial(_finish_confidence, origin)
            writers.append(stack.enter_context(whole_raster(confidence, finish, **_profile(info, CONFIDENCE_NODATA))))
        rows = RowBuffer(writers, info.width)
        yield rows
        rows.flush()
    for path in (target, confidence):
        if path is not None:
            _forget_sidecars(path)
    write_bytes(Path(f"{target}.aux.xml"), _categories(classes))


class RowBuffer:
    """Gathers strips to whole rows of the file's blocks, so that no block is compressed twice."""

    def __init__(self, writers: Sequence[Callable[[np.ndarray, Window], None]], width: int) -> None:
        self._writers = writers
        self._width = width
        self._row = 0
        self._rows: list[np.ndarray] = []

    def add(self, strip: Strip, mapped: np.ndarray) -> None:
        """Turns probabilities (K, h, W) into class values and percents, and writes the blocks that are complete."""
        best = strip.probabilities.argmax(0)
        sure = np.take_along_axis(strip.probabilities, best[None], 0)[0]
        values = np.where(mapped, best + 1, NODATA).astype(np.uint8)
        percent = np.where(mapped, np.rint(sure * 100), CONFIDENCE_NODATA).astype(np.uint8)
        self._rows.append(np.stack([values, percent][: len(self._writers)]))
        ready = sum(part.shape[1] for part in self._rows) // _BLOCK_PX * _BLOCK_PX
        if ready:
            self._write(ready)

    def flush(self) -> None:
        """Writes what is left."""
        rest = sum(part.shape[1] for part in self._rows)
        if rest:
            self._write(rest)

    def _write(self, count: int) -> None:
        rows = np.concatenate(self._rows, 1)
        for writer, array in zip(self._writers, rows[:, :count], strict=True):
            writer(array, Window(0, self._row, self._width, count))
        self._row += count
        self._rows = [rows[:, count:]]


def origin_tags(model: Path, manifest: Manifest) -> dict[str, str]:
    """Tags that say where a map comes from, so that a file that is passed on is still explained.

    No date is among them: the same map is the same file, to the last byte. It is in the sidecar.
    """
    with model.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    base, accuracy = manifest.base_weights, _accuracy(manifest)
    sentence = (
        f"Classes mapped by GeoPEFT {__version__} with the model {model.name}. {accuracy}. "
        f"Backbone {base.backbone}, licence of its weights: {base.licence}."
    )
    return {
        "GEOPEFT_MODEL": model.name,
        "GEOPEFT_MODEL_SHA256": checksum,
        "GEOPEFT_MODEL_DATE": manifest.created,
        "GEOPEFT_BACKBONE": base.backbone,
        "GEOPEFT_WEIGHTS_LICENCE": base.licence,
        "GEOPEFT_WEIGHTS_REVISION": base.revision or base.sha256,
        "GEOPEFT_ACCURACY": accuracy,
        "GEOPEFT_ENGINE": __version__,
        "TIFFTAG_SOFTWARE": f"GeoPEFT {__version__}",
        "TIFFTAG_IMAGEDESCRIPTION": sentence,
    }


def _accuracy(manifest: Manifest) -> str:
    """The accuracy of a model, with its interval and how it was measured."""
    figure = manifest.metrics.get("miou")
    numbers = [figure.get(key) if isinstance(figure, dict) else None for key in ("value", "low", "high")]
    value, *bounds = (f"{number:.2f}" if isinstance(number, int | float) else "" for number in numbers)
    if not value:
        return "Accuracy not measured"
    interval = f" (95 %: {bounds[0]} to {bounds[1]})" if all(bounds) else ""
    how = manifest.metrics.get("split")
    return f"mIoU {value}{interval}" + (f", measured on {how}" if isinstance(how, str) and how else "")


def _forget_sidecars(path: Path) -> None:
    """Overviews and statistics beside a raster that was replaced tell of the old one."""
    for suffix in _SIDECARS:
        with suppress(OSError):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def _profile(info: RasterInfo, nodata: int) -> dict[str, Any]:
    height, width = info.geobox.shape
    return {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": height,
        "width": width,
        "crs": info.crs,
        "transform": info.geobox.affine,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": _BLOCK_PX,
        "blockysize": _BLOCK_PX,
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
    }


def _finish_class_raster(classes: Sequence[ClassInfo], origin: Mapping[str, str], part: Path) -> None:
    """Adds colours, class names, origin and overviews to a closed class raster."""
    colors = {0: (0, 0, 0, 0), **{c.value: _rgba(c.color) for c in classes}}
    names = json.dumps({str(c.value): c.name for c in classes}, ensure_ascii=False)
    with rasterio.open(part, "r+") as raster:
        raster.write_colormap(1, colors)
        raster.colorinterp = [ColorInterp.palette]
        raster.update_tags(1, CLASSES=names)
        raster.update_tags(**origin)
    _overviews(part, Resampling.mode)
    with rasterio.open(part) as raster:
        # GDAL writes them when it closes the file, and rasterio does not ask how that went.
        if raster.colorinterp[0] != ColorInterp.palette or raster.tags(1).get("CLASSES") != names:
            raise OutputError(f"The colours and names of the classes could not be written to {part}.", _AGAIN)
        if any(raster.colormap(1)[value] != color for value, color in colors.items()):
            raise OutputError(f"The colours of the classes could not be written to {part}.", _AGAIN)
    _check_tags(part, origin)


def _finish_confidence(origin: Mapping[str, str], part: Path) -> None:
    with rasterio.open(part, "r+") as raster:
        raster.update_tags(**origin)
    _overviews(part, Resampling.average)
    _check_tags(part, origin)


def _check_tags(part: Path, origin: Mapping[str, str]) -> None:
    with rasterio.open(part) as raster:
        tags = raster.tags()
        if any(tags.get(name, "") != text for name, text in origin.items()):
            raise OutputError(f"Where the map comes from could not be written to {part}.", _AGAIN)


def _overviews(part: Path, resampling: Resampling) -> None:
    with rasterio.open(part, "r+") as raster:
        factors = [2**n for n in range(1, 12) if max(raster.shape) / 2**n >= _BLOCK_PX / 2]
        if factors:
            raster.build_overviews(factors, resampling)
    with rasterio.open(part) as raster:
        # A factor that is read back comes from rounded sizes, so their number is what can be compared.
        if len(raster.overviews(1)) != len(factors):
            raise OutputError(f"The overviews could not be written to {part}.", _AGAIN)


def _rgba(color: str) -> tuple[int, int, int, int]:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue, 255


def _categories(classes: Sequence[ClassInfo]) -> bytes:
    """GDAL's sidecar with the category names, which a GeoTIFF itself cannot hold, and the date of the map."""
    names = {c.value: c.name for c in classes}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    rows = "".join(
        f"      <Category>{html.escape(names.get(value, 'nodata' if value == 0 else ''))}</Category>\n"
        for value in range(max(names) + 1)
    )
    return (
        f'<PAMDataset>\n  <Metadata>\n    <MDI key="GEOPEFT_DATE">{date}</MDI>\n  </Metadata>\n'
        '  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{rows}    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    ).encode()
