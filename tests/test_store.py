"""What the plugin store would refuse is found in a zip before it is sent there."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests import store

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = (ROOT / "metadata.txt").read_text(encoding="utf-8")
GOOD = {
    "geopeft_qgis/__init__.py": b"",
    "geopeft_qgis/LICENSE": b"GPL",
    "geopeft_qgis/metadata.txt": MANIFEST.encode(),
    "geopeft_qgis/resources/icons/geopeft.svg": b"<svg/>",
    "geopeft_qgis/.bandit": b"",
}


def make(folder: Path, members: dict[str, bytes], mode: int = 0o644) -> Path:
    file = folder / "plugin.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, content)
    return file


def test_a_good_zip_has_no_faults(tmp_path: Path) -> None:
    assert store.faults(make(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("geopeft_qgis/lib/fast.so.1", b"", "program or a library"),
        ("geopeft_qgis/run.sh", b"", "program or a library"),
        ("geopeft_qgis/x.pyc", b"", "program or a library"),
        ("geopeft_qgis/data", b"\x7fELF\x02\x01\x01\x00", "an ELF file"),
        ("geopeft_qgis/tool", b"MZ\x90\x00", "a Windows program"),
        ("geopeft_qgis/tool.py", b"#!/usr/bin/env python3\n", "a script"),
        ("geopeft_qgis/.git/config", b"", "must not be in the zip"),
        ("geopeft_qgis/__pycache__/a.txt", b"", "must not be in the zip"),
        ("another/file.txt", b"", "one folder"),
    ],
)
@pytest.mark.fault("Q04")
def test_a_member_that_has_no_place_in_a_plugin_is_named(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    found = store.faults(make(tmp_path, {**GOOD, name: content}))
    assert len(found) == 1 and fault in found[0]


@pytest.mark.parametrize("name", ["__init__.py", "metadata.txt", "LICENSE"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    members = {path: content for path, content in GOOD.items() if not path.endswith(f"/{name}")}
    assert store.faults(make(tmp_path, members)) == [f"{name} is missing."]


def test_code_that_may_be_executed_is_named(tmp_path: Path) -> None:
    assert any("may be executed" in fault for fault in store.faults(make(tmp_path, GOOD, mode=0o755)))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("qgisMaximumVersion=4.99", "qgisMaximumVersion=3.99", "versions of QGIS"),
        ("hasProcessingProvider=yes", "hasProcessingProvider=no", "hasProcessingProvider"),
        ("tracker=https://", "tracker=", "tracker is no address"),
        ("email=", "mail=", "no email"),
        ("version=0", "version=v0", "numbers with dots"),
        ("experimental=True", "experimental=True\nsupportsQt6=True", "supportsQt6"),
        ("author=The", "author=A/B", "no slash"),
        ("about=Choose", "about=<b>Choose", "no HTML"),
        ("category=Raster", "category=Magic", "category"),
        ("icon=resources", "icon=elsewhere", "is not in the zip"),
        ("changelog=", "changes=", "changelog"),
    ],
)
def test_a_fault_in_the_manifest_is_named(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert MANIFEST.count(old) >= 1
    changed = MANIFEST.replace(old, new, 1).encode()
    found = store.faults(make(tmp_path, {**GOOD, "geopeft_qgis/metadata.txt": changed}))
    assert any(fault in text for text in found), found
