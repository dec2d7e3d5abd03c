"""What a raster's values are: reflectance, display brightness or neither, and the constants that bring them to 0..1."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from geopeft import job
from geopeft.data.bands import Band, find_sensor, is_not_spectral
from geopeft.data.radar import radar_sentence
from geopeft.data.raster import BandStatistics, RasterInfo

Kind = Literal["reflectance", "display", "unknown"]

# Standardised values are cut here, in standard deviations.
OUTLIER = 10.0
S2_OFFSET = -0.1  # what processing baseline 4 adds to every value, in reflectance
VISIBLE = ("coastal", "blue", "green", "red")
# An offset of -0.1 is missed only where the darkest pixels of all visible bands lie just above 0.1, close together.
FLOOR_LOW, FLOOR_HIGH, FLOOR_SPREAD = 0.095, 0.15, 0.035


@dataclass(frozen=True)
class Radiometry:
    """canonical = value * scale + offset: reflectance 0..1, display brightness 0..1, or the value itself.

    Args:
        kind: what canonical values are.
        scale, offset: for spectral bands; see `for_band`.
        sentence: for the user: what was assumed, and why.
        decibels: numbers of the radar bands that are read in decibels.
    """

    kind: Kind
    scale: float
    offset: float
    sentence: str
    decibels: tuple[int, ...] = ()

    def for_band(self, band: Band) -> tuple[float, float]:
        """(scale, offset) of one band: indices, heights, radar and the like keep their own values."""
        return (self.scale, self.offset) if self.is_about(band) else (1.0, 0.0)

    def is_about(self, band: Band) -> bool:
        """Whether scale and offset are this band's."""
        return not (is_not_spectral(band.name) or (band.common == "thermal" and self.kind == "reflectance"))


def between(now: Radiometry, trained: Radiometry) -> tuple[float, float]:
    """(scale, offset) that turn values of one raster into the units of another; (1, 0) where they measure other things.

    Rasters of one sensor may differ by an offset (Sentinel-2's processing baseline) or by their data type.
    """
    if now.kind != trained.kind or now.kind == "unknown":
        return 1.0, 0.0
    return now.scale / trained.scale, (now.offset - trained.offset) / trained.scale


@dataclass(frozen=True)
class _Evidence:
    """The judged bands and what is known of them. Figures have shape (C,), raw raster units."""

    info: RasterInfo
    bands: tuple[Band, ...]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def sentinel2(self) -> bool:
        names = [band.name for band in self.bands]
        return find_sensor(names, self.info.tags, os.path.basename(self.info.path)) == "sentinel-2"

    @property
    def top_of_atmosphere(self) -> bool:
        text = " ".join([*self.info.tags.values(), self.info.path]).lower()
        return bool(re.search(r"l1c|top.of.atmosphere|\btoa\b", text))

    def fits_reflectance(self, scale: float, offset: float) -> bool:
        """True where the brightest pixels come out as reflectances that occur: bright snow is about 1."""
        top = float((self.high * scale + offset).max())
        bottom = float((self.low * scale + offset).min())
        return 0.003 <= top <= 2.0 and bottom >= -0.5


def assume_radiometry(
    info: RasterInfo, bands: Sequence[Band], stats: BandStatistics, override: job.Radiometry = "auto"
) -> Radiometry:
    """What the values of `bands` are: of the spectral ones as one, by `_spectral_radiometry`'s rules, of radar by
    `geopeft.data.radar`'s.

    Args:
        info: the raster.
        bands: the bands in use.
        stats: `band_statistics` of these bands, in this order.
        override: what the user says of the spectral bands; "auto" finds out.
    """
    decibels, radar = radar_sentence(bands, info.power, stats.low, stats.high)
    if radar and not _judged_bands(bands):
        return Radiometry("unknown", 1.0, 0.0, radar, decibels)
    found = _spectral_radiometry(info, bands, stats, override)
    return replace(found, sentence=f"{found.sentence} {radar}".strip(), decibels=decibels)


def _spectral_radiometry(
    info: RasterInfo, bands: Sequence[Band], stats: BandStatistics, override: job.Radiometry
) -> Radiometry:
    """What the values of spectral bands are.

    The rules, first hit wins:

    1. What the user says.
    2. GDAL's scale and offset of the bands, then the dataset's tags (scale, offset, boa_add_offset,
       quantification value), where they lead to possible reflectances. Tags that name no offset, or 0, do not
       stop rule 5's look at the floor, unless boa_add_offset speaks of it: products with the offset still in and
       a tag of 0 exist.
    3. Landsat's own integer coding, where names, tags or the file name tell a Landsat product.
    4. 8-bit integers, and other types that hold 0..255 only: display brightness.
    5. Brightest pixels up to 2, floating point: reflectance. 300 to 20 000: reflectance times 10 000. Sentinel-2
       values whose floor is near 0.1 have the offset of processing baseline 4 still in; it is taken away.
    6. Everything else is unknown and stays as it is.

    Only spectral bands are judged where there are any; indices, heights and radar never count as reflectance.
    """
    judged = _judged_bands(bands)
    evidence = _Evidence(info, tuple(bands[i] for i in judged), stats.low[judged], stats.high[judged])
    if override != "auto":
        return _as_told(evidence, override)
    if not judged:
        return Radiometry("unknown", 1.0, 0.0, "None of the bands is spectral: their values are used as they are.")
    return (
        _from_gdal_scale(evidence)
        or _from_tags(evidence)
        or _from_landsat_coding(evidence)
        or _from_values(evidence)
        or Radiometry(
            "unknown",
            1.0,
            0.0,
            f"The values ({_range(evidence)}) are neither reflectances nor 8-bit brightness: they are used as they "
            "are. Say with --radiometry what they are, if you know.",
        )
    )


def _judged_bands(bands: Sequence[Band]) -> list[int]:
    spectral = [i for i, band in enumerate(bands) if band.spectral]
    return spectral or [i for i, band in enumerate(bands) if not is_not_spectral(band.name) and band.common == ""]


def _as_told(evidence: _Evidence, override: job.Radiometry) -> Radiometry:
    if override == "reflectance":
        return Radiometry("reflectance", 1.0, 0.0, "The values are taken as reflectances 0..1, as you said.")
    if override == "display8":
        return Radiometry("display", 1 / 255, 0.0, "The values are taken as 8-bit brightness, as you said.")
    if override == "reflectance10000":
        offset = (_tag_number(evidence.info, "boa_add_offset") or 0.0) * 1e-4
        added = f" ({offset:+g} from the tag boa_add_offset)" if offset else ""
        return Radiometry(
            "reflectance", 1e-4, offset, f"The values are taken as reflectance times 10 000, as you said{added}."
        )
    return Radiometry("unknown", 1.0, 0.0, "The values are used as they are, as you said.")


def _from_gdal_scale(evidence: _Evidence) -> Radiometry | None:
    info = evidence.info
    position = {band.index: at for at, band in enumerate(info.bands)}
    pairs = {(info.scales[position[b.index]], info.offsets[position[b.index]]) for b in evidence.bands}
    if pairs == {(1.0, 0.0)}:
        return None
    if len(pairs) > 1:
        return Radiometry(
            "unknown", 1.0, 0.0, "The bands have different scale and offset tags: their values are used as they are."
        )
    scale, offset = pairs.pop()
    if not evidence.fits_reflectance(scale, offset):
        return None
    sentence = f"Reflectance = value * {_plain(scale)}{_signed(offset)}, as the file's scale and offset say."
    return Radiometry("reflectance", scale, offset, sentence)


def _from_tags(evidence: _Evidence) -> Radiometry | None:
    info = evidence.info
    scale = _tag_number(info, "scale", "scale_factor", "reflectance_scale", "reflectance_scale_factor")
    divisor = _tag_number(info, "boa_quantification_value", "quantification_value")
    if scale is None and divisor:
        scale = 1 / divisor
    if not scale or scale < 0:
        return None
    offset = (_tag_number(info, "offset", "add_offset", "reflectance_offset") or 0.0) + scale * (
        _tag_number(info, "boa_add_offset", "radio_add_offset") or 0.0
    )
    if not evidence.fits_reflectance(scale, offset):
        return None
    sentence = f"Reflectance = value * {_plain(scale)}{_signed(offset)}, as the file's tags say"
    if offset == 0.0 and "boa_add_offset" not in info.tags:
        return _reflectance(evidence, scale, sentence)
    return Radiometry("reflectance", scale, offset, f"{sentence}.")


def _from_landsat_coding(evidence: _Evidence) -> Radiometry | None:
    """Collection 2 level 2: surface reflectance = DN * 0.0000275 - 0.2. Level 1: at the top, DN * 0.00002 - 0.1."""
    info = evidence.info
    text = " ".join([info.path, *info.tags.values(), *(band.name for band in evidence.bands)]).upper()
    if info.dtype != "uint16" or float(evidence.low.min()) < 4500:
        return None
    if re.search(r"SR_B\d|_L2SP_|_L2SR_|_ARD_", text):
        coding = (2.75e-5, -0.2, "Landsat Collection 2 surface reflectance")
    elif re.search(r"_L1[TG][PTS]?_|_L1TP|_L1GT|_L1GS", text) and not re.search(r"L[TE]0[457]_", text):
        coding = (2e-5, -0.1, "Landsat level 1 (top of the atmosphere)")
    else:
        return None
    scale, offset, what = coding
    formula = f"Reflectance = value * {_plain(scale)}{_signed(offset)}"
    return Radiometry("reflectance", scale, offset, f"{formula}: the raster looks like {what}.")


def _from_values(evidence: _Evidence) -> Radiometry | None:
    low, high = float(evidence.low.min()), float(evidence.high.max())
    floating = evidence.info.dtype.startswith("float")
    if evidence.info.dtype == "uint8":
        return Radiometry("display", 1 / 255, 0.0, "8-bit values are taken as display brightness 0..255.")
    if floating and high <= 2 and low >= -0.5:
        return _reflectance(evidence, 1.0, "Floating-point values up to 2 are taken as reflectances")
    if 0 <= low and high <= 255:
        return Radiometry(
            "display", 1 / 255, 0.0, f"The values ({_range(evidence)}) are taken as display brightness 0..255."
        )
    if 300 <= high <= 20_000 and -2_000 <= low < 4_500:
        return _reflectance(evidence, 1e-4, f"The values ({_range(evidence)}) are taken as reflectance times 10 000")
    return None


def _reflectance(evidence: _Evidence, scale: float, sentence: str) -> Radiometry:
    if not _offset_still_in(evidence, scale):
        return Radiometry("reflectance", scale, 0.0, f"{sentence}.")
    added = (
        f"; but hardly a value is below {FLOOR_LOW / scale:g}, so the offset of Sentinel-2's processing baseline 4 "
        f"is still in, and is taken away ({S2_OFFSET:+g})."
    )
    return Radiometry("reflectance", scale, S2_OFFSET, sentence + added)


def _offset_still_in(evidence: _Evidence, scale: float) -> bool:
    """True where no band of a Sentinel-2 surface product goes below 0.1 and all visible bands start just above it."""
    floors = evidence.low * scale
    visible = np.array([band.common in VISIBLE for band in evidence.bands])
    if not evidence.sentinel2 or evidence.top_of_atmosphere or len(floors) < 3 or not visible.any():
        return False
    spread = float(floors[visible].max() - floors[visible].min())
    return float(floors.min()) >= FLOOR_LOW and float(floors[visible].max()) <= FLOOR_HIGH and spread <= FLOOR_SPREAD


def _tag_number(info: RasterInfo, *keys: str) -> float | None:
    """The number that a tag starts with: "0.0001 (ndvi: 1)" is 0.0001."""
    for key in keys:
        match = re.match(r"\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)", info.tags.get(key, ""))
        if match:
            return float(match[1])
    return None


def _plain(number: float) -> str:
    """0.00002, not 2e-05."""
    return f"{number:.10f}".rstrip("0").rstrip(".")


def _signed(offset: float) -> str:
    return f" {'-' if offset < 0 else '+'} {_plain(abs(offset))}" if offset else ""


def _range(evidence: _Evidence) -> str:
    return f"{float(evidence.low.min()):.4g} to {float(evidence.high.max()):.4g}"
