"""How a model package looks: a row in a list, and a page with everything that it says of itself."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from qgis.core import QgsApplication
from qgis.PyQt.QtCore import QDateTime, QLocale, QModelIndex, QRect, QSize, Qt
from qgis.PyQt.QtGui import QColor, QFont, QFontMetrics, QPainter, QPalette, QPen
from qgis.PyQt.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from ..language import tr
from ..model_match import length_text
from ..model_package import Accuracy, BandEntry, ClassEntry, Summary, plain
from .model_catalogue import Entry

ENTRY_ROLE = Qt.ItemDataRole.UserRole
CHIP_PX, CHIP_GAP_PX, EDGE_PX, LINE_GAP_PX = 12, 3, 6, 5
MAX_CHIPS = 12


class ModelDelegate(QStyledItemDelegate):
    """Paints a model: name and date, below them the colours of its classes and its accuracy."""

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex) -> QSize:  # noqa: N802
        line = max(option.fontMetrics.height(), CHIP_PX)
        return QSize(120, 2 * line + LINE_GAP_PX + 2 * EDGE_PX)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        entry = index.data(ENTRY_ROLE)
        self.initStyleOption(option, index)
        option.text = ""
        widget: Optional[QWidget] = option.widget
        style = widget.style() if widget is not None else QgsApplication.style()
        style.drawControl(QStyle.ControlElement.CE_ItemViewItem, option, painter, widget)
        if not isinstance(entry, Entry):
            return
        painter.save()
        is_chosen = bool(option.state & QStyle.StateFlag.State_Selected)
        role = QPalette.ColorRole.HighlightedText if is_chosen else QPalette.ColorRole.Text
        ink = option.palette.color(role)
        box = option.rect.adjusted(EDGE_PX, EDGE_PX, -EDGE_PX, -EDGE_PX)
        height = (box.height() - LINE_GAP_PX) // 2
        upper = QRect(box.left(), box.top(), box.width(), height)
        lower = QRect(box.left(), box.bottom() - height, box.width(), height)
        self._paint_title(painter, upper, option.font, ink, entry)
        if entry.summary is None:
            self._paint_damage(painter, lower, ink, entry)
        else:
            self._paint_summary(painter, lower, ink, entry.summary)
        painter.restore()

    def _paint_title(self, painter: QPainter, box: QRect, font: QFont, ink: QColor, entry: Entry) -> None:
        day = date_text(entry.summary.created, with_time=False) if entry.summary else ""
        painter.setPen(_faded(ink, 0.7))
        painter.drawText(box, int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter), day)
        room = box.width() - painter.fontMetrics().horizontalAdvance(day) - 2 * EDGE_PX
        bold = QFont(font)
        bold.setBold(True)
        painter.setFont(bold)
        painter.setPen(ink)
        name = QFontMetrics(bold).elidedText(entry.name, Qt.TextElideMode.ElideMiddle, room)
        painter.drawText(box, int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter), name)
        painter.setFont(font)

    def _paint_damage(self, painter: QPainter, box: QRect, ink: QColor, entry: Entry) -> None:
        side = min(box.height(), 16)
        icon = QgsApplication.getThemeIcon("/mIconWarning.svg")
        icon.paint(painter, box.left(), box.top() + (box.height() - side) // 2, side, side)
        text = box.adjusted(side + CHIP_GAP_PX, 0, 0, 0)
        painter.setPen(ink)
        # The path comes first in the sentence; the row has the name already.
        sentence = entry.error.replace(entry.path, Path(entry.path).name)
        shown = painter.fontMetrics().elidedText(sentence, Qt.TextElideMode.ElideRight, text.width())
        painter.drawText(text, int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter), shown)

    def _paint_summary(self, painter: QPainter, box: QRect, ink: QColor, model: Summary) -> None:
        accuracy = model.accuracy.text or tr("accuracy not measured")
        painter.setPen(_faded(ink, 1.0 if model.accuracy.text else 0.7))
        painter.drawText(box, int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter), accuracy)
        room = box.width() - painter.fontMetrics().horizontalAdvance(accuracy) - 2 * EDGE_PX
        paint_chips(painter, QRect(box.left(), box.top(), room, box.height()), ink, model.classes)


def paint_chips(painter: QPainter, box: QRect, ink: QColor, classes: Iterable[ClassEntry]) -> None:
    """Squares in the classes' colours; where there is no room for all, how many more there are."""
    listed = list(classes)
    step = CHIP_PX + CHIP_GAP_PX
    fitting = max(1, box.width() // step)
    if len(listed) > fitting:
        fitting = max(1, (box.width() - painter.fontMetrics().horizontalAdvance("+000")) // step)
    top = box.top() + (box.height() - CHIP_PX) // 2
    for number, entry in enumerate(listed[:fitting]):
        chip = QRect(box.left() + number * step, top, CHIP_PX, CHIP_PX)
        painter.fillRect(chip, QColor(entry.color))
        painter.setPen(QPen(_faded(ink, 0.35), 1))
        painter.drawRect(chip.adjusted(0, 0, -1, -1))
    if len(listed) > fitting:
        painter.setPen(_faded(ink, 0.7))
        rest = box.adjusted(min(fitting, len(listed)) * step, 0, 0, 0)
        painter.drawText(rest, int(Qt.AlignmentFlag.AlignVCenter), f"+{len(listed) - fitting}")


def details_html(entry: Entry) -> str:
    """Everything that a model says of itself, for a text view. Nothing of the file is taken as HTML."""
    title = f"<h3>{html.escape(entry.name)}</h3>"
    if entry.summary is None:
        return f"{title}<p>{html.escape(entry.error)}</p>"
    model = entry.summary
    rows = [
        (tr("Bands"), html.escape(", ".join(band_text(band) for band in model.bands))),
        (tr("Pixel size"), html.escape(length_text(model.gsd_m))),
        (tr("Values"), html.escape(model.sensor)),
        (tr("Backbone"), _breakable(model.backbone)),
        (tr("Licence of its weights"), html.escape(model.licence or tr("unknown"))),
        (tr("Their revision"), _breakable(model.revision)),
        (tr("Paper"), _breakable(model.paper)),
        (tr("Adapter, decoder"), html.escape(f"{model.adapter}, {model.decoder}")),
        (tr("Trained"), html.escape(date_text(model.created))),
        (tr("With engine"), html.escape(model.engine_version)),
        (tr("File"), f"{_breakable(entry.path)} ({html.escape(size_text(entry.size_bytes))})"),
    ]
    lines = "".join(
        f'<tr><td width="30%" style="padding-right:6px">{html.escape(key)}</td><td>{value}</td></tr>'  # not shown
        for key, value in rows
        if value
    )
    table = f'<table width="100%" cellspacing="0" cellpadding="2">{lines}</table>'  # not shown
    return f"{title}<p>{_accuracy(model.accuracy)}</p><p>{_class_list(model.classes)}</p><p>{table}</p>"


def header_html(entry: Entry) -> str:
    """A model in two lines: name and accuracy, and the classes in their colours."""
    if entry.summary is None:
        return f"<b>{html.escape(entry.name)}</b><br>{html.escape(entry.error)}"
    accuracy = entry.summary.accuracy.text or tr("accuracy not measured")
    chips = " &nbsp; ".join(f"{_chip(row)}&nbsp;{_together(row.name)}" for row in entry.summary.classes[:MAX_CHIPS])
    rest = len(entry.summary.classes) - MAX_CHIPS
    more = f" &nbsp; +{rest}" if rest > 0 else ""
    return f"<b>{html.escape(entry.name)}</b> &nbsp; {_together(accuracy)}<br>{chips}{more}"


def _accuracy(accuracy: Accuracy) -> str:
    if not accuracy.text:
        return html.escape(tr("Accuracy not measured: too few labels to hold some out."))
    interval = tr("In brackets: the 95 % interval.") if accuracy.low is not None else ""
    how = tr("Measured on {how}.").format(how=accuracy.measured_on) if accuracy.measured_on else ""
    return f"<b>{html.escape(accuracy.text)}</b><br>{html.escape(f'{interval} {how}'.strip())}"


def _class_list(classes: Iterable[ClassEntry]) -> str:
    """Colours, names and IoUs in running lines: a table would be higher than the view."""
    listed = list(classes)
    entries = []
    for entry in listed:
        iou = f"&nbsp;{entry.iou:.2f}" if entry.iou is not None else ""
        entries.append(f"{_chip(entry)}&nbsp;{_together(entry.name)}{iou}")
    has_iou = any(entry.iou is not None for entry in listed)
    title = tr("Classes, with the IoU of each:") if has_iou else tr("Classes:")
    return f"{html.escape(title)}<br>{' &nbsp; '.join(entries)}"


def _chip(entry: ClassEntry) -> str:
    return f'<span style="color:{entry.color}">&#9632;</span>'  # not shown


def _together(text: str) -> str:
    """Escaped text that stays in one line."""
    return html.escape(text).replace(" ", "&nbsp;")


def _breakable(text: str) -> str:
    """Escaped text that may be broken after each slash or ten signs, so that a long one makes no view wider."""
    pieces = (html.escape(text[start : start + 10]) for start in range(0, len(text), 10))
    return "&#8203;".join(pieces)


def band_text(band: BandEntry) -> str:
    """For example `B04 (red, 0.66 µm)`."""
    wavelength = f"{band.wavelength_um:.3g} µm" if band.wavelength_um is not None else ""
    common = band.common if band.common.casefold() != band.name.casefold() else ""
    more = ", ".join(part for part in (common, wavelength) if part)
    return f"{band.name} ({more})" if more else band.name


def size_text(size_bytes: int) -> str:
    """The size of a file as people say it."""
    return QLocale().formattedDataSize(size_bytes, 1, QLocale.DataSizeFormat.DataSizeTraditionalFormat)


def date_text(created: str, with_time: bool = True) -> str:
    """An ISO date in the user's own way of writing and time zone; what is no date is shown as it is."""
    moment = QDateTime.fromString(created, Qt.DateFormat.ISODate)
    if not moment.isValid():
        return plain(created, 20)
    local = moment.toLocalTime()
    kind = QLocale.FormatType.ShortFormat
    return QLocale().toString(local, kind) if with_time else QLocale().toString(local.date(), kind)


def _faded(color: QColor, opacity: float) -> QColor:
    faded = QColor(color)
    faded.setAlphaF(opacity)
    return faded
