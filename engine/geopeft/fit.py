"""The `fit` job: a backbone is adapted to a few labels, and a model package written."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geopeft import __version__, package
from geopeft.applicability import Applicability
from geopeft.baselines import UNET, winner_sentence
from geopeft.blending import (
    Forecast,
    blend_sentence,
    fit_parts,
    forecasts,
    judged_blends,
    measure,
    network_prior,
)
from geopeft.checkpoint import Checkpoint, checkpoint_path
from geopeft.classical import Classical
from geopeft.data.chips import ChipReader, ChipSampler, Site, find_sites, labels_digest
from geopeft.data.labels import LabelClass
from geopeft.data.memory import Memory
from geopeft.data.raster import still_same
from geopeft.data.split import blocks_of
from geopeft.errors import JobError, LabelError
from geopeft.events import Reporter
from geopeft.evidence import Evidence
from geopeft.features.kept import kept_features
from geopeft.forest import Pixels, fit_applicability, fit_probe, fit_texture, gather_pixels
from geopeft.ground import gather_ground
from geopeft.holdout import HeldOut, hold_out, more_folds, split_sentence
from geopeft.job import FitJob
from geopeft.judging import Course, Lesson, history, judge_folds, judged_elsewhere, trainings
from geopeft.models import SegmentationModel, build, describe_parameters
from geopeft.models.backbones.transformer import keep_little
from geopeft.prepare import Prepared, prepare
from geopeft.report import page_path, write_beside
from geopeft.report.origin import environment, job_record, without_folders
from geopeft.runtime import PROJECTION, SEEN_POINTS, SEEN_SCALE, choose_device, fill_values, peak_memory_mb
from geopeft.starting import Start, to_keep
from geopeft.training import together
from geopeft.training.learning import batch_norms
from geopeft.training.together import joined
from geopeft.training.trainer import BATCH, FINISH_SHARE, Pace, Trainer, settle
from geopeft.writing import write_bytes

# Held-out places a class needs before their loss says which step was best.
TRUSTED_PLACES = 3


def run(job: FitJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a fit job; the outputs name the package and give the validation figures."""
    with joined(job.device) as team:
        if team is not None:
            reporter.message(f"Trains on {team.size} processes, each with its part of every batch of {BATCH} chips.")
        return _run(job, reporter)


def _run(job: FitJob, reporter: Reporter) -> dict[str, Any]:
    begun = time.monotonic()
    out = package.target(job.out)
    if job.report:
        page_path(job.report)
    start = Start.open(Path(job.start)) if job.start else None
    prepared = prepare(job, reporter)
    classes, why = prepared.labels.classes, ""
    if start is not None:
        why = start.misfit(prepared.spec, prepared.radiometry.kind, classes)
        prepared = prepared if why else replace(prepared, spec=start.continued(prepared.spec))
    torch.manual_seed(job.seed)
    model = build(
        prepared.spec, None, weights_dir=job.weights_dir, reporter=reporter, pretrained=not job.from_scratch
    ).to(choose_device(job.device))
    keep_little(model.backbone, job.low_memory)
    if start is not None:
        why = why or start.unlike(model, classes)
        start = None if why else start
    if why:
        reporter.warn(f"{Path(job.start).name} cannot be started from: {why}. The training starts afresh.")
    counts = describe_parameters(model)
    if prepared.card.classical_alone:
        counts = {name: 0 if "trainable" in name else count for name, count in counts.items()}
    else:
        reporter.message(
            f"{counts['trainable']:,} of {counts['total']:,} parameters are trained, {counts['decoder_trainable']:,} "
            "of them the decoder's."
        )
    checkpoint = checkpoint_path(out)
    fitted = _train(job, prepared, model, start, checkpoint, reporter)
    for info in prepared.infos:
        still_same(info)
    seconds = time.monotonic() - begun + fitted.seconds_before
    metrics = fitted.metrics | {"seconds": round(seconds, 2), "peak_memory_mb": peak_memory_mb()}
    manifest = _manifest(job, prepared, model, metrics, fitted, counts, reporter)
    weights = {name: tensor.numpy() for name, tensor in model.trainable_state().items()}
    weights[PROJECTION] = fitted.classical.texture.projection.flatten(1).numpy()
    if fitted.seen is not None:
        weights |= {SEEN_SCALE: fitted.seen.scale, SEEN_POINTS: fitted.seen.points}
    package.write(out, manifest, weights, fitted.classical.model, fitted.to_go_on)
    checkpoint.unlink(missing_ok=True)
    outputs: dict[str, Any] = {"model": str(out), "figures": metrics}
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(metrics, indent=1).encode())
        outputs["json"] = job.json_file
    return outputs | write_beside(job, out, reporter)


@dataclass(frozen=True)
class Fitted:
    """What training gave beside the model itself.

    Args:
        metrics: figures on the held-out labels.
        how: how it was trained.
        classical, blend: the classical part, and how it is blended with the network.
        seen: what the labels have shown; None where they lie in too few places to tell.
        to_go_on: what a training needs that starts from this model.
        seconds_before: what earlier runs took, where this one went on from a checkpoint.
    """

    metrics: dict[str, Any]
    how: dict[str, Any]
    classical: Classical
    blend: package.Blend
    seen: Applicability | None
    to_go_on: dict[str, np.ndarray]
    seconds_before: float


def _train(
    job: FitJob,
    prepared: Prepared,
    model: SegmentationModel,
    start: Start | None,
    checkpoint: Path,
    reporter: Reporter,
) -> Fitted:
    """Trains the model in place, fits the classical part beside it, and finds how to blend them."""
    spec, classes = prepared.spec, prepared.labels.classes
    names = [c.name for c in classes]
    size, fill = spec.chip_size_px, fill_values(spec.bands)
    begun = time.monotonic()
    with ChipReader(prepared.infos, prepared.bands, prepared.labels, prepared.units, prepared.chronicle) as reader:
        sites = find_sites(reader, seed=job.seed)
        _check_sites(sites, names)
        held = hold_out(job, prepared, reader, sites, reporter, start)
        start = held.start
        folds = [held, *more_folds(job, prepared, reader, sites, held, reporter)]
        settle(model, ChipSampler(reader, [sites[at] for at in held.taught], held.withheld, size, job.seed))
        if together.team() is not None and batch_norms(model):
            reporter.message("The backbone's batch statistics stay as they are: each process sees a few chips only.")
        initial = model.trainable_state() if len(folds) > 1 else {}
        if start is not None:
            start.put_into(model, classes)
        texture = start.texture(spec) if start is not None else None
        texture = texture or fit_texture(reader, sites, spec.bands, spec.gsd_m, fill, job.seed)
        features = kept_features(model, reporter) if job.cache else None
        pixels = gather_pixels(reader, sites, texture, model, fill, job.seed, features)
        pixels = replace(pixels, ground=gather_ground(reader, texture, fill, job.seed))
        pace = start.pace(classes) if start is not None else Pace()
        pace = replace(pace, rate=pace.rate * job.rate)
        alone = prepared.card.classical_alone
        steps = 0 if alone else job.steps or round(pace.steps * _default_steps(len(held.taught)))
        few = features.few(steps * BATCH, pace.alone) if features is not None else None
        # Without a network there is nothing that a UNet of as many steps could be compared with.
        baselines = [name for name in job.baselines if not (alone and name == UNET)]
        lesson = Lesson(
            reader, sites, texture, pixels, len(names), size, job.seed, baselines, features=features, few=few
        )
        taught = pixels.of(held.taught)
        classical = lesson.classical(taught)
        _teach_probe(model, start, taught, classes)
        kept = Checkpoint(checkpoint, "fit", _identity(job, prepared, model, reader, held))
        trusts = held.places >= TRUSTED_PLACES * len(names)
        trainer = Trainer(
            model,
            lesson.sampler(held, few=few),
            held.chips,
            reporter,
            trusts,
            pace=pace,
            checkpoint=kept,
            features=features,
        )
        elsewhere = judged_elsewhere(trainer, prepared, sites, held, job.seed)
        before_s, begun_at = _resume(job, trainer, kept, reporter)
        budget = job.max_minutes * 60 if job.max_minutes else math.inf
        end = begun - before_s + budget
        # What is held out teaches in the end, unless the user keeps it apart.
        last = FINISH_SHARE if held.withheld else 0.0
        more = trainings(len(folds), baselines)
        trained_from = time.monotonic()
        done = trainer.train(
            steps,
            round(steps * last),
            end - budget * last / 2 if job.max_minutes else end,
            ahead=more * steps,
            keep=bool(more and not last),
        )
        step_s = (time.monotonic() - trained_from) / max(done - begun_at, 1) if done > begun_at else 0.0
        to_go_on = _to_go_on(prepared, model, sites, held)
        first = forecasts(trainer, held.chips, classical, lesson.rival(taught) if held.chips else None)
        if last:
            # Chips come from few windows to the end where they did not stop to before.
            few_to_the_end = few if few is not None and few.chips is None else None
            everything = ChipSampler(reader, sites, [], size, job.seed, few_to_the_end)
            trainer.finish(everything, math.ceil(trainer.best_step * last), done, end, keep=bool(more))
            classical = lesson.classical(pixels)
        final, until = model.trainable_state(), trainer.best_step
        course = Course(initial, steps, until, step_s * until, end, job.rate)
        judged = judge_folds(lesson, model, folds, first, course, kept, reporter) if more else [first]
        model.load_trainable_state(final)
    blocks = np.unique(blocks_of(sites, size), axis=0, return_inverse=True)[1].ravel()
    seen = fit_applicability(pixels, blocks, job.seed)
    prior = network_prior(spec.gsd_m, [site.class_index for site in sites])
    here = judged_blends([chip for fold in judged for chip in fold], job.seed)
    evidence = Evidence(prior, here, elsewhere)
    blend, metrics = _judge(job, prepared, evidence, folds, judged, reporter)
    to_go_on |= evidence.arrays()
    how: dict[str, Any] = {"steps": done, "best_step": trainer.best_step, "batch": BATCH}
    how |= {"chip_size_px": size, "rank": job.rank, "places": len(sites)} | (
        {"start_sha256": start.sha256} if start is not None else {}
    )
    return Fitted(metrics | {"history": history(trainer.curve)}, how, classical, blend, seen, to_go_on, before_s)


def _judge(
    job: FitJob,
    prepared: Prepared,
    evidence: Evidence,
    folds: Sequence[HeldOut],
    judged: Sequence[Sequence[Forecast]],
    reporter: Reporter,
) -> tuple[package.Blend, dict[str, Any]]:
    """How to blend, and the figures, from all that was held out; tells both."""
    found = [chip for fold in judged for chip in fold]
    alone = prepared.card.classical_alone
    blend = fit_parts(found, 0.0 if alone else evidence.prior, job.seed, evidence.here)
    names = [known.name for known in prepared.labels.classes]
    metrics = measure(found, blend, names, folds[0].blocks)
    if alone:
        metrics["parts"]["network"] = None
    metrics |= {"folds": sum(1 for fold in judged if fold), "block_m": folds[0].block_m}
    metrics["split"] = split_sentence(folds, metrics["folds"], len(judged))
    for sentence in (blend_sentence(blend, metrics), winner_sentence(metrics["miou"]["value"], metrics["baselines"])):
        if sentence:
            reporter.message(sentence)
    return blend, metrics


def _teach_probe(model: SegmentationModel, start: Start | None, taught: Pixels, classes: Sequence[LabelClass]) -> None:
    """The probe fitted to these pixels; where another model was started from, only what classes are new."""
    if model.probe is None or (start is not None and not start.new_classes(classes)):
        return
    weights, offsets = fit_probe(taught, len(classes))
    if start is None:
        model.probe.put(torch.from_numpy(weights), torch.from_numpy(offsets))
    else:
        start.teach_new_classes(model, classes, weights, offsets)


def _identity(job: FitJob, prepared: Prepared, model: SegmentationModel, reader: ChipReader, held: HeldOut) -> str:
    """Checksum of all that decides how the training ends, but for the time it is given and the device."""
    # Files are known by what is in them, and classes by name and value: their colours decide nothing.
    aside = "protocol rasters labels validation_labels area classes out start resume max_minutes device weights_dir"
    digest = hashlib.sha256()
    for chip, place in held.chips:
        digest.update(f"{place}".encode() + chip.class_ids.tobytes())
    parts = [
        __version__,
        job.model_dump(exclude={*aside.split(), "json_file", "report", "low_memory"}),
        prepared.spec.model_dump(),
        [info.fingerprint for info in prepared.infos],
        [(c.name, c.value) for c in prepared.labels.classes],
        labels_digest(reader),
        digest.hexdigest(),
        model.base_weights.sha256,
        held.start.sha256 if held.start is not None else "",
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _resume(job: FitJob, trainer: Trainer, checkpoint: Checkpoint, reporter: Reporter) -> tuple[float, int]:
    """Goes on from the checkpoint where there is one of this training; the seconds that earlier runs took, and the
    steps that they had done of the first phase."""
    if not job.resume:
        checkpoint.remove()
    try:
        found = trainer.resume()
    except JobError as error:
        if error.code == "CHECKPOINT_OTHER_JOB":
            reporter.warn("The training that was stopped had other labels or settings: it starts anew.")
        else:
            reporter.warn(f"{error.message} The training starts anew.")
        checkpoint.remove()
        return 0.0, 0
    if found is None:
        return 0.0, 0
    reporter.message(f"Goes on from step {found.step + found.trained} of the training that was stopped.")
    return found.seconds, found.trained or found.step


def _to_go_on(
    prepared: Prepared, model: SegmentationModel, sites: Sequence[Site], held: HeldOut
) -> dict[str, np.ndarray]:
    """The weights before the last steps, and where they have learned; where they are too large to be kept twice the
    package's own, which will have learned everywhere."""
    weights = to_keep(model) if held.withheld else {}
    taught = set(held.taught.tolist()) if weights is not None else set(range(len(sites)))
    memory = Memory.of(
        prepared.infos,
        [site for i, site in enumerate(sites) if i in taught],
        [site for i, site in enumerate(sites) if i not in taught],
        held.start.memory if held.start is not None else None,
    )
    return memory.arrays() | (weights or {})


def _default_steps(places: int) -> int:
    """From 70 steps for a handful of labelled places to 220 for eighty and more: few are soon learned by heart."""
    return int(min(220, 60 + 2 * places))


def _check_sites(sites: Sequence[Site], names: Sequence[str]) -> None:
    there = {site.class_index for site in sites}
    missing = [name for index, name in enumerate(names) if index not in there]
    if len(there) < 2:
        raise LabelError(
            f"No valid pixel of the raster is labelled as {', '.join(missing)}.",
            "Draw labels of at least two classes where the raster has data.",
            "LABELS_EMPTY",
        )


def _manifest(
    job: FitJob,
    prepared: Prepared,
    model: SegmentationModel,
    metrics: dict[str, Any],
    fitted: Fitted,
    counts: dict[str, int],
    reporter: Reporter,
) -> package.Manifest:
    classes = tuple(
        package.ClassInfo(value=index + 1, name=c.name, color=c.color, label=c.value)
        for index, c in enumerate(prepared.labels.classes)
    )
    card, plain = prepared.card, job.model_dump()
    return package.Manifest(
        engine_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=Path(job.out).stem,
        spec=prepared.spec,
        classes=classes,
        base_weights=package.BaseWeights(
            backbone=card.name,
            licence=card.licence,
            revision=model.base_weights.revision,
            sha256=model.base_weights.sha256,
            paper=card.paper,
        ),
        radiometry=prepared.radiometry.kind,
        radiometry_rule=job.radiometry,
        dtype=prepared.infos[0].dtype,
        assumptions=tuple(without_folders(text, plain) for text in reporter.messages),
        warnings=tuple(without_folders(text, plain) for text in reporter.warnings),
        metrics=metrics,
        hyperparameters=fitted.how | counts,
        classical=fitted.classical.texture.spec,
        blend=fitted.blend,
        outside_beyond=round(fitted.seen.threshold, 5) if fitted.seen is not None else None,
        seed=job.seed,
        job=job_record(job),
        environment=environment(next(model.parameters()).device.type, torch.get_num_threads()),
    )
