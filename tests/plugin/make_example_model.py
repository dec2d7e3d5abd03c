"""Makes resources/models/geopeft_example.model3; on QGIS 3.22: /usr/bin/python3 tests/plugin/make_example_model.py

Needed where the algorithms that it uses get parameters without which the model designer calls it incomplete.
"""

import sys
import tempfile
from pathlib import Path

from qgis.core import (
    QgsProcessing,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
)
from qgis.PyQt.QtCore import QPointF

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "resources" / "models" / "geopeft_example.model3"
HELP = {
    "ALG_DESC": (
        "Trains a model from labels, maps the raster with it, and draws the map as polygons: three steps as one. An "
        "example for the model designer: open the file resources/models/geopeft_example.model3 in the plugin's folder "
        "there and change it, for example to map other rasters or to filter the polygons."
    ),
    "raster": "The raster that the labels were drawn on; it is mapped afterwards.",
    "labels": "Polygons, lines or points with their class in a field.",
    "class_field": "The field of the labels that holds the class.",
    "minutes": "The training stops after this time with the best that it has reached.",
    "Model": "The trained model, one small file.",
    "Map": "The class raster.",
    "Polygons": "The map as polygons with their class and area.",
}
Source = QgsProcessingModelChildParameterSource


def make():
    """The model."""
    model = QgsProcessingModelAlgorithm("Train, map and polygons", "Models")
    shapes, decimal = [QgsProcessing.SourceType.TypeVectorAnyGeometry], QgsProcessingParameterNumber.Type.Double
    limit = QgsProcessingParameterNumber("minutes", "Time limit in minutes (0: none)", decimal, 5.0, minValue=0.0)
    inputs = (
        QgsProcessingParameterRasterLayer("raster", "Raster"),
        QgsProcessingParameterFeatureSource("labels", "Labels", shapes),
        QgsProcessingParameterField("class_field", "Field with the class", "class", "labels"),
        limit,
    )
    for number, parameter in enumerate(inputs):
        component = QgsProcessingModelParameter(parameter.name())
        component.setDescription(parameter.description())
        component.setPosition(QPointF(120 + 220 * number, 60))
        parameter.setHelp(HELP[parameter.name()])
        model.addModelParameter(parameter, component)
    model.setParameterOrder([parameter.name() for parameter in inputs])
    fit = {
        "RASTERS": Source.fromModelParameter("raster"),
        "LABELS": Source.fromModelParameter("labels"),
        "CLASS_FIELD": Source.fromModelParameter("class_field"),
        "MAX_MINUTES": Source.fromModelParameter("minutes"),
    }
    predict = {"MODEL": Source.fromChildOutput("fit", "MODEL"), "RASTER": Source.fromModelParameter("raster")}
    add_step(model, "fit", "Train a model from labels", fit, {"Model": "MODEL"}, 220)
    add_step(model, "predict", "Apply a model", predict, {"Map": "OUTPUT", "Polygons": "POLYGONS"}, 400)
    model.setHelpContent(HELP)
    return model


def add_step(model, name, title, sources, outputs, top):
    """One algorithm; parameters that nothing is said of keep their defaults, which the designer wants written."""
    step = QgsProcessingModelChildAlgorithm(f"geopeft:{name}")
    step.setChildId(name)
    step.setDescription(title)
    step.setPosition(QPointF(340, top))
    for parameter in step.algorithm().parameterDefinitions():
        is_optional = parameter.flags() & parameter.Flag.FlagOptional
        if parameter.name() not in sources and not is_optional and not parameter.isDestination():
            default = "auto" if parameter.name() == "DEVICE" else parameter.defaultValue()
            sources[parameter.name()] = Source.fromStaticValue(default)
    for parameter, source in sources.items():
        step.addParameterSources(parameter, [source])
    made = {}
    for number, (title, output) in enumerate(outputs.items()):
        made[title] = QgsProcessingModelOutput(title)
        made[title].setChildId(name)
        made[title].setChildOutputName(output)
        made[title].setDescription(title)
        made[title].setPosition(QPointF(700, top + 30 + 80 * number))
    step.setModelOutputs(made)
    model.addChildAlgorithm(step)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from qgis_session import start_qgis

    application = start_qgis(tempfile.mkdtemp())
    from geopeft_qgis.provider import GeopeftProvider

    provider = GeopeftProvider()
    application.processingRegistry().addProvider(provider)
    made_model = make()
    complete, missing = made_model.validate()
    if not complete or not made_model.toFile(str(FILE)):
        sys.exit(f"The model is incomplete: {missing}")
