"""The offline kit: how it is made, what is refused, and an installation from it with a fake uv."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import fake_uv
import pytest

from geopeft_qgis import engine_install, engine_kit, engine_steps

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_tool", ROOT / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEOPEFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GEOPEFT_FAKE_CALLS", str(tmp_path))
    monkeypatch.setattr(engine_install, "expected_gb", lambda variant: (0.01, 0.0))
    monkeypatch.setattr(engine_install, "base_python", lambda kit: (sys.executable, "3.11"))
    return fake_uv.lay_source(tmp_path / "source")


@pytest.fixture
def kit(source: Path, tmp_path: Path) -> Path:
    """A kit for this machine with uv's wheel, one other wheel and one file of weights."""
    folder = tmp_path / "ein Kit"
    fake_uv.lay_wheel(folder / "wheels")
    (folder / "wheels" / "one-1.0-py3-none-any.whl").write_bytes(b"a wheel")
    (folder / "weights" / "galileo").mkdir(parents=True)
    (folder / "weights" / "galileo" / "encoder.pt").write_bytes(b"weights")
    write(folder, source)
    return folder


def write(folder: Path, source: Path, **changes: str) -> None:
    facts = {
        "system": engine_kit.this_system(),
        "machine": engine_kit.this_machine(),
        "variant": "cpu",
        "version": "0.1.0",
        "lock": engine_install.lock_hash(source),
    }
    engine_kit.write_manifest(folder, {**facts, **changes}, ["3.11"], lambda text: None)


def install(source: Path, kit: Path) -> Path:
    return engine_install.ensure(source, lambda text: None, choices=engine_install.Choices(wheels=kit))


def test_a_kit_installs_without_any_download(source: Path, kit: Path, tmp_path: Path) -> None:
    python = install(source, kit)
    assert engine_install.engine_python(source) == python
    calls = fake_uv.calls(tmp_path)
    assert not [call for call in calls if "download" in call["argv"]], "uv comes from the kit"  # type: ignore[operator]
    sync = next(call for call in calls if "sync" in call["argv"])  # type: ignore[operator]
    words = sync["argv"]
    assert isinstance(words, list) and isinstance(sync["env"], dict)
    assert words[words.index("--find-links") + 1] == str(kit / "wheels") and "--no-index" in words
    assert (sync["env"]["UV_OFFLINE"], sync["env"]["UV_PYTHON_DOWNLOADS"]) == ("1", "never")
    assert (tmp_path / "home" / "weights" / "galileo" / "encoder.pt").read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["wheels/one-1.0-py3-none-any.whl", "weights/galileo/encoder.pt"])
@pytest.mark.fault("E22")
def test_a_damaged_file_is_named_before_anything_is_installed(
    source: Path, kit: Path, tmp_path: Path, name: str
) -> None:
    (kit / name).write_bytes(b"others!")
    with pytest.raises(engine_install.InstallError, match=re.escape(f"{name} of the kit is damaged")):
        install(source, kit)
    (kit / name).unlink()
    with pytest.raises(engine_install.InstallError, match=re.escape(f"The kit lacks the file {name}.")):
        install(source, kit)
    assert not fake_uv.calls(tmp_path) and not (tmp_path / "home" / "uv").exists()


def test_a_file_outside_the_kit_is_never_read(source: Path, kit: Path) -> None:
    manifest = json.loads((kit / "kit.json").read_text(encoding="utf-8"))
    outside = source / "uv.txt"
    digest = hashlib.sha256(outside.read_bytes()).hexdigest()
    manifest["files"]["../source/uv.txt"] = {"sha256": digest, "size": outside.stat().st_size}
    (kit / "kit.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(engine_install.InstallError, match="damaged"):
        install(source, kit)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"system": "amiga"}, "This kit is for amiga .*build.py kit --platform"),
        ({"machine": "m68k"}, "This kit is for .*m68k"),
        ({"lock": "0" * 64, "version": "9.0"}, "made for GeoPEFT 9.0 .*Install the plugin of the same version"),
    ],
)
def test_a_kit_for_something_else_is_refused(source: Path, kit: Path, changes: dict[str, str], sentence: str) -> None:
    write(kit, source, **changes)
    with pytest.raises(engine_install.InstallError, match=sentence):
        install(source, kit)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 1, "files": 3}', '{"format": 99}'])
def test_a_manifest_that_cannot_be_read_is_named(source: Path, kit: Path, content: str) -> None:
    (kit / "kit.json").write_text(content, encoding="utf-8")
    with pytest.raises(engine_install.InstallError, match="damaged. Copy|another version of GeoPEFT"):
        install(source, kit)


def test_checking_a_kit_can_be_canceled(source: Path, kit: Path) -> None:
    with pytest.raises(engine_install.InstallCanceled):
        engine_kit.check_files(engine_kit.read(kit), engine_steps.Steps(lambda text: None, lambda: True))


@pytest.mark.parametrize(
    ("system", "minor", "there", "not_there"),
    [
        ("linux", "3.11", {"nvidia-cudnn-cu13", "numpy==2.4", "cligj"}, {"colorama", "triton", "numpy==2.5"}),
        ("linux", "3.12", {"numpy==2.5"}, {"cligj", "numpy==2.4"}),
        ("windows", "3.12", {"colorama", "torch", "onnxruntime"}, {"nvidia-cudnn-cu13", "onnxruntime-gpu"}),
        ("macos", "3.12", {"torch"}, {"colorama", "nvidia-cudnn-cu13"}),
    ],
)
def test_packages_of_another_system_are_chosen_by_its_markers(
    build: ModuleType, system: str, minor: str, there: set[str], not_there: set[str]
) -> None:
    lock = build.kit_lock(system, "cpu", minor)
    lines = re.findall(r"^[a-z0-9._-]+==\S+", lock, re.MULTILINE)
    names = {line.split("==")[0] for line in lines} | {re.sub(r"(==\d+\.\d+).*", r"\1", line) for line in lines}
    assert there <= names and not not_there & names
    assert ";" not in lock and lock.count("--hash=sha256:") > len(lines)


def test_every_marker_of_the_lock_is_understood(build: ModuleType) -> None:
    lock = (ROOT / "engine" / "requirements.lock").read_text(encoding="utf-8")
    markers = set(re.findall(r"^\S+ ; (.+?) \\$", lock, re.MULTILINE))
    assert len(markers) > 5
    for marker in markers:
        build.marker_holds(
            ast.parse(marker, mode="eval").body, {**build.KIT_MARKERS["linux"], "python_full_version": "3.12.0"}
        )
    with pytest.raises(build.Failure, match="not understood"):
        build.marker_holds(ast.parse("print('x')", mode="eval").body, {})


@pytest.mark.parametrize(
    ("marker", "holds"),
    [
        ("sys_platform == 'linux'", True),
        ("sys_platform != 'linux'", False),
        ("sys_platform == 'win32' or platform_machine == 'x86_64'", True),
        ("sys_platform == 'win32' and platform_machine == 'x86_64'", False),
        ("(platform_machine == 'arm64' or platform_machine == 'x86_64') and sys_platform == 'linux'", True),
        ("python_full_version < '3.12'", True),
        ("python_full_version >= '3.9'", True),
        ("python_full_version == '3.11.*'", True),
    ],
)
def test_markers_mean_what_they_say(build: ModuleType, marker: str, holds: bool) -> None:
    facts = {**build.KIT_MARKERS["linux"], "python_full_version": "3.11.0"}
    assert build.marker_holds(ast.parse(marker, mode="eval").body, facts) is holds


def test_the_kit_command_makes_a_folder_that_reads_back(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def download(lock: str, wheels: Path, tags: list[str], minor: str) -> None:
        fetched.append(minor)
        (wheels / f"torch-{len(fetched)}.whl").write_bytes(b"wheel")

    monkeypatch.setattr(build, "download_wheels", download)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.pt").write_bytes(b"a")
    options = ["kit", "--platform", "windows", "--python", "3.11,3.12", "--out", str(tmp_path / "kit")]
    arguments = build.parser().parse_args([*options, "--weights", str(tmp_path / "weights")])
    for _ in range(2):
        assert build.command_kit(arguments) == 0
    kit = engine_kit.read(tmp_path / "kit")
    assert (kit.system, kit.machine, kit.pythons, kit.variant) == ("windows", "x86_64", ("3.11", "3.12"), "cpu")
    assert {"weights/a.pt", "README.txt", "wheels/torch-4.whl"} <= set(kit.files)
    assert "Python 3.11 or 3.12" in (tmp_path / "kit" / "README.txt").read_text(encoding="utf-8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    with pytest.raises(build.Failure, match="no kit"):
        build.command_kit(build.parser().parse_args(["kit", "--out", str(tmp_path / "other")]))
    assert (tmp_path / "other" / "precious").exists()
