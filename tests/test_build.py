"""The project tool and the installer, as far as they can be tested without a download."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "engine"
LOCKS = (
    SOURCE / "requirements.lock",
    ROOT / "tests" / "requirements.lock",
    ROOT / "tests" / "qt6" / "requirements.lock",
    SOURCE / "uv.txt",
)


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_tool", ROOT / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEOPEFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.relative_to(ROOT).as_posix())
@pytest.mark.fault("E22")
def test_every_locked_package_has_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text and "index" not in re.sub(r"^#.*", "", text, flags=re.MULTILINE)
    blocks = re.split(r"\n(?=[a-z])", text)
    for block in blocks if text[0] != "#" else blocks[1:]:
        assert re.match(r"[a-zA-Z0-9._-]+(\[\w+\])?==\S+", block), block[:60]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block[:60]


def test_test_tools_bring_nothing_that_qgis_has_of_its_own() -> None:
    """They stand before QGIS' packages on the path, and its GDAL works with no other numpy."""
    lock = (ROOT / "tests" / "requirements.lock").read_text(encoding="utf-8")
    assert not set(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE)) & {
        "numpy",
        "gdal",
        "scipy",
        "shapely",
        "pandas",
    }


@pytest.mark.fault("Q04")
def test_zip_is_the_same_each_time_and_holds_what_the_store_wants(build: ModuleType, tmp_path: Path) -> None:
    first, second = build.make_zip(tmp_path / "a.zip"), build.make_zip(tmp_path / "b.zip")
    assert first.read_bytes() == second.read_bytes()
    assert {entry.date_time for entry in zipfile.ZipFile(first).infolist()} == {(2020, 1, 1, 0, 0, 0)}
    names = zipfile.ZipFile(first).namelist()
    assert {name.split("/")[0] for name in names} == {"geopeft_qgis"}
    wanted = ("__init__.py", "metadata.txt", "LICENSE", "engine/requirements.lock", "engine/uv.txt")
    assert {f"geopeft_qgis/{name}" for name in (*wanted, "engine/geopeft/__main__.py")} <= set(names)
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$|/tests/|\.(exe|dll|so|sh|bat)$", name)]


def test_zip_that_is_too_large_is_refused(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.store, "MAX_BYTES", 1000)
    with pytest.raises(build.Failure, match="MB"):
        build.make_zip(tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def source_seen_from(plugins: Path) -> Path:
    """The engine that a plugin below this folder would use, asked in a process that knows no checkout."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from geopeft_qgis import engine_install as e"
    command = [sys.executable, "-I", "-c", f"{code}; print(e.engine_source())", str(plugins)]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


@pytest.mark.skipif(os.name == "nt", reason="Windows gets copies")
def test_linked_plugin_finds_the_engine_of_the_checkout(build: ModuleType, tmp_path: Path) -> None:
    assert build.command_link(build.parser().parse_args(["link", "--profile", str(tmp_path)])) == 0
    folder = tmp_path / "python" / "plugins"
    assert {path.name for path in (folder / "geopeft_qgis").iterdir()} == set(build.plugin_parts())
    assert source_seen_from(folder) == SOURCE
    # A second time renews the links.
    assert build.command_link(build.parser().parse_args(["link", "--profile", str(tmp_path)])) == 0


def test_link_leaves_an_installed_plugin_alone(build: ModuleType, tmp_path: Path) -> None:
    installed = tmp_path / "python" / "plugins" / "geopeft_qgis" / "metadata.txt"
    installed.parent.mkdir(parents=True)
    installed.write_text("version=1", encoding="utf-8")
    with pytest.raises(build.Failure, match="installed"):
        build.command_link(build.parser().parse_args(["link", "--profile", str(tmp_path)]))
    assert installed.read_text(encoding="utf-8") == "version=1"


def test_zip_installed_as_a_plugin_finds_its_own_engine(build: ModuleType, tmp_path: Path) -> None:
    with zipfile.ZipFile(build.make_zip(tmp_path / "a.zip")) as archive:
        archive.extractall(tmp_path)
    assert source_seen_from(tmp_path) == tmp_path / "geopeft_qgis" / "engine"


def test_every_test_of_the_engine_is_in_one_suite(build: ModuleType) -> None:
    suites = build.engine_suites(Path(sys.executable), [])
    given = [ROOT / path for suite in suites for path in suite.arguments]
    elsewhere = {ROOT / "tests" / name for name in ("plugin", "qt6")}
    for path in (ROOT / "tests").rglob("test_*.py"):
        if not elsewhere & set(path.parents):
            assert sum(path == one or one in path.parents for one in given) == 1, path


def test_suites_run_side_by_side_and_those_that_fail_are_named(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "tools", lambda python: Path(pytest.__file__).parents[1])
    for name, value in (("good", True), ("bad", False)):
        (tmp_path / f"test_{name}_suite.py").write_text(f"def test_it() -> None:\n    assert {value}\n")
    suites = [
        build.Suite(name, Path(sys.executable), [tmp_path / f"test_{name}_suite.py"], {}) for name in ("good", "bad")
    ]
    seconds: dict[str, float] = {}
    assert build.side_by_side(suites, tmp_path / "reports", seconds) == ["bad tests"]
    assert seconds.keys() == {"good tests", "bad tests"}
    assert build.sum_results(tmp_path / "reports") == (1, 1, 0)
    told = capfd.readouterr().out
    assert re.search("^good: .*1 passed", told, re.MULTILINE) and re.search("^bad: .*1 failed", told, re.MULTILINE)


def test_results_of_several_runs_are_summed(build: ModuleType, tmp_path: Path) -> None:
    suite = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'
    (tmp_path / "a.xml").write_text(suite.format(10, 1, 2, 3), encoding="utf-8")
    (tmp_path / "b.xml").write_text(suite.format(5, 0, 0, 0), encoding="utf-8")
    assert build.sum_results(tmp_path) == (9, 3, 3)


@pytest.mark.parametrize(
    ("line", "clean"),
    [
        (b"see the folder data/" + b"work/x", True),
        (b"path = '/" + b"root/x'", False),
        (b"--extra-index" + b"-url = x", False),
        (b"from py" + b"pi.org", False),
    ],
)
def test_tree_check_finds_machine_paths_and_indexes(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, clean: bool
) -> None:
    (tmp_path / "file.txt").write_bytes(b"first\n" + line + b"\n")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "tree_files", lambda: [tmp_path / "file.txt"])
    assert build.tree_is_clean() is clean


def test_unknown_bench_names_those_there_are(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: Any = build.parser().parse_args(["bench", "no-such-bench"])
    with pytest.raises(build.Failure, match="there are: "):
        build.command_bench(arguments)
