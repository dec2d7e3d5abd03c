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
from geopeft.blending import blend_parts, blend_sentence, network_prior
from geopeft.classical import Classical
from geopeft.data.bands import Band, resolve_bands, select_bands
from geopeft.data.chips import Chip, ChipReader, ChipSampler, Site, covering_chips, find_sites
from geopeft.data.labels import Labels, read_labels
from geopeft.data.normalize import Radiometry, assume_radiometry, between
from geopeft.data.raster import BandStatistics, RasterInfo, band_statistics, describe, lacking_band, still_same
from geopeft.data.split import split_by_blocks
from geopeft.errors import JobError, LabelError
from geopeft.events import Reporter
from geopeft.forest import Pixels, fit_classical, fit_probe, fit_texture, gather_pixels
from geopeft.job import ClassStyle, FitJob
from geopeft.models import SegmentationModel, build, describe_parameters
from geopeft.models.choose import choose_backbone, input_bands, match_or_refuse, resample_factor
from geopeft.models.registry import BackboneCard
from geopeft.models.spec import ModelSpec
from geopeft.runtime import PROJECTION, choose_device, fill_values, peak_memory_mb
from geopeft.training import BATCH, FINISH_SHARE, Trainer
from geopeft.writing import check_target, write_bytes

MAX_VALIDATION_CHIPS = 64
# Held-out places a class needs before their loss says which step was best.
TRUSTED_PLACES = 3
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
    model = build(
        prepared.spec, None, weights_dir=job.weights_dir, reporter=reporter, pretrained=not job.from_scratch
    ).to(choose_device(job.device))
    counts = describe_parameters(model)
    reporter.message(f"{counts['trainable']:,} of {counts['total']:,} parameters are trained.")
    fitted = _train(job, prepared, model, start, reporter)
    for info in prepared.infos:
        still_same(info)
    metrics = fitted.metrics | {"seconds": round(time.monotonic() - start, 2), "peak_memory_mb": peak_memory_mb()}
    manifest = _manifest(job, prepared, model, metrics, fitted, counts, reporter)
    weights = {name: tensor.numpy() for name, tensor in model.trainable_state().items()}
    weights[PROJECTION] = fitted.classical.texture.projection.flatten(1).numpy()
    package.write(out, manifest, weights, fitted.classical.model)
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
        probe=card.pretrained and not job.from_scratch and job.decoder != "linear",
        rank=job.rank,
        chip_size_px=card.chip_size_px,
    )
    if job.from_scratch and spec.adapter != "full":
        raise JobError(
            "A backbone from random values has to be trained whole.", "Choose the adapter 'full'.", "ADAPTER_UNSUITABLE"
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


@dataclass(frozen=True)
class Fitted:
    """What training gave beside the model itself.

    Args:
        metrics: figures on the held-out labels.
        how: how it was trained.
        classical, blend: the classical part, and how it is blended with the network.
    """

    metrics: dict[str, Any]
    how: dict[str, Any]
    classical: Classical
    blend: package.Blend


def _train(job: FitJob, prepared: Prepared, model: SegmentationModel, start: float, reporter: Reporter) -> Fitted:
    """Trains the model in place, fits the classical part beside it, and finds how to blend them."""
    spec, names = prepared.spec, [c.name for c in prepared.labels.classes]
    size, fill = spec.chip_size_px, fill_values(spec.bands)
    with ChipReader(prepared.infos, prepared.bands, prepared.labels, prepared.units) as reader:
        sites = find_sites(reader, seed=job.seed)
        _check_sites(sites, names)
        held = _hold_out(job, prepared, reader, sites, reporter)
        texture = fit_texture(reader, sites, spec.bands, spec.gsd_m, fill, job.seed)
        pixels = gather_pixels(reader, sites, texture, model, fill, job.seed)
        taught = pixels.of(held.taught)

        def classical_of(some: Pixels) -> Classical:
            return Classical(texture, fit_classical(some, len(names), len(spec.bands), job.seed), len(names))

        classical = classical_of(taught)
        if model.probe is not None:
            model.probe.put(*(torch.from_numpy(array) for array in fit_probe(taught, len(names))))
        sampler = ChipSampler(reader, [sites[i] for i in held.taught], held.withheld, size, job.seed)
        trainer = Trainer(model, sampler, held.chips, reporter, held.places >= TRUSTED_PLACES * len(names))
        budget = job.max_minutes * 60 if job.max_minutes else math.inf
        steps = job.steps or _default_steps(len(held.taught))
        # What is held out teaches in the end, unless the user keeps it apart.
        last = FINISH_SHARE if held.withheld else 0.0
        done = trainer.train(steps, round(steps * last), start + budget * (1 - last / 2))
        prior = network_prior(spec.gsd_m, [site.class_index for site in sites])
        blend, metrics = blend_parts(trainer, classical, names, prior, job.seed)
        reporter.message(blend_sentence(blend, metrics))
        if last:
            everything = ChipSampler(reader, sites, [], size, job.seed)
            trainer.finish(everything, math.ceil(trainer.best_step * last), done, start + budget)
            classical = classical_of(pixels)
    how = {"steps": done, "best_step": trainer.best_step, "batch": BATCH}
    how |= {"chip_size_px": size, "rank": job.rank}
    return Fitted(metrics | {"split": held.sentence}, how, classical, blend)


@dataclass(frozen=True)
class HeldOut:
    """Which places teach, and which tell how well it went.

    Args:
        taught: positions of the teaching places in the list of all.
        withheld: (raster index, group) of the places whose pixels must not teach.
        chips: the validation chips with their places.
        places: how many labelled places they hold.
        sentence: how the labels were split, for the report.
    """

    taught: np.ndarray
    withheld: list[tuple[int, int]]
    chips: list[tuple[Chip, tuple[int, int, int]]]
    places: int
    sentence: str


def _hold_out(
    job: FitJob, prepared: Prepared, reader: ChipReader, sites: Sequence[Site], reporter: Reporter
) -> HeldOut:
    size = prepared.spec.chip_size_px
    if job.validation_labels:
        styles = [ClassStyle(value=c.value, name=c.name, color=c.color) for c in prepared.labels.classes]
        given = _labels(job, job.validation_labels, prepared.infos, styles, reporter, minimum_classes=1)
        with ChipReader(prepared.infos, prepared.bands, given, prepared.units) as other:
            other_sites = find_sites(other, seed=job.seed)
            chips = covering_chips(other, other_sites, size, MAX_VALIDATION_CHIPS, job.seed)
        held = HeldOut(np.arange(len(sites)), [], chips, len(other_sites), "the validation labels given")
    else:
        parts = split_by_blocks(sites, size, job.seed)
        reporter.message(parts.sentence)
        chips = covering_chips(reader, parts.validation, size, MAX_VALIDATION_CHIPS, job.seed)
        withheld = {(site.raster_index, site.group) for site in parts.validation}
        taught = [i for i, site in enumerate(sites) if (site.raster_index, site.group) not in withheld]
        sentence = "blocks of the labels held out; they also stopped the training and set the blend, then taught too"
        held = HeldOut(np.array(taught), sorted(withheld), chips, len(parts.validation), sentence)
    if not held.chips:
        reporter.warn("There are too few labels to hold any out: no accuracy is given. Label more places.")
        return replace(held, sentence="no labels held out")
    return held


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
    pairs = ", ".join([f"{band.name} as {name}" for name, band in matched.items()][:12])
    pairs += " ..." if len(matched) > 12 else ""
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
    fitted: Fitted,
    counts: dict[str, int],
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
        hyperparameters=fitted.how | counts,
        classical=fitted.classical.texture.spec,
        blend=fitted.blend,
        seed=job.seed,
    )
