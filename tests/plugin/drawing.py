"""A map window and the mouse and keys of somebody who draws in it."""

import time

from qgis.core import QgsCoordinateReferenceSystem, QgsPointXY, QgsRectangle
from qgis.gui import QgsMapCanvas, QgsMapMouseEvent
from qgis.PyQt.QtCore import QCoreApplication, QEvent, QPoint, Qt
from qgis.PyQt.QtGui import QKeyEvent

LEFT, RIGHT, NONE = Qt.MouseButton.LeftButton, Qt.MouseButton.RightButton, Qt.MouseButton.NoButton


def settle(condition=lambda: True, seconds=10.0):
    """Lets Qt work until something is so, at least for a moment."""
    end = time.monotonic() + seconds
    moment = time.monotonic() + 0.02
    while time.monotonic() < moment or (not condition() and time.monotonic() < end):
        QCoreApplication.processEvents()
        time.sleep(0.002)
    assert condition(), "this did not happen in time"


def longest_slot_s(condition, seconds=60.0):
    """Lets Qt work until something is so; for how long the window was busy at most, in seconds of a processor."""
    longest, end = 0.0, time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        start = time.process_time()
        QCoreApplication.processEvents()
        longest = max(longest, time.process_time() - start)
    assert condition(), "this did not happen in time"
    return longest


class Hand:
    """Draws on a canvas of 600 x 400 pixels over the test raster, one pixel of the screen being one metre."""

    def __init__(self, crs="EPSG:32632"):
        self.canvas = QgsMapCanvas()
        self.canvas.setFrameStyle(0)
        self.canvas.resize(600, 400)
        self.canvas.setDestinationCrs(QgsCoordinateReferenceSystem(crs))
        if crs == "EPSG:32632":
            self.canvas.setExtent(QgsRectangle(500000, 5399600, 500600, 5400000))

    def at(self, x, y):
        """Map coordinates (metres from the raster's lower left corner) -> pixel of the canvas."""
        pixel = self.canvas.getCoordinateTransform().transform(QgsPointXY(500000 + x, 5399600 + y))
        return QPoint(round(pixel.x()), round(pixel.y()))

    def event(self, kind, x, y, button=LEFT, held=NONE, modifiers=Qt.KeyboardModifier.NoModifier):
        return QgsMapMouseEvent(self.canvas, kind, self.at(x, y), button, held, modifiers)

    def press(self, x, y, button=LEFT):
        self.canvas.mapTool().canvasPressEvent(self.event(QEvent.Type.MouseButtonPress, x, y, button, button))

    def move(self, x, y, held=LEFT):
        self.canvas.mapTool().canvasMoveEvent(self.event(QEvent.Type.MouseMove, x, y, NONE, held))

    def release(self, x, y, button=LEFT, modifiers=Qt.KeyboardModifier.NoModifier):
        event = self.event(QEvent.Type.MouseButtonRelease, x, y, button, NONE, modifiers)
        self.canvas.mapTool().canvasReleaseEvent(event)

    def click(self, *places, button=LEFT, modifiers=Qt.KeyboardModifier.NoModifier):
        for x, y in places:
            self.move(x, y, NONE)
            self.press(x, y, button)
            self.release(x, y, button, modifiers)

    def drag(self, *places):
        self.press(*places[0])
        for place in places[1:]:
            self.move(*place)
        self.release(*places[-1])

    def key(self, key):
        """Presses a key in the canvas, as QGIS gets it; True where the tool has left it to QGIS."""
        event = QKeyEvent(QEvent.Type.KeyPress, key, Qt.KeyboardModifier.NoModifier)
        QCoreApplication.sendEvent(self.canvas, event)
        return event.isAccepted()

    def bands(self):
        """Rubber bands on the canvas that show something."""
        from qgis.gui import QgsRubberBand

        return [item for item in self.canvas.scene().items() if isinstance(item, QgsRubberBand) and item.size()]
