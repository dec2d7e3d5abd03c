"""The engine of GeoPEFT: fine-tunes geospatial foundation models from a few labels and maps rasters with them."""

from importlib import metadata
from pathlib import Path


def _version() -> str:
    """The version stands in the plugin's metadata.txt and nowhere else; an installed wheel carries a copy."""
    manifest = Path(__file__).resolve().parents[2] / "metadata.txt"
    if manifest.is_file():
        for line in manifest.read_text(encoding="utf-8").splitlines():
            if line.startswith("version="):
                return line.removeprefix("version=").strip()
    return metadata.version("geopeft")


__version__ = _version()

# Raised whenever a job or an event changes its meaning; plugin and engine refuse each other when it differs.
PROTOCOL = 1
