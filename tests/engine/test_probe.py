"""What the engine tells about itself."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from geopeft import PROTOCOL, __version__, probe
from geopeft.events import Reporter
from geopeft.job import ProbeJob

PROJECT = Path(__file__).resolve().parents[2] / "engine" / "pyproject.toml"


def test_probe_tells_version_protocol_and_devices() -> None:
    found = probe.run(ProbeJob(), Reporter(None))  # type: ignore[arg-type]
    assert (found["engine"], found["protocol"], found["missing"]) == (__version__, PROTOCOL, [])
    assert found["devices"][-1]["device"] == "cpu" and found["auto"] in ("cpu", "cuda", "mps")
    assert (found["auto"] == "cpu") == bool(found["gpu_reason"])


def test_required_packages_are_those_of_the_project() -> None:
    dependencies = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    split = [re.split(r"[=>]=", text) for text in dependencies]
    assert probe.REQUIRED == {part[0]: part[1] if len(part) > 1 else "" for part in split}


@pytest.mark.parametrize(
    ("version", "floor", "there"),
    [
        (None, "", False),
        ("1.0", "", True),
        ("2.15.0+cu132", "2.14", True),
        ("2.13.0", "2.14", False),
        ("2.0", "2", True),
        ("10.1", "9.9", True),
        ("1.0rc1", "1.0", True),
    ],
)
def test_missing_and_old_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, version: str | None, floor: str, there: bool
) -> None:
    monkeypatch.setattr(probe, "_version", lambda name: version)
    assert probe._is_there("torch", floor) is there


def test_either_flavour_of_onnxruntime_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_version", lambda name: "1.31" if name == "onnxruntime-gpu" else None)
    assert probe._is_there("onnxruntime", "1.26") and not probe._is_there("torch", "")
