"""What would break on Qt 6, found without Qt 6: unscoped enums, exec_, direct imports of PyQt."""

import ast
import re
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "geopeft_qgis"
FILES = sorted(PLUGIN.rglob("*.py"))
# Classes of Qt whose enums need their scope on Qt 6 (Qt.AlignmentFlag.AlignLeft), as Class.Enum.Value.
QT = re.compile(r"^Q(?!gs|gis)[A-Za-z]*$|^Qt$")
QGIS = re.compile(r"^Q(gs|gis)[A-Za-z]*$|^Qgis$")
# Attributes that start with a capital letter or look like a value, but are no enum values.
NO_VALUES = {"PREFIX", "QGIS_VERSION_INT", "TEMPORARY_OUTPUT"}
CLASSES_INSIDE = {
    "QgsPalettedRasterRenderer.Class",
    "QgsColorRampShader.ColorRampItem",
    "QgsRasterLayer.LayerOptions",
    "QgsVectorFileWriter.SaveVectorOptions",
}


def faults(text):
    """Lines of Python that would not run on Qt 6, as (line, what)."""
    tree = ast.parse(text)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and re.match(r"PyQt\d", node.module or ""):
            yield node.lineno, f"import from {node.module}"
        if isinstance(node, ast.Import) and any(re.match(r"PyQt\d", a.name) for a in node.names):
            yield node.lineno, "import of PyQt"
        if not isinstance(node, ast.Attribute):
            continue
        if node.attr in ("exec_", "resources_rc", "QRegExp", "QDesktopWidget"):
            yield node.lineno, node.attr
        if isinstance(node.value, ast.Name) and id(node) not in inner:
            name = f"{node.value.id}.{node.attr}"
            is_class = QT.match(node.value.id) or QGIS.match(node.value.id)
            if is_class and node.attr[:1].isupper() and node.attr not in NO_VALUES and name not in CLASSES_INSIDE:
                yield node.lineno, f"unscoped enum {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PLUGIN)))
def test_nothing_that_qt_6_lacks(path):
    assert list(faults(path.read_text(encoding="utf-8"))) == []


def test_python_3_9_can_read_every_file():
    for path in FILES:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_the_check_finds_what_it_is_for():
    bad = "from PyQt5.QtCore import Qt\nx = Qt.AlignLeft\ny = QgsTask.CanCancel\ndialog.exec_()\nz = Qgis.Warning\n"
    assert [line for line, _ in sorted(faults(bad))] == [1, 2, 3, 4, 5]
    good = "x = Qt.AlignmentFlag.AlignLeft\ny = QgsProject.instance()\nz = Qgis.QGIS_VERSION_INT\n"
    assert list(faults(good)) == []
