"""The Processing provider `geopeft`."""

from __future__ import annotations

from qgis.core import QgsApplication, QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from . import settings
from .algorithms.area import AreaAlgorithm
from .algorithms.average import AverageAlgorithm
from .algorithms.compare import CompareAlgorithm
from .algorithms.distil import DistilAlgorithm
from .algorithms.evaluate import EvaluateAlgorithm
from .algorithms.export import ExportAlgorithm
from .algorithms.fit import FitAlgorithm
from .algorithms.predict import PredictAlgorithm
from .algorithms.predict_many import PredictManyAlgorithm
from .algorithms.pretrain import PretrainAlgorithm
from .algorithms.renderlayer import RenderLayerAlgorithm
from .algorithms.report import ReportAlgorithm
from .algorithms.sample import SampleAlgorithm
from .algorithms.stack import StackAlgorithm
from .algorithms.study import StudyAlgorithm
from .algorithms.suggest import SuggestAlgorithm
from .algorithms.suspects import SuspectsAlgorithm
from .example_model import ExampleModel

ALGORITHMS = (
    FitAlgorithm,
    PredictAlgorithm,
    PredictManyAlgorithm,
    EvaluateAlgorithm,
    CompareAlgorithm,
    StudyAlgorithm,
    ReportAlgorithm,
    SuggestAlgorithm,
    SuspectsAlgorithm,
    SampleAlgorithm,
    AreaAlgorithm,
    DistilAlgorithm,
    ExportAlgorithm,
    AverageAlgorithm,
    PretrainAlgorithm,
    RenderLayerAlgorithm,
    StackAlgorithm,
)


class GeopeftProvider(QgsProcessingProvider):
    """Lists the algorithms."""

    def load(self) -> bool:
        """Called by the registry, just before the provider is in it."""
        # A model finds the algorithms of its steps in the registry, so it is read again once they are there.
        QgsApplication.processingRegistry().providerAdded.connect(self._added)
        return super().load()

    def _added(self, provider_id: str) -> None:
        if provider_id == self.id():
            QgsApplication.processingRegistry().providerAdded.disconnect(self._added)
            self.refreshAlgorithms()

    def loadAlgorithms(self) -> None:  # noqa: N802
        """Called by Processing."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())
        self.addAlgorithm(ExampleModel())

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
