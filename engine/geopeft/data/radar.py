"""Radar backscatter: which bands hold it, and its unit.

Networks are trained on decibels, in which backscatter is spread evenly and speckle is additive. Files hold decibels, or
linear power (sigma0, gamma0), which is converted while it is read: 10 log10(power), ESA's definition of decibels for
Sentinel-1 products.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from geopeft.data.bands import RADAR_ROLES, Band

# Far below what Sentinel-1 can tell from noise (about -22 to -30 dB), so that 0, which has no logarithm, stays finite.
FLOOR_DB = -50.0
# Nothing but corner reflectors is brighter than this power; amplitudes that were never calibrated are.
HIGHEST_POWER = 100.0
LOWEST_DB, HIGHEST_DB = -80.0, 40.0


def is_radar(band: Band) -> bool:
    """True for a band whose name says that it is backscatter of one polarisation."""
    return band.common in RADAR_ROLES


def is_power(values: NDArray[np.float32]) -> bool:
    """Whether valid floating-point values (N,) of a radar band are linear power: none negative, hardly one above 100.

    Decibels of natural surfaces are negative, all but a few.
    """
    if not len(values):
        return False
    low, high = np.percentile(values, (1, 99))
    return bool(low >= 0 and 0 < high <= HIGHEST_POWER)


def is_decibel(low: float, high: float) -> bool:
    """Whether a radar band whose values mostly lie between low and high holds decibels."""
    return LOWEST_DB <= low < 0 and high <= HIGHEST_DB


def to_decibels(power: NDArray[np.float32]) -> NDArray[np.float32]:
    """Decibels of linear power; what is 0 or less, noise taken away from noise, is at the floor."""
    decibels: NDArray[np.float32] = 10 * np.log10(np.maximum(power, np.float32(10 ** (FLOOR_DB / 10))))
    return decibels


def radar_sentence(
    bands: Sequence[Band], power: Sequence[int], low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[tuple[int, ...], str]:
    """The numbers of the radar bands that are in decibels as they are read, and a sentence for the user; "" for none.

    Args:
        bands: those in use.
        power: numbers of the bands whose linear power is converted while it is read.
        low, high: the range (C,) of each band as it is read.
    """
    told: dict[str, list[str]] = {}
    decibels = []
    for band, lowest, highest in zip(bands, low, high, strict=True):
        if not is_radar(band):
            continue
        if band.index in power:
            what = "are linear power by their values and converted to decibels"
        elif is_decibel(float(lowest), float(highest)):
            what = "are decibels by their values and used as they are"
        else:
            what = f"({lowest:.4g} to {highest:.4g}) are neither decibels nor linear power and used as they are"
        if not what.startswith("("):
            decibels.append(band.index)
        told.setdefault(what, []).append(band.name)
    sentences = [f"The radar bands {', '.join(names)} {what}." for what, names in told.items()]
    return tuple(decibels), " ".join(sentences)
