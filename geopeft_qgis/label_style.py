"""How labels look: classes, their colours, and the symbols of their shapes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from qgis.core import (
    QgsFillSymbol,
    QgsLineSymbol,
    QgsMarkerSymbol,
    QgsSimpleLineSymbolLayer,
    QgsSymbol,
    QgsVectorLayer,
    QgsWkbTypes,
)
from qgis.PyQt.QtGui import QColor

from .language import tr
from .layers import class_text

CLASS_FIELD = "class"
LABELS_PROPERTY = "geopeft/labels"
MAX_CLASSES = 50
# Told apart by people with any kind of colour vision (Okabe and Ito 2008, then Tol 2021), the brightest first, since
# labels lie on imagery.
PALETTE = (
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#d55e00",
    "#cc79a7",
    "#0072b2",
    "#882255",
    "#44aa99",
    "#999933",
    "#ddcc77",
    "#aa4499",
    "#117733",
    "#332288",
)


class LabelClass(NamedTuple):
    """A class: its value in the class field (as stored), the name that people read, and its colour #rrggbb."""

    value: Any
    name: str
    color: str

    @property
    def key(self) -> str:
        """The value as text, by which features are counted."""
        return class_text(self.value)


def palette_color(used: Sequence[str]) -> str:
    """The next colour of the palette that is not in use."""
    taken = {color.lower() for color in used}
    for color in PALETTE:
        if color not in taken:
            return color
    red, green, blue = colorsys.hls_to_rgb(len(used) * 0.618034 % 1, 0.5, 0.7)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def default_classes() -> list[LabelClass]:
    """Two classes to begin with, ready to be renamed."""
    text = tr("class {number}")
    names = [text.format(number=number) for number in (1, 2)]
    return [LabelClass(name, name, PALETTE[place]) for place, name in enumerate(names)]


def class_symbol(geometry_type: Any, color: str) -> QgsSymbol:
    """How shapes of a class look: the inside so light that the image stays in sight, and a seam that sets them off."""
    red, green, blue, _ = QColor(color).getRgb()
    if geometry_type == QgsWkbTypes.GeometryType.PolygonGeometry:
        look = {"color": f"{red},{green},{blue},70", "outline_color": "255,255,255,150", "outline_width": "1"}
        symbol = QgsFillSymbol.createSimple(look)
        symbol.appendSymbolLayer(QgsSimpleLineSymbolLayer(QColor(color), 0.6))
        return symbol
    if geometry_type == QgsWkbTypes.GeometryType.LineGeometry:
        return QgsLineSymbol.createSimple({"color": color, "width": "0.9"})
    return QgsMarkerSymbol.createSimple({"color": color, "outline_color": "white", "size": "2.8"})


def recolored(symbol: QgsSymbol, geometry_type: Any, color: str) -> QgsSymbol:
    """A copy in another colour; a symbol of somebody else keeps its look."""
    before = symbol.color().name()
    if before != color and symbol.dump() == class_symbol(geometry_type, before).dump():
        return class_symbol(geometry_type, color)
    copy = symbol.clone()
    if before != color:
        changed = QColor(color)
        changed.setAlpha(symbol.color().alpha())
        copy.setColor(changed)
    return copy


def is_label_layer(layer: Optional[QgsVectorLayer]) -> bool:
    """True for layers that `create_label_layer` has made."""
    return layer is not None and bool(layer.customProperty(LABELS_PROPERTY))
