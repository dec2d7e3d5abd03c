"""The second QGIS: found where it is, fetched where that is possible, else left out with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import qgis_versions


def test_an_unpacked_version_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qgis_versions, "_run", lambda *arguments: pytest.fail("nothing must be run"))
    usr = tmp_path / qgis_versions.VERSION / "usr"
    (usr / "lib" / "x86_64-linux-gnu").mkdir(parents=True)
    found = qgis_versions.variables(tmp_path, None, print)
    assert found["QGIS_PREFIX_PATH"] == str(usr)
    assert found["PATH"].split(os.pathsep)[0] == str(usr / "bin")
    assert str(usr / "lib" / "x86_64-linux-gnu") in found["LD_LIBRARY_PATH"]


@pytest.mark.parametrize(
    ("policy", "prefix", "reason"),
    [
        (" 500 cdrom://disc/debian bookworm/main amd64 Packages\n", None, "root"),
        (" 500 cdrom://disc/debian trixie/main amd64 Packages\n", [], "bookworm"),
    ],
)
def test_a_machine_that_cannot_have_it_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, prefix: list[str] | None, reason: str
) -> None:
    monkeypatch.setattr(qgis_versions.sys, "platform", "linux")
    monkeypatch.setattr(qgis_versions.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(qgis_versions, "_run", lambda command, folder: policy)
    with pytest.raises(qgis_versions.NotHere, match=reason):
        qgis_versions.variables(tmp_path, prefix, print)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qgis_versions, "_mirror", lambda: "cdrom://disc/debian")

    def run(command: list[str], folder: Path) -> str:
        if "download" in command:
            raise qgis_versions.NotHere("apt-get failed: no network")
        return "Candidate: 3.40.6+dfsg-1~bpo12+1"

    monkeypatch.setattr(qgis_versions, "_run", run)
    with pytest.raises(qgis_versions.NotHere, match="no network"):
        qgis_versions.variables(tmp_path, [], print)
    assert list(tmp_path.iterdir()) == []
