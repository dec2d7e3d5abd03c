"""The `fit` job: a backbone is adapted to a few labels, and a model package written."""

from __future__ import annotations

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
from geopeft.data.bands import Band, resolve_bands, select_bands
from geopeft.data.chips import ChipReader, ChipSampler, Site, covering_chips, find_sites
from geopeft.data.labels import Labels, read_labels
from geopeft.data.normalize import Radiometry, assume_radiometry, between
from geopeft.data.raster import BandStatistics, RasterInfo, band_statistics, describe, lacking_band, still_same
from geopeft.data.split import split_by_blocks
from geopeft.errors import LabelError
from geopeft.events import Reporter
from geopeft.job import ClassStyle, FitJob
from geopeft.models import SegmentationModel, build, describe_parameters
from geopeft.models.choose import choose_backbone, input_bands, match_or_refuse, resample_factor
from geopeft.models.registry import BackboneCard
from geopeft.models.spec import ModelSpec
from geopeft.runtime import choose_device, peak_memory_mb
from geopeft.training import BATCH, Trainer
from geopeft.writing import check_target, write_bytes

MAX_VALIDATION_CHIPS = 64
# A band that has no data on this part of the pixels where all others have it is left out.
MAY_LACK = 0.05


@dataclass(frozen=True)
class Prepared:
    """Everything that is decided before the first training step."""

    infos: tuple[RasterInfo, ...]
    bands: tuple[tuple[Band, ...], ...]
    labels: Labels
    card: BackboneCard
    spec: ModelSpec
    radiometry: Radiometry
    units: tuple[tuple[np.ndarray, np.ndarray], ...]


def run(job: FitJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a fit job; the outputs name the package and give the validation figures."""
    start = time.monotonic()
    out = _package_path(job.out)
    prepared = prepare(job, reporter)
    torch.manual_seed(job.seed)
    model = build(prepared.spec, None, weights_dir=job.weights_dir, reporter=reporter).to(choose_device(job.device))
    counts = describe_parameters(model)
    reporter.message(f"{counts['trainable']:,} of {counts['total']:,} parameters are trained.")
    metrics, training = _train(job, prepared, model, start, reporter)
    for info in prepared.infos:
        still_same(info)
    metrics |= {"seconds": round(time.monotonic() - start, 2), "peak_memory_mb": peak_memory_mb()}
    manifest = _manifest(job, prepared, model, metrics, training | counts, reporter)
    package.write(out, manifest, {name: tensor.numpy() for name, tensor in model.trainable_state().items()})
    outputs: dict[str, Any] = {"model": str(out), "figures": metrics}
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(metrics, indent=1).encode())
        outputs["json"] = job.json_file
    return outputs


def prepare(job: FitJob, reporter: Reporter) -> Prepared:
    """Reads what is there and decides bands, radiometry, backbone and classes, saying each in a message."""
    infos = tuple(describe(path) for path in job.rasters)
    chosen = select_bands(infos[0], job.bands) if job.bands else _whole_bands(infos[0], reporter)
    bands = (chosen, *(resolve_bands(info, chosen, job.bands) for info in infos[1:]))
    labels = _labels(job, job.labels, infos, job.classes, reporter)
    statistics, radiometry, units = _units(job, infos, bands, reporter)
    gsd_m = float(np.median([info.gsd_m for info in infos]))
    card, why = choose_backbone(job.backbone, chosen, gsd_m, job.weights_dir, reporter)
    resample, resampling = resample_factor(card, gsd_m)
    matched = match_or_refuse(card, chosen, bool(job.bands))
    model_bands, matching = input_bands(card, matched, chosen, statistics, radiometry)
    for sentence in (radiometry.sentence, why, resampling, _bands_sentence(card, matched, chosen), matching):
        if sentence:
            reporter.message(sentence)
    spec = ModelSpec(
        backbone=card.name,
        adapter=job.adapter if job.adapter in card.adapters else card.adapters[0],
        decoder=job.decoder,
        bands=model_bands,
        num_classes=len(labels.classes),
        gsd_m=gsd_m,
        resample=resample,
        rank=job.rank,
        chip_size_px=card.chip_size_px,
    )
    if spec.adapter != job.adapter:
        reporter.warn(f"{card.title} cannot be tuned by '{job.adapter}': '{spec.adapter}' is used.")
    return Prepared(infos, bands, labels, card, spec, radiometry, units)


def _labels(
    job: FitJob,
    path: str,
    infos: Sequence[RasterInfo],
    classes: Sequence[ClassStyle],
    reporter: Reporter,
    minimum_classes: int = 2,
) -> Labels:
    return read_labels(
        path,
        job.class_field,
        infos,
        classes=classes,
        background=job.background,
        area=job.area,
        line_width_px=job.line_width_px,
        minimum_classes=minimum_classes,
        reporter=reporter,
    )


def _whole_bands(info: RasterInfo, reporter: Reporter) -> tuple[Band, ...]:
    """All data bands but those that alone lack data on many pixels: a pixel is used where all bands have data."""
    bands = info.bands
    indexes = [band.index for band in bands]
    statistics = band_statistics(info, indexes)
    sentence = lacking_band(info, indexes, statistics, MAY_LACK)
    kept = tuple(b for b, part in zip(bands, statistics.missing_alone, strict=True) if part < MAY_LACK)
    if not sentence or len(kept) < 2:
        return bands
    reporter.warn(f"{sentence} It is left out, so that those pixels can be mapped; name it with --bands to use it.")
    return kept


def _units(
    job: FitJob, infos: Sequence[RasterInfo], bands: Sequence[Sequence[Band]], reporter: Reporter
) -> tuple[BandStatistics, Radiometry, tuple[tuple[np.ndarray, np.ndarray], ...]]:
    """Statistics of all rasters in the first one's units, what these are, and each raster's way there."""
    parts: list[BandStatistics] = []
    units: list[tuple[np.ndarray, np.ndarray]] = []
    found: list[Radiometry] = []
    for info, own in zip(infos, bands, strict=True):
        statistics = band_statistics(info, [band.index for band in own])
        radiometry = assume_radiometry(info, own, statistics, job.radiometry)
        found.append(radiometry)
        scale, offset = np.ones(len(own)), np.zeros(len(own))
        for position, band in enumerate(own):
            if radiometry.for_band(band) == (radiometry.scale, radiometry.offset):
                scale[position], offset[position] = between(radiometry, found[0])
        if (offset != 0).any() or (scale != 1).any():
            reporter.message(f"{Path(info.path).name}: {radiometry.sentence} Brought to the first raster's units.")
        units.append((scale, offset))
        parts.append(_scaled(statistics, scale, offset))
    return _pooled(parts), found[0], tuple(units)


def _scaled(statistics: BandStatistics, scale: np.ndarray, offset: np.ndarray) -> BandStatistics:
    return replace(
        statistics,
        mean=statistics.mean * scale + offset,
        std=statistics.std * scale,
        low=statistics.low * scale + offset,
        high=statistics.high * scale + offset,
    )


def _train(
    job: FitJob, prepared: Prepared, model: SegmentationModel, start: float, reporter: Reporter
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains the model in place; returns the validation figures and how it was trained."""
    size = prepared.spec.chip_size_px
    names = [c.name for c in prepared.labels.classes]
    with ChipReader(prepared.infos, prepared.bands, prepared.labels, prepared.units) as reader:
        sites = find_sites(reader, seed=job.seed)
        _check_sites(sites, names)
        if job.validation_labels:
            styles = [ClassStyle(value=c.value, name=c.name, color=c.color) for c in prepared.labels.classes]
            given = _labels(job, job.validation_labels, prepared.infos, styles, reporter, minimum_classes=1)
            with ChipReader(prepared.infos, prepared.bands, given, prepared.units) as other:
                held_sites = find_sites(other, seed=job.seed)
                validation = covering_chips(other, held_sites, size, MAX_VALIDATION_CHIPS, job.seed)
            training, held, split = sites, [], "the validation labels given"
        else:
            parts = split_by_blocks(sites, size, job.seed)
            reporter.message(parts.sentence)
            validation = covering_chips(reader, parts.validation, size, MAX_VALIDATION_CHIPS, job.seed)
            training, held = list(parts.training), [(site.raster_index, site.group) for site in parts.validation]
            split = "blocks of the labels held out; they also stopped the training"
        if not validation:
            reporter.warn("There are too few labels to hold any out: no accuracy is given. Label more places.")
        trainer = Trainer(model, ChipSampler(reader, training, held, size, job.seed), validation, reporter)
        deadline = start + job.max_minutes * 60 if job.max_minutes else math.inf
        steps = trainer.train(job.steps or _default_steps(len(training)), deadline)
    metrics = trainer.figures(names, job.seed)
    how = {"steps": steps, "best_step": trainer.best_step, "batch": BATCH, "chip_size_px": size, "rank": job.rank}
    return metrics | {"split": split if validation else "no labels held out"}, how


def _default_steps(places: int) -> int:
    """From 120 steps for a handful of labelled places to 220 for a hundred and more."""
    return int(min(220, 120 + places))


def _check_sites(sites: Sequence[Site], names: Sequence[str]) -> None:
    there = {site.class_index for site in sites}
    missing = [name for index, name in enumerate(names) if index not in there]
    if len(there) < 2:
        raise LabelError(
            f"No valid pixel of the raster is labelled as {', '.join(missing)}.",
            "Draw labels of at least two classes where the raster has data.",
            "LABELS_EMPTY",
        )


def _pooled(parts: Sequence[BandStatistics]) -> BandStatistics:
    """Statistics of several rasters taken together."""
    mean = np.mean([part.mean for part in parts], 0)
    spread = np.mean([part.std**2 + (part.mean - mean) ** 2 for part in parts], 0)
    return BandStatistics(
        mean=mean,
        std=np.sqrt(spread),
        low=np.min([part.low for part in parts], 0),
        high=np.max([part.high for part in parts], 0),
        valid_fraction=np.mean([part.valid_fraction for part in parts], 0),
        missing_alone=np.mean([part.missing_alone for part in parts], 0),
    )


def _bands_sentence(card: BackboneCard, matched: dict[str, Band], bands: Sequence[Band]) -> str:
    pairs = ", ".join(f"{band.name} as {name}" for name, band in matched.items())
    used = {band.index for band in matched.values()}
    others = [band.name for band in bands if band.index not in used]
    rest = f" Through the raw-band skip only: {', '.join(others[:12])}{' ...' if len(others) > 12 else ''}."
    return (f"Bands for the backbone: {pairs}." if pairs else "") + (rest if others else "")


def _package_path(out: str) -> Path:
    path = Path(out)
    path = path if path.suffix == ".geopeft" else path.with_name(path.name + ".geopeft")
    check_target(path)
    return path


def _manifest(
    job: FitJob,
    prepared: Prepared,
    model: SegmentationModel,
    metrics: dict[str, Any],
    training: dict[str, Any],
    reporter: Reporter,
) -> package.Manifest:
    classes = tuple(
        package.ClassInfo(value=index + 1, name=c.name, color=c.color, label=c.value)
        for index, c in enumerate(prepared.labels.classes)
    )
    card = prepared.card
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
        assumptions=tuple(reporter.messages),
        metrics=metrics,
        hyperparameters=training,
        seed=job.seed,
    )
