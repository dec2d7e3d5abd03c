"""The validation curve: accuracy and loss against the training step, drawn as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

from qgis.PyQt.QtCore import QCoreApplication, QPointF, QRectF, QSize, Qt
from qgis.PyQt.QtGui import QColor, QPainter, QPaintEvent, QPalette, QPen, QPolygonF
from qgis.PyQt.QtWidgets import QSizePolicy, QWidget

# Blue and orange are told apart by colour-blind eyes, on white and on black.
ACCURACY, VALIDATION, TRAINING = "#2f7fd6", "#e0801a", "#8c8c8c"
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
        self._series: dict[str, list[tuple[float, float]]] = {}
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setMinimumHeight(190)

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(300, 220)

    def clear(self) -> None:
        """Forgets all points."""
        self._series = {}
        self.update()

    def add(self, event: Mapping[str, Any]) -> None:
        """Adds the figures of a metric event."""
        for name, value in (event.get("values") or {}).items():
            if isinstance(value, (int, float)) and series_kind(name):
                self._series.setdefault(name, []).append((float(event.get("step") or 0), float(value)))
        self.update()

    def lines(self, kind: str) -> list[Line]:
        """The series of one chart; kind: miou or loss."""
        found = [(name, points) for name, points in self._series.items() if series_kind(name) == kind]
        return [Line(_title(name), _color(name), points) for name, points in found]

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        metrics = painter.fontMetrics()
        left = metrics.horizontalAdvance("0.00") + 10
        bottom = metrics.height() * 2 + 4
        painter.fillRect(self.rect(), self.palette().color(QPalette.ColorRole.Base))
        if not self._series:
            painter.setPen(self._ink(0.6))
            text = _tr("The validation curve appears here during training.")
            flags = int(Qt.AlignmentFlag.AlignCenter) | int(Qt.TextFlag.TextWordWrap)
            painter.drawText(self.rect().adjusted(10, 0, -10, 0), flags, text)
            return
        inner = QRectF(self.rect()).adjusted(left, 2, -10, -bottom)
        height = (inner.height() - metrics.height()) / 2
        last_step = max(step for points in self._series.values() for step, _ in points)
        upper = QRectF(inner.left(), inner.top() + metrics.height(), inner.width(), height - metrics.height())
        lower = QRectF(
            inner.left(), inner.bottom() - height + metrics.height(), inner.width(), height - metrics.height()
        )
        self._chart(painter, upper, self.lines("miou"), (0.0, 1.0), last_step)
        losses = self.lines("loss")
        top = max((value for line in losses for _, value in line.points), default=1.0)
        self._chart(painter, lower, losses, (0.0, nice_ceiling(top)), last_step)
        self._step_axis(painter, lower, last_step)

    def _chart(
        self, painter: QPainter, box: QRectF, lines: Sequence[Line], span: tuple[float, float], last_step: float
    ) -> None:
        metrics = painter.fontMetrics()
        for value in (span[0], (span[0] + span[1]) / 2, span[1]):
            y = box.bottom() - (value - span[0]) / (span[1] - span[0]) * box.height()
            painter.setPen(QPen(self._ink(0.18), 1))
            painter.drawLine(QPointF(box.left(), y), QPointF(box.right(), y))
            painter.setPen(self._ink(0.75))
            where = QRectF(0, y - metrics.height() / 2, box.left() - 5, metrics.height())
            right = int(Qt.AlignmentFlag.AlignRight) | int(Qt.AlignmentFlag.AlignVCenter)
            painter.drawText(where, right, f"{value:.2g}")
        x = box.left()
        for line in lines:
            shown = line.title if not line.points else f"{line.title} {line.points[-1][1]:.2f}"
            painter.setPen(self._colored(line.color))
            painter.drawText(QPointF(x, box.top() - metrics.descent() - 1), shown)
            x += metrics.horizontalAdvance(shown) + 12
            painter.setPen(QPen(self._colored(line.color), 2))
            places = [
                QPointF(
                    box.left() + step / max(last_step, 1) * box.width(),
                    box.bottom() - (min(max(value, span[0]), span[1]) - span[0]) / (span[1] - span[0]) * box.height(),
                )
                for step, value in line.points
            ]
            if len(places) == 1:
                painter.drawEllipse(places[0], 2, 2)
            else:
                painter.drawPolyline(QPolygonF(places))

    def _step_axis(self, painter: QPainter, box: QRectF, last_step: float) -> None:
        height = painter.fontMetrics().height()
        painter.setPen(self._ink(0.75))
        row = QRectF(box.left() - 20, box.bottom() + 2, box.width() + 20, height)
        painter.drawText(row.adjusted(14, 0, 0, 0), int(Qt.AlignmentFlag.AlignLeft), "0")
        painter.drawText(row, int(Qt.AlignmentFlag.AlignRight), f"{last_step:.0f}")
        painter.drawText(row, int(Qt.AlignmentFlag.AlignHCenter), _tr("training step"))

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
        return color.lighter(125) if is_dark else color


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
        return _tr("mIoU")
    return _tr("validation") if _is_validation(name) else _tr("training loss")


def _color(name: str) -> str:
    if series_kind(name) == "miou":
        return ACCURACY
    return VALIDATION if _is_validation(name) else TRAINING


def _tr(text: str) -> str:
    return QCoreApplication.translate("GeoPEFT", text)
