"""qgis_process of the QGIS that runs the tests."""

import os
import subprocess
from pathlib import Path

QGIS_PROCESS = Path(os.environ.get("QGIS_PREFIX_PATH", "/usr")) / "bin" / "qgis_process.bin"
# What tells another QGIS than the system's where it is.
KEPT = ("LD_LIBRARY_PATH", "QGIS_PREFIX_PATH", "PYTHONPATH", "PATH")


def qgis_process(profile, *arguments):
    """Runs an algorithm in a profile (its environment variables); stdout is JSON."""
    environment = {**profile, **{name: os.environ[name] for name in KEPT if name in os.environ}}
    command = [str(QGIS_PROCESS), "--json", "run", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
