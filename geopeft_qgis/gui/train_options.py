"""What a training starts from, and what else it gives: a few choices that appear where there is something to choose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from qgis.core import QgsProject
from qgis.PyQt.QtWidgets import QCheckBox, QVBoxLayout, QWidget

from ..last_models import LastModel, last_model

CHECKPOINT_SUFFIX = ".resume"


class TrainOptions(QWidget):
    """Check boxes: go on with an interrupted training, start from the last model, polygons too."""

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.setObjectName("GeopeftTrainOptions")
        self._last: Optional[LastModel] = None
        self._shown: tuple[Optional[LastModel], bool] = (None, False)
        self.resume_box = QCheckBox(self.tr("Continue the training that was stopped"))
        self.resume_box.setObjectName("GeopeftResumeBox")
        self.resume_box.setChecked(True)
        self.resume_box.setToolTip(
            self.tr("With the same labels and settings it goes on where it was; else it starts anew.")
        )
        self.start_box = QCheckBox(self.tr("Start from the last model"))
        self.start_box.setObjectName("GeopeftStartBox")
        self.polygons_box = QCheckBox(self.tr("Polygons too"))
        self.polygons_box.setObjectName("GeopeftPolygonsBox")
        self.polygons_box.setToolTip(self.tr("The map as a layer of polygons, with area and confidence."))
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for box in (self.resume_box, self.start_box, self.polygons_box):
            column.addWidget(box)
        self.set_choice("", (), Path())

    def set_choice(self, raster: str, classes: Sequence[str], model: Path) -> None:
        """Shows what there is for a raster and a model to write; cheap enough for every change of the form.

        Args:
            raster: source of the raster, as `layers.raster_path` gives it; empty: none is chosen.
            classes: names of the labels' classes.
            model: the package that the training would write.
        """
        self._last = last_model(QgsProject.instance(), raster) if raster else None
        suits = self._last is not None and self._last.suits(classes)
        if (self._last, suits) != self._shown:
            # A choice of the user stays until there is another model to choose.
            self._shown = (self._last, suits)
            self.start_box.setChecked(suits)
        self.start_box.setVisible(self._last is not None)
        if self._last is not None:
            self.start_box.setToolTip(self._start_tip(self._last, classes))
        self.resume_box.setVisible(is_interrupted(model))

    @property
    def polygons(self) -> bool:
        """Whether the map is wanted as polygons too."""
        return self.polygons_box.isChecked()

    def fit_parameters(self) -> dict[str, Any]:
        """What the choices mean for `geopeft:fit`."""
        starts = self._last is not None and self.start_box.isChecked()
        return {
            "START_MODEL": str(self._last.path) if self._last is not None and starts else "",
            "RESUME": self.resume_box.isChecked(),
        }

    def _start_tip(self, last: LastModel, classes: Sequence[str]) -> str:
        tip = self.tr("Takes over what {name} has learned, so that the training is shorter.").format(
            name=last.path.name
        )
        gone = [name for name in last.classes if name not in classes]
        if gone:
            tip += " " + self.tr("It knows classes that these labels do not have: {names}.").format(
                names=", ".join(gone)
            )
        return tip


def is_interrupted(model: Path) -> bool:
    """Whether a training that was to write this model was ended before it had done so, and can go on."""
    return bool(model.name) and model.with_name(model.name + CHECKPOINT_SUFFIX).is_file()
