"""qgis.PyQt.QtWidgets as QGIS 4 has it."""

from PyQt6.QtGui import QAction, QActionGroup, QShortcut  # noqa: F401, QGIS puts them where Qt 5 had them
from PyQt6.QtWidgets import *  # noqa: F403
