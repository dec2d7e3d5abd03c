"""qgis.PyQt.QtPrintSupport as QGIS 4 has it."""

from PyQt6.QtPrintSupport import *  # noqa: F403
