"""Which backbone suits a raster, and the constants that bring the raster's bands to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from geopeft.data.bands import Band, match_bands
from geopeft.data.normalize import Radiometry
from geopeft.data.raster import BandStatistics
from geopeft.errors import BandError, RasterError, WeightsError
from geopeft.events import Reporter
from geopeft.models.backbones import BACKBONES
from geopeft.models.registry import BackboneCard
from geopeft.models.spec import InputBand
from geopeft.models.weights import fetch

# In order of preference where several fit; the first whose weights are at hand is taken.
_SPECTRAL = ("galileo_base", "galileo_tiny", "galileo_nano")
_VISIBLE = ("tf_efficientnet_lite0",)
_WITHOUT_WEIGHTS = "scratch_unet"
# A backbone made for satellite pixels sees nothing useful in a drone's, and the other way round.
SATELLITE_GSD_M = (4.0, 120.0)
# Beyond this factor resampling no longer helps: a 10 m backbone on a 7.5 cm orthophoto.
MAX_RESAMPLE = 4.0


def choose_backbone(
    name: str, bands: Sequence[Band], gsd_m: float, weights_dir: str, reporter: Reporter
) -> tuple[BackboneCard, str]:
    """The card and a sentence that says why.

    `auto`: for pixels of 4 to 120 m with blue, green, red and more, a backbone made for multispectral satellites; else
    one made for pictures, where red, green and blue are there; of each kind the first whose weights are at hand or can
    be fetched; with none of them a small network without pretraining. A named backbone is taken as it is.
    """
    if name != "auto":
        card = BACKBONES[name]
        return card, f"Backbone: {card.title}, as asked for."
    roles = {band.common for band in bands}
    spectral = SATELLITE_GSD_M[0] <= gsd_m <= SATELLITE_GSD_M[1] and len(roles - {""}) > 3
    wishes = (_SPECTRAL + _VISIBLE) if spectral else _VISIBLE
    reason = f"{len(roles - {''})} spectral bands at {gsd_m:.3g} m"
    missing: list[str] = []
    for wish in wishes:
        card = BACKBONES[wish]
        if not match_for(card, bands):
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


def match_for(card: BackboneCard, bands: Sequence[Band]) -> dict[str, Band]:
    """Card band name -> raster band; empty where the backbone cannot see this raster.

    A backbone for pictures needs all its bands; one for multispectral sensors at least three of them.
    """
    if not card.bands:
        return {}
    found = match_bands(bands, card.bands)
    return found if len(found) >= min(3, len(card.bands)) else {}


def match_or_refuse(card: BackboneCard, bands: Sequence[Band], ordered: bool) -> dict[str, Band]:
    """As `match_for`; BandError where nothing fits.

    Args:
        ordered: the user named the bands, so that they may be taken in the backbone's order when they have no roles.
    """
    if not card.bands:
        return {}
    found = match_for(card, bands)
    if found:
        return found
    if ordered and len(bands) == len(card.bands):
        return {wanted.name: band for wanted, band in zip(card.bands, bands, strict=True)}
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
    deviation take the place of the card's.
    """
    unit = "reflectance" if card.unit == "reflectance10000" else "display"
    same_unit = radiometry.kind == unit
    by_index = {band.index: card_band for card_band in card.bands for band in [matched.get(card_band.name)] if band}
    result = []
    for position, band in enumerate(bands):
        scale, offset = radiometry.for_band(band)
        mean = float(statistics.mean[position]) * scale + offset
        std = max(float(statistics.std[position]) * scale, 1e-6)
        card_band = by_index.get(band.index)
        backbone: dict[str, Any] = {}
        if card_band is not None:
            # The value in the card's unit is canonical * a + b, and the card says how that is normalised.
            a, b = (10_000.0, 0.0) if unit == "reflectance" else (1.0, 0.0)
            if not same_unit:
                a, b = card_band.std / std, card_band.mean - card_band.std * mean / std
            times, plus = card.normalization(card_band.name)
            backbone = {
                "backbone_band": card_band.name,
                "backbone_scale": a * times,
                "backbone_offset": b * times + plus,
            }
        result.append(
            InputBand(
                name=band.name,
                common=band.common,
                wavelength_um=band.wavelength_um,
                scale=scale,
                offset=offset,
                mean=mean,
                std=std,
                **backbone,
            )
        )
    what = "reflectances" if unit == "reflectance" else "8-bit brightness"
    matching = f"The backbone expects {what}; the raster's values are brought there by their mean and deviation."
    sentence = "" if same_unit or not matched else matching
    return tuple(result), sentence
