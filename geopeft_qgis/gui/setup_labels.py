"""Labels of the setup panel: sentences, links, captions, paths and times in words."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from qgis.PyQt.QtCore import QCoreApplication, Qt
from qgis.PyQt.QtWidgets import QGridLayout, QLabel, QWidget


def time_left(seconds: float) -> str:
    """A time left in words, no more exact than it is known."""
    if seconds < 60:
        return QCoreApplication.translate("GeoPEFT", "less than a minute left")
    return QCoreApplication.translate("GeoPEFT", "about {minutes} min left").format(minutes=round(seconds / 60))


def text_label(name: str) -> QLabel:
    """An empty label for sentences, which can be copied."""
    label = QLabel()
    label.setObjectName(name)
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


def link(name: str, text: str) -> QLabel:
    """A label to click on; unlike a button's, its text can be wider than the dock."""
    label = text_label(name)
    label.setText(anchor(text))
    label.setTextInteractionFlags(Qt.TextInteractionFlag.LinksAccessibleByMouse)
    label.setTextInteractionFlags(label.textInteractionFlags() | Qt.TextInteractionFlag.LinksAccessibleByKeyboard)
    label.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    return label


def anchor(text: str) -> str:
    """Plain text as a link."""
    return f'<a href="#">{html.escape(text)}</a>'


def captions(widget: QWidget, rows: Sequence[tuple[str, QWidget]]) -> None:
    """Captions and values below each other."""
    grid = QGridLayout(widget)
    grid.setContentsMargins(0, 0, 0, 0)
    grid.setColumnStretch(1, 1)
    grid.setColumnMinimumWidth(0, 64)
    for row, (name, value) in enumerate(rows):
        if name:
            grid.addWidget(QLabel(name), row, 0, Qt.AlignmentFlag.AlignTop)
        grid.addWidget(value, row, 1)


def short(path: Path) -> str:
    """A path with ~ for the home folder."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except ValueError:
        return str(path)


def breakable(path: str) -> str:
    """A path that a label can break after each part."""
    return path.replace("/", "/\u200b").replace("\\", "\\\u200b")
