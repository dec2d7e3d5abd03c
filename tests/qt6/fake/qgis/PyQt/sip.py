"""qgis.PyQt.sip as QGIS 4 has it."""

from PyQt6.sip import *  # noqa: F403
