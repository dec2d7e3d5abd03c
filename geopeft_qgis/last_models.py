"""Which model was trained last on a raster: for a training that starts from it.

Kept for this session, and in the project, so that it is found again when the project is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from qgis.core import QgsProject

SCOPE, KEY = "geopeft", "last_models"
MOST = 50


class LastModel(NamedTuple):
    """A model package and the names of its classes."""

    path: Path
    classes: tuple[str, ...]

    def suits(self, classes: Iterable[str]) -> bool:
        """Whether these labels only add to what the model knows."""
        return bool(self.classes) and set(self.classes) <= set(classes)


_session: dict[str, LastModel] = {}


def remember(project: QgsProject, raster: str, model: Path, classes: Sequence[str]) -> None:
    """Notes the model that was just trained on a raster.

    Args:
        raster: its source, as the engine gets it.
    """
    _session[raster] = LastModel(model, tuple(classes))
    rows = [row for row in _rows(project) if project.readPath(row["raster"]) != raster]
    row = {"raster": project.writePath(raster), "model": project.writePath(str(model)), "classes": list(classes)}
    project.writeEntry(SCOPE, KEY, json.dumps([*rows, row][-MOST:], ensure_ascii=False))


def last_model(project: QgsProject, raster: str) -> Optional[LastModel]:
    """The model that was trained last on a raster, where its file is still there."""
    found = _session.get(raster)
    for row in _rows(project) if found is None else ():
        if project.readPath(row["raster"]) == raster:
            found = LastModel(Path(project.readPath(row["model"])), tuple(row["classes"]))
    return found if found is not None and found.path.is_file() else None


def forget_session() -> None:
    """Only what the project holds is known after this."""
    _session.clear()


def _rows(project: QgsProject) -> list[dict[str, Any]]:
    """What the project holds. It may come from anywhere: rows that are not as they should be are left out."""
    text, there = project.readEntry(SCOPE, KEY, "")
    try:
        rows = json.loads(text) if there and text else []
    except ValueError:
        return []
    return [row for row in rows if _is_row(row)] if isinstance(rows, list) else []


def _is_row(row: object) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(key), str) for key in ("raster", "model"))
        and isinstance(row.get("classes"), list)
        and all(isinstance(name, str) for name in row["classes"])
    )
