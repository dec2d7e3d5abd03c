"""Offers to make one raster of the single-band rasters that are selected in the layer tree."""

from __future__ import annotations

import re
from os.path import commonprefix
from pathlib import Path
from typing import Any, Optional

from qgis.core import QgsMapLayer, QgsRasterLayer
from qgis.PyQt import sip
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import QLabel, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from ..sources import describe
from ..stack_bands import band_name, by_band

MAX_NAMED = 8


class StackRow(QWidget):
    """Is there while two or more single-band rasters are selected; `asked` when the button is pressed."""

    asked = pyqtSignal()
    changed = pyqtSignal()

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._layers: list[tuple[str, str]] = []
        self._view: Any = None
        self._model: Any = None
        self.setObjectName("GeopeftStack")
        self.text_label = QLabel()
        self.text_label.setWordWrap(True)
        self.text_label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.button = QPushButton()
        self.button.setObjectName("GeopeftStackButton")
        self.button.setToolTip(
            self.tr("Makes a virtual raster of them, which models take as one raster with several bands")
        )
        self.button.clicked.connect(lambda *_: self.asked.emit())
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.text_label)
        column.addWidget(self.button)

    def watch(self, view: Any) -> None:
        """Follows the selection of a layer tree view; None: no more."""
        if self._model is not None and not sip.isdeleted(self._model):
            self._model.selectionChanged.disconnect(self._selection_changed)
        self._view, self._model = view, None
        if view is not None:
            self._model = view.selectionModel()
            self._model.selectionChanged.connect(self._selection_changed)
        self._selection_changed()

    def end(self) -> None:
        """Lets the layer tree go."""
        self.watch(None)

    def has_offer(self) -> bool:
        """True while the selection can be stacked."""
        return len(self._layers) > 1

    def parameters(self) -> dict[str, Any]:
        """Of the algorithm, but for the output."""
        return {"LAYERS": [path for path, _ in self._layers]}

    def first_layer(self) -> str:
        """The id of the layer whose place in the tree the stack takes."""
        return self._layers[0][1] if self._layers else ""

    def name(self) -> str:
        """What the files have in common, as the name of the stack."""
        stems = [re.sub(r"\.\w+$", "", Path(path).name) for path, _ in self._layers]
        shared = re.sub(r"[_.\- ]*(SR_?|ST_?|B0?|band)?$", "", commonprefix(stems), flags=re.IGNORECASE)
        return shared if len(shared) > 2 else self.tr("stack")

    def _selection_changed(self, *_: Any) -> None:
        self._layers = self._stackable()
        names = [band_name(path) for path, _ in self._layers]
        listed = ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
        self.text_label.setText(self.tr("Selected bands: {names}").format(names=listed))
        self.button.setText(self.tr("Use the {count} selected layers as one stack").format(count=len(names)))
        self.changed.emit()

    def _stackable(self) -> list[tuple[str, str]]:
        """(path, id) of the selected layers in the order of their bands; none where one of them does not fit."""
        if self._view is None or sip.isdeleted(self._view):
            return []
        found = []
        for layer in self._view.selectedLayers():
            path = _single_band(layer)
            if not path:
                return []
            found.append((path, layer.id()))
        return sorted(found, key=lambda entry: by_band(entry[0])) if len(found) > 1 else []


def _single_band(layer: QgsMapLayer) -> str:
    """The path of a raster layer with one band that the engine can read; else empty."""
    if not isinstance(layer, QgsRasterLayer) or not layer.isValid() or layer.bandCount() != 1:
        return ""
    return describe(layer).path
