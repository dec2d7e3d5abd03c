"""What is told: in full in the log panel, in short in the message bar."""

from __future__ import annotations

from typing import Any

from qgis.core import Qgis, QgsMessageLog

SENDER = "GeoPEFT"
LEVELS = {
    "warning": Qgis.MessageLevel.Warning,
    "error": Qgis.MessageLevel.Critical,
    "success": Qgis.MessageLevel.Success,
}


def log(level: str, text: str, alerts: bool = False) -> None:
    """A line in the log panel; `level` is that of an event, any other than warning, error and success is information.

    Args:
        alerts: whether QGIS points at the log panel.
    """
    if text:
        QgsMessageLog.logMessage(text, SENDER, LEVELS.get(level, Qgis.MessageLevel.Info), alerts)


def notify(iface: Any, level: str, text: str, seconds: int) -> None:
    """A short notice in the message bar; an error stays until it is closed.

    Args:
        iface: QGIS's window; without one nothing is shown.
        seconds: how long other notices stay.
    """
    if iface is not None and text:
        lasts = 0 if level == "error" else seconds
        iface.messageBar().pushMessage(SENDER, text, LEVELS.get(level, Qgis.MessageLevel.Info), lasts)
