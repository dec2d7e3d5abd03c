"""A small student beside its teacher: accuracy in an unseen region, and seconds per megapixel.

    build.py bench distil [--sets NAME,...] [--fit-steps N] [--steps N] [--runs N] [--side PX] [--keep FOLDER]

For each set a teacher is fitted on the training region as `fit` does by itself. It teaches a student on the rasters of
that region, and another on those and the unlabelled rasters of the unseen region. All are scored on the unseen region's
labels. Then teacher and student take turns: in ONNX Runtime on one and two threads with batches of four, and in
`predict` on a square raster of `--side` pixels. Times are medians of the wall. `--keep` is a folder in which models
stay, and are found again. The file of the results keeps the other sets that it has.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _sets  # type: ignore[import-not-found]
import numpy as np

RESULTS = Path(__file__).parents[2] / "resources" / "results"
SETS = "urban_trees_naip,sen1floods11_spain"
BATCH = 4
STUDENTS = {"student": False, "student, unseen pixels too": True}
HEAD = ("model", "M parameters", "agreement", "mIoU unseen", "ORT 1 thread", "ORT 2 threads", "predict")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables and keeps them in resources/results/distil.md."""
    parser = argparse.ArgumentParser(prog="build.py bench distil", description=__doc__)
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--fit-steps", type=int, default=80)
    parser.add_argument("--steps", type=int, default=0, help="of the student; 0: as distil does by itself")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--keep", default="")
    options = parser.parse_args(arguments)
    shared = _sets.shared_folder()
    if shared is None:
        return 1
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.sets.split(","):
            lines = of_set(name, shared / "data", folder, options)
            print("\n".join([name, *lines]), flush=True)
            keep(name, lines)
    return 0


def keep(name: str, lines: Sequence[str]) -> None:
    """Puts the table of a set into the file, beside those of others."""
    path = RESULTS / "distil.md"
    parts = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    tables = {part.split("\n")[0]: part for part in parts}
    tables[name] = "\n".join([name, "", *lines, ""])
    text = "# A small student\n\nMade by `python3 build.py bench distil`. Seconds per megapixel, batches of "
    text += f"{BATCH} in ONNX Runtime (ORT); in brackets how many times faster than the teacher.\n"
    path.write_text("\n## ".join([text, *tables.values()]), encoding="utf-8")


def of_set(name: str, data: Path, folder: Path, options: argparse.Namespace) -> list[str]:
    """The table of one set."""
    labelled = next(known for known in _sets.SETS if known.name == name)
    training, unseen = _sets.regions_of(labelled, data, folder)
    background = ["--background", labelled.background] if labelled.background else []
    labels, weights = ["--class-field", "class", *background], ["--weights-dir", str(data.parent / "weights")]
    models = {"teacher": folder / f"{name}.geopeft"}
    if not models["teacher"].exists():
        _sets.engine("fit", *training.rasters, "--labels", training.labels, *labels, *weights,
                     "--folds", "1", "--steps", str(options.fit_steps), "--out", str(models["teacher"]))  # fmt: skip
    for number, (student, with_unseen) in enumerate(STUDENTS.items()):
        models[student] = folder / f"{name}_student{number}.geopeft"
        rasters = [*training.rasters, *(unseen.rasters if with_unseen else ())]
        if not models[student].exists():
            _sets.engine("distil", str(models["teacher"]), *rasters, "--out", str(models[student]),
                         "--steps", str(options.steps), *weights)  # fmt: skip
    rows = {key: scored(path, unseen, [*labels, *weights], folder) for key, path in models.items()}
    for key, seconds in timed(models, unseen.rasters[0], folder, weights, options).items():
        rows[key] |= seconds
    return table(rows)


def scored(model: Path, unseen: Any, labels: Sequence[str], folder: Path) -> dict[str, Any]:
    """Size, agreement with the teacher, and mIoU of a model in the unseen region."""
    out = folder / "figures.json"
    _sets.engine("evaluate", str(model), *unseen.rasters, "--labels", unseen.labels, *labels, "--json", str(out))
    manifest = json.loads(_sets.engine("inspect", str(model)))
    agreement = manifest["metrics"].get("agreement")
    return {
        "parameters_m": manifest["hyperparameters"]["total"] / 1e6,
        "agreement": agreement["share"] if agreement else None,
        "miou": _sets.whole_figures(json.loads(out.read_text()))["miou"],
    }


def timed(
    models: dict[str, Path], raster: str, folder: Path, weights: Sequence[str], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Seconds per megapixel of teacher and one student; those of the other are the same."""
    sides = {key: models[key] for key in ("teacher", next(iter(STUDENTS)))}
    mosaic = tiled(raster, folder, options.side)
    found: dict[str, dict[str, list[float]]] = {key: {} for key in sides}
    work: dict[str, dict[str, Callable[[], float]]] = {}
    for key, path in sides.items():
        onnx = path.with_suffix(".onnx")
        if not onnx.exists():
            _sets.engine("export", str(path), "--onnx", str(onnx), *weights)
        work[key] = {f"ort{threads}": session(onnx, threads) for threads in (1, 2)}
        work[key]["predict"] = prediction(path, mosaic, folder, weights[-1], options.side)
    for _ in range(1 + options.runs):
        for key, jobs in work.items():
            for job, do in jobs.items():
                found[key].setdefault(job, []).append(do())
    return {key: {job: statistics.median(all_[1:]) for job, all_ in jobs.items()} for key, jobs in found.items()}


def session(onnx: Path, threads: int) -> Callable[[], float]:
    """One batch in ONNX Runtime; its seconds per megapixel."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    opened = onnxruntime.InferenceSession(str(onnx), settings, providers=["CPUExecutionProvider"])
    (taken,) = opened.get_inputs()
    shape = (BATCH, *taken.shape[1:])
    chips = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)

    def run() -> float:
        begun = time.perf_counter()
        opened.run(None, {taken.name: chips})
        return (time.perf_counter() - begun) / (BATCH * shape[2] * shape[3] / 1e6)

    return run


def prediction(model: Path, raster: Path, folder: Path, weights_dir: str, side_px: int) -> Callable[[], float]:
    """`predict` on a raster, in this process; its seconds per megapixel."""
    from geopeft import predict
    from geopeft.events import Reporter
    from geopeft.job import PredictJob

    fields = {"out": str(folder / "map.tif"), "device": "cpu", "weights_dir": weights_dir}
    job = PredictJob.model_validate({"model": str(model), "rasters": (str(raster),), **fields})

    def run() -> float:
        begun = time.perf_counter()
        predict.run(job, Reporter())
        return (time.perf_counter() - begun) / (side_px**2 / 1e6)

    return run


def tiled(raster: str, folder: Path, side_px: int) -> Path:
    """A square raster: this one beside itself."""
    import rasterio

    path = folder / "mosaic.tif"
    with rasterio.open(raster) as source:
        values, profile = source.read(), source.profile
        texts, tags = source.descriptions, source.tags()
    times = [1, *(-(-side_px // side) for side in values.shape[1:])]
    values = np.tile(values, times)[:, :side_px, :side_px]
    profile |= {"driver": "GTiff", "height": side_px, "width": side_px}
    for key in ("blockxsize", "blockysize", "tiled"):
        profile.pop(key, None)
    with rasterio.open(path, "w", **profile) as target:
        target.write(values)
        target.update_tags(**tags)
        for index, text in enumerate(texts, 1):
            if text:
                target.set_band_description(index, text)
    return path


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    first = rows["teacher"]
    for key, row in rows.items():
        agreement = f"{row['agreement']:.1%}" if row["agreement"] is not None else ""
        times = [f"{row[job]:.2f} ({first[job] / row[job]:.1f})" if job in row else "" for job in
                 ("ort1", "ort2", "predict")]  # fmt: skip
        loss = "" if row is first else f" ({100 * (row['miou'] - first['miou']):+.1f} points)"
        cells = (key, f"{row['parameters_m']:.2f}", agreement, f"{row['miou']:.3f}{loss}", *times)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
