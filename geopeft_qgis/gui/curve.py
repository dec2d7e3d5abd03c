"""The validation curve: accuracy and loss against the training step, drawn as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

from qgis.PyQt.QtCore import QPointF, QRectF, QSize, Qt
from qgis.PyQt.QtGui import QColor, QFontMetrics, QPainter, QPaintEvent, QPalette, QPen, QPolygonF
from qgis.PyQt.QtWidgets import QSizePolicy, QWidget

from ..language import tr

# Blue and orange are told apart by colour-blind eyes, on white and on black.
ACCURACY, VALIDATION, TRAINING = "#2f7fd6", "#e0801a", "#8c8c8c"
GAP_PX = 12
Points = Sequence[tuple[float, float]]


class Line(NamedTuple):
    """One series: its name, colour and points (step, value)."""

    title: str
    color: str
    points: Points


class CurveWidget(QWidget):
    """Two small charts above each other, with one step axis: mIoU, and the losses."""

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.setObjectName("GeopeftCurve")
        self._series: dict[str, list[tuple[float, float]]] = {}
        self._total = 0.0
        self._caption = ""
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setMinimumHeight(190)
        self.setAccessibleName(tr("Validation curve"))

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(300, 230)

    def clear(self) -> None:
        """Forgets all points."""
        self._series, self._total, self._caption = {}, 0.0, ""
        self._changed()

    def add(self, event: Mapping[str, Any]) -> None:
        """Adds the figures of a metric event; its `total` is the step at which the axis ends."""
        step, total = event.get("step"), event.get("total")
        for name, value in (event.get("values") or {}).items():
            if isinstance(value, (int, float)) and series_kind(name):
                self._series.setdefault(name, []).append((float(step or 0), float(value)))
        if isinstance(total, (int, float)):
            self._total = max(self._total, float(total))
        self._changed()

    def set_caption(self, text: str) -> None:
        """A line under the step axis, such as how far the training is and how long it takes yet."""
        self._caption = text
        self.update()

    def lines(self, kind: str) -> list[Line]:
        """The series of one chart; kind: miou or loss."""
        found = [(name, points) for name, points in self._series.items() if series_kind(name) == kind]
        return [Line(_title(name), _color(name), points) for name, points in found]

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.fillRect(self.rect(), self.palette().color(QPalette.ColorRole.Base))
        if not self._series:
            painter.setPen(self._ink(0.6))
            text = tr("The validation curve appears here during training.")
            flags = int(Qt.AlignmentFlag.AlignCenter) | int(Qt.TextFlag.TextWordWrap)
            painter.drawText(self.rect().adjusted(10, 0, -10, 0), flags, text)
            return
        metrics = painter.fontMetrics()
        row = metrics.height() + 3
        left, right = metrics.horizontalAdvance("0.00") + 10, max(GAP_PX, metrics.horizontalAdvance("0000") // 2 + 2)
        below = (2.5 if self._caption else 1.5) * row
        inner = QRectF(self.rect()).adjusted(left, 2, -right, -below)
        height = inner.height() / 2 - row
        upper = QRectF(inner.left(), inner.top() + row, inner.width(), height)
        lower = QRectF(inner.left(), inner.bottom() - height, inner.width(), height)
        end = max(self._total, *(step for points in self._series.values() for step, _ in points), 1.0)
        losses = self.lines("loss")
        top = max((value for line in losses for _, value in line.points), default=1.0)
        self._chart(painter, upper, tr("mIoU"), self.lines("miou"), (0.0, 1.0), end)
        self._chart(painter, lower, tr("loss"), losses, (0.0, nice_ceiling(top)), end)
        self._step_axis(painter, lower, end, row)

    def _chart(
        self,
        painter: QPainter,
        box: QRectF,
        title: str,
        lines: Sequence[Line],
        span: tuple[float, float],
        end: float,
    ) -> None:
        self._value_axis(painter, box, span)
        self._legend(painter, box, title, lines)
        for line in lines:
            places = [
                QPointF(
                    box.left() + step / end * box.width(),
                    box.bottom() - (min(max(value, span[0]), span[1]) - span[0]) / (span[1] - span[0]) * box.height(),
                )
                for step, value in line.points
            ]
            painter.setPen(QPen(self._colored(line.color), 2))
            if len(places) > 1:
                painter.drawPolyline(QPolygonF(places))
            painter.setBrush(self._colored(line.color))
            painter.drawEllipse(places[-1], 2, 2)
            painter.setBrush(Qt.BrushStyle.NoBrush)

    def _value_axis(self, painter: QPainter, box: QRectF, span: tuple[float, float]) -> None:
        height = painter.fontMetrics().height()
        flags = int(Qt.AlignmentFlag.AlignRight) | int(Qt.AlignmentFlag.AlignVCenter)
        # Three numbers need their room.
        middle = [(span[0] + span[1]) / 2] if box.height() > 2 * height else []
        for value in (span[0], *middle, span[1]):
            y = box.bottom() - (value - span[0]) / (span[1] - span[0]) * box.height()
            painter.setPen(QPen(self._ink(0.18), 1))
            painter.drawLine(QPointF(box.left(), y), QPointF(box.right(), y))
            painter.setPen(self._ink(0.75))
            painter.drawText(QRectF(0, y - height / 2, box.left() - 5, height), flags, f"{value:.2g}")

    def _legend(self, painter: QPainter, box: QRectF, title: str, lines: Sequence[Line]) -> None:
        """What the axis shows, and the name and last value of each line in its colour."""
        metrics = painter.fontMetrics()
        baseline = box.top() - metrics.descent() - 2
        painter.setPen(self._ink(0.75))
        painter.drawText(QPointF(box.left(), baseline), title)
        x = box.left() + metrics.horizontalAdvance(title) + GAP_PX
        for text, line in zip(legend_texts(lines, metrics, box.right() - x), lines):
            painter.setPen(self._colored(line.color))
            painter.drawText(QPointF(x, baseline), text)
            x += metrics.horizontalAdvance(text) + GAP_PX

    def _step_axis(self, painter: QPainter, box: QRectF, end: float, height: float) -> None:
        painter.setPen(self._ink(0.75))
        center = int(Qt.AlignmentFlag.AlignHCenter) | int(Qt.AlignmentFlag.AlignVCenter)
        metrics = painter.fontMetrics()
        row = QRectF(box.left(), box.bottom() + height / 4, box.width(), height)
        for text, x in (("0", box.left()), (f"{end:.0f}", box.right())):
            width = metrics.horizontalAdvance(text) + 2
            painter.drawText(QRectF(x - width / 2, row.top(), width, height), center, text)
        painter.drawText(row, center, tr("training step"))
        if self._caption:
            whole = QRectF(2, row.bottom(), self.width() - 4, height)
            shown = metrics.elidedText(self._caption, Qt.TextElideMode.ElideRight, int(whole.width()))
            painter.drawText(whole, center, shown)

    def _changed(self) -> None:
        """The figures in words too, for who cannot see the chart."""
        figures = [f"{line.title} {line.points[-1][1]:.2f}" for kind in ("miou", "loss") for line in self.lines(kind)]
        self.setAccessibleDescription(", ".join(figures))
        self.update()

    def _ink(self, strength: float) -> QColor:
        """The text colour, blended with the background. Some dark themes leave black text in the palette."""
        text, base = (self.palette().color(r) for r in (QPalette.ColorRole.Text, QPalette.ColorRole.Base))
        if abs(text.lightness() - base.lightness()) < 100:
            text = QColor("#ffffff" if base.lightness() < 128 else "#000000")
        parts = (round(t * strength + b * (1 - strength)) for t, b in zip(text.getRgb()[:3], base.getRgb()[:3]))
        return QColor(*parts)

    def _colored(self, name: str) -> QColor:
        color = QColor(name)
        is_dark = self.palette().color(QPalette.ColorRole.Base).lightness() < 128
        return color.lighter(125) if is_dark else color.darker(115)


def legend_texts(lines: Sequence[Line], metrics: QFontMetrics, room: float) -> list[str]:
    """A text for each line: its name and last value, or the name alone where there is no room for both."""
    values = [f"{line.points[-1][1]:.2f}" for line in lines]
    if len(lines) == 1:
        return values
    named = [f"{line.title} {value}" for line, value in zip(lines, values)]
    width = sum(metrics.horizontalAdvance(text) for text in named) + GAP_PX * (len(named) - 1)
    return named if width <= room else [line.title for line in lines]


def series_kind(name: str) -> str:
    """Which chart a figure belongs to: miou, loss, or none."""
    lower = name.lower()
    return "loss" if "loss" in lower else "miou" if "miou" in lower else ""


def nice_ceiling(value: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten that is not below the value."""
    if not value > 0:
        return 1.0
    power = 10.0 ** len(str(int(value))) if value >= 1 else 1.0
    while power / 10 >= value:
        power /= 10
    return next(power * part for part in (0.1, 0.2, 0.5, 1.0) if power * part >= value)


def _is_validation(name: str) -> bool:
    return "val" in name.lower()


def _title(name: str) -> str:
    if series_kind(name) == "miou":
        return tr("mIoU")
    return tr("validation") if _is_validation(name) else tr("training")


def _color(name: str) -> str:
    if series_kind(name) == "miou":
        return ACCURACY
    return VALIDATION if _is_validation(name) else TRAINING
