"""A second QGIS beside the system's own, for the plugin's tests: Debian's backport, unpacked and not installed.

The system's packages are not touched, but for a few small libraries of Qt that the newer QGIS needs besides.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

VERSION = "3.40"
RELEASE = "bookworm"  # the Debian whose backports have that version, on the Qt and Python of the release itself
QT_LIBRARIES = (
    "libqt5multimedia5 libqt5multimediawidgets5 python3-pyqt5.qtmultimedia python3-pyqt5.qtserialport".split()
)
PACKAGES = "qgis python3-qgis python3-qgis-common qgis-common qgis-providers qgis-providers-common".split()
LIBRARIES = "3d analysis app core gui native server".split()

Say = Callable[[str], None]


class NotHere(Exception):
    """The other QGIS cannot be had on this machine; the text says why."""


def variables(home: Path, prefix: Sequence[str] | None, say: Say) -> dict[str, str]:
    """The environment variables that make a process use QGIS 3.40, which is fetched where it is not there yet.

    Args:
        home: where unpacked versions are kept.
        prefix: what to put before a command that needs root, or None where that is not allowed.
    """
    target = home / VERSION
    if not (target / "usr").is_dir():
        _unpack(target, prefix, say)
    usr = target / "usr"
    libraries = [usr / "lib", *sorted((usr / "lib").glob("*-linux-gnu*"))]
    python = [usr / "lib" / "python3" / "dist-packages", usr / "share" / "qgis" / "python"]
    python.append(usr / "share" / "qgis" / "python" / "plugins")
    return {
        "PATH": os.pathsep.join([str(usr / "bin"), "/usr/bin", "/bin"]),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "QGIS_PREFIX_PATH": str(usr),
        "PYTHONPATH": os.pathsep.join(map(str, python)),
    }


def _unpack(target: Path, prefix: Sequence[str] | None, say: Say) -> None:
    mirror = _mirror()
    if prefix is None:
        raise NotHere("it needs root, or sudo without a password")
    shutil.rmtree(target, ignore_errors=True)
    fresh = target.with_name(f"{target.name}.new-{os.getpid()}")
    try:
        for name in ("lists/partial", "debs", "root"):
            (fresh / name).mkdir(parents=True)
        _run([*prefix, "apt-get", "install", "-y", "--no-install-recommends", *QT_LIBRARIES], fresh)
        sources = fresh / "sources.list"
        sources.write_text(f"deb {mirror} {RELEASE}-backports main\n", encoding="utf-8")
        options = []
        for setting, value in (("Dir::Etc::sourcelist", sources), ("Dir::State::lists", fresh / "lists")):
            options += ["-o", f"{setting}={value}"]
        options += ["-o", "Dir::Etc::sourceparts=/dev/null", "-o", "APT::Sandbox::User=root"]
        _run(["apt-get", *options, "update"], fresh)
        policy = _run(["apt-cache", *options, "policy", "qgis"], fresh)
        found = re.search(rf"\b{re.escape(VERSION)}\.\d+", policy)
        if not found:
            raise NotHere(f"the backports have no QGIS {VERSION}")
        say(f"   fetching QGIS {found[0]} (120 MB)")
        names = [*PACKAGES, *(f"libqgis-{part}{found[0]}" for part in LIBRARIES), f"libqgispython{found[0]}"]
        _run(["apt-get", *options, "download", *names], fresh / "debs")
        for package in sorted((fresh / "debs").glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(fresh / "root")], fresh)
        os.replace(fresh / "root", target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _mirror() -> str:
    """The mirror of the release that the machine's apt uses already."""
    if sys.platform != "linux" or not all(shutil.which(name) for name in ("apt-get", "apt-cache", "dpkg-deb")):
        raise NotHere("it comes from Debian's packages")
    found = re.search(rf"\w+://\S+(?= {RELEASE}/main )", _run(["apt-cache", "policy"], Path.cwd()))
    if not found:
        raise NotHere(f"it is built for Debian {RELEASE}, and this machine's apt knows no mirror of that")
    return found[0]


def _run(command: Sequence[str], folder: Path) -> str:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    ran = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        lines = (ran.stderr or ran.stdout).strip().splitlines()
        raise NotHere(f"{command[0]} failed: {lines[-1] if lines else ran.returncode}")
    return ran.stdout
