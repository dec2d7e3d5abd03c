"""The project tool and the installer, as far as they can be tested without a download."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from geopeft_qgis import engine_install, engine_uv

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "engine"
LOCKS = (SOURCE / "requirements.lock", ROOT / "tests" / "requirements.lock", SOURCE / "uv.txt")


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


def make_environment(home: Path, key: str = "abc", **changes: object) -> Path:
    """A finished environment with one package of one file, as the installer leaves it."""
    environment = home / "engine" / key
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    site = environment / ("Lib" if os.name == "nt" else "lib/python3.11") / "site-packages"
    record = site / "one-1.0.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    (site / "one.py").write_bytes(b"1 + 1\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"1 + 1\n").digest()).decode().rstrip("=")
    record.write_text(f"one.py,sha256={digest},6\none.pyc,,\none-1.0.dist-info/RECORD,,\n", encoding="utf-8")
    lock = hashlib.sha256((SOURCE / "requirements.lock").read_bytes()).hexdigest()
    stamp: dict[str, object] = {"lock": lock, "source": str(SOURCE), "variant": "cpu", "packages": 1}
    (environment / "stamp.json").write_text(json.dumps({**stamp, **changes}), encoding="utf-8")
    return python


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
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


@pytest.mark.parametrize(("variant", "kept"), [("cpu", "onnxruntime"), ("gpu", "onnxruntime-gpu")])
def test_installer_keeps_one_of_the_two_onnxruntimes(variant: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_install, "sees_nvidia_gpu", lambda: variant == "gpu")
    steps = engine_uv.Steps(lambda text: None, lambda: False)
    lock = engine_install._Installation(SOURCE, steps, None, False)._lock_for_this_machine()
    whole = (SOURCE / "requirements.lock").read_text(encoding="utf-8")
    names = re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE)
    assert [name for name in names if name.startswith("onnxruntime")] == [kept]
    assert len(names) == len(re.findall(r"^[a-z0-9._-]+==", whole, re.MULTILINE)) - 1
    assert "onnx" in names and "onnxscript" in names


def test_finished_environment_is_found_by_lock_and_source(own_home: Path) -> None:
    assert engine_install.engine_python(SOURCE) is None
    python = make_environment(own_home)
    assert engine_install.engine_python(SOURCE) == python


@pytest.mark.parametrize("changes", [{"lock": "another"}, {"source": "/another"}])
def test_environment_of_another_lock_or_source_is_not_taken(own_home: Path, changes: dict[str, str]) -> None:
    make_environment(own_home, **changes)
    assert engine_install.engine_python(SOURCE) is None


def test_unfinished_environment_is_not_taken_and_is_swept_away(own_home: Path) -> None:
    whole = make_environment(own_home)
    unstamped = make_environment(own_home, "unstamped")
    (own_home / "engine" / "unstamped" / "stamp.json").unlink()
    half = make_environment(own_home, "abc.new-1")
    foreign = make_environment(own_home, "gone", source=str(own_home / "no such source"))
    assert engine_install._ready(SOURCE) == [whole.parents[1]]
    steps = engine_uv.Steps(lambda text: None, lambda: False)
    engine_install._Installation(SOURCE, steps, None, False)._sweep()
    assert whole.exists()
    assert not any(python.exists() for python in (unstamped, half, foreign))


def test_environment_whose_base_python_is_gone_is_not_taken(own_home: Path) -> None:
    python = make_environment(own_home)
    python.unlink()
    python.symlink_to(own_home / "no such python")
    assert engine_install.engine_python(SOURCE) is None


def test_cut_missing_and_changed_files_are_found(own_home: Path) -> None:
    environment = make_environment(own_home).parents[1]
    file = engine_install._site_packages(environment) / "one.py"
    assert engine_install._damage(environment, read_all=True) == {}
    file.write_bytes(b"1 + 2\n")
    assert engine_install._damage(environment) == {}
    assert engine_install._damage(environment, read_all=True) == {"one": ["one.py"]}
    file.write_bytes(b"1 +")
    assert engine_install._damage(environment) == {"one": ["one.py"]}
    file.unlink()
    assert "one.py" in engine_install.verify(environment / "bin" / "python")[0]


def test_missing_package_is_found(own_home: Path) -> None:
    python = make_environment(own_home, packages=2)
    assert engine_install.verify(python) == ["Packages are missing."]


def test_switch_replaces_a_folder_that_is_there(tmp_path: Path) -> None:
    for name in ("key", "key.new-7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    engine_install._switch(tmp_path / "key.new-7", tmp_path / "key")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["key", "key/key.new-7"]


def test_second_installation_waits_for_the_first(own_home: Path) -> None:
    steps = engine_uv.Steps(lambda text: None, lambda: False)
    own_home.mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from geopeft_qgis import engine_install as e;"
        f"file = open({str(own_home / 'install.lock')!r}, 'a+b'); print(e._take_lock(file.fileno()))"
    )
    with engine_install._alone(steps):
        held = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    free = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (held.stdout.strip(), free.stdout.strip()) == ("False", "True")


@pytest.mark.skipif(os.name == "nt", reason="process groups of POSIX")
def test_cancel_ends_a_command_with_its_children(tmp_path: Path) -> None:
    start = time.monotonic()
    steps = engine_uv.Steps(lambda text: None, lambda: time.monotonic() - start > 0.5)
    child = "import subprocess as s; p = s.Popen(['sleep', '60']); open('pid', 'w').write(str(p.pid)); p.wait()"
    with pytest.raises(engine_install.InstallCanceled):
        steps.run([sys.executable, "-c", child], tmp_path)
    assert time.monotonic() - start < 5
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not is_running(pid):
            return
        time.sleep(0.1)
    pytest.fail("the child of the cancelled command still runs")


def is_running(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        # Where nobody collects orphans, an ended process stays as a zombie.
        return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_failed_command_tells_its_output(tmp_path: Path) -> None:
    steps = engine_uv.Steps(lambda text: None, lambda: False)
    with pytest.raises(engine_uv.CommandFailed, match="error: no space left"):
        steps.run([sys.executable, "-c", "import sys; sys.exit('error: no space left')"], tmp_path)


def test_uv_with_a_wrong_checksum_is_refused(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = own_home / "uv-1-py3-none-any.whl"
    own_home.mkdir()
    with zipfile.ZipFile(fake, "w") as archive:
        archive.writestr("uv-1.data/scripts/uv", "not uv")
    monkeypatch.setattr(engine_uv, "_download", lambda *arguments: fake)
    with pytest.raises(engine_install.InstallError, match="sha256"):
        engine_install.uv_program(lambda text: None)
    assert not [path for path in (own_home / "uv").rglob("*") if path.is_file()]


def test_installer_passes_no_foreign_settings_to_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    leaks = ("PYTHONHOME", "PYTHONPATH", "PYTHONEXECUTABLE", "VIRTUAL_ENV", "LD_PRELOAD", "GDAL_DATA", "PROJ_LIB")
    for name in (*leaks, "PIP_TARGET", "UV_LINK_MODE", "PYTHONDONTWRITEBYTECODE", "UV_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    child = engine_uv.child_environment()
    assert not {*leaks, "PIP_TARGET", "UV_LINK_MODE", "PYTHONDONTWRITEBYTECODE", "SSL_CERT_FILE"} & set(child)
    assert child["UV_OFFLINE"] == "1"
    assert engine_uv.child_environment(pip=True)["PIP_TARGET"] == "1"


def test_path_line_is_ascii_and_finds_the_source(tmp_path: Path) -> None:
    for name in ("plain", "größe"):
        (tmp_path / name).mkdir()
        line = engine_install._path_line(tmp_path / name)
        assert line.isascii()
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "x.pth").write_text(line, encoding="ascii")
        code = f"import site, sys; site.addsitedir({str(tmp_path / 'site' / name)!r}); print(ascii(sys.path[-1]))"
        found = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == ascii(str(tmp_path / name))


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
    monkeypatch.setattr(build, "MAX_ZIP_BYTES", 1000)
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
