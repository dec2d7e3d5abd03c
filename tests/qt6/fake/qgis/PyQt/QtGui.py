"""qgis.PyQt.QtGui as QGIS 4 has it."""

from PyQt6.QtGui import *  # noqa: F403
