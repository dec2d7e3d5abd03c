"""Whether a raster layer fits a model, from what QGIS knows of it without reading pixels."""

from __future__ import annotations

import math
import re
from typing import NamedTuple, Optional

from qgis.core import QgsPalettedRasterRenderer, QgsRasterLayer, QgsUnitTypes

from .language import tr
from .model_package import Summary

METRES, DEGREES = QgsUnitTypes.DistanceUnit.DistanceMeters, QgsUnitTypes.DistanceUnit.DistanceDegrees
METRES_PER_DEGREE = 111_320.0
# A model sees a pixel of another size as an object of another size; up to this factor it mostly copes.
PIXEL_FACTOR = 2.0


class Match(NamedTuple):
    """How a raster fits a model: `refusal` is why it cannot be mapped, `doubt` why its map may be poor; else empty."""

    refusal: str
    doubt: str


def match(model: Summary, layer: Optional[QgsRasterLayer]) -> Match:
    """Compares bands and pixel size. What QGIS cannot tell is left to the engine, which knows more of bands."""
    if layer is None or not layer.isValid():
        return Match("", "")
    needed = ", ".join(band.name for band in model.bands)
    if layer.bandCount() < len(model.bands):
        text = tr("The model needs {count} bands ({needed}), the layer has {found}.")
        return Match(text.format(found=layer.bandCount(), count=len(model.bands), needed=needed), "")
    if isinstance(layer.renderer(), QgsPalettedRasterRenderer) and layer.bandCount() == 1:
        return Match(tr("It shows classes, not measurements."), "")
    missing = _missing_names(model, layer)
    if missing:
        text = tr("No band is called {missing}; the model needs {needed}.")
        return Match("", text.format(missing=", ".join(missing), needed=needed))
    return Match("", _pixel_doubt(model, layer))


def _missing_names(model: Summary, layer: QgsRasterLayer) -> list[str]:
    """Bands of the model that are surely not there: others of its bands are, and each band of the raster has a name.

    Where no name is the same, model and raster name their bands in two ways, which only the engine can compare.
    """
    names = [_band_name(layer.bandName(number)) for number in range(1, layer.bandCount() + 1)]
    if not all(names):
        return []
    known = {name.casefold() for name in names}
    missing = [band.name for band in model.bands if not {band.name.casefold(), band.common.casefold()} & known]
    return missing if len(missing) < len(model.bands) else []


def _band_name(text: str) -> str:
    """The name in QGIS's `Band 1: red (Gray)`; empty where the file gives none."""
    found = re.fullmatch(r"[^:]*\d+\s*:\s*(.+?)(?:\s*\([^()]*\))?", text)
    return found[1] if found else ""


def _pixel_doubt(model: Summary, layer: QgsRasterLayer) -> str:
    size_m = pixel_size_m(layer)
    if size_m is None or 1 / PIXEL_FACTOR <= size_m / model.gsd_m <= PIXEL_FACTOR:
        return ""
    text = tr("Its pixels are {found}, the model was trained on {trained}: check the map before you trust it.")
    return text.format(found=length_text(size_m), trained=length_text(model.gsd_m))


def pixel_size_m(layer: QgsRasterLayer) -> Optional[float]:
    """The height of a pixel on the ground in metres; None where that is not known."""
    size = abs(layer.rasterUnitsPerPixelY())
    unit = layer.crs().mapUnits() if layer.crs().isValid() else None
    if not math.isfinite(size) or size <= 0:
        return None
    if unit == DEGREES:
        return size * METRES_PER_DEGREE
    factor = QgsUnitTypes.fromUnitToUnitFactor(unit, METRES) if unit is not None else 0
    return size * factor if factor and math.isfinite(factor) else None


def length_text(metres: float) -> str:
    """A pixel size as people say it."""
    if metres < 0.995:
        return f"{metres * 100:.3g} cm"
    return f"{metres:.3g} m" if metres < 10_000 else f"{metres / 1000:.3g} km"
