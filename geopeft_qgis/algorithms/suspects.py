"""Labels that are likely wrong: the engine's `suspects`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgis.core import QgsProcessingContext, QgsProcessingOutputNumber

from .advice import AdviceAlgorithm


class SuspectsAlgorithm(AdviceAlgorithm):
    """Labels and rasters in, labels that are contradicted out."""

    JOB = "suspects"
    STAGE_ENDS = {"labels": 30.0, "label raster": 30.0}
    TITLE = "Find labels that are likely wrong"
    TAGS = ("labels", "quality", "mislabelled", "label noise", "outliers", "training areas", "check")
    HELP = (
        "Lists the labels that the other labels contradict, the most suspicious first: a first map is made without "
        "each label and its neighbourhood, and compared with it.\n\n"
        "Look at the first ones on the image. Correct a class that is wrong, redraw a shape that covers two things; "
        "leave a label that is right, even if it looks unusual: it teaches the map what is hard.\n\n"
        "Fields: <b>rank</b>; <b>reason</b>, in a sentence; the <b>given</b> and the <b>likely</b> class with their "
        "probabilities in percent; <b>disagree</b>, the percentage of its pixels that look like another class; "
        "<b>score</b>, how strongly the label is contradicted.\n\n"
        "A label that is the only one of its class cannot be judged."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:  # noqa: N802
        """Declares parameters and outputs."""
        self.add_sources(self.tr("Area of the background class"))
        self.add_places(self.tr("Labels to check"))
        self.addOutput(QgsProcessingOutputNumber("JUDGED", self.tr("Labels that could be judged")))

    def results(
        self,
        outputs: Mapping[str, Any],
        job: Mapping[str, Any],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> dict[str, Any]:
        """The layer and its numbers."""
        return {**super().results(outputs, job, parameters, context), "JUDGED": outputs.get("judged")}
