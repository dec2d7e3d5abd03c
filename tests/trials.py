"""The engine run again and again while something goes wrong, and the judgement of what is left.

Every run is a fork of a process that has imported all there is to import, so that hundreds take minutes. A run is right
where each output is as it was or whole, the inputs are what they were, one event or none ends it, and nothing else
stays: no process, no temporary file (after a kill: none once the job has been run again).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # noqa: F401, before the fork
import pyogrio
import rasterio
import shapely
import torch
import torchvision  # noqa: F401
from geopeft import __main__, checkpoint, fit, forest, holdout, package, predict  # noqa: F401
from geopeft.events import TERMINAL
from geopeft.maps import parts
from geopeft.training import trainer

SIDE, FIELD_PX = 160, 40
# A raster of so many scenes one below the other is mapped in parts.
SCENES_OF_TALL = 6
LIMIT_S, HUNG = 45.0, -1000
FIT = {"backbone": "scratch_unet", "adapter": "full", "steps": 6, "folds": 1, "baselines": [], "device": "cpu"}
# As little work as will do, and a checkpoint at each step; a map is kept by each row of its blocks.
QUICK: tuple[tuple[Any, str, Any], ...] = (
    (trainer, "BATCH", 1), (trainer, "EVALUATE_EVERY", 5), (trainer, "CHECKPOINT_S", 0.0),
    (checkpoint, "MOST_TIME", 1e9), (holdout, "MAX_VALIDATION_CHIPS", 3),
    (forest, "TREES", 2), (forest, "FOLD_TREES", 1), (parts, "PART_PX", 1),
)  # fmt: skip

Harm = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (negative: the signal), its events, its seconds."""

    code: int
    events: list[dict[str, Any]]
    seconds: float

    @property
    def words(self) -> str:
        """What came of it, for counting."""
        last = [event for event in self.events if event["event"] in TERMINAL]
        if last:
            return str(last[-1].get("code") or last[-1]["event"])
        if self.code == HUNG:
            return "hung"
        return f"ended by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"


class Bench:
    """A folder with inputs, jobs and their reference outputs.

    Args:
        folder: an empty folder; `inputs` and `out` go there.
    """

    def __init__(self, folder: Path) -> None:
        for module, name, value in QUICK:
            setattr(module, name, value)
        torch.set_num_threads(1)
        self.folder, self.inputs, self.out = folder, folder / "inputs", folder / "out"
        self.inputs.mkdir()
        self.out.mkdir()
        _draw(self.inputs)
        scene, labels = str(self.inputs / "scene.tif"), str(self.inputs / "labels.gpkg")
        model, out = str(self.inputs / "model.geopeft"), self.out
        taught = FIT | {"job": "fit", "rasters": [scene], "labels": labels}
        self.jobs: dict[str, dict[str, Any]] = {
            "fit": taught | {"out": str(out / "m.geopeft"), "json_file": str(out / "m.json")},
            "predict": {"job": "predict", "model": model, "rasters": [scene], "out": str(out / "map.tif"),
                        "confidence": True, "polygons": True, "device": "cpu"},
            "map": {"job": "predict", "model": model, "rasters": [str(self.inputs / "tall.tif")],
                    "out": str(out / "map.tif"), "confidence": True, "polygons": True, "device": "cpu"},
            "export": {"job": "export", "model": model, "onnx": str(out / "m.onnx")},
            "save": {"job": "save", "model": model, "out": str(out / "copy.geopeft")},
        }  # fmt: skip
        first = self.run(taught | {"out": model})
        assert first.words == "completed", first.events
        self.before = digests(self.inputs)
        self.seconds: dict[str, float] = {}
        self.reference: dict[str, dict[str, str]] = {}

    def learn(self, name: str) -> None:
        """Runs a job as it should be, for how long it takes and what it gives."""
        self.clear()
        ended = self.run(self.jobs[name])
        assert ended.words == "completed", ended.events
        self.seconds[name] = ended.seconds
        self.reference[name] = whole_outputs(self.out)
        self.clear()

    def clear(self) -> None:
        """Empties the folder of the outputs."""
        for path in self.out.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def run(self, job: dict[str, Any], harm: Harm | None = None, prepare: Callable[[], None] | None = None) -> Ended:
        """Runs a job in a fork; `prepare` is called in it, `harm` here with its process id."""
        run = self.folder / "run"
        run.mkdir(exist_ok=True)
        (run / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (run / "events").unlink(missing_ok=True)
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _be_the_engine(run, job, prepare)
        if harm is not None:
            harm(pid)
        code = _wait(pid, started + LIMIT_S)
        lines = (run / "events").read_text("utf-8", "replace").splitlines() if (run / "events").exists() else []
        return Ended(code, [event for event in map(_event, lines) if event], time.monotonic() - started)

    def faults(self, name: str, ended: Ended, old: dict[str, str], codes: frozenset[str] = frozenset()) -> list[str]:
        """What is wrong after a run, a sentence each.

        Args:
            name: of the job.
            old: the outputs as they were before it.
            codes: with which it may fail; a run that was killed may say nothing at all.
        """
        found = []
        last = [event for event in ended.events if event["event"] in TERMINAL]
        killed = ended.code < 0
        if ended.code == HUNG:
            found.append(f"it did not end within {LIMIT_S:.0f} s")
        if len(last) > 1 or (not last and not killed):
            found.append(f"{len(last)} terminal events, exit code {ended.code}")
        for event in last:
            if event["event"] == "failed":
                if event["code"] not in codes:
                    found.append(f"it failed with {event['code']}: {event['message']}")
                if not event["hint"] or "Traceback" in event["message"]:
                    found.append(f"no sentence for a user: {event}")
        if digests(self.inputs) != self.before:
            found.append("the inputs have changed")
        now = whole_outputs(self.out)
        for path, content in now.items():
            if content not in (old.get(path), self.reference[name].get(path)):
                found.append(f"{path} is neither the old one nor whole ({content})")
        # The names beside an old map go before the new map comes: they are not its.
        found += [f"{path} is gone" for path in old if path not in now and not (killed and path.endswith(".aux.xml"))]
        if ended.words == "completed" and now != self.reference[name]:
            found.append(
                f"completed, and yet {sorted(set(self.reference[name].items()) - set(now.items()))} are not there"
            )
        hidden = [path.name for path in self.out.iterdir() if path.name.startswith(".")]
        if hidden and not killed:
            found.append(f"left behind: {hidden}")
        return found


def old_outputs(bench: Bench, name: str, there: bool) -> dict[str, str]:
    """Empties the outputs and, where wanted, puts old files there."""
    bench.clear()
    if there:
        for path in bench.reference[name]:
            (bench.out / path).write_bytes(b"old " + path.encode())
    return whole_outputs(bench.out)


def digests(folder: Path) -> dict[str, str]:
    """File -> checksum, of all that lies in a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def whole_outputs(folder: Path) -> dict[str, str]:
    """File -> what is in it, in a word that is the same for each run of a job; without hidden files and checkpoints."""
    return {
        path.name: _content(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.suffix not in (".resume", ".ballast")
    }


def _content(path: Path) -> str:
    body = path.read_bytes()
    if body.startswith(b"old "):
        return "old"
    try:
        return _WHAT[path.suffix](path, body)
    except Exception as error:  # whatever a broken file makes of its reader
        return f"broken: {type(error).__name__} {error}"[:200]


def _package(path: Path, _: bytes) -> str:
    found = package.read(path)
    figures = {k: v for k, v in found.manifest.metrics.items() if k not in ("seconds", "peak_memory_mb")}
    # A training that went on, or could not be saved in between, says so; all else is what it would have been.
    changes: dict[str, Any] = {"created": "", "metrics": figures, "name": "", "assumptions": (), "warnings": ()}
    rest = found.manifest.model_copy(update=changes).model_dump(mode="json")
    rest["sha256"].pop(package.MANIFEST, None)
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _raster(path: Path, _: bytes) -> str:
    """Pixels, colours, tags and overviews; where in the file they lie may differ after a write that was tried again."""
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), rasterio.open(path) as raster:
        tags = {name: text for name, text in raster.tags().items() if name != "GEOPEFT_DATE"}
        colors = raster.colormap(1) if raster.colorinterp[0].name == "palette" else {}
        found = [raster.read().tobytes(), repr((tags, raster.tags(1), colors, raster.overviews(1))).encode()]
    return hashlib.sha256(b"".join(found)).hexdigest()


def _layer(path: Path, _: bytes) -> str:
    _, _, shapes, fields = pyogrio.raw.read(path)
    return hashlib.sha256(b"".join(shapes) + repr([column.tolist() for column in fields]).encode()).hexdigest()


def _graph(path: Path, _: bytes) -> str:
    onnx.checker.check_model(str(path))
    return f"{len(onnx.load(path).graph.node)} nodes"


def _figures(_: Path, body: bytes) -> str:
    return " ".join(sorted(json.loads(body)))


def _sidecar(_: Path, body: bytes) -> str:
    return "whole" if body.endswith(b"</PAMDataset>\n") else "broken"


_WHAT = {".geopeft": _package, ".tif": _raster, ".gpkg": _layer, ".onnx": _graph, ".json": _figures, ".xml": _sidecar}


def _draw(folder: Path) -> None:
    rng = np.random.default_rng(0)
    place = np.arange(SIDE) // FIELD_PX
    spectra = np.array([[500, 700, 600, 3000], [900, 1100, 1500, 1800]], np.float32)
    values = spectra[(place[:, None] + place) % 2].transpose(2, 0, 1) + rng.normal(0, 60, (4, SIDE, SIDE))
    affine = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    profile = {"driver": "GTiff", "count": 4, "height": SIDE, "width": SIDE, "dtype": "uint16", "crs": "EPSG:32633"}
    with rasterio.open(folder / "scene.tif", "w", transform=affine, **profile) as raster:
        raster.write(values.clip(1).astype(np.uint16))
        raster.descriptions = ("Blue", "Green", "Red", "NIR")
    tall = np.tile(values.clip(1).astype(np.uint16), (1, SCENES_OF_TALL, 1))
    with rasterio.open(folder / "tall.tif", "w", transform=affine, **profile | {"height": tall.shape[1]}) as raster:
        raster.write(tall)
        raster.descriptions = ("Blue", "Green", "Red", "NIR")
    fields = [(row, col) for row in range(SIDE // FIELD_PX) for col in range(SIDE // FIELD_PX)]
    corners = [(500_000 + 10 * (FIELD_PX * col + 12), 5_000_000 - 10 * (FIELD_PX * row + 12)) for row, col in fields]
    boxes = np.array([shapely.box(left, top - 140, left + 140, top) for left, top in corners])
    names = np.array([("forest", "field")[(row + col) % 2] for row, col in fields], object)
    options = {"crs": "EPSG:32633", "layer": "labels", "driver": "GPKG", "geometry_type": "Polygon"}
    pyogrio.raw.write(folder / "labels.gpkg", shapely.to_wkb(boxes), [names], ["class"], **options)


def _be_the_engine(run: Path, job: dict[str, Any], prepare: Callable[[], None] | None) -> None:
    """What the fork does; it never comes back."""
    code = 99
    try:
        os.setsid()
        for number, name in ((1, "events"), (2, "engine.log")):
            os.dup2(os.open(run / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if prepare is not None:
            prepare()
        if job["job"] == "save":
            code = _save(job)
        else:
            code = __main__.main(["run", str(run / "job.json")])
    finally:
        os._exit(code)


def _save(job: dict[str, Any]) -> int:
    """A package written by itself, as the last step of a training does it."""
    from geopeft.errors import GeopeftError
    from geopeft.events import Reporter
    from geopeft.holding import hold

    found = package.read(Path(job["model"]))
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as events:
        reporter = Reporter(events)
        try:
            with hold(Path(job["out"])):
                package.write(Path(job["out"]), found.manifest, found.weights, found.forest, found.start)
        except GeopeftError as error:
            reporter.failed(error)
            return 1
        reporter.completed({"model": job["out"]})
    return 0


def _wait(pid: int, until: float) -> int:
    """The exit code, negative: the signal; HUNG for a run that did not end and was killed here."""
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return HUNG


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def kill_after(seconds: float) -> Harm:
    """SIGKILL after so many seconds, unless the run has ended by then."""

    def harm(pid: int) -> None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)

    return harm
