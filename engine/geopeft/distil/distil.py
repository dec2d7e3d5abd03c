"""The `distil` job: a tuned model, with its whole blend, teaches a small network on rasters without labels."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geopeft import __version__, evaluate, package
from geopeft.accuracy import figures, mean_iou
from geopeft.checkpoint import Checkpoint, checkpoint_path
from geopeft.data.memory import Memory
from geopeft.data.raster import describe, still_same
from geopeft.distil.learner import BATCH, Learner
from geopeft.distil.sheets import Sheet, Source, read_sheets
from geopeft.errors import BandError, GeopeftError, JobError, PackageError, RasterError
from geopeft.events import Reporter
from geopeft.job import DistilJob, EvaluateJob
from geopeft.models import SegmentationModel, build, describe_parameters
from geopeft.models.backbones import BACKBONES
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.report.origin import environment, file_name, job_record, without_folders
from geopeft.runtime import Runtime, peak_memory_mb
from geopeft.writing import write_bytes

STUDENT, DECODER = "student", "narrow"
# Wide windows: less of a map is seen twice.
CHIP_PX = 256
STEPS = 2000


def run(job: DistilJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a distil job; the outputs name the package and give how far it agrees with its teacher."""
    begun = time.monotonic()
    out = package.target(job.out)
    opened = package.read(Path(job.model))
    _check_teacher(opened)
    teacher = Runtime.of(opened, job.device, job.weights_dir, reporter)
    sources = _sources(job, teacher, reporter)
    of_teacher = _score(job, job.model, "teacher", reporter) if job.labels else None
    student = _student(opened.manifest, job.seed).to(teacher.device)
    sha256 = hashlib.sha256(opened.path.read_bytes()).hexdigest()
    checkpoint = Checkpoint(checkpoint_path(out), "distil", _identity(job, sources, sha256))
    learner = _learner(job, teacher, student, sources, checkpoint, reporter)
    left_s = job.max_minutes * 60 - (time.monotonic() - begun) if job.max_minutes else math.inf
    learner.learn(job.steps or STEPS, max(left_s, 1.0))
    for source in sources:
        still_same(source.info)
    metrics = _metrics(opened.manifest, learner.judge(), reporter)
    metrics |= {"seconds": round(time.monotonic() - begun, 2), "peak_memory_mb": peak_memory_mb()}
    how: dict[str, Any] = {"steps": learner.progress.step, "best_step": learner.progress.best_step, "batch": BATCH}
    how |= {"teacher": opened.manifest.name, "teacher_sha256": sha256, "sheets": learner.progress.sheets}
    manifest = _manifest(job, opened.manifest, student, metrics, how, reporter)
    weights, memory = _weights(student), _memory(opened)
    package.write(out, manifest, weights, start=memory)
    if of_teacher is not None:
        scored = _score(job, str(out), "student", reporter)
        metrics = scored | {"agreement": metrics["agreement"], "teacher": of_teacher}
        package.write(out, manifest.model_copy(update={"metrics": metrics}), weights, start=memory)
    checkpoint.remove()
    outputs: dict[str, Any] = {"model": str(out), "figures": metrics}
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(metrics, indent=1).encode())
        outputs["json"] = job.json_file
    return outputs


def _check_teacher(opened: package.Package) -> None:
    if opened.manifest.spec.backbone == STUDENT:
        raise JobError(
            f"{opened.path} is a small model already.",
            "Choose the model that taught it, or one that was trained with another backbone.",
            "TEACHER_UNSUITABLE",
        )


def _sources(job: DistilJob, teacher: Runtime, reporter: Reporter) -> list[Source]:
    """The rasters that the teacher can map. The rest is left out with a warning; the first reason is the error where
    nothing remains."""
    found: list[Source] = []
    refused: list[GeopeftError] = []
    for path in job.rasters:
        try:
            info = describe(path)
            bands = teacher.bands_of(info, job.bands)
            found.append(Source(info, bands, *teacher.to_model_units(info, bands, reporter)))
        except (RasterError, BandError, PackageError) as error:
            refused.append(error)
            if len(job.rasters) > 1:
                reporter.warn(f"Left out: {error.message}")
    if not found:
        raise refused[0]
    return found


def _student(manifest: package.Manifest, seed: int) -> SegmentationModel:
    """A student that has learned nothing yet, for the teacher's bands and classes."""
    plain = {"backbone_band": "", "backbone_scale": 1.0, "backbone_offset": 0.0}
    spec = ModelSpec(
        backbone=STUDENT,
        adapter="full",
        decoder=DECODER,
        bands=tuple(InputBand.model_validate(band.model_dump() | plain) for band in manifest.spec.bands),
        num_classes=manifest.spec.num_classes,
        gsd_m=manifest.spec.gsd_m,
        chip_size_px=CHIP_PX,
    )
    torch.manual_seed(seed)
    return build(spec)


def _learner(
    job: DistilJob,
    teacher: Runtime,
    student: SegmentationModel,
    sources: Sequence[Source],
    checkpoint: Checkpoint,
    reporter: Reporter,
) -> Learner:
    """A student's learner with all that the teacher has said; where the run was stopped before, as far as it was."""
    earlier = checkpoint.read()
    budget_s = job.max_minutes * 60 if job.max_minutes else math.inf
    count = int(earlier[0]["sheets"]) if earlier is not None else 0
    sheets = read_sheets(teacher, sources, job.max_megapixels * 1e6, job.seed, reporter, budget_s, count)
    reporter.message(_sheets_sentence(sheets, len(sources)))
    learner = Learner(student, sheets, reporter, job.seed, checkpoint)
    if learner.resume():
        reporter.message(f"Goes on from step {learner.progress.step} of the run that was stopped.")
    return learner


def _sheets_sentence(sheets: Sequence[Sheet], rasters: int) -> str:
    pixels = sum(int(sheet.valid.sum()) for sheet in sheets)
    return f"Learns from {pixels / 1e6:.2g} million pixels of {rasters} raster{'s' * (rasters != 1)}."


def _score(job: DistilJob, model: str, role: str, reporter: Reporter) -> dict[str, Any]:
    """Figures of a model on the labels that were given."""
    reporter.message(f"Scores the {role} on the labels.")
    asked = EvaluateJob(
        model=model,
        rasters=job.rasters,
        labels=job.labels,
        class_field=job.class_field,
        background=job.background,
        area=job.area,
        bands=job.bands,
        line_width_px=job.line_width_px,
        device=job.device,
        weights_dir=job.weights_dir,
    )
    found: dict[str, Any] = evaluate.run(asked, reporter)["figures"]
    return found | {"split": f"{found['split']}; too good where the teacher has learned from them"}


def _metrics(teacher: package.Manifest, matrix: np.ndarray, reporter: Reporter) -> dict[str, Any]:
    """No accuracy, since no label took part, but how far student and teacher agree where neither square taught."""
    count = int(matrix.sum())
    hit, total = np.diag(matrix), matrix.sum(0) + matrix.sum(1)
    ious = [round(h / (t - h), 5) if t else None for h, t in zip(hit.tolist(), total.tolist(), strict=True)]
    share, miou = float(hit.sum() / max(count, 1)), mean_iou(matrix)
    names = [known.name for known in teacher.classes]
    agreement = {
        "share": round(share, 5),
        "miou": None if miou is None else round(miou, 5),
        "classes": [{"name": name, "iou": iou} for name, iou in zip(names, ious, strict=True)],
        "pixels": count,
    }
    sentence = f"It agrees with its teacher, {teacher.name}, on {100 * share:.1f} % of {count:,} pixels held out"
    reporter.message(f"{sentence}{'' if miou is None else f'; mIoU against the map of the teacher {miou:.2f}'}.")
    split = "no labels: the accuracy is not known, only how far the model agrees with its teacher"
    return figures([], names) | {"split": split, "agreement": agreement}


def _weights(student: SegmentationModel) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in student.trainable_state().items()}


def _memory(opened: package.Package) -> dict[str, np.ndarray]:
    """Where the teacher's labels lay: all of them have taught the student. Nothing where the teacher does not say."""
    known = Memory.from_arrays(opened.start)
    if known is None:
        return {}
    return Memory(known.sides, np.union1d(known.taught, known.held), known.held[:0]).arrays()


def _identity(job: DistilJob, sources: Sequence[Source], teacher_sha256: str) -> str:
    """Checksum of all that decides how the run ends, but for the time it is given and the device."""
    fields = {"steps": job.steps or STEPS, "seed": job.seed, "megapixels": job.max_megapixels, "bands": job.bands}
    parts = [__version__, fields, teacher_sha256, [source.info.fingerprint for source in sources]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _manifest(
    job: DistilJob,
    teacher: package.Manifest,
    student: SegmentationModel,
    metrics: dict[str, Any],
    how: dict[str, Any],
    reporter: Reporter,
) -> package.Manifest:
    """The student's manifest: classes, values and licence are its teacher's."""
    plain = job.model_dump()
    return package.Manifest(
        engine_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=Path(job.out).stem,
        spec=student.spec,
        classes=teacher.classes,
        base_weights=package.BaseWeights(
            backbone=STUDENT, licence=teacher.base_weights.licence, paper=BACKBONES[STUDENT].paper
        ),
        radiometry=teacher.radiometry,
        radiometry_rule=teacher.radiometry_rule,
        dtype=teacher.dtype,
        assumptions=tuple(without_folders(text, plain) for text in reporter.messages),
        warnings=tuple(without_folders(text, plain) for text in reporter.warnings),
        metrics=metrics,
        hyperparameters=how | describe_parameters(student),
        seed=job.seed,
        job=job_record(job) | {"model": file_name(job.model)},
        environment=environment(next(student.parameters()).device.type, torch.get_num_threads()),
    )
