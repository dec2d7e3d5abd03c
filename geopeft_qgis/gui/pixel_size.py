"""A box for the size of a pixel, whose steps are zoom levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from qgis.core import QgsCoordinateReferenceSystem, QgsUnitTypes
from qgis.gui import QgsDoubleSpinBox
from qgis.PyQt.QtWidgets import QWidget


class PixelSizeBox(QgsDoubleSpinBox):
    """Takes any size between the finest of the source and 100 km; its arrows go to the next zoom level."""

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._sizes: list[float] = []
        self.setShowClearButton(False)
        self.setKeyboardTracking(False)
        self.setMinimumWidth(60)

    def set_source(self, crs: QgsCoordinateReferenceSystem, sizes: Sequence[float], is_picture: bool) -> None:
        """Sets units and limits.

        Args:
            crs: of the source.
            sizes: of a pixel at its zoom levels, finest first.
            is_picture: pixels finer than those of the finest zoom level show nothing more.
        """
        self._sizes = list(sizes)
        degrees = crs.isGeographic()
        self.setDecimals(8 if degrees else 3)
        finest = sizes[0] if sizes and is_picture else 0.0
        self.setRange(max(finest, 1e-8 if degrees else 0.001), 1.0 if degrees else 100_000.0)
        self.setSuffix(f" {QgsUnitTypes.toAbbreviatedString(crs.mapUnits())}")

    def size(self) -> float:
        """The size, exactly that of a zoom level where the box shows one."""
        value = float(self.value())
        near = [size for size in self._sizes if abs(size - value) <= 0.51 * 10 ** -self.decimals()]
        return near[0] if near else value

    def stepBy(self, steps: int) -> None:  # noqa: N802
        """Up is coarser."""
        value = self.size()
        for _ in range(abs(steps)):
            if steps > 0:
                value = next((size for size in self._sizes if size > value * 1.01), value * 2)
            else:
                value = next((size for size in reversed(self._sizes) if size < value * 0.99), value / 2)
        self.setValue(value)
