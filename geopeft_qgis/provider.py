"""The Processing provider `geopeft`."""

from __future__ import annotations

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from . import settings
from .algorithms.evaluate import EvaluateAlgorithm
from .algorithms.export import ExportAlgorithm
from .algorithms.fit import FitAlgorithm
from .algorithms.predict import PredictAlgorithm
from .algorithms.pretrain import PretrainAlgorithm

ALGORITHMS = (FitAlgorithm, PredictAlgorithm, EvaluateAlgorithm, ExportAlgorithm, PretrainAlgorithm)


class GeopeftProvider(QgsProcessingProvider):
    """Lists the algorithms."""

    def loadAlgorithms(self) -> None:  # noqa: N802
        """Called by Processing."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

    def id(self) -> str:
        return "geopeft"

    def name(self) -> str:
        return "GeoPEFT"

    def longName(self) -> str:  # noqa: N802
        return self.tr("GeoPEFT: fine-tuned geospatial models")

    def versionInfo(self) -> str:  # noqa: N802
        return settings.version()

    def icon(self) -> QIcon:
        return QIcon(self.svgIconPath())

    def svgIconPath(self) -> str:  # noqa: N802
        return settings.resource("icons", "geopeft.svg")

    def supportedOutputRasterLayerExtensions(self) -> list[str]:  # noqa: N802
        """The engine writes GeoTIFF only."""
        return ["tif"]

    def supportedOutputVectorLayerExtensions(self) -> list[str]:  # noqa: N802
        """The engine writes GeoPackage only."""
        return ["gpkg"]

    def supportsNonFileBasedOutput(self) -> bool:  # noqa: N802
        """Results are files."""
        return False
