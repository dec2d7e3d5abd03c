"""How a model came to be, without whose: the job with file names for paths, and the versions that it ran on."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path, PureWindowsPath
from typing import Any

from geopeft import __version__
from geopeft.job import Job

PACKAGES = ("torch", "peft", "timm", "rasterio", "numpy", "scikit-learn", "onnxruntime")
# Fields of a job that name files; a backbone may be the name of one.
_FILES = ("rasters", "models", "labels", "validation_labels", "area", "out", "start", "backbone")
# What says nothing of how the model came to be.
_ASIDE = {"protocol", "json_file", "report", "resume", "weights_dir"}
_QUOTED = re.compile(r"""(['"])((?:~?/|[A-Za-z]:[\\/]|\\\\)[^'"]*)\1""")
_FOLDER = re.compile(r"""(?<![\w/:.\\])(?:~?/|[A-Za-z]:[\\/]|\\\\)[^\s'",;()<>]*[\\/](?=[^\s'",;()<>\\/])""")


def job_record(job: Job) -> dict[str, Any]:
    """The job as plain data, without what is empty, and with file names where there were paths."""
    fields = job.model_dump(mode="json", exclude=_ASIDE)
    named = {key: _names(value) if key in _FILES else value for key, value in fields.items()}
    return {key: value for key, value in named.items() if value not in ("", [], None)}


def environment(device: str, threads: int) -> dict[str, Any]:
    """Versions and the kind of machine; neither its name nor its user's."""
    return {
        "geopeft": __version__,
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
        "platform": f"{platform.system()} {platform.machine()}".strip(),
        "device": device,
        "threads": threads,
    }


def file_name(path: str) -> str:
    """The last part of a path of any system, of FILE:layer, or of an address; nothing that an address may hide."""
    name = PureWindowsPath(path.split("?")[0].rstrip("/\\")).name
    return name.strip("\"'") or "source"


def without_folders(text: str, job: Mapping[str, Any] | None = None) -> str:
    """A sentence with file names where it names files by their paths.

    Args:
        job: a job's fields; its own paths are found even where they hold blanks.
    """
    for path in sorted(_paths(job or {}), key=len, reverse=True):
        text = text.replace(path, file_name(path))
    text = text.replace(f"{Path.home()}/", "") if len(str(Path.home())) > 1 else text
    # In quotes a path may hold blanks.
    text = _QUOTED.sub(lambda found: f"{found[1]}{file_name(found[2])}{found[1]}", text)
    return _FOLDER.sub("", text)


def _paths(job: Mapping[str, Any]) -> Iterable[str]:
    for key in (*_FILES, "weights_dir", "model", "figures"):
        value = job.get(key, "")
        yield from (path for path in ([value] if isinstance(value, str) else value) if "/" in path or "\\" in path)


def _names(value: Any) -> Any:
    return [file_name(path) for path in value] if isinstance(value, list) else file_name(value) if value else value


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
