"""qgis.processing: the dialog of an algorithm, as the Processing plugin gives it."""

from __future__ import annotations

from typing import Any

from PyQt6.QtWidgets import QDialog


def createAlgorithmDialog(algorithm: str, parameters: dict[str, Any]) -> QDialog:
    """A dialog that holds nothing."""
    dialog = QDialog()
    dialog.setWindowTitle(algorithm)
    return dialog
