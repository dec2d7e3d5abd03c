"""Speaks the engine's protocol without the engine: `fake_engine.py MODE run JOB.json`.

Modes: ok | fail | crash | crash_after | missing | hang | noise | protocol | orphan. `hang` ignores a polite cancel and
SIGTERM; `polite` runs until it is canceled; `orphan` hangs with a
child of its own that ignores SIGTERM.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CLASSES = [
    {"value": 1, "name": "water", "color": "#3b7dd8"},
    {"value": 2, "name": "Forêt", "color": "#2f8f4e"},
    {"value": 3, "name": "built up", "color": "#c0392b"},
]
FIGURES = {
    "miou": {"value": 0.74, "low": 0.66, "high": 0.80},
    "overall_accuracy": {"value": 0.85, "low": 0.8, "high": 0.9},
    "f1_macro": {"value": 0.81, "low": 0.7, "high": 0.9},
}


def emit(event, **fields):
    print(json.dumps({"event": event, **fields}, ensure_ascii=False), flush=True)


def main(mode, job_file):
    job = json.loads(job_file.read_text(encoding="utf-8"))
    folder = job_file.parent
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)), encoding="utf-8")
    (folder / "pid").write_text(str(os.getpid()))
    emit("started", protocol=99 if mode == "protocol" else 1, engine="0.0.0", device="cpu")
    print("a line for the log", file=sys.stderr, flush=True)
    if mode == "fail":
        emit("failed", code="BANDS_UNKNOWN", message="The raster has no band 'nir'.", hint="Name the bands.")
        return 1
    if mode == "crash":
        print("Segmentation fault in libsomething", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if mode in ("hang", "orphan", "polite"):
        return wait(mode, folder)
    if mode == "noise":
        make_noise()
    steps(job, folder, pause_s=float(os.environ.get("GEOPEFT_FAKE_PAUSE_S", "0")))
    outputs = {} if mode == "missing" else WRITERS[job["job"]](job)
    emit("completed", outputs=outputs)
    return 9 if mode == "crash_after" else 0


def wait(mode, folder):
    if mode == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "orphan":
        stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", stubborn])
        (folder / "child").write_text(str(child.pid))
    for step in range(6000):
        emit("progress", stage="fit", current=step, total=6000, eta_s=600.0)
        if mode == "polite" and (folder / "cancel").exists():
            emit("canceled")
            return 3
        time.sleep(0.1)
    return 0


def make_noise():
    raw = sys.stdout.buffer
    raw.write(b'100\n\xff\xfe latin caf\xe9\n[1, 2]\n{}\n{"event": "nonsense"}\nnull\n{broken\n\n')
    raw.write(b'{"event": "message", "level": "info", "text": "caf\xe9"}\n')
    raw.write(b"[" * 100000 + b"\n")
    raw.write(b"x" * (6 << 20) + b"\n")
    raw.flush()
    sys.stderr.write("a warning that nobody reads\n" * 20000)
    sys.stderr.flush()


def steps(job, folder, pause_s):
    emit("message", level="info", text="Weights: none, this is a fake.")
    emit("message", level="warning", text="2 labels are outside the raster.")
    total = 60
    stage = job["job"]
    for step in range(1, total + 1):
        emit("progress", stage=stage, current=step, total=total, eta_s=round((total - step) * pause_s, 1))
        if stage == "fit" and step % 3 == 0:
            values = {
                "loss": 1.8 / (1 + step / 9),
                "val_loss": 0.2 + 1.7 / (1 + step / 8),
                "miou": 0.78 - 0.6 / (1 + step / 9),
            }
            emit("metric", stage="fit", step=step, values=values)
        if (folder / "cancel").exists():
            emit("canceled")
            raise SystemExit(3)
        time.sleep(pause_s)


def fit(job):
    Path(job["out"]).write_bytes(b"PK fake model")
    if job.get("json_file"):
        Path(job["json_file"]).write_text(json.dumps(FIGURES), encoding="utf-8")
    return {"model": job["out"], "figures": FIGURES}


def predict(job):
    raster, out = job["rasters"][0], Path(job["out"])
    confidence = str(out.with_name(out.stem + "_confidence.tif")) if job.get("confidence") else None
    polygons = str(out.with_name(out.stem + "_polygons.gpkg")) if job.get("polygons") else None
    write_maps(raster, str(out), confidence)
    if polygons:
        write_polygons(raster, polygons)
    entry = {"raster": raster, "class_raster": str(out), "confidence": confidence, "polygons": polygons}
    return {"rasters": [{**entry, "classes": CLASSES}]}


def write_maps(raster, out, confidence):
    import numpy
    from osgeo import gdal

    source = gdal.Open(raster)
    width, height = source.RasterXSize, source.RasterYSize
    grey = source.GetRasterBand(1).ReadAsArray().astype("f4")
    cuts = numpy.quantile(grey, [1 / 3, 2 / 3])
    for path, nodata, values in ((out, 0, numpy.digitize(grey, cuts) + 1), (confidence, 255, 40 + grey % 60)):
        if path:
            target = gdal.GetDriverByName("GTiff").Create(path, width, height, 1, gdal.GDT_Byte)
            target.SetGeoTransform(source.GetGeoTransform())
            target.SetProjection(source.GetProjection())
            target.GetRasterBand(1).SetNoDataValue(nodata)
            target.GetRasterBand(1).WriteArray(values.astype("u1"))
            target = None
    Path(out + ".aux.xml").write_text("<PAMDataset/>", encoding="utf-8")


def write_polygons(raster, path):
    from osgeo import gdal, ogr

    source = gdal.Open(raster)
    left, dx, _, top, _, dy = source.GetGeoTransform()
    target = ogr.GetDriverByName("GPKG").CreateDataSource(path)
    layer = target.CreateLayer("polygons", source.GetSpatialRef(), ogr.wkbPolygon)
    layer.CreateField(ogr.FieldDefn("class", ogr.OFTString))
    for index, style in enumerate(CLASSES):
        feature = ogr.Feature(layer.GetLayerDefn())
        feature["class"] = style["name"]
        x0, x1, y1 = left + index * 10 * dx, left + (index + 1) * 10 * dx, top + 10 * dy
        ring = f"{x0} {top}, {x1} {top}, {x1} {y1}, {x0} {y1}, {x0} {top}"
        feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POLYGON(({ring}))"))
        layer.CreateFeature(feature)


def evaluate(job):
    if job.get("json_file"):
        Path(job["json_file"]).write_text(json.dumps(FIGURES), encoding="utf-8")
    return {"figures": FIGURES}


def export(job):
    Path(job["onnx"]).write_bytes(b"fake onnx")
    return {"onnx": job["onnx"]}


def pretrain(job):
    figures = {"step": 60, "best": 1.25, "best_step": 50, "curve": []}
    Path(job["out"]).write_bytes(b"fake backbone")
    if job.get("json_file"):
        Path(job["json_file"]).write_text(json.dumps(figures), encoding="utf-8")
    return {"backbone": job["out"], "figures": figures}


WRITERS = {"fit": fit, "pretrain": pretrain, "predict": predict, "evaluate": evaluate, "export": export}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[3])))
