"""Plugin tests run in QGIS's own Python; without QGIS they are skipped, which is said."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

pytest.importorskip("qgis.core", reason="these tests need QGIS's Python (/usr/bin/python3 where QGIS is installed)")

from qgis_session import (  # noqa: F401
    fake_engine,
    label_layer,
    project,
    provider,
    qgis_app,
    raster_file,
    raster_layer,
)
from qgis_window import screen, window  # noqa: F401
