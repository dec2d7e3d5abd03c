"""Labels as they are at one moment, written to a file while the user draws on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsFeatureRequest,
    QgsFields,
    QgsVectorLayer,
    QgsVectorLayerFeatureSource,
)

from .layers import LabelFile, LayerError, category_styles, write_labels


class LabelSnapshot:
    """Made in the thread of the layer, which it only asks for its features: hundreds of shapes cost nothing there.

    Args:
        layer: the labels, edits that are not saved included.
        class_field: the field with the class.
        path: the GeoPackage to write.
    """

    def __init__(self, layer: QgsVectorLayer, class_field: str, path: Path) -> None:
        self._source = _Features(layer)
        self._styles = category_styles(layer, class_field)
        self._class_field = class_field
        self._path = path
        self._file: Optional[LabelFile] = None
        self._error: Optional[Exception] = None
        self._thread = threading.Thread(target=self._write, daemon=True, name="label snapshot")
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the file is there, or will not be."""
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Waits for the end of the writing."""
        self._thread.join(seconds)

    def result(self) -> LabelFile:
        """The file, once it is done; LayerError where the labels cannot be used or written."""
        if self._file is None:
            raise LayerError(str(self._error))
        return self._file

    def _write(self) -> None:
        try:
            written = write_labels(self._source, None, self._class_field, self._path)
            self._file = written._replace(classes=self._in_legend_order(written.classes))
        except (LayerError, OSError, RuntimeError) as error:
            self._error = error

    def _in_legend_order(self, classes: list[dict[str, str]]) -> list[dict[str, str]]:
        present = {row["value"] for row in classes}
        known = [style for value, style in self._styles.items() if value in present]
        return known + [row for row in classes if row["value"] not in self._styles]


class _Features:
    """What `write_labels` asks of a source of features, safe in another thread than the layer's."""

    def __init__(self, layer: QgsVectorLayer) -> None:
        self._features = QgsVectorLayerFeatureSource(layer)
        self._fields = QgsFields(layer.fields())
        self._crs = QgsCoordinateReferenceSystem(layer.crs())
        self._wkb_type = layer.wkbType()
        self._name = layer.name()

    def fields(self) -> QgsFields:
        return self._fields

    def sourceCrs(self) -> QgsCoordinateReferenceSystem:  # noqa: N802, QGIS's names
        return self._crs

    def sourceName(self) -> str:  # noqa: N802
        return self._name

    def wkbType(self) -> int:  # noqa: N802
        return self._wkb_type

    def getFeatures(self, request: QgsFeatureRequest) -> Iterator[QgsFeature]:  # noqa: N802
        return iter(self._features.getFeatures(request))
