"""Whether there is an engine that fits this plugin: instant where it was looked at before, else one short start."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Optional

from qgis.core import QgsApplication, QgsSettings

from . import engine_environment, engine_files, settings
from .engine_process import PROTOCOL
from .engine_steps import answer
from .language import tr

READY, MISSING, OUTDATED, OWN_GONE, OWN_REFUSED, BROKEN = "ready missing outdated own_gone own_refused broken".split()
PROBE_TIMEOUT_S = 60.0

# What was found out about a Python, by what would change with it: empty text where it fits.
_verdicts: dict[str, str] = {}


class EngineState(NamedTuple):
    """The engine as it is now."""

    kind: str  # READY, MISSING, OUTDATED, OWN_GONE, OWN_REFUSED or BROKEN
    python: Optional[Path]  # what jobs run with; None unless it is READY
    sentence: str = ""  # what is wrong and what to do, empty for READY


def own_python() -> str:
    """The Python of an engine of the user's own, or empty."""
    return settings.get("engine_python") or os.environ.get("GEOPEFT_ENGINE_PYTHON", "")


def home() -> Path:
    """Where the plugin keeps the engine's environment."""
    chosen = settings.get("engine_folder")
    return Path(chosen) if chosen else engine_environment.home()


def command(python: Path) -> list[str]:
    """How to start the engine with a Python."""
    return [str(python), "-I", "-u", "-c", settings.START_ENGINE, str(engine_environment.engine_source())]


def state() -> EngineState:
    """Reads stamps and earlier verdicts only; an own Python that was not looked at yet counts as ready."""
    own = own_python()
    if own and not Path(own).is_file():
        text = tr("There is no Python at {path}. Correct its path in Settings > Options > GeoPEFT.")
        return EngineState(OWN_GONE, None, text.format(path=own))
    python = Path(own) if own else engine_environment.engine_python(None, home())
    if python is None:
        if engine_environment.outdated(None, home()):
            return EngineState(OUTDATED, None, tr("The engine belongs to another version of GeoPEFT. Update it."))
        return EngineState(MISSING, None, not_set_up())
    problem = _verdicts.get(_key(python), "")
    return EngineState(OWN_REFUSED if own else BROKEN, None, problem) if problem else EngineState(READY, python)


def not_set_up() -> str:
    """The sentence for a fresh machine."""
    return tr("The engine is not set up yet. Press 'Set up the engine' in the GeoPEFT panel.")


def is_checked(python: Path) -> bool:
    """Whether a Python was looked at since it last changed, in this or an earlier session of QGIS."""
    key = _key(python)
    return key in _verdicts or QgsSettings().value(settings.PREFIX + "engine_checked") == key


def needs_check() -> bool:
    """Whether there is a Python of the user's own that was not looked at yet."""
    own = own_python()
    return bool(own) and Path(own).is_file() and not is_checked(Path(own))


def check(python: Path) -> dict[str, Any]:
    """Starts the engine once (about a second) and remembers whether it fits; what its `probe` job told."""
    key = _key(python)
    started, text = answer([*command(python), "probe"], PROBE_TIMEOUT_S)
    told: dict[str, Any] = {}
    if started:
        try:
            content = json.loads(text)
            told = content if isinstance(content, dict) else {}
        except ValueError:
            started = False
    _verdicts[key] = _problem(python, told) if started else _does_not_start(python, text)
    if _verdicts[key]:
        settings.put("engine_checked", "")
    else:
        settings.put("engine_checked", key)
    return told


def damage_before_run(python: Path) -> str:
    """Why a run with this Python cannot start, or empty; in any thread, a fraction of a second.

    Looks at the files of an environment that the plugin has made. One that is damaged is BROKEN from then on.
    """
    differing = engine_files.differing(python.parent.parent)
    if not differing:
        return ""
    if len(differing) == 1:
        text = tr("A file of the engine is missing or was changed: {path}. Press Repair in the GeoPEFT panel.")
    else:
        text = tr("{count} files of the engine are missing or were changed, such as {path}. Press Repair in GeoPEFT.")
    sentence = text.format(count=len(differing), path=python.parent.parent / differing[0])
    _verdicts[_key(python)] = sentence
    return sentence


def forget() -> None:
    """Lets the next look be a fresh one."""
    _verdicts.clear()
    settings.put("engine_checked", "")


def _problem(python: Path, told: dict[str, Any]) -> str:
    """Why an engine that started does not fit, or empty."""
    protocol, version = told.get("protocol"), str(told.get("engine") or "?")
    if protocol != PROTOCOL or version != settings.version():
        text = tr(
            "The engine at {path} has version {found} (protocol {found_protocol}), and this plugin needs {wanted} "
            "(protocol {wanted_protocol}). Update it, or let GeoPEFT set up its own engine."
        )
        return text.format(
            path=python,
            found=version,
            found_protocol=protocol,
            wanted=settings.version(),
            wanted_protocol=PROTOCOL,
        )
    missing = [str(name) for name in told.get("missing") or []]
    if missing:
        text = tr("The Python at {path} lacks {packages}. Install them there, or let GeoPEFT set up its own engine.")
        return text.format(path=python, packages=_few(missing))
    return ""


def _does_not_start(python: Path, complaint: str) -> str:
    lacks = "No module named" in complaint
    if lacks:
        text = tr("The Python at {path} lacks {packages}. Install them there, or let GeoPEFT set up its own engine.")
        return text.format(path=python, packages=complaint.rsplit("'", 2)[-2] if complaint.count("'") > 1 else "?")
    text = tr("The engine at {path} does not start ({reason}). Press Repair, or choose another Python.")
    return text.format(path=python, reason=complaint.strip().rstrip(".")[:200])


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else tr("{names} and {count} more").format(names=shown, count=len(names) - 4)


def _key(python: Path) -> str:
    """A text that changes with the Python, its packages and this plugin."""
    times = []
    for path in (python, *_package_folders(python)):
        try:
            times.append(str(path.stat().st_mtime_ns))
        except OSError:
            continue
    return "|".join((str(python), *times, settings.version(), str(PROTOCOL)))


def _package_folders(python: Path) -> list[Path]:
    top = python.parents[1] if len(python.parents) > 1 else python.parent
    return [
        *top.glob("lib/python3.*/site-packages"),
        top / "Lib" / "site-packages",
        python.parent / "Lib/site-packages",
    ]


def folder_problem(folder: Path) -> str:
    """Why the engine's environment cannot live in a folder, or empty."""
    plugin = Path(__file__).resolve().parent
    where = folder.resolve()
    if not folder.is_absolute():
        return tr("Choose a folder with its whole path.")
    if plugin == where or plugin in where.parents:
        return tr("An upgrade of the plugin would delete this folder. Choose one outside the plugin.")
    qgis = Path(QgsApplication.prefixPath()).resolve()
    if len(qgis.parts) > 2 and (qgis == where or qgis in where.parents):
        return tr("This folder belongs to QGIS. Choose one outside of it.")
    there = next((part for part in (where, *where.parents) if part.exists()), where)
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError:
        return tr("The folder {path} cannot be written. Choose another one.").format(path=folder)
