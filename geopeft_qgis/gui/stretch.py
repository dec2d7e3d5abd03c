"""How a new raster is shown: natural colours, and contrast that is measured in a task, since that reads pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from qgis.core import (
    QgsContrastEnhancement,
    QgsDataProvider,
    QgsMultiBandColorRenderer,
    QgsProviderRegistry,
    QgsRasterDataProvider,
    QgsRasterLayer,
    QgsSingleBandGrayRenderer,
    QgsTask,
)
from qgis.PyQt.QtCore import pyqtSignal

from ..raster_copy import band_name

RED = ("red", "b4", "b04", "sr_b4")
GREEN = ("green", "b3", "b03", "sr_b3")
BLUE = ("blue", "b2", "b02", "sr_b2")
SAMPLE_PX = 250_000


class Stretch(NamedTuple):
    """The bands to show, one or red, green and blue, and the values between which each is shown."""

    bands: tuple[int, ...]
    limits: tuple[tuple[float, float], ...]


class StretchTask(QgsTask):
    """Measures how to show a raster. `measured` comes once, in the main thread: a Stretch, or None."""

    measured = pyqtSignal(object)

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._stretch: Optional[Stretch] = None

    def run(self) -> bool:
        """In a thread of its own."""
        try:
            self._stretch = measure(self._path)
        except Exception:  # an exception must never leave a task
            return False
        return True

    def finished(self, result: bool) -> None:
        """In the main thread."""
        self.measured.emit(self._stretch)


def open_provider(path: str) -> Optional[QgsRasterDataProvider]:
    """A raster file without a layer, for a thread; None where it cannot be opened."""
    provider = QgsProviderRegistry.instance().createProvider("gdal", path, QgsDataProvider.ProviderOptions())
    return provider if isinstance(provider, QgsRasterDataProvider) and provider.isValid() else None


def measure(path: str) -> Stretch:
    """Bands and limits for a raster: the middle 96 % of a sample of its values."""
    provider = open_provider(path)
    if provider is None:
        raise ValueError(path)
    bands = shown_bands([band_name(provider, band) for band in range(1, provider.bandCount() + 1)])
    limits = [provider.cumulativeCut(band, 0.02, 0.98, provider.extent(), SAMPLE_PX) for band in bands]
    return Stretch(bands, tuple((float(low), float(high)) for low, high in limits))


def shown_bands(names: Sequence[str]) -> tuple[int, ...]:
    """Red, green and blue where the names tell them (words, Sentinel-2, Landsat 8 and 9), else the first bands."""
    known = [name.strip().casefold() for name in names]
    found = [next((known.index(name) + 1 for name in wanted if name in known), 0) for wanted in (RED, GREEN, BLUE)]
    if all(found):
        return tuple(found)
    return (1, 2, 3) if len(known) > 2 else (1,)


def show(layer: QgsRasterLayer, stretch: Stretch) -> None:
    """Gives a layer its colours and contrast; reads no pixel."""
    provider = layer.dataProvider()
    enhancements = []
    for band, (low, high) in zip(stretch.bands, stretch.limits):
        enhancement = QgsContrastEnhancement(provider.dataType(band))
        enhancement.setMinimumValue(low)
        enhancement.setMaximumValue(high)
        enhancement.setContrastEnhancementAlgorithm(
            QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum
        )
        enhancements.append(enhancement)
    if len(stretch.bands) == 1:
        renderer = QgsSingleBandGrayRenderer(provider, stretch.bands[0])
        renderer.setContrastEnhancement(enhancements[0])
    else:
        renderer = QgsMultiBandColorRenderer(provider, *stretch.bands)
        # Not as arguments: only these take the enhancements over from Python.
        renderer.setRedContrastEnhancement(enhancements[0])
        renderer.setGreenContrastEnhancement(enhancements[1])
        renderer.setBlueContrastEnhancement(enhancements[2])
    layer.setRenderer(renderer)
