"""What a label layer holds: shapes and pixels of each class, up to date after each edit, and what is still missing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

from qgis.core import QgsCoordinateTransform, QgsFeature, QgsFeatureRequest, QgsVectorLayer
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal

from .label_shapes import Grid, Measure, measure, transform_to
from .label_style import MAX_CLASSES
from .language import tr
from .layers import class_text

CHUNK = 50
CHUNK_S = 0.03
MAX_SHAPES = 20_000
ENOUGH_SHAPES = 3
# A class whose shapes span less than this part of the labels' extent, along both axes, is in one spot: 5 % of the area.
SPOT_SHARE = 0.05**0.5

Box = tuple[float, float, float, float]


class ClassCount(NamedTuple):
    """One class: its shapes, the pixels that they cover (None without a raster), and the box that holds them."""

    shapes: int
    pixels: Optional[float]
    box: Optional[Box]


class Summary(NamedTuple):
    """A whole layer.

    Attributes:
        classes: by value as text.
        values: the values that shapes have, text -> as stored.
        without_class: shapes whose field is empty.
        outside: shapes that do not touch the raster.
        complete: False while shapes are still being counted.
        cut: there are more than MAX_SHAPES shapes, so not all are counted.
    """

    classes: dict[str, ClassCount]
    values: dict[str, Any]
    without_class: int
    outside: int
    complete: bool
    cut: bool

    @property
    def too_many_classes(self) -> bool:
        """The field holds something else than classes; counting has stopped."""
        return len(self.values) > MAX_CLASSES

    @property
    def shapes(self) -> int:
        """All shapes that have a class."""
        return sum(count.shapes for count in self.classes.values())


class Tally:
    """The shapes of one class, by feature id; cheap to ask after each edit."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.measures: dict[int, Optional[Measure]] = {}
        self.outside = 0
        self._pixels = 0.0
        self._box: Optional[Box] = None
        self._box_is_known = True

    def add(self, fid: int, size: Optional[Measure]) -> None:
        """Adds a shape."""
        self.measures[fid] = size
        if size is None:
            return
        self._pixels += size.pixels
        if size.box is None:
            self.outside += 1
        elif self._box_is_known:
            self._box = hull([size.box] if self._box is None else [self._box, size.box])

    def remove(self, fid: int) -> None:
        """Takes a shape away."""
        size = self.measures.pop(fid)
        if size is None:
            return
        self._pixels -= size.pixels
        self.outside -= size.box is None
        self._box_is_known = False

    def count(self) -> ClassCount:
        """What is there now."""
        if not self._box_is_known:
            self._box = hull([size.box for size in self.measures.values() if size is not None and size.box is not None])
            self._box_is_known = True
        is_measured = next(iter(self.measures.values()), None) is not None
        return ClassCount(len(self.measures), self._pixels if is_measured else None, self._box)


EMPTY = Summary({}, {}, 0, 0, True, False)


class LabelCounts(QObject):
    """Counts a layer in small steps, so that the window never waits, and follows each edit.

    `changed` comes when `summary` may be another, `edited` only when shapes or their classes were changed.
    """

    changed = pyqtSignal()
    edited = pyqtSignal()

    def __init__(self, parent: Optional[QObject] = None) -> None:
        super().__init__(parent)
        self._layer: Optional[QgsVectorLayer] = None
        self._field = -1
        self._grid: Optional[Grid] = None
        self._width_px = 0.0
        self._to_grid = QgsCoordinateTransform()
        self._tallies: dict[str, Tally] = {}
        self._key_of: dict[int, str] = {}
        self._waiting: dict[int, None] = {}
        self._cut = False
        self._was_edited = False
        self._summary: Optional[Summary] = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._step)

    def follow(self, layer: Optional[QgsVectorLayer], field: str, grid: Optional[Grid], width_px: float) -> None:
        """Counts this layer from now on; None: no layer."""
        self.end()
        self._layer, self._grid, self._width_px = layer, grid, width_px
        if layer is None:
            self.changed.emit()
            return
        self._field = layer.fields().lookupField(field)
        if grid is not None:
            self._to_grid = transform_to(layer.crs(), grid.crs)
        for signal, slot in self._connections(layer):
            signal.connect(slot)
        self._start_scan()

    def end(self) -> None:
        """Lets the layer go."""
        self._timer.stop()
        if self._layer is not None and not sip.isdeleted(self._layer):
            for signal, slot in self._connections(self._layer):
                signal.disconnect(slot)
        self._layer = None
        self._clear()

    @property
    def summary(self) -> Summary:
        """What is known now."""
        if self._summary is None:
            self._summary = self._sum_up()
        return self._summary

    # Following the layer

    def _connections(self, layer: QgsVectorLayer) -> list[tuple[Any, Any]]:
        return [
            (layer.featureAdded, self._touched),
            (layer.featureDeleted, self._deleted),
            (layer.geometryChanged, self._touched),
            (layer.attributeValueChanged, self._attribute_changed),
            (layer.dataChanged, self._replaced),
            (layer.subsetStringChanged, self._replaced),
            (layer.willBeDeleted, self.end),
        ]

    def _touched(self, fid: int, *_: Any) -> None:
        self._waiting[fid] = None
        self._changed_by_edit()

    def _deleted(self, fid: int) -> None:
        self._waiting.pop(fid, None)
        if self._forget(fid):
            self._changed_by_edit()

    def _replaced(self) -> None:
        """Everything may be another: the file or the filter was changed."""
        self._start_scan()
        self._was_edited = True

    def _attribute_changed(self, fid: int, index: int, _: Any) -> None:
        if index == self._field:
            self._touched(fid)

    def _changed_by_edit(self) -> None:
        self._was_edited = True
        self._summary = None
        self._timer.start(0)

    # Counting

    def _clear(self) -> None:
        self._tallies.clear()
        self._key_of.clear()
        self._waiting.clear()
        self._was_edited = self._cut = False
        self._summary = None

    def _start_scan(self) -> None:
        """Notes all shapes. No iterator is kept open meanwhile: it would break where editing starts or ends."""
        self._clear()
        if self._layer is not None and self._field >= 0:
            request = QgsFeatureRequest().setFlags(QgsFeatureRequest.Flag.NoGeometry).setNoAttributes()
            request.setLimit(MAX_SHAPES + 1)
            self._waiting = dict.fromkeys(feature.id() for feature in self._layer.getFeatures(request))
            if len(self._waiting) > MAX_SHAPES:
                self._waiting.popitem()
                self._cut = True
            self._timer.start(0)

    def _request(self) -> QgsFeatureRequest:
        request = QgsFeatureRequest()
        request.setSubsetOfAttributes([self._field])
        if self._grid is None:
            request.setFlags(QgsFeatureRequest.Flag.NoGeometry)
        return request

    def _step(self) -> None:
        """Counts for a moment, then lets the window work."""
        until = time.monotonic() + CHUNK_S
        while self._waiting and time.monotonic() < until:
            self._read_waiting()
        if self._waiting:
            self._timer.start(0)
        self._summary = None
        if not self._timer.isActive() and self._was_edited:
            self._was_edited = False
            self.edited.emit()
        self.changed.emit()

    def _read_waiting(self) -> None:
        """Some of the shapes that are new or changed."""
        ids = list(self._waiting)[:CHUNK]
        for fid in ids:
            del self._waiting[fid]
        if self._layer is not None:
            for feature in self._layer.getFeatures(self._request().setFilterFids(ids)):
                self._keep(feature)
        if len(self._tallies) > MAX_CLASSES + 1:
            self._waiting.clear()

    def _keep(self, feature: QgsFeature) -> None:
        self._forget(feature.id())
        value = feature.attribute(self._field)
        key = class_text(value)
        size = None
        if self._grid is not None:
            size = measure(feature.geometry(), self._to_grid, self._grid, self._width_px)
        self._tallies.setdefault(key, Tally(value)).add(feature.id(), size)
        self._key_of[feature.id()] = key

    def _forget(self, fid: int) -> bool:
        """True where the shape was counted before."""
        key = self._key_of.pop(fid, None)
        if key is None:
            return False
        self._tallies[key].remove(fid)
        if not self._tallies[key].measures:
            del self._tallies[key]
        return True

    def _sum_up(self) -> Summary:
        named = {key: tally for key, tally in self._tallies.items() if key}
        return Summary(
            classes={key: tally.count() for key, tally in named.items()},
            values={key: tally.value for key, tally in named.items()},
            without_class=len(self._tallies[""].measures) if "" in self._tallies else 0,
            outside=sum(tally.outside for tally in named.values()),
            complete=not self._waiting,
            cut=self._cut,
        )


def hull(boxes: list[Box]) -> Optional[Box]:
    """The box that holds all boxes; None without any."""
    if not boxes:
        return None
    left, bottom, right, top = zip(*boxes)
    return min(left), min(bottom), max(right), max(top)


def hints(summary: Summary, names: Mapping[str, str], background: bool) -> list[str]:
    """What would make the labels better, the most important first; each is a sentence with a next step.

    Args:
        summary: the labels.
        names: value as text -> name, of all classes.
        background: unlabelled pixels make a class of their own.
    """
    found = []
    present = {key: summary.classes[key] for key in names if key in summary.classes}
    if len(present) == 1 and not background:
        text = tr("Only '{name}' has labels: draw a second class, or name the background under Advanced.")
        found.append(text.format(name=names[next(iter(present))]))
    few = [key for key, count in present.items() if count.shapes < ENOUGH_SHAPES]
    if len(few) == 1:
        text = tr("'{name}' has {number} of the {enough} shapes it needs at least: draw more, in other places.")
        found.append(text.format(name=names[few[0]], number=present[few[0]].shapes, enough=ENOUGH_SHAPES))
    elif few:
        text = tr("{names} have fewer than {enough} shapes: draw more, in different places.")
        found.append(text.format(names=_listed([names[key] for key in few]), enough=ENOUGH_SHAPES))
    spots = [key for key, count in present.items() if key not in few and _in_one_spot(count, summary)]
    if spots:
        text = tr("All shapes of {names} are in one spot: draw some elsewhere.")
        found.append(text.format(names=_listed([names[key] for key in spots])))
    if summary.outside:
        found.append(tr("Shapes outside the raster, which teach nothing: {number}.").format(number=summary.outside))
    if summary.cut:
        found.append(tr("Only the first {number} shapes are counted here.").format(number=MAX_SHAPES))
    return found


def _listed(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names[:3]]
    return ", ".join(quoted) + (", ..." if len(names) > len(quoted) else "")


def _in_one_spot(count: ClassCount, summary: Summary) -> bool:
    extent = hull([other.box for other in summary.classes.values() if other.box is not None])
    if extent is None or count.box is None:
        return False
    width, height = extent[2] - extent[0], extent[3] - extent[1]
    return (count.box[2] - count.box[0]) <= SPOT_SHARE * width and (count.box[3] - count.box[1]) <= SPOT_SHARE * height
