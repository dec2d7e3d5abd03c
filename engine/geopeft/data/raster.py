"""Rasters: what a file holds, and reading it window by window, never whole.

A raster is a file, or what `raster_sources` lets through: a part of a file or archive, a file on a web server. GDAL
reads the header with its sidecar files (.aux.xml may hold the CRS), and pixels without them; nothing is ever written
beside the user's file, and Python inside a VRT never runs.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from geopeft.data.bands import Band as Band
from geopeft.data.bands import BandFacts, is_not_spectral, name_bands
from geopeft.data.holes import Holes
from geopeft.data.radar import is_power, is_radar, to_decibels
from geopeft.data.raster_sources import HTTP_OPTIONS, check_source, check_vrt, identity, is_plain, is_remote, url_of
from geopeft.data.raster_states import content_of, fingerprint, own_files, remote_files
from geopeft.errors import GeopeftError, RasterError, is_out_of_memory, out_of_memory

MAX_PIXELS = 10**12
HUGE = 1e38  # the customary nodata of 32-bit floats, in whatever rounding it was written
# A band that has no data on this part of the pixels where all others have it is left out.
MAY_LACK = 0.05


@dataclass(frozen=True)
class RasterInfo:
    """What a raster file holds.

    Args:
        path: as the user gave it.
        driver: GDAL's name of the format.
        geobox: pixel grid: shape (rows, cols), affine (may be rotated), CRS.
        crs: the same CRS, as rasterio has it.
        bands: data bands, in file order; an alpha band is not among them.
        dtype: data type of the first data band.
        nodata: nodata value of the first data band, None where there is none.
        gsd_m: side of a pixel on the ground, metres, at the centre of the raster.
        block_shape: (rows, cols) of the file's blocks.
        scales, offsets: GDAL's scale and offset of each data band; never applied here.
        tags: the dataset's tags, keys in lower case.
        fingerprint: changes when the file does; see `still_same`.
        nodatas: nodata value of each data band.
        masked: for each data band, whether the file has a mask for it.
        alpha: number of the alpha band, 0 where there is none.
        files, remote_files: the files that the fingerprint covers.
        dtypes: data type of each data band.
        power: numbers of the radar bands whose linear power is read as decibels.
    """

    path: str
    driver: str
    geobox: GeoBox
    crs: CRS
    bands: tuple[Band, ...]
    dtype: str
    nodata: float | None
    gsd_m: float
    block_shape: tuple[int, int]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    tags: Mapping[str, str] = field(repr=False)
    fingerprint: str = field(repr=False)
    nodatas: tuple[float | None, ...] = field(repr=False)
    masked: tuple[bool, ...] = field(repr=False)
    alpha: int = 0
    files: tuple[str, ...] = field(default=(), repr=False)
    remote_files: tuple[str, ...] = field(default=(), repr=False)
    dtypes: tuple[str, ...] = field(default=(), repr=False)
    power: tuple[int, ...] = field(default=(), repr=False)

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.geobox.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.geobox.shape[1])


@dataclass(frozen=True, eq=False)
class BandStatistics:
    """Figures of some bands, from a bounded sample of windows. Arrays have shape (C,), raw raster units.

    Args:
        mean, std, low, high: of the band's valid pixels; low and high are the 1st and 99th percentile.
        valid_fraction: part of the sampled pixels that are valid in the band.
        missing_alone: part of the pixels that are valid in all other bands, but not in this one.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    valid_fraction: NDArray[np.float64]
    missing_alone: NDArray[np.float64]


def gdal_env(*, sidecars: bool = False, remote: bool = False) -> AbstractContextManager[Any]:
    """GDAL's settings for every read.

    Args:
        sidecars: read .aux.xml too. GDAL writes it only where statistics are asked for, which never happens here.
        remote: the raster is opened over a network, where each look for a file beside it costs a request.
    """
    env: AbstractContextManager[Any] = rasterio.Env(
        GDAL_PAM_ENABLED="YES" if sidecars else "NO",
        GDAL_VRT_ENABLE_PYTHON="NO",
        **HTTP_OPTIONS,
        **({"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} if remote else {}),
    )
    return env


def describe(path: str, *, classes: bool = False) -> RasterInfo:
    """What the raster at `path` holds. Reads the header and a few blocks, so that damage shows at once.

    Args:
        path: file, or one of the other places of `raster_sources` (/vsizip/..., NETCDF:"file":variable, https://...).
        classes: the raster holds classes, not measurements: a colour table is fine.

    Raises:
        RasterError: RASTER_MISSING, RASTER_SOURCE, RASTER_REMOTE, RASTER_OPEN, RASTER_NO_CRS, RASTER_NO_GEOREFERENCE,
            RASTER_TOO_BIG, RASTER_DTYPE, RASTER_PALETTE, RASTER_SUBDATASETS, RASTER_EMPTY, RASTER_READ or
            PATH_ENCODING.
    """
    _check_path(path)
    # Asked before GDAL, which waits longer for a server and says less.
    known = {path: _first_state(path)} if is_remote(path) else {}
    with open_dataset(path, sidecars=True) as dataset, gdal_env(sidecars=True, remote=is_remote(path)):
        try:
            _refuse_unusable(path, dataset, classes=classes)
            info = _info(path, dataset, known)
        except (RasterioError, CPLE_BaseError) as error:  # a header that opens but makes no sense
            raise _cannot_open(path, error) from error
        _probe(info, dataset)
        return info if classes else replace(info, power=_power_bands(info, dataset))


@contextmanager
def open_dataset(path: str, *, sidecars: bool = False) -> Iterator[Any]:
    """rasterio's dataset of a raster; what `raster_sources` does not let through is refused.

    Raises:
        RasterError: RASTER_MISSING, RASTER_SOURCE, RASTER_OPEN or PATH_ENCODING.
    """
    _check_path(path)
    # Only while opening: rasterio's settings must end in the order in which they began, which readers need not.
    with gdal_env(sidecars=sidecars, remote=is_remote(path)), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            dataset = rasterio.open(path)
        except (RasterioError, CPLE_BaseError, OSError, ValueError, UnicodeError) as error:
            raise _cannot_open(path, error) from error
    with dataset:
        if dataset.driver == "VRT" and not is_plain(path):
            check_vrt(path, dataset.tags(ns="xml:VRT").get("xml:VRT", "<VRTDataset/>"))
        yield dataset


def _remote_state(path: str) -> str:
    """What a server says of a remote raster, or what a raster in a store holds.

    Raises:
        RasterError: RASTER_REMOTE.
    """
    if url_of(path):
        return identity(path)
    _forget(path)
    with open_dataset(path, sidecars=True) as dataset, gdal_env(sidecars=True, remote=True):
        try:
            return content_of(dataset)
        except (RasterioError, CPLE_BaseError) as error:
            raise _cannot_open(path, error) from error


def _first_state(path: str) -> str:
    """As `_remote_state`; what GDAL reads from then on is of this state."""
    state = _remote_state(path)
    if url_of(path):
        _forget(path)
    return state


def _forget(path: str) -> None:
    """Makes GDAL drop what it keeps of a remote file as long as the process lives, whatever becomes of the file."""
    with suppress(RasterError), rasterio.Env(CPL_VSIL_CURL_NON_CACHED="/vsi"), open_dataset(path):
        pass


def still_same(info: RasterInfo) -> None:
    """Raises RASTER_CHANGED where the raster's file is not the one that was described. Call it at the end of a job.

    A server that has gone by then does not count: all that was needed of its file has been read.
    """
    try:
        states = [_remote_state(name) for name in info.remote_files]
    except RasterError:
        return
    if fingerprint(info.files, states) != info.fingerprint:
        raise RasterError(
            f"{info.path} was changed while the job ran, so the result would mix two rasters.",
            "Run the job again when nothing writes to the raster.",
            "RASTER_CHANGED",
        )


def apply_affine(affine: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    """(x, y) moved by an affine; numbers or arrays."""
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


class RasterReader:
    """An open raster; not to be shared between threads."""

    def __init__(self, info: RasterInfo, indexes: Sequence[int], dataset: Any) -> None:
        self._info = info
        self._indexes = list(indexes)
        self._dataset = dataset
        position = {band.index: at for at, band in enumerate(info.bands)}
        self._nodatas = [info.nodatas[position[index]] for index in self._indexes]
        self._masked = [info.masked[position[index]] for index in self._indexes]
        self._remote = is_remote(info.path)
        self._power = [at for at, index in enumerate(self._indexes) if index in info.power]
        kinds = [info.dtypes[position[index]] for index in self._indexes if info.dtypes]
        # rasterio reads several bands at once only where they have one type.
        self._common_type = np.result_type(*kinds) if len(set(kinds)) > 1 else None
        self._holes = Holes(dataset, info.block_shape, self._telling_band(kinds) if info.driver == "GTiff" else 0)

    def read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Values (C, h, w) in raster units, linear radar power in decibels, and valid mask (h, w) of a window, which
        may reach beyond the raster.

        A pixel is valid where every chosen band is; values at other pixels are 0.

        Raises:
            RasterError: RASTER_READ where the file is damaged.
        """
        values, valid = self.read_bands(window)
        every = np.logical_and.reduce(valid, axis=0)
        values[:, ~every] = 0
        return values, every

    def read_bands(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """As `read`, but with the valid mask of each band, (C, h, w)."""
        shape = (len(self._indexes), int(window.height), int(window.width))
        values = np.zeros(shape, np.float32)
        valid = np.zeros(shape, np.bool_)
        row, col = int(window.row_off), int(window.col_off)
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + shape[1], self._info.height), min(col + shape[2], self._info.width)
        if bottom > top and right > left:
            inside = (slice(None), slice(top - row, bottom - row), slice(left - col, right - col))
            native, good = self.read_native(Window(left, top, right - left, bottom - top))
            with np.errstate(over="ignore", invalid="ignore"):
                values[inside] = native
            if native.dtype.kind == "f":
                good &= np.isfinite(values[inside])
            for at in self._power:
                values[inside][at] = to_decibels(values[inside][at])
            values[inside][~good] = 0
            valid[inside] = good
        return values, valid

    def is_missing(self, window: Window) -> bool:
        """Whether the file says, without being read there, that no pixel of the window is valid."""
        return self._holes.cover(window)

    def _telling_band(self, kinds: Sequence[str]) -> int:
        """Number of a band whose blocks hold nodata where the file lacks them; 0 where there is none."""
        for index, kind, nodata in zip(self._indexes, kinds, self._nodatas, strict=False):
            if _representable(nodata, np.dtype(kind)) is not None:
                return index
        return 0

    def read_native(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values in the bands' (common) data type and valid mask, both (C, h, w), of a window inside the raster."""
        with gdal_env(remote=self._remote):
            try:
                values = self._read_values(window)
                valid = self._valid(values, window)
            except (RasterioError, CPLE_BaseError, OSError, MemoryError) as error:
                raise _cannot_read(self._info, window, error) from error
        return values, valid

    def _read_values(self, window: Window) -> NDArray[Any]:
        if self._common_type is None:
            return np.asarray(self._dataset.read(self._indexes, window=window))
        return np.stack([self._dataset.read(index, window=window) for index in self._indexes], dtype=self._common_type)

    def _valid(self, values: NDArray[Any], window: Window) -> NDArray[np.bool_]:
        valid = np.ones(values.shape, np.bool_)
        if values.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                valid &= np.abs(values) < HUGE  # False for NaN as well
        for at, (nodata, masked) in enumerate(zip(self._nodatas, self._masked, strict=True)):
            sentinel = _representable(nodata, values.dtype)
            if sentinel is not None:
                valid[at] &= values[at] != sentinel
            if masked:
                valid[at] &= self._dataset.read_masks(self._indexes[at], window=window) != 0
        if self._info.alpha:
            valid &= self._dataset.read(self._info.alpha, window=window) != 0
        return valid


@contextmanager
def open_raster(info: RasterInfo, indexes: Sequence[int]) -> Iterator[RasterReader]:
    """A reader of some bands, by their numbers in the file.

    Raises:
        RasterError: RASTER_MISSING or RASTER_OPEN where the file has gone since it was described.
    """
    with open_dataset(info.path) as dataset:
        yield RasterReader(info, indexes, dataset)


def band_statistics(info: RasterInfo, indexes: Sequence[int]) -> BandStatistics:
    """Figures of some bands from windows spread over the raster: 25, or 400 where those hold nothing valid.

    Raises:
        RasterError: RASTER_EMPTY where no sampled pixel of some band is valid; RASTER_READ.
    """
    for side_count in (5, 20):
        values, valid = _sample(info, indexes, side_count)
        if valid.any(axis=1).all():
            break
    else:
        names = {band.index: band.name for band in info.bands}
        empty = [names[index] for index, good in zip(indexes, valid, strict=True) if not good.any()]
        raise RasterError(
            f"{info.path} holds nodata only, as far as it was sampled"
            + ("." if len(empty) == len(indexes) else f", in {', '.join(empty[:8])}."),
            "Check its nodata value, or leave the band out with --bands.",
            "RASTER_EMPTY",
        )
    columns = [band[good] for band, good in zip(values, valid, strict=True)]
    others = valid.sum(axis=0, keepdims=True) - valid == len(indexes) - 1
    with np.errstate(invalid="ignore"):
        alone = (others & ~valid).sum(axis=1) / np.maximum(others.sum(axis=1), 1)
    return BandStatistics(
        mean=np.array([column.mean(dtype=np.float64) for column in columns]),
        std=np.array([column.std(dtype=np.float64) for column in columns]),
        low=np.array([np.percentile(column, 1) for column in columns], np.float64),
        high=np.array([np.percentile(column, 99) for column in columns], np.float64),
        valid_fraction=valid.mean(axis=1),
        missing_alone=alone if len(indexes) > 1 else np.zeros(1),
    )


def with_data(stats: BandStatistics) -> list[int]:
    """Positions of the bands that are used where none are named: a pixel is used where all of them have data, so those
    that alone lack it on many pixels are left out, as long as two others remain."""
    kept = [at for at, part in enumerate(stats.missing_alone) if part < MAY_LACK]
    return kept if len(kept) >= 2 else list(range(len(stats.missing_alone)))


def lacking_band(info: RasterInfo, indexes: Sequence[int], stats: BandStatistics) -> str:
    """A sentence naming the bands that lack data on many pixels where the others have it; "" where none does.

    Args:
        info: the raster.
        indexes: numbers of the bands.
        stats: what `band_statistics` found for them.
    """
    names = {band.index: band.name for band in info.bands}
    lacking = [
        f"'{names[index]}' ({part:.0%})"
        for index, part in zip(indexes, stats.missing_alone, strict=True)
        if part >= MAY_LACK
    ]
    if not lacking:
        return ""
    return f"{info.path}: band {', '.join(lacking)} lacks data on part of the pixels where all other bands have it."


def printable(path: str) -> str:
    """The path with bytes that are no text written as escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


def _check_path(path: str) -> None:
    if printable(path) != path:
        message = f"The path {printable(path)} holds bytes that are no text."
        raise RasterError(message, "Rename the file or folder.", "PATH_ENCODING")
    if not path or (is_plain(path) and not os.path.exists(path)):
        raise RasterError(f"There is no raster at '{path}'.", "Check the path.", "RASTER_MISSING")
    check_source(path)


def _cannot_open(path: str, error: BaseException) -> RasterError:
    if os.path.isdir(path):
        what = "is a folder, not a raster GDAL can read"
    elif os.path.isfile(path) and os.path.getsize(path) == 0:
        what = "has 0 bytes: it is not a raster GDAL can read"
    elif isinstance(error, OSError) and not os.access(path, os.R_OK) and os.path.exists(path):
        what = "may not be read: permission denied"
    elif is_remote(path):
        what = f"cannot be opened over the network ({_words(error, path)})"
        hint = "Check the address and the network, then run again; or download the file and choose it on this computer."
        return RasterError(f"{path} {what}.", hint, "RASTER_REMOTE")
    else:
        what = f"is not a raster GDAL can read ({_words(error, path)})"
    return RasterError(f"{path} {what}.", "Choose a raster file that opens in QGIS.", "RASTER_OPEN")


def _cannot_read(info: RasterInfo, window: Window, error: BaseException) -> GeopeftError:
    if is_out_of_memory(error):
        return out_of_memory("raster")
    if is_remote(info.path):
        return RasterError(
            f"{info.path} cannot be read on at row {int(window.row_off)}, column {int(window.col_off)}: its server "
            f"does not send that part ({_words(error, info.path)}).",
            "Run again when the network is back; or download the file and choose it on this computer.",
            "RASTER_REMOTE",
        )
    return RasterError(
        f"{info.path} cannot be read at row {int(window.row_off)}, column {int(window.col_off)}: "
        f"the file is damaged or incomplete ({_words(error, info.path)}).",
        "Copy or download the file again; of a VRT, check the files it points to.",
        "RASTER_READ",
    )


def _words(error: BaseException, path: str) -> str:
    """What GDAL says at the root of an error, in one short line."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = " ".join(str(root).split()) or type(root).__name__
    return text.replace(f"'{path}' ", "").rstrip(". ")[:240]


def _refuse_unusable(path: str, dataset: Any, *, classes: bool) -> None:
    if dataset.count == 0:
        inside = ", ".join(dataset.subdatasets[:4])
        raise RasterError(
            f"{path} holds no bands itself" + (", only subdatasets." if inside else "."),
            f"Name one of them instead: {inside}." if inside else "Choose another raster.",
            "RASTER_SUBDATASETS" if inside else "RASTER_OPEN",
        )
    pixels = dataset.width * dataset.height
    if pixels > MAX_PIXELS:
        raise RasterError(
            f"{path} has {dataset.width} x {dataset.height} pixels; its class raster alone would take "
            f"{pixels / 1e9:,.0f} GB before compression.",
            "Cut the part you need from it (Raster > Extraction > Clip).",
            "RASTER_TOO_BIG",
        )
    if any("complex" in dtype for dtype in dataset.dtypes):
        raise RasterError(f"{path} holds complex numbers.", "Use its amplitude or intensity.", "RASTER_DTYPE")
    if not classes and dataset.count <= 2 and dataset.colorinterp[0].name == "palette":
        raise RasterError(
            f"{path} has a colour table: its values are numbers of colours or classes, not measurements.",
            "Use the original bands, or turn it into red, green and blue (Raster > Conversion > PCT to RGB).",
            "RASTER_PALETTE",
        )
    _refuse_unplaced(path, dataset)


def _refuse_unplaced(path: str, dataset: Any) -> None:
    hint = "Set it with Raster > Projections > Assign Projection."
    crs = dataset.crs
    if not crs:
        gcps = " (only ground control points)" if dataset.gcps[0] else ""
        raise RasterError(f"{path} has no coordinate reference system{gcps}.", hint, "RASTER_NO_CRS")
    if not (crs.is_projected or crs.is_geographic):
        raise RasterError(f"{path} has a local coordinate system only: {crs.to_string()[:80]}.", hint, "RASTER_NO_CRS")
    affine = dataset.transform
    unplaced = affine.is_identity or not all(map(math.isfinite, affine)) or abs(affine.determinant) == 0.0
    if unplaced:
        raise RasterError(
            f"{path} has no usable geotransform, so its pixels have no place on the ground.",
            "Georeference it (Layer > Georeferencer).",
            "RASTER_NO_GEOREFERENCE",
        )


def _info(path: str, dataset: Any, known: Mapping[str, str]) -> RasterInfo:
    files, remote = own_files(path, dataset), remote_files(path, dataset)
    states = [known.get(name) or _first_state(name) for name in remote]
    tags = _tags(dataset, 0)
    facts = [
        BandFacts(
            index,
            dataset.descriptions[index - 1] or "",
            _tags(dataset, index),
            dataset.colorinterp[index - 1].name,
            dataset.dtypes[index - 1],
        )
        for index in dataset.indexes
    ]
    alpha = _alpha(dataset, facts, tags)
    facts = [fact for fact in facts if fact.index != alpha]
    at = [fact.index - 1 for fact in facts]
    geobox = GeoBox((dataset.height, dataset.width), dataset.transform, dataset.crs.to_wkt())
    return RasterInfo(
        path=path,
        driver=dataset.driver,
        geobox=geobox,
        crs=dataset.crs,
        bands=name_bands(facts, tags, os.path.basename(path)),
        dtype=dataset.dtypes[at[0]],
        nodata=dataset.nodatavals[at[0]],
        gsd_m=_gsd_m(geobox, dataset.crs),
        block_shape=dataset.block_shapes[at[0]],
        scales=tuple(float(dataset.scales[i]) for i in at),
        offsets=tuple(float(dataset.offsets[i]) for i in at),
        tags=tags,
        fingerprint=fingerprint(files, states),
        nodatas=tuple(dataset.nodatavals[i] for i in at),
        masked=tuple(_has_own_mask(dataset.mask_flag_enums[i]) for i in at),
        alpha=alpha,
        files=files,
        remote_files=remote,
        dtypes=tuple(dataset.dtypes[i] for i in at),
    )


def _tags(dataset: Any, index: int) -> dict[str, str]:
    """Tags of the dataset (0) or of a band, with the domains that hold wavelengths; keys in lower case."""
    merged: dict[str, str] = {}
    for domain in ("ENVI", "IMAGERY", None):
        merged.update({key.lower(): value for key, value in dataset.tags(index, ns=domain).items()})
    return merged


def _alpha(dataset: Any, facts: Sequence[BandFacts], tags: Mapping[str, str]) -> int:
    """Number of the alpha band, 0 where there is none.

    GDAL marks the fourth band of an 8-bit TIFF as alpha even where it is near infrared. A name, a wavelength or
    values that are mostly neither transparent nor opaque show that it is data.
    """
    marked = [fact.index for fact in facts if fact.color == "alpha"]
    if not marked or len(facts) == 1:
        return 0
    index = marked[-1]
    named = next(band for band in name_bands(facts, tags) if band.index == index)
    if named.common or named.wavelength_um is not None or is_not_spectral(named.name):
        return 0
    side = Window(0, 0, min(dataset.width, 1024), min(dataset.height, 1024))
    try:
        sample = dataset.read(index, window=side)
    except RasterioError:
        return index
    opaque = 255 if sample.dtype == np.uint8 else sample.max()
    between = float(((sample > 0) & (sample < opaque)).mean())
    return 0 if between > 0.5 else index


def _has_own_mask(flags: Sequence[MaskFlags]) -> bool:
    """True where a mask is stored in or beside the file; nodata and alpha are looked at without GDAL's mask."""
    if MaskFlags.all_valid in flags or MaskFlags.alpha in flags:
        return False
    return MaskFlags.nodata not in flags or MaskFlags.per_dataset in flags


def _representable(nodata: float | None, dtype: np.dtype[Any]) -> Any:
    """The nodata value in the band's data type; None where no pixel can have it (NaN is looked for anyway)."""
    if nodata is None or math.isnan(nodata):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(nodata)
    limits = np.iinfo(dtype)
    if not float(nodata).is_integer() or not limits.min <= nodata <= limits.max:
        return None
    return dtype.type(int(nodata))


def _gsd_m(geobox: GeoBox, crs: CRS) -> float:
    """Side of a pixel in metres: as the CRS says, unless it is off by more than 2 % on the ground (web Mercator)."""
    affine = geobox.affine
    height, width = geobox.shape
    nominal = math.sqrt(abs(affine.determinant)) * (crs.linear_units_factor[1] if crs.is_projected else 111_320.0)
    corners = [
        apply_affine(affine, width / 2 + dx, height / 2 + dy) for dx, dy in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))
    ]
    try:
        to_degrees = pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(crs.to_wkt()), "EPSG:4326", always_xy=True)
        lon, lat = to_degrees.transform([x for x, _ in corners], [y for _, y in corners])
        geod = pyproj.Geod(ellps="WGS84")
        across = geod.inv(lon[0], lat[0], lon[1], lat[1])[2]
        down = geod.inv(lon[2], lat[2], lon[3], lat[3])[2]
        ground = math.sqrt(across * down)
    except (pyproj.exceptions.ProjError, ValueError):
        return nominal
    if not math.isfinite(ground) or ground <= 0:
        return nominal
    return ground if crs.is_geographic or abs(ground / nominal - 1) > 0.02 else nominal


def _probe(info: RasterInfo, dataset: Any) -> None:
    """Reads first, last and up to 16 blocks between: a truncated file opens without complaint.

    Over a network, where each may cost a request, one between.
    """
    rows, cols = info.block_shape
    down, across = -(-info.height // rows), -(-info.width // cols)
    numbers = np.unique(np.linspace(0, down * across - 1, 3 if is_remote(info.path) else 18).astype(np.int64))
    first, last = info.bands[0].index, info.bands[-1].index
    for number in numbers.tolist():
        row, col = (number // across) * rows, (number % across) * cols
        window = Window(col, row, min(cols, info.width - col), min(rows, info.height - row))
        if window.width * window.height > 1 << 26:
            window = Window(col, row, min(window.width, 512), 1)
        try:
            dataset.read(first, window=window)
            if number == numbers[-1] and first != last:
                dataset.read(last, window=window)
        except (RasterioError, CPLE_BaseError, OSError, MemoryError) as error:
            raise _cannot_read(info, window, error) from error


def _power_bands(info: RasterInfo, dataset: Any) -> tuple[int, ...]:
    """Numbers of the radar bands that hold linear power, by the values of 9 windows, of 144 where those are empty."""
    floating = {band.index for band, dtype in zip(info.bands, info.dtypes, strict=True) if dtype.startswith("float")}
    found = []
    for index in (band.index for band in info.bands if is_radar(band) and band.index in floating):
        reader = RasterReader(info, [index], dataset)
        for side_count in (3, 12):
            values = np.concatenate(
                [
                    chip[0][good[0] & (chip[0] != 0)]
                    for row in _spread(info.height, 64, side_count)
                    for col in _spread(info.width, 64, side_count)
                    for chip, good in [reader.read_bands(_inside(info, row, col, 64))]
                ]
            )
            if len(values):
                break
        if is_power(values):
            found.append(index)
    return tuple(found)


def _inside(info: RasterInfo, row: int, col: int, side: int) -> Window:
    return Window(col, row, min(side, info.width - col), min(side, info.height - row))


def _sample(info: RasterInfo, indexes: Sequence[int], side_count: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Values and valid masks (C, N) of pixels from side_count x side_count windows spread over the raster."""
    side = int(min(256, max(16, math.sqrt(4e6 / len(indexes)))))
    per_window = 4096 if len(indexes) <= 32 else 1024
    values, valid = [], []
    with open_raster(info, indexes) as reader:
        for row in _spread(info.height, side, side_count):
            for col in _spread(info.width, side, side_count):
                chip, good = reader.read_bands(_inside(info, row, col, side))
                step = max(1, round(chip[0].size / per_window))
                values.append(chip.reshape(len(chip), -1)[:, ::step])
                valid.append(good.reshape(len(good), -1)[:, ::step])
    return np.concatenate(values, axis=1), np.concatenate(valid, axis=1)


def _spread(length: int, side: int, count: int) -> list[int]:
    """Starts of at most `count` windows along an axis; all of it where that is short enough."""
    if length <= side * count:
        return list(range(0, length, side))
    return [int(start) for start in np.linspace(0, length - side, count)]
