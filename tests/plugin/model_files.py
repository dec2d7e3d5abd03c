"""Model packages to show and to break, and as much of QGIS's window as the panels use."""

import json
import time
import zipfile

from qgis.PyQt.QtCore import QCoreApplication

MANIFEST = {
    "schema_version": 2,
    "engine_version": "0.1.0",
    "created": "2026-11-25T22:28:24+00:00",
    "name": "Itaipú",
    "spec": {
        "backbone": "galileo_nano",
        "adapter": "lora",
        "decoder": "unet",
        "bands": [
            {"name": "B3", "common": "red", "wavelength_um": 0.655, "mean": 0.1},
            {"name": "slope", "common": "", "wavelength_um": None},
        ],
        "num_classes": 2,
        "gsd_m": 30.0,
    },
    "classes": [
        {"value": 1, "name": "water", "color": "#3b7DD8", "label": "1"},
        {"value": 2, "name": "Forêt", "color": "#1f7a3d", "label": "2"},
    ],
    "base_weights": {"backbone": "galileo_nano", "licence": "MIT", "revision": "abc", "sha256": "", "paper": ""},
    "radiometry": "reflectance",
    "dtype": "uint16",
    "metrics": {
        "miou": {"value": 0.744, "low": 0.66, "high": 0.8},
        "classes": [{"name": "water", "iou": 0.9}],
        "split": "blocks of the labels held out",
    },
    "sha256": {"weights.safetensors": "00"},
}


def changed(**changes):
    return {**MANIFEST, **changes}


def members(manifest=None, **more):
    body = manifest if isinstance(manifest, bytes) else json.dumps(manifest or MANIFEST).encode()
    return {"manifest.json": body, "weights.safetensors": b"weights" * 100, **more}


def write(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, body in content.items():
            archive.writestr(name, body)
    return path


def wait_until(condition, seconds=30):
    """Lets Qt work until something is so; gives the longest time that Qt could not."""
    end, longest, last = time.monotonic() + seconds, 0.0, time.monotonic()
    while not condition() and time.monotonic() < end:
        QCoreApplication.processEvents()
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
        time.sleep(0.005)
        last = time.monotonic()
    assert condition(), "this did not happen in time"
    return longest


class Bar:
    """A message bar that keeps what it is told."""

    def __init__(self):
        self.said = []

    def pushMessage(self, title, text, level, seconds):  # noqa: N802
        self.said.append((text, int(level)))


class Iface:
    """As much of QGIS's window as the panels use."""

    def __init__(self, canvas=None, layer=None):
        self.bar, self.canvas, self.layer = Bar(), canvas, layer

    def messageBar(self):  # noqa: N802
        return self.bar

    def mapCanvas(self):  # noqa: N802
        return self.canvas

    def activeLayer(self):  # noqa: N802
        return self.layer


def models_folder(tmp_path, monkeypatch):
    """Yields the models' folder, with two models and a damaged one; for a fixture."""
    from geopeft_qgis import settings

    for name in ("models_opened", "models_hidden"):
        settings.put(name, "")
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(settings, "models_folder", lambda: folder)
    old = changed(created="2025-01-01T00:00:00+00:00", metrics={"miou": {"value": 0.9, "low": 0.8, "high": 0.95}})
    write(folder / "old.geopeft", members(old))
    write(folder / "new.geopeft", members())
    (folder / "damaged.geopeft").write_bytes((folder / "new.geopeft").read_bytes()[:300])
    yield folder
    for name in ("models_opened", "models_hidden"):
        settings.put(name, "")
