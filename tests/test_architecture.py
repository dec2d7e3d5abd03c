"""Who may import whom: one direction inside the engine, and the two boundaries of the plugin and the engine."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "engine" / "geopeft"
PLUGIN = ROOT / "geopeft_qgis"

# A module of the engine imports only from its own part and from parts to its left.
ORDER = (
    "errors events watched devices cluster job holding writing checkpoint data models features accuracy objective "
    "evidence tensors package stac classical applicability mapper mapping runtime training pretext pretraining "
    "pretrain ground forest baselines blending texture_tiles labelled_pixels scenes starting prepare holdout judging "
    "report fit averaging evaluate distil vectorize class_raster preview advice sampling onnx inspecting maps predict "
    "comparison quicklook study probe schema __main__"
).split()
# What the direction alone would allow.
KNOWS_NOTHING_OF = {
    "runtime": {"objective"},
    "report": {"objective", "training", "forest", "blending"},
    "evaluate": {"training", "forest", "fit"},
    "maps": {"objective", "training", "forest", "fit", "preview"},
    "predict": {"objective", "training", "forest", "fit", "preview"},
    "preview": {"objective", "training", "blending", "fit", "evaluate", "vectorize"},
    "onnx": {"objective", "training", "forest", "fit"},
    "__main__": set(ORDER) - {"errors", "events", "job", "holding", "__main__"},
}
TOP_LEVEL = {"README.md", "metadata.txt", "geopeft_qgis", "engine", "resources", "tests", "build.py", "LICENSE"}
STDLIB_ONLY = tuple(
    f"engine_{name}.py"
    for name in ("process", "worker", "install", "uv", "steps", "complaints", "disk", "environment", "files", "kit")
)

ENGINE_FILES = sorted(ENGINE.rglob("*.py"))
PLUGIN_FILES = sorted(PLUGIN.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line, module, names) of every import, those inside functions too; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield node.lineno, module, tuple(alias.name for alias in node.names)


def parts_used(path: Path) -> Iterator[tuple[int, str]]:
    """(line, part of the engine) for every import of the engine's own modules."""
    for line, module, names in imports(path):
        if module == "geopeft":
            yield from ((line, name) for name in names if name in ORDER)
        elif module.startswith("geopeft."):
            yield line, module.split(".")[1]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", ENGINE_FILES, ids=name_of)
def test_engine_modules_import_only_to_their_left(path: Path) -> None:
    inside = path.relative_to(ENGINE)
    part = inside.parts[0].removesuffix(".py")
    if part == "__init__":
        assert not list(parts_used(path)), "the package itself must import none of its modules"
        return
    assert part in ORDER, f"{part} has no place in ORDER yet"
    for line, used in parts_used(path):
        assert used in ORDER, f"line {line}: geopeft.{used} has no place in ORDER yet"
        assert ORDER.index(used) <= ORDER.index(part), f"line {line}: {part} must not import {used}"
        assert used not in KNOWS_NOTHING_OF.get(part, set()), f"line {line}: {part} must know nothing of {used}"


@pytest.mark.parametrize("path", ENGINE_FILES, ids=name_of)
def test_engine_never_imports_qgis(path: Path) -> None:
    foreign = {"qgis", "PyQt5", "PyQt6", "processing", "osgeo", "geopeft_qgis"}
    for line, module, _ in imports(path):
        assert module.split(".")[0] not in foreign, f"line {line}: {module}"
        assert not module.startswith("."), f"line {line}: the engine imports by full names"


@pytest.mark.parametrize("path", PLUGIN_FILES, ids=name_of)
def test_plugin_imports_only_the_standard_library_and_qgis(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | {"qgis", "geopeft_qgis"}
    if path.name == "sources.py":
        # GDAL for Python comes with QGIS, but not with every one: asked for in one function, when it is needed.
        top = ast.parse(path.read_text(encoding="utf-8")).body
        assert not [node for node in top if isinstance(node, ast.ImportFrom) and node.module == "osgeo"]
        allowed.add("osgeo")
    for line, module, _ in imports(path):
        assert module.startswith(".") or module.split(".")[0] in allowed, f"line {line}: {module}"


@pytest.mark.parametrize("name", STDLIB_ONLY)
def test_engine_process_and_installer_need_the_standard_library_only(name: str) -> None:
    siblings = {"language", *(Path(other).stem for other in STDLIB_ONLY)}
    for line, module, names in imports(PLUGIN / name):
        if module.startswith("."):
            assert {module.lstrip(".")} <= siblings or set(names) <= siblings, f"line {line}: {module}"
        else:
            assert module.split(".")[0] in sys.stdlib_module_names, f"line {line}: {module}"


@pytest.mark.parametrize("path", PLUGIN_FILES, ids=name_of)
def test_plugin_is_python_3_9(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    postponed = any(m == "__future__" and "annotations" in names for _, m, names in imports(path))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Match), f"line {node.lineno}: match needs Python 3.10"
        if isinstance(node, ast.arg | ast.AnnAssign | ast.FunctionDef):
            annotation = node.returns if isinstance(node, ast.FunctionDef) else node.annotation
            unions = [n for n in ast.walk(annotation) if isinstance(n, ast.BinOp)] if annotation else []
            assert postponed or not unions, f"line {node.lineno}: X | Y is evaluated, which needs Python 3.10"


def test_plugin_package_imports_nothing_when_it_is_loaded() -> None:
    """QGIS loads every installed plugin's package; the installer's command line has no qgis at all."""
    top = ast.parse((PLUGIN / "__init__.py").read_text(encoding="utf-8")).body
    assert not [node for node in top if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("job", ["probe", "models", "schema"])
def test_light_jobs_import_neither_torch_nor_peft(job: str, tmp_path: Path) -> None:
    code = (
        "import sys; from geopeft.__main__ import main; code = main([sys.argv[1]]);"
        "heavy = {'torch', 'peft', 'timm', 'torchvision', 'transformers'} & set(sys.modules);"
        "sys.exit(code or (f'imports {heavy}' if heavy else 0))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "engine")}
    ran = subprocess.run(
        [sys.executable, "-c", code, job], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("{")


def test_top_level_of_the_tree_is_fixed() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is no git checkout, so built files cannot be told from the tree's own")
    entries = {line.split("/")[0] for line in listed.stdout.splitlines() if (ROOT / line).exists()}
    assert {entry for entry in entries if not entry.startswith(".")} == TOP_LEVEL
