"""When and where chips were taken: from a raster's tags, the names of its bands, its file name and its grid."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyproj
from numpy.typing import NDArray

from geopeft.data.bands import Band, dates_of
from geopeft.data.raster import RasterInfo, apply_affine

# Tags that say when a scene was seen, the surest first: GDAL's IMAGERY domain, STAC, ENVI, Landsat, HLS, Sentinel-2,
# climate and forecast conventions.
_TAGS = ("acquisitiondatetime", "datetime", "start_datetime", "acquisition_time", "acquisition time",
         "acquisition_date", "date_acquired", "sensing_time", "datatake_1_datatake_sensing_start", "product_start_time",
         "time_coverage_start")  # fmt: skip
# Many programs write here when the file was made, so that a file's name is believed before it.
_FILE_TAG = "tifftag_datetime"
# A date without a time of day is taken at noon, UTC.
_NOON = datetime.time(12)
_FIRST_YEAR = 1900
_CLOCK = (
    r"(?:(?:[T ]|_(?=\d{6}(?!\d)))(?P<hour>\d{2}):?(?P<minute>\d{2})(?::?(?P<second>\d{2})(?:\.\d+)?)?"
    r"\s*(?P<zone>Z|[+-]\d{2}:?\d{2})?)?"
)
_CALENDAR = re.compile(
    rf"(?<!\d)(?P<year>(?:19|20)\d{{2}})([-:/_.]?)(?P<month>\d{{2}})\2(?P<day>\d{{2}}){_CLOCK}(?!\d)"
)
# HLS (2024164T101031) and MODIS (A2024164) count the days of the year.
_ORDINAL = re.compile(
    rf"(?:(?<![A-Za-z0-9])A|(?<!\d)(?=\d{{7}}T))(?P<year>(?:19|20)\d{{2}})(?P<ordinal>\d{{3}}){_CLOCK}(?!\d)"
)


@dataclass(frozen=True)
class Acquisition:
    """When a raster was taken.

    Args:
        time: in UTC; None where nothing says it. A date without a time of day is noon.
        how: for the user: what says so, such as "its file name"; "" where nothing does.
        ignored: for the user: dates that are none, such as "2024-13-45 of its tag datetime".
    """

    time: datetime.datetime | None
    how: str
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whereabouts:
    """When and where some chips were taken; NaN is unknown.

    Args:
        time: (B, T, 3) float32: year, day of the year from 1, hour of the day in UTC.
        place: (B, 2) float32: latitude and longitude of the chip's centre in degrees.
    """

    time: NDArray[np.float32]
    place: NDArray[np.float32]


def acquisition_of(info: RasterInfo) -> Acquisition:
    """When a raster was taken, by the first that says so: a tag, its file name, the time that a TIFF carries.

    Names of Sentinel-2, Landsat, HLS and MODIS files hold it, as any name may: `_20240612`, `2024-06-12`. Where a name
    holds several dates the first counts: Landsat's second is that of the processing. Dates that do not exist, lie
    before 1900 or ahead of us are passed over.
    """
    ignored: list[str] = []
    sources = [(info.tags[tag], f"its tag {tag}") for tag in _TAGS if tag in info.tags]
    sources.append((os.path.basename(info.path.rstrip("/\\")), "its file name"))
    if _FILE_TAG in info.tags:
        sources.append((info.tags[_FILE_TAG], f"its tag {_FILE_TAG}"))
    for text, how in sources:
        odd = []
        for written, time in _times_in(text):
            if time is not None:
                return Acquisition(time, how, tuple(ignored))
            odd.append(f"{written} of {how}")
        if not odd and how.startswith("its tag") and text.strip():
            odd = [f"{text.strip()[:40]!r} of {how}"]
        ignored += odd[:1]
    return Acquisition(None, "", tuple(ignored))


def _times_in(text: str) -> Iterator[tuple[str, datetime.datetime | None]]:
    """What looks like a date, in the order of the text, with the time that it is; None: there is no such time."""
    found = sorted(
        (match for pattern in (_CALENDAR, _ORDINAL) for match in pattern.finditer(text)), key=re.Match[str].start
    )
    for match in found:
        yield match[0].strip(), _time_of(match.groupdict())


def _time_of(parts: dict[str, str | None]) -> datetime.datetime | None:
    year = int(parts["year"] or 0)
    try:
        if parts.get("ordinal"):
            day = datetime.date(year, 1, 1) + datetime.timedelta(int(parts["ordinal"] or 0) - 1)
            if day.year != year:
                return None
        else:
            day = datetime.date(year, int(parts["month"] or 0), int(parts["day"] or 0))
        time = datetime.datetime.combine(day, _clock(parts), datetime.UTC) - _zone(parts.get("zone") or "Z")
    except (ValueError, OverflowError):
        return None
    ahead = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    return time if time.year >= _FIRST_YEAR and time <= ahead else None


def _clock(parts: dict[str, str | None]) -> datetime.time:
    hour, minute, second = (int(parts.get(name) or 0) for name in ("hour", "minute", "second"))
    try:
        return datetime.time(hour, minute, second) if parts.get("hour") else _NOON
    except ValueError:
        return _NOON


def _zone(text: str) -> datetime.timedelta:
    """How far clocks are ahead of UTC."""
    if text == "Z":
        return datetime.timedelta()
    size = datetime.timedelta(hours=int(text[1:3]), minutes=int(text[-2:]))
    return -size if text[0] == "-" else size


class Chronicle:
    """When and where the chips of some rasters were taken.

    Args:
        infos: the rasters.
        frames: for each raster the dates (YYYY-MM-DD) of its frames, the earliest first, as `frames_of` gives them;
            one empty date where its bands say none: then the raster itself is asked.
    """

    def __init__(self, infos: Sequence[RasterInfo], frames: Sequence[Sequence[str]]) -> None:
        self._infos = tuple(infos)
        self.acquisitions = tuple(
            tuple(_dated(date) if date else acquisition_of(info) for date in dates)
            for info, dates in zip(infos, frames, strict=True)
        )
        rows = [[_numbers(taken.time) for taken in own] for own in self.acquisitions]
        self._times = [np.array(own, np.float32) for own in rows]
        self._ways = [_to_degrees(info) for info in self._infos]

    def of(self, places: Sequence[tuple[int, int, int]], height: int, width: int) -> Whereabouts:
        """Of chips of (height, width) pixels, each (raster index, first row, first column)."""
        time = np.stack([self._times[raster] for raster, _, _ in places])
        place = [self._centre(raster, row + height / 2, col + width / 2) for raster, row, col in places]
        return Whereabouts(time, np.array(place, np.float32))

    def sentences(self) -> list[str]:
        """For the user: what is known of each raster's time."""
        said = []
        for info, own in zip(self._infos, self.acquisitions, strict=True):
            name = os.path.basename(info.path)
            odd = [text for taken in own for text in taken.ignored]
            said += [f"{name}: {text} is no date that can be: it is passed over." for text in odd]
            known = [taken for taken in own if taken.time is not None]
            if known:
                days = ", ".join(f"{taken.time:%Y-%m-%d}" for taken in known)
                said.append(f"{name} was taken on {days}, as {known[0].how} says.")
        return said

    def undated(self) -> list[str]:
        """File names of the rasters whose time nothing says."""
        return [
            os.path.basename(info.path)
            for info, own in zip(self._infos, self.acquisitions, strict=True)
            if any(taken.time is None for taken in own)
        ]

    def _centre(self, raster: int, row: float, col: float) -> tuple[float, float]:
        """(latitude, longitude) of a pixel position; NaN where the CRS has none."""
        way = self._ways[raster]
        if way is None:
            return np.nan, np.nan
        lon, lat = way.transform(*apply_affine(self._infos[raster].geobox.affine, col, row))
        return (lat, lon) if abs(lat) <= 90 and abs(lon) <= 360 else (np.nan, np.nan)


def frames_of(bands: Sequence[Band], fed: Sequence[bool]) -> tuple[str, ...]:
    """Dates of the frames that a backbone sees, the earliest first; one empty date where the bands say none.

    Args:
        bands: a raster's bands in the model's order.
        fed: for each whether the backbone sees it; all False: it sees every band.
    """
    return dates_of(band for band, seen in zip(bands, fed, strict=True) if seen or not any(fed)) or ("",)


def _dated(date: str) -> Acquisition:
    time = _time_of(dict(zip(("year", "month", "day"), date.split("-"), strict=True)))
    return Acquisition(time, "the names of its bands" if time is not None else "")


def _numbers(time: datetime.datetime | None) -> tuple[float, float, float]:
    if time is None:
        return np.nan, np.nan, np.nan
    return time.year, time.timetuple().tm_yday, time.hour + time.minute / 60 + time.second / 3600


def _to_degrees(info: RasterInfo) -> pyproj.Transformer | None:
    try:
        return pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(info.crs.to_wkt()), "EPSG:4326", always_xy=True)
    except pyproj.exceptions.ProjError:
        return None
