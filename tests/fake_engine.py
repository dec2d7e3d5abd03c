"""Speaks the engine's protocol without the engine: `fake_engine.py MODE run JOB.json`, `fake_engine.py MODE worker`.

Modes: ok | fail | crash | crash_after | missing | hang | noise | protocol | orphan. `hang` ignores a polite cancel and
SIGTERM; `polite` runs until it is canceled, or stopped, as before a first step; `orphan` hangs with a
child of its own that ignores SIGTERM; `disk_full` trains, but cannot write a map. A worker also knows `crash_once`
(its first process crashes) and `mute` (it is never ready); it appends the id of each of its processes to `pids` in its
folder.
"""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
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
    if not is_for_many(job):
        steps(job, folder, pause_s=float(os.environ.get("GEOPEFT_FAKE_PAUSE_S", "0")))
    if mode == "disk_full" and job["job"] == "predict":
        message = f"There is not enough room in {Path(job['out']).parent}: 3 MiB are free, about 12 MiB are needed."
        emit("failed", code="DISK_FULL", message=message, hint="Free some space or choose another folder.")
        return 1
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
        if mode == "polite" and any((folder / name).exists() for name in ("cancel", "stop")):
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
    total = int(os.environ.get("GEOPEFT_FAKE_STEPS", "60"))
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
        if stage == "fit" and (folder / "stop").exists():
            emit("message", level="info", text=f"Stopped after {step} steps, as you asked.")
            return
        time.sleep(pause_s)


def fit(job):
    write_package(job["out"])
    if job.get("json_file"):
        Path(job["json_file"]).write_text(json.dumps(FIGURES), encoding="utf-8")
    if job.get("report"):
        write_page(job["report"])
    return {"model": job["out"], "figures": FIGURES, **({"report": job["report"]} if job.get("report") else {})}


def write_package(path):
    """A package as far as the plugin looks into it: its manifest."""
    manifest = {
        "schema_version": 1,
        "engine_version": "0.0.0",
        "created": "2026-11-26T10:00:00+00:00",
        "name": Path(path).stem,
        "spec": {"backbone": "fake_net", "adapter": "lora", "decoder": "unet", "bands": [{"name": "red"}], "gsd_m": 10},
        "classes": CLASSES,
        "base_weights": {"backbone": "fake_net", "licence": "MIT", "revision": "0bbc532", "paper": "arXiv 1"},
        "radiometry": "reflectance",
        "dtype": "uint16",
        "metrics": {**FIGURES, "split": "blocks of the labels held out"},
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr("weights.safetensors", b"fake weights")


def is_for_many(job):
    return job["job"] == "predict" and Path(job["out"]).suffix != ".tif"


def predict(job):
    out = Path(job["out"])
    if is_for_many(job):
        return predict_many(job, out)
    return {"rasters": [predict_one(job, job["rasters"][0], out)], "failures": []}


def predict_many(job, folder):
    """A raster that GDAL cannot open fails; the others are mapped, each with its events.

    GEOPEFT_FAKE_CRASH_AT is the number of the raster at which the engine is killed.
    """
    rasters = job["rasters"]
    folder.mkdir(parents=True, exist_ok=True)
    shares = [round((index + 1) / len(rasters), 6) for index in range(len(rasters))]
    emit("metric", stage="raster", step=0, values={"rasters": len(rasters)}, shares=shares)
    done, failures = [], []
    pause_s = float(os.environ.get("GEOPEFT_FAKE_PAUSE_S", "0"))
    for index, raster in enumerate(rasters):
        for part in range(1, 11):
            current, total = index * 10 + part, 10 * len(rasters)
            emit("progress", stage="predict", current=current, total=total, eta_s=(total - current) * pause_s)
            if Path("cancel").exists():
                emit("canceled")
                raise SystemExit(3)
            time.sleep(pause_s)
        if os.environ.get("GEOPEFT_FAKE_CRASH_AT") == str(index + 1):
            os.kill(os.getpid(), signal.SIGKILL)
        event = {"stage": "raster", "step": index + 1, "values": {"seconds": 0.1}, "raster": raster}
        try:
            done.append(predict_one(job, raster, folder / f"{Path(raster).stem}_map.tif"))
            emit("metric", **event, outputs=done[-1])
        except AttributeError:  # what GDAL's Python gives is None
            message = f"{raster} cannot be opened as a raster."
            failures.append({"raster": raster, "code": "RASTER_OPEN", "message": message, "hint": "Check the file."})
            emit("metric", **event, failure=failures[-1])
            emit("message", level="warning", text=f"{Path(raster).name} is left out: {message}")
    if not done:
        emit("failed", code=failures[0]["code"], message=failures[0]["message"], hint=failures[0]["hint"])
        raise SystemExit(1)
    return {"rasters": done, "failures": failures}


def predict_one(job, raster, out):
    layers = {
        name: str(out.with_name(f"{out.stem}_{name}.tif")) if job.get(name) else None
        for name in ("confidence", "entropy", "outside")
    }
    polygons = str(out.with_name(out.stem + "_polygons.gpkg")) if job.get("polygons") else None
    write_maps(raster, str(out), [path for path in layers.values() if path])
    if polygons:
        write_polygons(raster, polygons)
    entry = {"raster": raster, "class_raster": str(out), **layers, "polygons": polygons}
    unknown = [{"value": 255, "name": "unknown", "color": "#9e9e9e"}] if job.get("unknown_below") else []
    return {**entry, "outside_share": 0.125, "unknown_share": 0.25, "classes": CLASSES + unknown}


def write_maps(raster, out, layers=()):
    import numpy
    from osgeo import gdal

    source = gdal.Open(raster)
    width, height = source.RasterXSize, source.RasterYSize
    grey = source.GetRasterBand(1).ReadAsArray().astype("f4")
    cuts = numpy.quantile(grey, [1 / 3, 2 / 3])
    percents = [(path, 255, 40 + grey % 60) for path in layers]
    for path, nodata, values in ((out, 0, numpy.digitize(grey, cuts) + 1), *percents):
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
    layer.CreateField(ogr.FieldDefn("rank", ogr.OFTInteger))
    layer.CreateField(ogr.FieldDefn("reason", ogr.OFTString))
    for index, style in enumerate(CLASSES):
        feature = ogr.Feature(layer.GetLayerDefn())
        feature["class"] = style["name"]
        feature["rank"] = index + 1
        feature["reason"] = f"The map hesitates between {style['name']} and another class."
        x0, x1, y1 = left + index * 10 * dx, left + (index + 1) * 10 * dx, top + 10 * dy
        ring = f"{x0} {top}, {x1} {top}, {x1} {y1}, {x0} {y1}, {x0} {top}"
        feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POLYGON(({ring}))"))
        layer.CreateFeature(feature)


def evaluate(job):
    if job.get("json_file"):
        Path(job["json_file"]).write_text(json.dumps(FIGURES), encoding="utf-8")
    return {"figures": FIGURES}


def report(job):
    write_page(job["out"])
    return {"report": job["out"]}


def write_page(path):
    Path(path).write_text(
        "<!doctype html><html lang='en'><body><h1>Accuracy report</h1></body></html>", encoding="utf-8"
    )


def export(job):
    Path(job["onnx"]).write_bytes(b"fake onnx")
    return {"onnx": job["onnx"]}


def advise(job):
    """Places in the middle of the raster, with the fields that suggest and suspects share."""
    write_polygons(job["rasters"][0], job["out"])
    if job.get("json_file"):
        Path(job["json_file"]).write_text(json.dumps({"count": 3}), encoding="utf-8")
    return {"places" if job["job"] == "suggest" else "suspects": job["out"], "count": 3, "judged": 20, "width_m": 80.0}


def compare(job):
    outputs = {"sentences": ["The maps agree nearly everywhere."]}
    if job.get("labels"):
        gap = {"miou": {"value": 0.05, "low": 0.01, "high": 0.09}}
        outputs["figures"] = {"one": FIGURES, "other": FIGURES, "difference": gap, "better": "one"}
    if job.get("out"):
        write_maps(next(path for path in (job["one"], job["other"]) if path.endswith(".tif")), job["out"])
        legend = [{**CLASSES[0], "name": "both agree"}, {**CLASSES[1], "name": "water → Forêt"}]
        outputs["disagreement"] = {"raster": job["out"], "share": 0.04, "classes": legend}
    if job.get("json_file"):
        Path(job["json_file"]).write_text(json.dumps(outputs), encoding="utf-8")
    return outputs


def study(job):
    Path(job["out"]).write_text("key,state\n1,done\n", encoding="utf-8")
    write_page(job["report"])
    outputs = {"table": job["out"], "report": job["report"], "runs": 12, "failed": 1, "methods": [], "claims": []}
    if job.get("json_file"):
        Path(job["json_file"]).write_text(json.dumps(outputs), encoding="utf-8")
    return outputs


def pretrain(job):
    figures = {"step": 60, "best": 1.25, "best_step": 50, "curve": []}
    Path(job["out"]).write_bytes(b"fake backbone")
    if job.get("json_file"):
        Path(job["json_file"]).write_text(json.dumps(figures), encoding="utf-8")
    return {"backbone": job["out"], "figures": figures}


def distil(job):
    figures = {**FIGURES, "agreement": {"share": 0.97}} if job.get("labels") else {"agreement": {"share": 0.97}}
    write_package(job["out"])
    if job.get("json_file"):
        Path(job["json_file"]).write_text(json.dumps(figures), encoding="utf-8")
    return {"model": job["out"], "figures": figures}


def average(job):
    lost = {"models": [{"model": Path(path).name} for path in job["models"]], "lost_by_cut": 0.02}
    write_package(job["out"])
    if job.get("json_file"):
        Path(job["json_file"]).write_text(json.dumps(lost), encoding="utf-8")
    return {"model": job["out"], "figures": lost}


def preview(job):
    write_maps(job["raster"], job["out"])
    return {"class_raster": job["out"], "confidence": None, "classes": CLASSES, "factor": 1, "seconds": 0.1}


def work(mode):
    pids = Path("pids")
    first = not pids.exists()
    with pids.open("a") as file:
        print(os.getpid(), file=file)
    if mode in ("mute", "orphan", "hang"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "mute":
        time.sleep(600)
    if mode == "noise":
        make_noise()
    emit("ready", protocol=99 if mode == "protocol" else 1, engine="0.0.0")
    for line in sys.stdin:
        work_on(mode, line.strip(), first)


def work_on(mode, job_file, is_first_process):
    job, folder = json.loads(Path(job_file).read_text(encoding="utf-8")), Path(job_file).parent
    emit("started", job=job_file, protocol=1, engine="0.0.0", device="cpu")
    if mode == "crash" or (mode == "crash_once" and is_first_process):
        print("Segmentation fault in libsomething", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "fail":
        code = os.environ.get("GEOPEFT_FAKE_CODE", "BANDS_UNKNOWN")
        emit("failed", job=job_file, code=code, message="The raster has no band 'nir'.", hint="Name the bands.")
        return
    if mode == "orphan":
        stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", stubborn])
        Path("child").write_text(str(child.pid))
    if mode in ("hang", "orphan"):
        time.sleep(600)
    if mode == "noise":
        make_noise()
    emit("message", job=job_file, level="info", text="Values up to 2 are taken as reflectances.")
    for step in range(1, 21):
        emit("progress", job=job_file, stage="preview", current=step, total=20, eta_s=1.0)
        if (folder / "cancel").exists():
            emit("canceled", job=job_file)
            return
        time.sleep(float(os.environ.get("GEOPEFT_FAKE_PAUSE_S", "0")))
    emit("completed", job=job_file, outputs={} if mode == "missing" else preview(job))


WRITERS = {
    "fit": fit,
    "pretrain": pretrain,
    "distil": distil,
    "average": average,
    "predict": predict,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "suggest": advise,
    "suspects": advise,
    "compare": compare,
    "study": study,
}


def probe():
    """What the plugin asks an engine before its first job."""
    manifest = Path(__file__).resolve().parents[1] / "metadata.txt"
    lines = manifest.read_text(encoding="utf-8").splitlines()
    version = next(line.partition("=")[2].strip() for line in lines if line.startswith("version="))
    print(json.dumps({"protocol": 1, "engine": version, "missing": []}))


if __name__ == "__main__":
    if sys.argv[2] == "probe":
        sys.exit(probe())
    sys.exit(work(sys.argv[1]) if sys.argv[2] == "worker" else main(sys.argv[1], Path(sys.argv[3])))
