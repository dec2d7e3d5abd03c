"""The question whether the licence of a backbone's weights is accepted, asked once where it limits their use."""

from __future__ import annotations

from typing import Optional

from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QMessageBox, QWidget

from .. import settings
from ..language import tr
from ..model_tables import Row, backbone


def accepted(name: str) -> bool:
    """True where the user has accepted the licence of this backbone, as it is."""
    row = backbone(name)
    return row is not None and row.restricted and settings.get(_setting(row)) == row.licence


def may_use(name: str, parent: Optional[QWidget] = None) -> bool:
    """Asks where it has to be asked; False: the user does not accept."""
    row = backbone(name)
    if row is None or not row.restricted or accepted(name):
        return True
    text = tr(
        "The weights of {name} are under the licence '{licence}', which limits what they, and models that build on "
        "them, may be used for. Read it: {terms}"
    )
    box = QMessageBox(QMessageBox.Icon.Question, "GeoPEFT", text.format(**row._asdict()), parent=parent)
    box.setTextInteractionFlags(Qt.TextInteractionFlag.TextBrowserInteraction)
    box.setInformativeText(tr("Do you accept it?"))
    box.setStandardButtons(QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.No)
    box.setDefaultButton(QMessageBox.StandardButton.No)
    if box.exec() != QMessageBox.StandardButton.Yes:
        return False
    settings.put(_setting(row), row.licence)
    return True


def _setting(row: Row) -> str:
    return f"licence/{row.name}"
