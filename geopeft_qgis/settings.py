"""What the user has set, and where the plugin's own files are."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from qgis.core import QgsApplication, QgsProject, QgsSettings

PREFIX = "geopeft/"
HOMEPAGE = "https://github.com/geopeft/geopeft"
DEVICES = ("auto", "cpu", "cuda", "mps")

# The engine is started from the plugin's own copy, so that both always have the same version. `-I` keeps the
# environment and the current folder out, so the folder is put on the path here.
START_ENGINE = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module('geopeft', run_name='__main__', alter_sys=True)"
)


class EngineMissing(Exception):
    """There is no engine that could run a job."""


def get(name: str, default: str = "") -> str:
    """A setting as text."""
    return str(QgsSettings().value(PREFIX + name, default) or default)


def put(name: str, value: str) -> None:
    """Stores a setting; an empty one is removed."""
    if value:
        QgsSettings().setValue(PREFIX + name, value)
    else:
        QgsSettings().remove(PREFIX + name)


def device() -> str:
    """Where to compute unless a job says otherwise."""
    chosen = get("device", "auto")
    return chosen if chosen in DEVICES else "auto"


def weights_folder() -> str:
    """The folder with pretrained weights, or empty."""
    return get("weights_folder")


def models_folder() -> Path:
    """Where models go unless the user says otherwise."""
    chosen = get("models_folder")
    return Path(chosen) if chosen else default_models_folder()


def default_models_folder() -> Path:
    """Where models go while nothing else is chosen."""
    return Path(QgsApplication.qgisSettingsDirPath()) / "geopeft" / "models"


def new_raster_folder() -> Path:
    """Where rasters go that the plugin makes of other layers: beside the project, else in the user's folder."""
    home = QgsProject.instance().homePath()
    return Path(home) if home else models_folder().parent / "rasters"


def preview_is_on() -> bool:
    """Whether the map follows the labels while they are drawn."""
    return get("preview", "on") != "off"


def engine_python() -> Optional[Path]:
    """The engine's Python where it is ready: the user's own, else the one that the plugin has set up."""
    from . import engine_state

    return engine_state.state().python


def engine_command() -> list[str]:
    """How to start the engine; EngineMissing where it is not set up, or is of another version.

    The first time after a change it starts a Python of the user's own once, for about a second.
    """
    from . import engine_state

    if engine_state.needs_check():
        engine_state.check(Path(engine_state.own_python()))
    python = engine_python()
    if python is None:
        raise EngineMissing(engine_state.state().sentence or engine_state.not_set_up())
    return engine_state.command(python)


def resource(*parts: str) -> str:
    """Path of a file in resources/, in an installed plugin and in a checkout."""
    here = Path(__file__).resolve().parent
    folder = here / "resources"
    return str((folder if folder.is_dir() else here.parent / "resources").joinpath(*parts))


def version() -> str:
    """The version from metadata.txt, the only place that has it."""
    here = Path(__file__).resolve().parent
    for manifest in (here / "metadata.txt", here.parent / "metadata.txt"):
        if manifest.is_file():
            for line in manifest.read_text(encoding="utf-8").splitlines():
                if line.startswith("version="):
                    return line[len("version=") :].strip()
    return ""
