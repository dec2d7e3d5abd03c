"""What must be nowhere in plugin and engine, whatever it would be good for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("engine/geopeft", "geopeft_qgis") for path in (ROOT / folder).rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "hydra", "transformers"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "os.startfile", "tempfile.mktemp", "yaml.load"}
LISTENING = {"http.server", "socketserver", "xmlrpc"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        found |= {node.module or ""} if isinstance(node, ast.ImportFrom) and not node.level else set()
    return found


@pytest.mark.fault("S06", "S07", "S08")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unpickles_runs_text_or_listens(path: Path) -> None:
    imported = modules(path)
    assert not {name.split(".")[0] for name in imported} & FORBIDDEN_MODULES
    assert not imported & LISTENING
    for name, call in calls(path):
        assert name not in FORBIDDEN_CALLS
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        if name == "torch.load":
            assert ast.unparse(named["weights_only"]) == "True"
        assert "trust_remote_code" not in named
        assert not name.endswith(".listen") or path.name == "server_answers.py"


@pytest.mark.fault("S01")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_command_goes_through_a_shell(path: Path) -> None:
    for _, call in calls(path):
        assert not any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in call.keywords)


@pytest.mark.fault("S10")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_unfinished_file_beside_a_users_has_a_name_that_can_be_foreseen(path: Path) -> None:
    """Whoever may write there as well could put a link at it. What is in a folder of ours alone may."""
    if path.name in ("download.py", "engine_process.py"):
        return
    for name, call in calls(path):
        for argument in call.args if name.endswith(("with_name", "Path")) else ():
            if isinstance(argument, ast.JoinedStr) and re.search(r"\.(part|tmp|temp|partial)\b", ast.unparse(argument)):
                assert "token_hex" in ast.unparse(argument), ast.unparse(call)


@pytest.mark.fault("S16")
def test_the_plugin_does_not_update_itself() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in FILES if "geopeft_qgis" in path.parts)
    assert "archive/refs" not in code and "installFromZip" not in code and "install_from_zip" not in code


@pytest.mark.fault("S19")
def test_the_plugin_never_opens_a_model_by_itself() -> None:
    for path in FILES:
        if "geopeft_qgis" in path.parts:
            assert not {name.split(".")[0] for name in modules(path)} & {"onnxruntime", "onnx", "torch", "numpy"}


@pytest.mark.fault("S17")
def test_the_lock_is_not_below_the_floors_of_known_holes() -> None:
    lock = (ROOT / "engine" / "requirements.lock").read_text(encoding="utf-8")
    versions = dict(line.split(" ")[0].split("==") for line in lock.splitlines() if "==" in line[:60])
    for package, floor in (("torch", (2, 10)), ("onnx", (1, 21)), ("onnxruntime", (1, 26)), ("transformers", (5, 3))):
        assert tuple(int(part) for part in versions[package].split(".")[:2]) >= floor
