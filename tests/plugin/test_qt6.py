"""What would break on Qt 6, found without Qt 6: what QGIS's own migration script would change, and direct imports.

`build.py check` also runs the windows on Qt 6 (tests/qt6).
"""

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
# Nested classes that are named without being called.
CLASSES_INSIDE = {"QgsPalettedRasterRenderer.Class", "QgsColorRampShader.ColorRampItem"}
GONE = {
    "exec_",
    "resources_rc",
    "QRegExp",
    "QDesktopWidget",
    "qApp",
    "MidButton",
    "TextColorRole",
    "BackgroundColorRole",
}


def faults(text):
    """Lines of Python that would not run on Qt 6, as (line, what)."""
    tree = ast.parse(text)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    # A nested class is called, a value of an enum is not.
    inner |= {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from import_faults(node)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in call_faults(node))
        elif isinstance(node, ast.Attribute):
            if node.attr in GONE:
                yield node.lineno, node.attr
            if isinstance(node.value, ast.Name) and id(node) not in inner:
                yield from ((node.lineno, what) for what in enum_faults(node.value.id, node.attr))
            if node.attr == "Type" and isinstance(node.value, ast.Name) and node.value.id == "QVariant":
                yield node.lineno, "QVariant.Type is gone, QVariant.String and so on stay"
        elif isinstance(node, ast.Name) and node.id in GONE:
            yield node.lineno, node.id
        elif isinstance(node, ast.FunctionDef) and node.name in GONE:
            yield node.lineno, f"def {node.name}"
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):
            if node.value.attr == "activated":
                yield node.lineno, "activated[...]"


def import_faults(node):
    """Imports of what is not there on Qt 6."""
    modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    yield from (
        (node.lineno, f"import of {module}") for module in modules if re.match(r"PyQt\d|qgis\.PyQt\.Qt$", module)
    )
    yield from ((node.lineno, f"import of {alias.name}") for alias in node.names if alias.name in GONE)


def call_faults(node):
    """Calls that mean something else on Qt 6, or nothing."""
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    of_variant = [ast.unparse(part).startswith("QVariant.") for part in node.args]
    if name == "QVariant" and (not node.args or of_variant == [True]):
        yield "QVariant() for NULL"
    if name == "QDateTime" and (len(node.args) == 8 or [ast.unparse(a)[:6] for a in node.args] == ["QDate("]):
        yield "QDateTime(...) without a QDate and a QTime"
    if method == "addAction" and len(node.args) >= 4:
        yield "addAction with a slot"
    if method == "desktop" and not node.args:
        yield "desktop()"
    if method == "width" and re.search(r"fontMetrics\(\)$|^QFontMetricsF?\(|metrics$", ast.unparse(node.func.value)):
        yield "width() of font metrics, which is horizontalAdvance()"


def enum_faults(class_name, value):
    """A value of an enum that is taken from the class."""
    is_class = QT.match(class_name) or QGIS.match(class_name)
    full = f"{class_name}.{value}"
    if class_name == "QVariant" or full in CLASSES_INSIDE or value in NO_VALUES:
        return
    if is_class and value[:1].isupper():
        yield f"unscoped enum {full}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PLUGIN)))
def test_nothing_that_qt_6_lacks(path):
    assert list(faults(path.read_text(encoding="utf-8"))) == []


def test_python_3_9_can_read_every_file():
    for path in FILES:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


@pytest.mark.parametrize(
    "line",
    [
        "from PyQt5.QtCore import Qt",
        "import PyQt5.QtCore",
        "from qgis.PyQt.Qt import Qt",
        "from qgis.PyQt.QtCore import QRegExp",
        "from qgis.PyQt.QtWidgets import qApp",
        "x = Qt.AlignLeft",
        "y = QgsTask.CanCancel",
        "z = Qgis.Warning",
        "dialog.exec_()",
        "def exec_(self): pass",
        "event.button() == Qt.MouseButton.MidButton",
        "value = QVariant()",
        "value = QVariant(QVariant.Int)",
        "kind = QVariant.Type.String",
        "when = QDateTime(2020, 1, 2, 3, 4, 5, 6, 7)",
        "when = QDateTime(QDate(2020, 1, 2))",
        "menu.addAction('a', b, c, d)",
        "screen = QApplication.desktop()",
        "w = widget.fontMetrics().width('a')",
        "w = metrics.width('a')",
        "box.activated[str].connect(f)",
    ],
)
def test_the_check_finds_what_it_is_for(line):
    assert [found for found, _ in faults(line)][:1] == [1]


def test_the_check_lets_pass_what_runs_on_both():
    good = (
        "x = Qt.AlignmentFlag.AlignLeft\ny = QgsProject.instance()\nz = Qgis.QGIS_VERSION_INT\nk = QVariant.String\n"
        "menu.addAction('a')\nw = metrics.horizontalAdvance('a')\nwhen = QDateTime(QDate(2020, 1, 2), QTime(3, 4))\n"
    )
    assert list(faults(good)) == []
