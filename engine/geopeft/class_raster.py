"""Class raster and the rasters that tell how far it can be trusted: written by rows, with colours, names and origin."""

from __future__ import annotations

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
from geopeft.mapping.strips import Strip
from geopeft.package import ClassInfo, Manifest
from geopeft.writing import sha256_of, whole_raster, write_bytes

NODATA, PERCENT_NODATA = 0, 255
# What a map says where it is not sure enough; no class has this value.
UNKNOWN = 255
UNKNOWN_COLOR = "#9e9e9e"
# The dissimilarity goes on where 100 % ends.
_MOST_PERCENT = 250
_AGAIN = "Check the disk, then run again."
BLOCK_PX = 256
SPARSE_FROM_PX = 1 << 30
_SIDECARS = (".ovr", ".msk", ".aux.xml")


def _confidence(strip: Strip) -> np.ndarray:
    result: np.ndarray = strip.probabilities.max(0)
    return result


def _entropy(strip: Strip) -> np.ndarray:
    """Shannon's, of which log(K) is 1."""
    known = np.maximum(strip.probabilities, 1e-12)
    result: np.ndarray = -(known * np.log(known)).sum(0) / np.log(len(known))
    return result.clip(0, 1)


def _outside(strip: Strip) -> np.ndarray:
    if strip.dissimilarity is None:
        raise ValueError("the strip was mapped without dissimilarity")
    return strip.dissimilarity


# What may be written beside a class raster, each in percent: strip -> (h, W), 1 for 100 %.
PERCENT_LAYERS: dict[str, Callable[[Strip], np.ndarray]] = {
    "confidence": _confidence,
    "entropy": _entropy,
    "outside": _outside,
}


def unknown_class(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """Value, name and colour of what is too unsure to be mapped; the name is none of the classes'."""
    taken = {known.name.casefold() for known in classes}
    name = next(name for name in ("unknown", "unknown (not sure)", "\u2013 unknown \u2013") if name not in taken)
    return {"value": UNKNOWN, "name": name, "color": UNKNOWN_COLOR}


def legend_of(classes: Sequence[ClassInfo], has_unknown: bool) -> list[dict[str, Any]]:
    """Value, name and colour of everything that a map may hold."""
    known = [{"value": c.value, "name": c.name, "color": c.color} for c in classes]
    return [*known, unknown_class(classes)] if has_unknown else known


@contextmanager
def class_raster(
    target: Path,
    layers: Mapping[str, Path],
    info: RasterInfo,
    legend: Sequence[Mapping[str, Any]],
    origin: Mapping[str, str],
    unknown_below: float = 0.0,
) -> Iterator[RowBuffer]:
    """Yields what rows are added to; at the end the files are there, whole, or as they were before.

    Args:
        target: class raster, GeoTIFF.
        layers: GeoTIFFs to write beside it, by their names in PERCENT_LAYERS.
        info: the raster that is mapped, for its grid.
        legend: as of `legend_of`.
        origin: tags of `origin_tags`.
        unknown_below: least confidence, 0 to 1, of what is mapped as a class.
    """
    with ExitStack() as stack:
        finish = partial(_finish_class_raster, legend, origin)
        writers = [stack.enter_context(whole_raster(target, finish, **_profile(info, NODATA)))]
        for path in layers.values():
            finish = partial(_finish_percent, origin)
            writers.append(stack.enter_context(whole_raster(path, finish, **_profile(info, PERCENT_NODATA))))
        rows = RowBuffer(writers, tuple(layers), info.width, unknown_below, _is_sparse(info))
        yield rows
        rows.flush()
    for path in (target, *layers.values()):
        _forget_sidecars(path)
    write_bytes(Path(f"{target}.aux.xml"), _categories(legend))


class RowBuffer:
    """Gathers rows to whole rows of the file's blocks, so that no block is compressed twice, and writes them."""

    def __init__(
        self,
        writers: Sequence[Callable[[np.ndarray, Window], None]],
        layers: Sequence[str],
        width: int,
        unknown_below: float,
        is_sparse: bool = False,
    ) -> None:
        self._is_sparse = is_sparse
        self._writers, self._layers = writers, layers
        self._width = width
        self._unknown_below = unknown_below
        self._row = 0
        self._rows: list[np.ndarray] = []

    def add(self, strip: Strip, mapped: np.ndarray) -> None:
        """Rows as `draw` makes them of a strip of the whole width."""
        self.add_rows(draw(strip, mapped, self._layers, self._unknown_below))

    def add_values(self, values: np.ndarray) -> None:
        """Rows (h, W) uint8 as they are to be; for a class raster with nothing beside it."""
        self.add_rows(values[None])

    def add_rows(self, rows: np.ndarray) -> None:
        """Rows (1 + layers, h, W) uint8 as they are to be."""
        self._rows.append(rows)
        while sum(part.shape[1] for part in self._rows) >= BLOCK_PX:
            self._write(BLOCK_PX)

    def skip(self, rows: np.ndarray) -> None:
        """Rows without anything mapped; a file that may lack blocks does without them."""
        if self._is_sparse and not self._rows and rows.shape[1] == BLOCK_PX:
            self._row += BLOCK_PX
        else:
            self.add_rows(rows)

    def flush(self) -> None:
        """Writes what is left."""
        rest = sum(part.shape[1] for part in self._rows)
        if rest:
            self._write(rest)

    def _write(self, count: int) -> None:
        rows = np.concatenate(self._rows, 1) if len(self._rows) > 1 else self._rows[0]
        for writer, array in zip(self._writers, rows[:, :count], strict=True):
            writer(array, Window(0, self._row, self._width, count))
        self._row += count
        self._rows = [rows[:, count:]] if rows.shape[1] > count else []


def draw(strip: Strip, mapped: np.ndarray, layers: Sequence[str], unknown_below: float = 0.0) -> np.ndarray:
    """(1 + layers, h, w) uint8: class values and percents of a strip.

    Args:
        mapped: (h, w) bool, the pixels that are to be in the map.
        layers: names in PERCENT_LAYERS.
        unknown_below: least confidence, 0 to 1, of what is mapped as a class.
    """
    drawn = np.empty((1 + len(layers), *mapped.shape), np.uint8)
    best, sure = _best(strip.probabilities)
    drawn[0] = np.where(mapped, best + np.uint8(1), np.uint8(NODATA))
    if unknown_below > 0:
        drawn[0][mapped & (sure < unknown_below)] = UNKNOWN
    for number, name in enumerate(layers, 1):
        drawn[number] = _percent(sure if name == "confidence" else PERCENT_LAYERS[name](strip), mapped)
    return drawn


def _best(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class that each pixel most likely is, uint8, and how likely; as argmax and max, several times as fast."""
    best, sure = np.zeros(probabilities.shape[1:], np.uint8), probabilities[0].copy()
    for number, other in enumerate(probabilities[1:], 1):
        best[other > sure] = number
        np.maximum(sure, other, out=sure)
    return best, sure


def _percent(share: np.ndarray, mapped: np.ndarray) -> np.ndarray:
    there = mapped & np.isfinite(share)
    percent = np.rint(np.where(there, share, 0) * 100).clip(0, _MOST_PERCENT)
    return np.where(there, percent, PERCENT_NODATA).astype(np.uint8)


def origin_tags(model: Path, manifest: Manifest) -> dict[str, str]:
    """Tags that say where a map comes from, so that a file that is passed on is still explained.

    No date is among them: the same map is the same file, to the last byte. It is in the sidecar.
    """
    checksum = sha256_of(model)
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
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
        **({"SPARSE_OK": True} if _is_sparse(info) else {}),
    }


def _is_sparse(info: RasterInfo) -> bool:
    """Whether blocks without data are left out of the file; some programs do not read that, so only where it counts."""
    return info.height * info.width >= SPARSE_FROM_PX


def _finish_class_raster(legend: Sequence[Mapping[str, Any]], origin: Mapping[str, str], part: Path) -> None:
    """Adds colours, class names, origin and overviews to a closed class raster."""
    colors = {0: (0, 0, 0, 0), **{c["value"]: _rgba(c["color"]) for c in legend}}
    names = json.dumps({str(c["value"]): c["name"] for c in legend}, ensure_ascii=False)
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


def _finish_percent(origin: Mapping[str, str], part: Path) -> None:
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
    with rasterio.open(part) as raster:
        is_sparse = raster.width * raster.height >= SPARSE_FROM_PX
    # Anything else looks at every pixel, missing ones as well.
    resampling = Resampling.nearest if is_sparse else resampling
    with rasterio.Env(SPARSE_OK_OVERVIEW=is_sparse), rasterio.open(part, "r+") as raster:
        factors = [2**n for n in range(1, 12) if max(raster.shape) / 2**n >= BLOCK_PX / 2]
        if factors:
            raster.build_overviews(factors, resampling)
    with rasterio.open(part) as raster:
        # A factor that is read back comes from rounded sizes, so their number is what can be compared.
        if len(raster.overviews(1)) != len(factors):
            raise OutputError(f"The overviews could not be written to {part}.", _AGAIN)


def _rgba(color: str) -> tuple[int, int, int, int]:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue, 255


def _categories(legend: Sequence[Mapping[str, Any]]) -> bytes:
    """GDAL's sidecar with the category names, which a GeoTIFF itself cannot hold, and the date of the map."""
    names = {c["value"]: c["name"] for c in legend}
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
