"""The `probe` job: versions and devices, without importing anything heavy in this process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

from geopeft import PROTOCOL, __version__
from geopeft.events import Reporter
from geopeft.job import ProbeJob

PACKAGES = ("torch", "timm", "peft", "rasterio", "numpy", "onnxruntime", "onnxruntime-gpu")


def run(job: ProbeJob, reporter: Reporter) -> dict[str, Any]:
    """Versions of the engine and its packages, and the device that `auto` would take."""
    return {
        "engine": __version__,
        "protocol": PROTOCOL,
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in PACKAGES},
        "cpus": os.cpu_count(),
        "gpu": _gpu(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    """Name of the NVIDIA GPU that the driver lists, or None."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else None
