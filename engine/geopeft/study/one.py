"""One run of a study, in a process of its own: train, score in the region and elsewhere, and what that took."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geopeft import evaluate, fit, package
from geopeft.accuracy import mean_iou
from geopeft.errors import JobError
from geopeft.events import Reporter
from geopeft.job import EvaluateJob, FitJob, finite_or_none
from geopeft.runtime import choose_device, peak_memory_mb
from geopeft.study.forest import fit_forest_package
from geopeft.study.grid import FOREST
from geopeft.study.runs import BLEND
from geopeft.training.trainer import BATCH

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 1 << 20


class Meter(Reporter):
    """Watches a training: how long its steps take, and the memory that it takes above what was there at its start."""

    def __init__(self) -> None:
        super().__init__()
        self.start_mb: float | None = None
        self.training_mb: float | None = None
        self.highest_mb = 0.0
        self._begun = False
        self._times: list[float] = []
        self._cpu_times: list[float] = []

    def begin(self) -> None:
        """The training begins here; what lies free in the process is given back first, so that it is not counted."""
        if self._begun:
            return
        self._begun = True
        self.highest_mb = highest_resident_mb()
        gc.collect()
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self.start_mb = forget_highest()
        self._times = [time.monotonic()]

    def measure(self) -> None:
        """Looks at the memory once more."""
        highest = highest_resident_mb()
        self.highest_mb = max(self.highest_mb, highest)
        if self.start_mb is not None:
            self.training_mb = max(highest - self.start_mb, 0.0)

    def metric(self, stage: str, step: int, values: Mapping[str, float], total: int | None = None) -> None:
        if stage == "fit":
            self.begin()

    def progress(self, stage: str, current: int, total: int, at_most_s: float = math.inf) -> None:
        if stage == "fit":
            self.begin()
            self._times.append(time.monotonic())
            self._cpu_times.append(time.process_time())
            self.measure()

    @property
    def step_s(self) -> float | None:
        """Seconds that a step takes: the median, since a validation comes between some."""
        return _median_step(self._times[1:])

    @property
    def step_cpu_s(self) -> float | None:
        """Seconds of all processors together that a step takes, which other programs hardly change."""
        return _median_step(self._cpu_times)

    @property
    def training_s(self) -> float | None:
        """Seconds from the first to the last step, with the validations."""
        return self._times[-1] - self._times[0] if len(self._times) > 1 else None


def run_fit(job: FitJob, scored: Mapping[str, EvaluateJob], searches: bool) -> dict[str, Any]:
    """Trains and scores.

    Args:
        job: its backbone may be `random-forest`.
        scored: figure of the table -> job that scores the model for it; none of a search.
        searches: only the accuracy on the labels that choose is wanted.

    Returns:
        Fields of a row of the study's table.
    """
    begun, meter = time.monotonic(), Meter()
    if job.backbone == FOREST:
        plain = job.model_copy(update={"backbone": "scratch_unet", "adapter": "full", "decoder": "unet"})
        places = fit_forest_package(plain, meter, meter.begin)
        meter.measure()
        found: dict[str, Any] = {"places": places, "part": "classical"}
    else:
        found = _fit_network(job, meter)
    found |= {
        "seconds": round(time.monotonic() - begun, 3),
        "memory_mb": _rounded(max(meter.highest_mb, highest_resident_mb())),
        "start_mb": _rounded(meter.start_mb),
        "training_mb": _rounded(meter.training_mb),
    }
    part = found.pop("part")
    if not searches:
        found.pop("validation", None)
        for figure, score in scored.items():
            asked = score.model_copy(update={"part": "" if figure.endswith(BLEND) else part})
            result = evaluate.run(asked, Reporter())["figures"]
            found[figure] = _rounded(mean_iou(np.array(result["confusion_matrix"])), 5)
    return found


def _fit_network(job: FitJob, meter: Meter) -> dict[str, Any]:
    outputs = fit.run(job, meter)
    manifest = package.read_manifest(Path(outputs["model"]))
    if manifest.spec.adapter != job.adapter:
        raise JobError(
            f"{manifest.spec.backbone} cannot be tuned by '{job.adapter}'.",
            f"What fits it, such as '{manifest.spec.adapter}', is listed by `geopeft models`.",
            "ADAPTER_UNSUITABLE",
        )
    how, device = manifest.hyperparameters, choose_device(job.device)
    # The last one's: the best may be that before the first step, which is the same at all learning rates.
    known = [moment["miou"] for moment in outputs["figures"]["history"] if moment["miou"] is not None]
    return {
        "part": "network",
        "backbone_used": manifest.spec.backbone,
        "trainable": how["trainable"],
        "total": how["total"],
        "backbone_trainable": how["backbone_trainable"],
        "steps_done": how["steps"],
        "best_step": how["best_step"],
        "batch": BATCH,
        "step_s": _rounded(meter.step_s, 4),
        "step_cpu_s": _rounded(meter.step_cpu_s, 4) if device.type == "cpu" else None,
        "training_s": _rounded(meter.training_s, 3),
        "validation": _rounded(known[-1], 5) if known else None,
        "gpu_mb": round(torch.cuda.max_memory_allocated(device) / MIB, 1) if device.type == "cuda" else None,
        "device": device.type,
    }


def _median_step(times: Sequence[float]) -> float | None:
    steps = np.diff(times).tolist()
    return statistics.median(steps) if steps else None


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else finite_or_none(round(value, digits))


def highest_resident_mb() -> float:
    """The largest resident memory of this process in MiB, since `forget_highest`; 0 where the system does not tell.

    What getrusage tells a child process on Linux may be its parent's.
    """
    return _status("VmHWM") or peak_memory_mb()


def forget_highest() -> float | None:
    """Makes the resident memory that there is the largest; MiB of it, None where the system does not do that."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
        return _status("VmRSS") or None
    return None


def _status(name: str) -> float:
    with contextlib.suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return 0.0
