"""A model package that is dropped on QGIS opens in the list of models."""

from __future__ import annotations

from collections.abc import Callable

from qgis.gui import QgsCustomDropHandler

from ..model_package import SUFFIX


class PackageDropHandler(QgsCustomDropHandler):
    """Takes .geopeft files that are dropped on QGIS's window.

    Register it with `iface.registerCustomDropHandler`, keep it, and unregister it when the plugin goes away.

    Args:
        opened: called with the path of each file.
    """

    def __init__(self, opened: Callable[[str], None]) -> None:
        super().__init__()
        self._opened = opened

    def handleFileDrop(self, file: str) -> bool:  # noqa: N802
        """Called by QGIS with each file; True where it was taken."""
        if not is_package(file):
            return False
        self._opened(file)
        return True


def is_package(path: str) -> bool:
    """Whether a file has the name of a model package."""
    return path.lower().endswith(SUFFIX)
