"""QGIS is killed while the real engine works for it: nothing of the engine is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parents[1] / "resources" / "sample"
PYTHON = os.environ.get("GEOPEFT_ENGINE_PYTHON", "")
TRAIN = """
import sys
sys.path.insert(0, {here!r})
from qgis_session import start_qgis
start_qgis({profile!r})
import processing
from qgis.core import QgsApplication, QgsRasterLayer, QgsVectorLayer
from geopeft_qgis.provider import GeopeftProvider
provider = GeopeftProvider()
QgsApplication.processingRegistry().addProvider(provider)
raster = QgsRasterLayer({sample!r} + "/itaipu_landsat8.tif", "scene")
labels = QgsVectorLayer({sample!r} + "/labels.gpkg|layername=train", "labels")
job = {{"RASTERS": [raster], "LABELS": labels, "CLASS_FIELD": "class", "STEPS": 100000, "DEVICE": "cpu"}}
processing.run("geopeft:fit", job | {{"MODEL": {model!r}}})
"""


def descendants(pid):
    """The processes that this one has started, and theirs."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return found - {pid}
        found |= more


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.fault("P11", "P12", "P01")
@pytest.mark.skipif(not PYTHON, reason="GEOPEFT_ENGINE_PYTHON does not name the engine's Python (build.py engine)")
@pytest.mark.parametrize("after_s", [0.0, 3.0, 8.0])
def test_no_engine_outlives_a_qgis_that_was_killed(tmp_path, after_s):
    parts = {"here": str(HERE), "profile": str(tmp_path), "sample": str(SAMPLE), "model": str(tmp_path / "m.geopeft")}
    with (tmp_path / "qgis.log").open("wb") as log:
        qgis = subprocess.Popen([sys.executable, "-c", TRAIN.format(**parts)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not any(b"job.json" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(qgis.pid)):
            assert qgis.poll() is None and time.monotonic() < deadline, (tmp_path / "qgis.log").read_text()[-2000:]
            time.sleep(0.1)
        time.sleep(after_s)
        engines = descendants(qgis.pid)
    finally:
        qgis.send_signal(signal.SIGKILL)
        qgis.wait()
    assert engines
    deadline = time.monotonic() + 5
    while any(map(runs, engines)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in engines if runs(pid)]
    assert not (tmp_path / "m.geopeft").exists()
