"""One text for a bug report: versions, the engine, devices, settings, the end of the log; no names and no secrets."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgis.core import Qgis, QgsProcessingUtils, QgsSettings
from qgis.PyQt.QtCore import PYQT_VERSION_STR, QT_VERSION_STR

from . import device_text, engine_environment, engine_state, settings
from .engine_steps import without_passwords
from .engine_uv import nvidia_card

LOG_TAIL_BYTES = 4000
# Which variables bear on the engine; of the others not even the name is told.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES GEOPEFT_ SSL_CERT HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY "
    "UV_DEFAULT_INDEX UV_INDEX UV_CACHE_DIR UV_OFFLINE"
).split()

_last_error = ""


def note_error(text: str) -> None:
    """Remembers the last error that was shown, for the report."""
    global _last_error
    _last_error = text


def in_main_thread(error: str = "") -> dict[str, Any]:
    """What only the main thread may read; quick. `error` is one that was not noted yet."""
    keys = [key for key in QgsSettings().allKeys() if key.startswith(settings.PREFIX) and "engine_checked" not in key]
    return {
        "settings": {key[len(settings.PREFIX) :]: str(QgsSettings().value(key)) for key in sorted(keys)},
        "state": engine_state.state(),
        "own": engine_state.own_python(),
        "home": engine_state.home(),
        "log": _last_log(),
        "error": error or _last_error,
    }


def report(gathered: Mapping[str, Any]) -> str:
    """The whole text; takes some seconds, since the engine is started and its files are counted."""
    state = gathered["state"]
    python = state.python or (Path(gathered["own"]) if gathered["own"] else None)
    python = python or engine_environment.engine_python(None, gathered["home"])
    told = engine_state.check(python) if python and python.is_file() else {}
    facts: list[tuple[str, object]] = [
        ("GeoPEFT", settings.version()),
        ("QGIS", f"{Qgis.version()}, Qt {QT_VERSION_STR}, PyQt {PYQT_VERSION_STR}"),
        ("System", f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} processors"),
        ("Python of QGIS", sys.version.split()[0]),  # not shown
        ("Engine", f"{state.kind}. {state.sentence}".strip()),
        ("Python of the engine", python or "-"),  # not shown
        *_environment(gathered, python),
        ("Tells", json.dumps({name: told.get(name) for name in ("engine", "protocol", "python", "missing")})),
        ("Packages", json.dumps(told.get("packages", {}))),
        ("Devices", json.dumps(told.get("devices", []))),
        ("Device", device_text.summary(told, gathered["settings"].get("device", "auto")) or "-"),
        ("NVIDIA", nvidia_card() or "-"),
        ("Free disk", f"{engine_environment.free_bytes(gathered['home']) / 1e9:.1f} GB"),  # not shown
        ("Settings", json.dumps(gathered["settings"], ensure_ascii=False)),
        ("Variables", json.dumps({name: os.environ[name] for name in sorted(os.environ) if _is_told(name)})),
        ("Last error", gathered["error"] or "-"),  # not shown
    ]
    lines = [f"{name}: {value}" for name, value in facts]
    return redacted("\n".join([*lines, "", "engine.log:", gathered["log"] or "-"]))


def _environment(gathered: Mapping[str, Any], python: Any) -> list[tuple[str, object]]:
    """Stamp and state of the plugin's own environment."""
    if gathered["own"] or not python:
        return []
    problems = engine_environment.verify(Path(python))
    stamp = engine_environment.read_stamp(Path(python).parents[1])
    return [("Stamp", json.dumps(stamp)), ("Files", " ".join(problems) or "whole")]


def _is_told(name: str) -> bool:
    return name.upper().startswith(tuple(VARIABLES))


def _last_log() -> str:
    """The end of the newest engine.log of this session."""
    logs = list(Path(QgsProcessingUtils.tempFolder()).glob("*/engine.log"))
    try:
        newest = max(logs, key=lambda path: path.stat().st_mtime)
        with newest.open("rb") as file:
            file.seek(max(0, newest.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return ""


def redacted(text: str) -> str:
    """Without passwords, the home folder and the user's name."""
    text = without_passwords(text)
    home = str(Path.home())
    for form in {home, home.replace("\\", "/"), home.replace("\\", "\\\\")}:
        if len(form) > 3:
            text = re.sub(rf"{re.escape(form)}(?![\w.-])", "~", text, flags=re.IGNORECASE if os.name == "nt" else 0)
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = ""
    # Short names such as "pi" would cut words to pieces; between other letters it is no name.
    return re.sub(rf"(?<![\w]){re.escape(user)}(?![\w])", "USER", text) if len(user) > 2 else text
