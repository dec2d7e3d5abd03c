"""Wavelengths as weights of fixed anchors, so that one set of kernels serves any set of optical bands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from geopeft.data.bands import ROLES, NamedBand, is_not_spectral

# Sentinel-2's centres, which lie where most optical sensors have a band.
ANCHORS_UM = (0.443, 0.49, 0.56, 0.665, 0.705, 0.74, 0.783, 0.842, 0.945, 1.375, 1.61, 2.19)
# Reflected sunlight; beyond it lies what a surface emits.
OPTICAL_UM = (0.3, 3.0)


def anchor_weights(wavelengths_um: Sequence[float]) -> NDArray[np.float32]:
    """(C, 12) weights that sum to 1 for each band: one between two anchors is a mix of both, smooth in its logarithm.

    A band at an anchor is that anchor alone, one beyond the outermost anchors is the outermost.
    """
    last = len(ANCHORS_UM) - 1
    place = np.interp(np.log(wavelengths_um), np.log(ANCHORS_UM), np.arange(last + 1))
    low = np.minimum(np.floor(place), last - 1).astype(np.int64)
    upper = np.sin(np.pi / 2 * (place - low)) ** 2
    weights = np.zeros((len(place), last + 1), np.float32)
    rows = np.arange(len(place))
    weights[rows, low] = 1 - upper
    weights[rows, low + 1] = upper
    return weights


def optical_wavelength(band: NamedBand) -> float | None:
    """The band's own wavelength, else the usual one of its role; None where it is not known to be optical."""
    if is_not_spectral(band.name):
        return None
    length = band.wavelength_um
    if length is None and band.common in ROLES:
        length = ROLES[band.common][0]
    return length if length is not None and OPTICAL_UM[0] <= length < OPTICAL_UM[1] else None
