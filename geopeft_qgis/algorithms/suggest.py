"""Where to label next: the engine's `suggest`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgis.core import QgsProcessingContext, QgsProcessingOutputNumber, QgsProcessingParameterNumber

from .advice import AdviceAlgorithm

MOST_PLACES = 20


class SuggestAlgorithm(AdviceAlgorithm):
    """Labels and rasters in, places to label out."""

    JOB = "suggest"
    STAGE_ENDS = {"labels": 5.0, "label raster": 5.0, "suggest": 100.0}
    TITLE = "Where to label next"
    TAGS = ("active learning", "sampling", "labels", "training areas", "uncertainty")
    HELP = (
        "Finds the places whose labels would teach the map the most, the best first. A first map is made of the labels "
        "that are there; places are taken where it hesitates, where nothing similar is labelled yet, where much of the "
        "ground looks alike, and away from each other.\n\n"
        "Each place is a small square that is one thing inside. Look at it on the image, and draw a label of what you "
        "see there, in it or around it. Then ask again: the next places depend on the new labels.\n\n"
        "Fields: <b>rank</b>; <b>reason</b>, in a sentence; the <b>likely</b> and the <b>second</b> class with their "
        "probabilities in percent; <b>doubt</b>, 100 where both are as likely; <b>distance</b> from the nearest label "
        "in standard deviations of the features; <b>ground</b>, the percentage of the ground that looks more like this "
        "than like any label."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        self.add_sources(self.tr("Area of the places, and of the background class"))
        kind, title = QgsProcessingParameterNumber.Type.Integer, self.tr("Places at most")
        self.addParameter(QgsProcessingParameterNumber("COUNT", title, kind, 10, minValue=1, maxValue=MOST_PLACES))
        self.add_places(self.tr("Places to label"))
        self.addOutput(QgsProcessingOutputNumber("WIDTH_M", self.tr("Width of a place in metres")))

    def choices(self, parameters: dict[str, Any], context: QgsProcessingContext) -> dict[str, Any]:
        """How many places, and how to read the labels."""
        return {**super().choices(parameters, context), "count": self.parameterAsInt(parameters, "COUNT", context)}

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The layer and its numbers."""
        return {**super().results(outputs, job, parameters, context), "WIDTH_M": outputs.get("width_m")}
