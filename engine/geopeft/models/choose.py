"""Which backbone suits a raster, and the constants that bring the raster's bands to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geopeft.data.bands import ROLES, Band, dates_of, match_bands, split_date
from geopeft.data.normalize import Radiometry
from geopeft.data.radar import is_radar
from geopeft.data.raster import BandStatistics
from geopeft.errors import BandError, RasterError, WeightsError
from geopeft.events import Reporter
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.adapted import read_header
from geopeft.models.dates import match_dates, of_one_date, refuse_dates
from geopeft.models.licences import is_accepted
from geopeft.models.registry import BackboneCard, CardBand
from geopeft.models.spec import InputBand
from geopeft.models.wavelengths import optical_wavelength
from geopeft.models.weights import cache_folder, fetch, file_sha256, locate
from geopeft.writing import check_target, write_bytes

# In order of preference where several fit; the first whose weights are at hand is taken.
_GALILEO = ("galileo_base", "galileo_tiny", "galileo_nano")
_SMALL = ("geopeft_small", "tf_efficientnet_lite0")
# Taken where the weights are at hand. 300 M first: twice as many parameters cost much and give little.
_PRITHVI = ("prithvi_eo_v2_300", "prithvi_eo_v2_300_tl", "prithvi_eo_v2_100_tl", "prithvi_eo_v2_600",
            "prithvi_eo_v2_600_tl", "prithvi_eo_v1_100", "prithvi_eo_v2_tiny_tl")  # fmt: skip
# From here on pixels are like those of Landsat and HLS, which Prithvi was made for.
LANDSAT_GSD_M = 20.0
# Networks of timm, taken from the user's folder only.
_DINO = ("vit_base_patch16_dinov3.lvd1689m", "vit_small_patch16_dinov3.lvd1689m", "vit_base_patch14_dinov2.lvd142m",
         "vit_small_patch14_dinov2.lvd142m")  # fmt: skip
# Where there is radar, taken from the user's folder only.
_RADAR = ("terramind_v1_base", "terramind_v1_small", "terramind_v1_tiny")
_VISIBLE = (*_DINO, "tf_efficientnet_lite0", "geopeft_small")
_WITHOUT_WEIGHTS = "scratch_unet"
# A backbone made for satellite pixels sees nothing useful in a drone's, and the other way round.
SATELLITE_GSD_M = (4.0, 120.0)
# Beyond this factor resampling no longer helps: a 10 m backbone on a 7.5 cm orthophoto.
MAX_RESAMPLE = 4.0


def choose_backbone(
    name: str, bands: Sequence[Band], gsd_m: float, weights_dir: str, reporter: Reporter
) -> tuple[BackboneCard, str]:
    """The card and a sentence that says why.

    `auto`: for pixels of 4 to 120 m with more than three known bands, a backbone made for multispectral satellites
    (Prithvi first for all its six bands at 20 m or more, else Galileo), else the model in the box, which takes any
    optical band; otherwise, where red, green and blue are there, one made for pictures: a DINO vision transformer if
    the user's folder has one. A backbone that takes radar as well comes first
    where the raster has radar and the user's folder the weights. Of each kind the first whose weights are at
    hand or can be fetched. A small network without pretraining is left where no band is known to be optical. A named
    backbone is taken as it is.
    """
    if name != "auto":
        card = named_card(name)
        return card, f"Backbone: {card.title}, as asked for."
    roles = {band.common for band in bands} & set(ROLES)
    spectral = SATELLITE_GSD_M[0] <= gsd_m <= SATELLITE_GSD_M[1] and len(roles) > 3
    optical, radar = len(optical_bands(bands)), sum(is_radar(band) for band in bands)
    reason = f"{optical} optical band{'s' * (optical != 1)}{f' and {radar} of radar' if radar else ''} at {gsd_m:.3g} m"
    wishes = _spectral_wishes(bands, gsd_m) if spectral else _VISIBLE
    if radar and SATELLITE_GSD_M[0] <= gsd_m <= SATELLITE_GSD_M[1]:
        wishes = (*_RADAR, *wishes)
    missing: list[str] = []
    for wish in wishes:
        if wish in _DINO and not _in_folder(wish, weights_dir):
            continue
        card = BACKBONES[wish]
        if wish in (*_RADAR, *_PRITHVI) and locate(card, weights_dir) is None:
            continue
        if not match_for(card, bands, dates=True) or (card.restricted and not is_accepted(card)):
            continue
        try:
            fetch(card, weights_dir, reporter)
        except WeightsError:
            missing.append(card.name)
            continue
        without = f" The weights of {', '.join(missing)} are not at hand." if missing else ""
        return card, f"Backbone: {card.title}, chosen for {reason}.{without}"
    card = BACKBONES[_WITHOUT_WEIGHTS]
    return card, f"Backbone: {card.title}; no pretrained backbone fits {reason}."


def _spectral_wishes(bands: Sequence[Band], gsd_m: float) -> tuple[str, ...]:
    """Backbones for multispectral satellites, the one made for this kind of raster first."""
    card = BACKBONES[_PRITHVI[0]]
    if gsd_m >= LANDSAT_GSD_M and len(match_for(card, bands)) == len(card.bands):
        return (*_PRITHVI, *_GALILEO, *_SMALL)
    return (*_GALILEO, *_PRITHVI, *_SMALL)


def _in_folder(name: str, weights_dir: str) -> bool:
    """Whether a folder may hold the weights: a look at its names, before timm is loaded for the card."""
    return bool(weights_dir) and any(Path(weights_dir).expanduser().glob(f"{name}*"))


def named_card(name: str) -> BackboneCard:
    """The row of a name, or of a file that the `pretrain` job wrote, which is copied into the cache so that packages
    find it again.

    Raises:
        JobError: there is no such name.
        WeightsError: the file is no adapted backbone.
    """
    if not name.endswith(".safetensors"):
        return BACKBONES[name]
    path = Path(name).expanduser()
    if not path.is_file():
        raise WeightsError(f"There is no file {path}.", "Check the path of the adapted backbone.", "WEIGHTS_MISSING")
    base = read_header(path).backbone
    card = BACKBONES[f"{base}@{file_sha256(path)}"]
    if locate(card) is None:
        target = cache_folder() / card.weights.file
        check_target(target, path.stat().st_size)
        write_bytes(target, path.read_bytes())
    return card


def match_for(card: BackboneCard, bands: Sequence[Band], *, dates: bool = False) -> dict[str, Band]:
    """Card band name -> raster band; empty where the backbone cannot see this raster.

    A backbone for pictures needs all its bands; one for multispectral sensors at least three of them, or one of radar
    if it takes that. One that takes any optical band gets those that it does not know under their wavelengths.

    Args:
        dates: where the bands are of several dates, all of them are matched, as `BAND DATE`; else the earliest alone.
    """
    if card.bands and len(dates_of(bands)) > 1:
        if dates:
            return match_dates(card, bands)
        bands = of_one_date(bands)
    if card.any_optical:
        return optical_bands(bands, card.bands)
    if not card.bands:
        return {}
    found = match_bands(bands, card.bands)
    radar = any(is_radar(band) for band in found.values())
    return found if radar or len(found) >= min(3, len(card.bands)) else {}


def optical_bands(bands: Sequence[Band], known: Sequence[CardBand] = ()) -> dict[str, Band]:
    """Name -> band, of the bands that are known to be optical: that of a `known` band, else the wavelength in words."""
    lengths = {band.index: optical_wavelength(band) for band in bands}
    optical = [band for band in bands if lengths[band.index] is not None]
    found = match_bands(optical, known)
    named = {band.index for band in found.values()}
    for band in optical:
        length = lengths[band.index]
        if band.index not in named:
            name = f"{length:g} um"
            found[name if name not in found else f"{name} ({band.index})"] = band
    return found


def match_or_refuse(
    card: BackboneCard, bands: Sequence[Band], ordered: bool, *, dates: bool = False
) -> dict[str, Band]:
    """As `match_for`; BandError where nothing fits.

    Args:
        ordered: the user named the bands, so that they may be taken in the backbone's order when they have no roles.
        dates: see `match_for`; what does not suit the backbone is refused.
    """
    if dates:
        refuse_dates(card, bands)
    found = match_for(card, bands, dates=dates)
    if found or not (card.bands or card.any_optical):
        return found
    if ordered and len(bands) == len(card.bands):
        return {wanted.name: band for wanted, band in zip(card.bands, bands, strict=True)}
    if card.any_optical:
        raise BandError(
            f"{card.title} needs an optical band whose wavelength is known; none of the raster's bands "
            f"({', '.join(band.name for band in bands)}) says what it is.",
            "Name the bands in the file (red, nir, ...), tag their wavelengths, or choose the backbone scratch_unet.",
        )
    needed = ", ".join(f"{band.name} ({band.common})" for band in card.bands)
    present = ", ".join(f"{band.index} {band.name}" for band in bands)
    raise BandError(
        f"{card.title} needs the bands {needed}; they cannot be told from the raster's bands ({present}).",
        f"Name them in this order: --bands with {len(card.bands)} names or numbers.",
    )


def resample_factor(card: BackboneCard, gsd_m: float) -> tuple[float, str]:
    """By how much chips are resized for the backbone, and a sentence when they are.

    The rule: pixel sizes inside the card's range are taken as they are; outside, chips are resized to the nearer end
    of the range, by at most a factor of 4 (the map keeps the raster's grid); beyond that RasterError.
    """
    if card.gsd_m is None:
        return 1.0, ""
    low, high = card.gsd_m
    factor = gsd_m / low if gsd_m < low else gsd_m / high if gsd_m > high else 1.0
    if factor == 1.0:
        return 1.0, ""
    if not 1 / MAX_RESAMPLE <= factor <= MAX_RESAMPLE:
        raise RasterError(
            f"{card.title} is made for pixels of {low:g} to {high:g} m; this raster has {gsd_m:.3g} m.",
            "Choose the backbone 'auto', or one for this pixel size such as tf_efficientnet_lite0.",
            "RASTER_PIXEL_SIZE",
        )
    return factor, f"The backbone sees the raster resampled from {gsd_m:.3g} m to {gsd_m / factor:.3g} m."


def input_bands(
    card: BackboneCard,
    matched: Mapping[str, Band],
    bands: Sequence[Band],
    statistics: BandStatistics,
    radiometry: Radiometry,
) -> tuple[tuple[InputBand, ...], str]:
    """The model's input bands with all constants, and a sentence where values were matched by statistics.

    Values in the card's own unit are normalised by the card's mean and standard deviation. Values in another unit
    (8-bit numbers for a backbone that expects reflectance, say) are matched: the raster's own mean and standard
    deviation take the place of the card's. So are the bands that an any-optical backbone with bands does not know.
    """
    unit = "reflectance" if card.unit == "reflectance10000" else "display"
    same_unit = radiometry.kind == unit
    rows = {card_band.name: card_band for card_band in card.bands}
    by_index = {band.index: split_date(key)[0] for key, band in matched.items()}
    what = "reflectances" if unit == "reflectance" else "8-bit brightness"
    expected: set[str] = set()
    result = []
    for position, band in enumerate(bands):
        scale, offset = radiometry.for_band(band)
        mean = float(statistics.mean[position]) * scale + offset
        std = max(float(statistics.std[position]) * scale, 1e-6)
        name = by_index.get(band.index, "")
        card_band = rows.get(name)
        backbone: dict[str, Any] = {}
        if card_band is not None:
            # The value in the card's unit is canonical * a + b, and the card says how that is normalised.
            radar = card_band.unit == "decibel"
            a, b = (10_000.0, 0.0) if unit == "reflectance" and not radar else (1.0, 0.0)
            if not (band.index in radiometry.decibels if radar else same_unit):
                a, b = card_band.std / std, card_band.mean - card_band.std * mean / std
                expected.add("decibels" if radar else what)
            times, plus = card.normalization(card_band.name)
            backbone = {
                "backbone_band": card_band.name,
                "backbone_scale": a * times,
                "backbone_offset": b * times + plus,
            }
        elif card.bands and name:
            if not same_unit:
                expected.add(what)
            backbone = {"backbone_band": name, "backbone_scale": 1 / std, "backbone_offset": -mean / std}
        length = band.wavelength_um
        if length is None and card.any_optical and card_band is not None:
            length = card_band.wavelength_um
        result.append(
            InputBand(
                name=band.name,
                date=band.date,
                common=band.common,
                wavelength_um=length if length is not None else optical_wavelength(band),
                scale=scale,
                offset=offset,
                mean=mean,
                std=std,
                unit="decibel" if band.index in radiometry.decibels else "",
                **backbone,
            )
        )
    matching = (
        f"The backbone expects {' and '.join(sorted(expected))}; the raster's values are brought there by their mean "
        "and deviation."
    )
    return tuple(result), matching if expected else ""
