"""The bands of a stack: what their files hold, how they are called, and the grid that they share."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional

from qgis.core import QgsCoordinateReferenceSystem

from .language import tr
from .sources import gdal_python
from .stack_dates import with_dates

# Names of bands at the end of the file names of common products, and words for them.
PRODUCT_BAND = re.compile(
    r"(?:^|[_.\- ])((?:SR_|ST_|TOA_)?B\d{1,2}A?(?:_VCID_[12])?|sur_refl_b\d{2}|SR_QA_AEROSOL|QA_PIXEL|QA_RADSAT|ST_QA"
    r"|SCL|AOT|WVP|Fmask|BQA)(?:_(?:10|20|60)m|_1)?$",
    re.IGNORECASE,
)
WORD_BAND = re.compile(
    r"(?:^|[_.\- ])((?:band|channel)[ _]?\d{1,3}|coastal|blue|green|red|red[ _-]?edge[ _-]?\d?|re\d|nir\d{0,2}"
    r"|swir[ _]?\d{0,2}|tir\d?|thermal|pan|vv|vh|hh|hv|ndvi|ndwi|ndbi|evi|savi|n?dsm|dem|dtm|chm|slope|aspect|mask)$",
    re.IGNORECASE,
)
SENSORS = (
    ("sentinel-2", re.compile(r"(^|_)S2[ABC]_|^(L\d[AC]_)?T\d{2}[A-Z]{3}_\d{8}T\d{6}_|HLS\.S30", re.IGNORECASE)),
    ("landsat-8", re.compile(r"^L[COT]0[89]_|HLS\.L30", re.IGNORECASE)),
    ("landsat-5", re.compile(r"^L[TEM]0[457]_", re.IGNORECASE)),
    ("modis", re.compile(r"^M[OY]D09", re.IGNORECASE)),
)
# Bands whose values are numbers of things: a mean of two of them is a third thing.
CATEGORIES = re.compile(r"(^|_)(scl|b?qa|f?mask|class(es)?|labels?|lulc|landcover|clouds?)(_|$)", re.IGNORECASE)
NO_NAME = re.compile(r"^(band|layer|channel|gray|grey|undefined)?[ _-]*\d*$", re.IGNORECASE)
MAX_PIXELS = 10**11


class StackError(Exception):
    """The rasters cannot be stacked; the text is a sentence with a next step."""


class StackBand(NamedTuple):
    """One band of the stack, as its file has it.

    Args:
        path: what GDAL opens.
        number: in the file.
        name: name in the stack.
        data_type: GDAL's name of it.
        nodata: None where there is none.
        crs: as WKT.
        transform: GDAL's six numbers.
        size: (columns, rows).
        block: (columns, rows) of the file's blocks.
        tags: of the band.
        product: tags of the file.
        scaling: scale, offset and unit; None and "" where there is none.
        is_category: the values are numbers of things.
        has_mask: the file hides pixels in another way than by nodata.
    """

    path: str
    number: int
    name: str
    data_type: str
    nodata: Optional[float]
    crs: str
    transform: tuple[float, ...]
    size: tuple[int, int]
    block: tuple[int, int]
    tags: dict[str, str]
    product: dict[str, str]
    scaling: tuple[Optional[float], Optional[float], str]
    is_category: bool
    has_mask: bool

    @property
    def pixel(self) -> tuple[float, float]:
        """(width, height) of a pixel in units of the CRS."""
        return abs(self.transform[1]), abs(self.transform[5])

    @property
    def is_upright(self) -> bool:
        """True where rows run from north to south and columns from west to east."""
        return self.transform[2] == self.transform[4] == 0 and self.transform[1] > 0 > self.transform[5]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top), of an upright band."""
        left, across, _, top, _, down = self.transform
        return left, top + down * self.size[1], left + across * self.size[0], top


class StackGrid(NamedTuple):
    """The pixels of the stack, in the CRS of its first band."""

    crs: str
    left: float
    top: float
    pixel: tuple[float, float]
    size: tuple[int, int]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top)."""
        right = self.left + self.pixel[0] * self.size[0]
        return self.left, self.top - self.pixel[1] * self.size[1], right, self.top


def band_name(path: str, description: str = "") -> str:
    """A band's name: the code or word at the end of the file's name, else the description, else the file's name."""
    stem = re.sub(r"\.(tiff?|jp2|vrt|img|nc|hdf|gz|zip)$", "", re.split(r"[\\/]", path.split("?")[0])[-1], flags=re.I)
    found = PRODUCT_BAND.search(stem) or WORD_BAND.search(stem)
    if found:
        code = found[1]
        return code.upper() if re.fullmatch(r"(?:(?:SR|ST|TOA)_)?B\d{1,2}A?(?:_VCID_[12])?|SCL", code, re.I) else code
    return description.strip() if description and not NO_NAME.match(description.strip()) else stem


def sensor_of(paths: Sequence[str]) -> str:
    """The sensor that the names of the files speak of, as the engine calls it; "" where they do not agree."""
    found = set()
    for path in paths:
        name = re.split(r"[\\/]", path)[-1]
        found |= {sensor for sensor, pattern in SENSORS if pattern.search(name)}
    return found.pop() if len(found) == 1 else ""


def by_band(path: str) -> tuple[Any, ...]:
    """A key that sorts files by their bands: B2 before B8, B8A and B11, then words, then everything else."""
    name = band_name(path)
    code = re.search(r"b(?:and)?[ _]?(\d{1,3})(a?)$", name, re.IGNORECASE)
    return (0, int(code[1]), code[2].lower(), name) if code else (1, 0, "", name.lower())


def read_bands(paths: Sequence[str], dates: bool = False) -> list[StackBand]:
    """All bands of some rasters, in their order.

    Args:
        paths: what GDAL opens.
        dates: bands of several dates are called by them too, see `with_dates`.

    Raises:
        StackError: a raster cannot be opened, has no place on the ground, or hides pixels by an alpha band.
    """
    gdal = load_gdal()
    bands: list[StackBand] = []
    with quiet(gdal) as messages:
        for path in paths:
            dataset = opened(gdal, path, messages)
            bands += [_band(gdal, dataset, path, index) for index in range(1, dataset.RasterCount + 1)]
    return _named_apart(with_dates(bands) if dates else bands)


def load_gdal() -> Any:
    """GDAL for Python; StackError where QGIS lacks it."""
    try:
        return gdal_python()
    except ImportError as error:
        text = tr(
            "This QGIS comes without GDAL for Python, which stacking needs. "
            "Use Raster > Miscellaneous > Build Virtual Raster, each input in its own band."
        )
        raise StackError(text) from error


@contextlib.contextmanager
def quiet(gdal: Any) -> Iterator[list[str]]:
    """Collects GDAL's failures instead of printing them, whether or not it is set to raise exceptions."""
    messages: list[str] = []

    def hear(kind: int, _: int, text: str) -> None:
        if kind >= gdal.CE_Failure:
            messages.append(" ".join(str(text).split()))

    gdal.PushErrorHandler(hear)
    try:
        yield messages
    finally:
        gdal.PopErrorHandler()


def opened(gdal: Any, path: str, messages: list[str]) -> Any:
    """A dataset; StackError where it cannot be opened."""
    try:
        dataset = gdal.OpenEx(path, gdal.OF_RASTER)
    except RuntimeError as error:
        messages.append(str(error))
        dataset = None
    if dataset is None or dataset.RasterCount == 0:
        text = tr("{path} cannot be read as a raster ({reason}). Choose another one.")
        raise StackError(text.format(path=path, reason="; ".join(messages[-1:]) or tr("no bands")))
    return dataset


def _band(gdal: Any, dataset: Any, path: str, index: int) -> StackBand:
    band = dataset.GetRasterBand(index)
    crs, transform = dataset.GetProjection(), dataset.GetGeoTransform(can_return_null=True)
    if not crs or transform is None:
        text = tr("{path} has no coordinate reference system or no place on the ground. Use Assign Projection first.")
        raise StackError(text.format(path=path))
    if band.GetColorInterpretation() == gdal.GCI_AlphaBand:
        text = tr("{path} hides pixels by an alpha band. Choose rasters with one band each, or write nodata instead.")
        raise StackError(text.format(path=path))
    several = dataset.RasterCount > 1
    described = band.GetDescription()
    name = band_name(path, described)
    if several:
        name = described if described and not NO_NAME.match(described) else f"{name} {index}"
    flags = band.GetMaskFlags()
    return StackBand(
        path=path,
        number=index,
        name=name,
        data_type=gdal.GetDataTypeName(band.DataType),
        nodata=band.GetNoDataValue(),
        crs=crs,
        transform=tuple(transform),
        size=(dataset.RasterXSize, dataset.RasterYSize),
        block=tuple(band.GetBlockSize()),
        tags=_tags(band.GetMetadata()),
        product=_tags(dataset.GetMetadata()),
        scaling=(band.GetScale(), band.GetOffset(), band.GetUnitType() or ""),
        is_category=bool(band.GetColorTable() or band.GetCategoryNames() or CATEGORIES.search(name)),
        has_mask=bool(flags & gdal.GMF_PER_DATASET),
    )


def _tags(metadata: Any) -> dict[str, str]:
    kept = dict(metadata or {})
    return {key: text for key, text in kept.items() if not key.startswith("STATISTICS_") and key != "AREA_OR_POINT"}


def _named_apart(bands: list[StackBand]) -> list[StackBand]:
    """Bands of one name (two dates of B02) are called by their files."""
    names = [band.name for band in bands]
    out = []
    for band in bands:
        if names.count(band.name) > 1:
            stem = re.sub(r"\.\w+$", "", re.split(r"[\\/]", band.path)[-1])
            several = sum(other.path == band.path for other in bands) > 1
            band = band._replace(name=f"{stem} {band.number}" if several else stem)
        out.append(band)
    return out


def plan(bands: Sequence[StackBand], pixel: float = 0.0, union: bool = False) -> StackGrid:
    """The grid of a stack: the CRS of the first band, and the pixels of the finest band.

    Args:
        bands: as `read_bands` gives them.
        pixel: size of a pixel in units of the first band's CRS; 0: that of the finest band.
        union: whatever any band covers, instead of what all bands cover.

    Raises:
        StackError: the bands have no pixel in common, or too many.
    """
    crs = bands[0].crs
    frames = [_frame(band, crs) for band in bands]
    finest = _finest(bands, frames)
    across, down = (pixel, pixel) if pixel > 0 else finest.pixel
    outer, inner = (min, max) if union else (max, min)
    left, bottom = outer(f.box[0] for f in frames), outer(f.box[1] for f in frames)
    right, top = inner(f.box[2] for f in frames), inner(f.box[3] for f in frames)
    # Whole pixels of the finest band; a hundredth of a pixel is rounding of the files.
    first_col, end_col = _whole(left - finest.left, across, union), _whole(right - finest.left, across, not union)
    first_row, end_row = _whole(finest.top - top, down, union), _whole(finest.top - bottom, down, not union)
    width, height = end_col - first_col, end_row - first_row
    if width <= 0 or height <= 0:
        text = tr("The rasters have no pixel in common. Choose rasters of one place, or the extent of all of them.")
        raise StackError(text)
    if width * height > MAX_PIXELS:
        text = tr("The stack would have {width} x {height} pixels. Choose larger pixels or the common extent.")
        raise StackError(text.format(width=width, height=height))
    left, top = finest.left + first_col * across, finest.top - first_row * down
    return StackGrid(crs, left, top, (across, down), (width, height))


def _finest(bands: Sequence[StackBand], frames: Sequence[StackGrid]) -> StackGrid:
    """The finest pixels; those of the CRS itself unless others are much finer, since they need no resampling."""

    def area(frame: StackGrid) -> float:
        return frame.pixel[0] * frame.pixel[1]

    finest = min(frames, key=area)
    own = [frame for band, frame in zip(bands, frames) if band.is_upright and same_crs(band.crs, frame.crs)]
    best = min(own, key=area, default=finest)
    return finest if area(finest) < 0.6 * area(best) else best


def _whole(distance: float, pixel: float, down: bool) -> int:
    """Whole pixels in a distance, rounded down or up."""
    return math.floor(distance / pixel + 0.01) if down else math.ceil(distance / pixel - 0.01)


def _frame(band: StackBand, crs: str) -> StackGrid:
    """The band's own pixels, in another CRS those that GDAL suggests for it."""
    if band.is_upright and same_crs(band.crs, crs):
        left, _, _, top = band.box
        return StackGrid(crs, left, top, band.pixel, band.size)
    gdal = load_gdal()
    with quiet(gdal) as messages:
        try:
            warped = gdal.AutoCreateWarpedVRT(opened(gdal, band.path, messages), band.crs, crs)
        except RuntimeError:
            warped = None
        if warped is None:
            text = tr("{path} cannot be brought to the coordinate reference system of the first raster.")
            raise StackError(text.format(path=band.path))
        left, across, _, top, _, down = warped.GetGeoTransform()
        return StackGrid(crs, left, top, (abs(across), abs(down)), (warped.RasterXSize, warped.RasterYSize))


def same_crs(one: str, other: str) -> bool:
    """True where two WKT texts mean the same CRS."""
    if one == other:
        return True
    return QgsCoordinateReferenceSystem.fromWkt(one) == QgsCoordinateReferenceSystem.fromWkt(other)
