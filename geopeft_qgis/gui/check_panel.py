"""The tab for what comes after a first map: better labels, and how good the map is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import qgis.processing
from qgis.core import (
    QgsCoordinateTransform,
    QgsCsException,
    QgsFeatureRequest,
    QgsMapLayer,
    QgsPalettedRasterRenderer,
    QgsProcessingUtils,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.gui import QgsCollapsibleGroupBox
from qgis.PyQt import sip
from qgis.PyQt.QtCore import Qt, QUrl, pyqtSignal
from qgis.PyQt.QtGui import QDesktopServices
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QFormLayout,
    QGridLayout,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from ..layers import LayerError, raster_parameter
from ..model_match import match
from ..result_metadata import MODEL_PROPERTY
from ..results import style_places
from ..sample_points import is_sample
from .form import TrainingForm
from .model_catalogue import ModelCatalogue
from .run_row import RunRow

SUGGEST, SUSPECTS, REPORT = "geopeft:suggest", "geopeft:suspects", "geopeft:report"
# A place is shown with so much around it, in its own sizes.
AROUND = 4.0
ID_ROLE = Qt.ItemDataRole.UserRole


class CheckPanel(QScrollArea):
    """Where to label next, which labels are likely wrong, and proofs of the map.

    Signals: `noticed` level and text for the message bar.

    Args:
        form: raster and labels of the tab beside it.
        catalogue: the models that can be checked.
        iface: QGIS's window; None in tests.
    """

    noticed = pyqtSignal(str, str)

    def __init__(
        self, form: TrainingForm, catalogue: ModelCatalogue, iface: Any = None, parent: Optional[QWidget] = None
    ) -> None:
        super().__init__(parent)
        self._form, self._catalogue, self._iface = form, catalogue, iface
        self._engine_ready = False
        self._model = self._algorithm = self._page = ""
        self._places: Optional[QgsVectorLayer] = None
        self.setObjectName("GeopeftCheckPanel")
        self._build()
        self._form.changed.connect(self.refresh)
        self._catalogue.changed.connect(self._list_models)
        self.run_row.ended.connect(self._ended)
        QgsProject.instance().layersWillBeRemoved.connect(self._layers_go)
        self._list_models()

    @property
    def is_busy(self) -> bool:
        """True while something runs."""
        return self.run_row.is_busy

    def set_engine_ready(self, ready: bool) -> None:
        """Without an engine nothing can be checked."""
        self._engine_ready = ready
        self.refresh()

    def refresh(self) -> None:
        """Brings the buttons up to date with the engine, the layers and what runs."""
        free = self._engine_ready and not self.is_busy
        missing = self._form.missing()
        self.label_hint.setText(missing or self.tr("For the raster and the labels of the tab 'Train'."))
        for button in (self.suggest_button, self.suspects_button):
            button.setEnabled(free and not missing)
        self.report_button.setEnabled(free and bool(self.model()))
        for button in self.dialog_buttons:
            button.setEnabled(self._engine_ready)

    def model(self) -> str:
        """Path of the model that is to be checked; empty: there is none."""
        return str(self.model_box.currentData() or "")

    def set_model(self, path: str) -> None:
        """Chooses a model, also one that the catalogue has still to read."""
        self._model = path
        self._list_models()

    def report(self, path: str) -> None:
        """Writes the accuracy report of a model and opens it in the browser."""
        self.set_model(path)
        if not path or self.is_busy:
            return
        self._page = str(Path(path).with_name(f"{Path(path).stem}_report.html"))
        title = self.tr("Report of {name}").format(name=Path(path).stem)
        self._start(title, REPORT, {"MODEL": path, "REPORT": self._page, **self._shown_in_report(path)})

    def end(self) -> None:
        """Ends what runs and lets layers go; for when the plugin goes away."""
        self.run_row.end()
        self._places = None
        QgsProject.instance().layersWillBeRemoved.disconnect(self._layers_go)
        self._catalogue.changed.disconnect(self._list_models)

    # What is in the panel

    def _build(self) -> None:
        self.label_hint = QLabel()
        self.label_hint.setWordWrap(True)
        self.suggest_button = _button(
            self.tr("Where to label next"),
            "GeopeftSuggest",
            self.tr("Up to 20 places that would teach the model most, with the reason."),
            lambda: self._ask(SUGGEST),
        )
        self.suspects_button = _button(
            self.tr("Labels that are likely wrong"),
            "GeopeftSuspects",
            self.tr("Labels that a map made without them contradicts, the most suspicious first."),
            lambda: self._ask(SUSPECTS),
        )
        self.run_row = RunRow("GeopeftCheckRun")
        self.places_title = QLabel()
        self.places_title.setWordWrap(True)
        self.places_list = QListWidget()
        self.places_list.setObjectName("GeopeftPlaces")
        self.places_list.setWordWrap(True)
        self.places_list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.places_list.setVerticalScrollMode(QListWidget.ScrollMode.ScrollPerPixel)
        self.places_list.setMinimumHeight(160)
        self.places_list.itemClicked.connect(self._show_place)
        self.places_list.itemActivated.connect(self._show_place)
        self.model_box = QComboBox()
        self.model_box.setObjectName("GeopeftCheckedModel")
        self.model_box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.model_box.setMinimumContentsLength(8)
        self.model_box.currentIndexChanged.connect(self.refresh)
        self.report_button = _button(
            self.tr("Accuracy report"),
            "GeopeftReport",
            self.tr("All that is known of the model's accuracy as one page, opened in the browser."),
            lambda: self.report(self.model()),
        )
        self.dialog_buttons = [
            _button(title, f"Geopeft{name.title()}", hint, lambda *_, name=name: self._open_dialog(name))
            for name, title, hint in (
                ("evaluate", self.tr("Other labels …"), self.tr("Score the model on labels it has not seen.")),
                ("compare", self.tr("Compare …"), self.tr("Two models or maps on the same labels.")),
                ("sample", self.tr("Draw a sample …"), self.tr("Random points of a map, to be labelled by eye.")),
                ("area", self.tr("Estimate areas …"), self.tr("Area of each class from a sample that is labelled.")),
            )
        ]
        self._arrange()

    def _arrange(self) -> None:
        labels = QgsCollapsibleGroupBox(self.tr("Better labels"))
        column = QVBoxLayout(labels)
        for widget in (self.label_hint, self.suggest_button, self.suspects_button, self.places_title):
            column.addWidget(widget)
        column.addWidget(self.places_list, 1)
        accuracy = QgsCollapsibleGroupBox(self.tr("How good is the map?"))
        form = QFormLayout(accuracy)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow(self.tr("Model"), self.model_box)
        form.addRow(self.report_button)
        grid = QGridLayout()
        for number, button in enumerate(self.dialog_buttons):
            grid.addWidget(button, number // 2, number % 2)
        form.addRow(grid)
        content = QWidget()
        whole = QVBoxLayout(content)
        whole.addWidget(accuracy)
        whole.addWidget(labels, 1)
        whole.addWidget(self.run_row)
        whole.addStretch(0)
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFrameShape(QScrollArea.Shape.NoFrame)
        self.setWidget(content)
        self._show_places(None, "")

    def _list_models(self) -> None:
        """The models that can be used, the newest first; the one that was chosen stays chosen."""
        chosen = self._model or self.model()
        entries = [entry for entry in self._catalogue.entries() if entry.summary is not None]
        entries.sort(key=lambda entry: entry.summary.created if entry.summary else "", reverse=True)
        self.model_box.blockSignals(True)
        self.model_box.clear()
        for entry in entries:
            self.model_box.addItem(entry.name, entry.path)
            self.model_box.setItemData(self.model_box.count() - 1, entry.path, Qt.ItemDataRole.ToolTipRole)
        at = self.model_box.findData(chosen)
        self.model_box.setCurrentIndex(max(at, 0) if entries else -1)
        if at >= 0:
            self._model = ""
        self.model_box.blockSignals(False)
        self.refresh()

    # Running

    def _start(self, title: str, algorithm: str, parameters: dict[str, Any]) -> None:
        self._algorithm = algorithm
        self.run_row.start(title, algorithm, parameters)
        self.refresh()

    def _ask(self, algorithm: str) -> None:
        """Starts what gives advice on labels."""
        try:
            sources = self._form.sources()
        except LayerError as error:
            self.noticed.emit("error", str(error))
            return
        button = self.suggest_button if algorithm == SUGGEST else self.suspects_button
        target = QgsProcessingUtils.generateTempFilename("places.gpkg")
        self._start(button.text(), algorithm, {**sources, "OUTPUT": target})

    def _shown_in_report(self, path: str) -> dict[str, Any]:
        """Raster and labels for the report's maps, where the raster fits the model."""
        entry, layer = self._catalogue.entry(path), self._form.raster()
        if entry is None or entry.summary is None or layer is None or self._form.missing():
            return {}
        found = match(entry.summary, layer)
        if found.refusal or found.doubt:
            return {}
        try:
            sources = self._form.sources()
        except LayerError:
            return {}
        return {name: sources[name] for name in ("RASTERS", "LABELS", "CLASS_FIELD", "LINE_WIDTH")}

    def _ended(self, results: dict[str, Any], error: str, canceled: bool) -> None:
        self.refresh()
        if error:
            self.noticed.emit("error", error)
        elif not canceled and self._algorithm == REPORT:
            if not QDesktopServices.openUrl(QUrl.fromLocalFile(self._page)):
                self.noticed.emit("success", self.tr("The report is in {path}").format(path=self._page))
        elif not canceled:
            self._take_places(str(results["OUTPUT"]))

    def _take_places(self, path: str) -> None:
        """The places as a layer in memory: advice is for now, and no file stays behind."""
        title = self.suggest_button.text() if self._algorithm == SUGGEST else self.suspects_button.text()
        read = QgsVectorLayer(path, title, "ogr")
        if not read.isValid():
            self.noticed.emit("error", self.tr("What was found cannot be read. Run it again."))
            return
        places = read.materialize(QgsFeatureRequest())
        places.setName(title)
        # It is no layer to draw labels into.
        places.setCustomProperty(MODEL_PROPERTY, self._algorithm)
        # Nobody is asked to save it when QGIS is closed.
        places.setCustomProperty("skipMemoryLayersCheck", 1)
        style_places(places)
        self._forget_places()
        QgsProject.instance().addMapLayer(places)
        self._show_places(places, title)

    def _forget_places(self) -> None:
        if self._places is not None and not sip.isdeleted(self._places):
            QgsProject.instance().removeMapLayer(self._places.id())
        self._places = None

    def _layers_go(self, ids: list[str]) -> None:
        if self._places is not None and self._places.id() in ids:
            self._show_places(None, "")

    def _show_places(self, layer: Optional[QgsVectorLayer], title: str) -> None:
        self._places = layer
        self.places_list.clear()
        if layer is not None:
            for feature in sorted(layer.getFeatures(), key=lambda feature: int(feature["rank"])):
                item = QListWidgetItem(f"{feature['rank']}  {feature['reason']}")
                item.setData(ID_ROLE, feature.id())
                self.places_list.addItem(item)
            count = self.places_list.count()
            found = self.tr("{title}: {count}. Click one to see it.") if count else self.tr("{title}: none was found.")
            self.places_title.setText(found.format(title=title, count=count))
        self.places_title.setVisible(layer is not None)
        self.places_list.setVisible(self.places_list.count() > 0)

    def _show_place(self, item: QListWidgetItem) -> None:
        """Moves the map to a place."""
        if self._places is None or self._iface is None:
            return
        geometry = self._places.getFeature(item.data(ID_ROLE)).geometry()
        canvas = self._iface.mapCanvas()
        crs = self._places.crs()
        box = geometry.boundingBox()
        box.grow(AROUND * max(box.width(), box.height()))
        try:
            to_canvas = QgsCoordinateTransform(crs, canvas.mapSettings().destinationCrs(), QgsProject.instance())
            canvas.setExtent(to_canvas.transformBoundingBox(box))
        except QgsCsException:
            return
        canvas.refresh()
        canvas.flashGeometries([geometry], crs)

    # Dialogs of the toolbox

    def _open_dialog(self, name: str) -> None:
        """An algorithm's own dialog, with what is chosen here."""
        parameters: dict[str, Any] = {}
        if self.model() and name == "evaluate":
            parameters["MODEL"] = self.model()
        if self.model() and name == "compare":
            parameters["FIRST"] = self.model()
        raster = self._form.raster()
        if raster is not None and name in ("evaluate", "compare"):
            try:
                parameters["RASTERS"] = [raster_parameter(raster)]
            except LayerError:
                pass
        if name == "sample":
            found = _first(QgsRasterLayer, _is_map)
            parameters |= {"MAP": found.id()} if found is not None else {}
        if name == "area":
            found = _first(QgsVectorLayer, is_sample)
            parameters |= {"POINTS": found.id()} if found is not None else {}
        dialog = qgis.processing.createAlgorithmDialog(f"geopeft:{name}", parameters)
        if dialog is None:
            self.noticed.emit("error", self.tr("Processing is switched off. Switch on its plugin, then run again."))
            return
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.show()


def _is_map(layer: QgsRasterLayer) -> bool:
    """Whether it is a class raster of ours."""
    return bool(layer.customProperty(MODEL_PROPERTY)) and isinstance(layer.renderer(), QgsPalettedRasterRenderer)


def _first(kind: type[QgsMapLayer], fits: Callable[[Any], bool]) -> Optional[QgsMapLayer]:
    """The topmost layer of a kind that fits."""
    order = QgsProject.instance().layerTreeRoot().layerOrder()
    return next((layer for layer in order if isinstance(layer, kind) and fits(layer)), None)


def _button(text: str, name: str, hint: str, pressed: Any) -> QPushButton:
    button = QPushButton(text)
    button.setObjectName(name)
    button.setToolTip(hint)
    button.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    button.clicked.connect(lambda *_: pressed())
    return button
