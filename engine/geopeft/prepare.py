"""What a fit decides before its first step: bands, radiometry, backbone, classes, and the model's make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from geopeft.data.acquisition import Chronicle
from geopeft.data.bands import Band, resolve_bands, select_bands
from geopeft.data.labels import Labels, read_labels
from geopeft.data.normalize import Radiometry, assume_radiometry, between
from geopeft.data.raster import BandStatistics, RasterInfo, band_statistics, describe, lacking_band, with_data
from geopeft.errors import JobError
from geopeft.events import Reporter
from geopeft.job import ClassStyle, FitJob
from geopeft.job import Radiometry as AssumedRadiometry
from geopeft.models.choose import choose_backbone, input_bands, match_or_refuse, resample_factor
from geopeft.models.decoders import DECODERS
from geopeft.models.licences import require_licence
from geopeft.models.metadata import chronicle_of, require_metadata
from geopeft.models.registry import BackboneCard
from geopeft.models.spec import ModelSpec


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
    chronicle: Chronicle | None = None


def prepare(job: FitJob, reporter: Reporter) -> Prepared:
    """Reads what is there and decides bands, radiometry, backbone and classes, saying each in a message."""
    infos = tuple(describe(path) for path in job.rasters)
    chosen = select_bands(infos[0], job.bands) if job.bands else whole_bands(infos[0], reporter)
    bands = (chosen, *(resolve_bands(info, chosen, job.bands) for info in infos[1:]))
    labels = labels_of(job, job.labels, infos, job.classes, reporter)
    statistics, radiometry, units = pooled_units(infos, bands, job.radiometry, reporter)
    gsd_m = float(np.median([info.gsd_m for info in infos]))
    card, why = choose_backbone(job.backbone, chosen, gsd_m, job.weights_dir, reporter)
    if not job.from_scratch:
        require_licence(card, job.accept_licence)
    resample, resampling = resample_factor(card, gsd_m)
    matched = match_or_refuse(card, chosen, bool(job.bands), dates=True)
    if job.metadata:
        require_metadata(card)
    model_bands, matching = input_bands(card, matched, chosen, statistics, radiometry)
    seen = "" if card.classical_alone else _bands_sentence(card, matched, chosen)
    for sentence in (radiometry.sentence, why, resampling, seen, matching):
        if sentence:
            reporter.message(sentence)
    spec = ModelSpec(
        backbone=card.name,
        adapter=_adapter(card, job.adapter),
        decoder="linear" if card.classical_alone else job.decoder,
        decoder_size=job.decoder_size,
        bands=model_bands,
        num_classes=len(labels.classes),
        gsd_m=gsd_m,
        resample=resample,
        probe=card.pretrained and not job.from_scratch and not DECODERS[job.decoder].by_class,
        rank=job.rank,
        alpha=job.alpha,
        targets=job.targets,
        last_blocks=job.last_blocks,
        metadata=job.metadata,
        prompt_tokens=job.prompt_tokens,
        chip_size_px=card.chip_size_px,
    )
    if job.from_scratch and spec.adapter != "full":
        raise JobError(
            "A backbone from random values has to be trained whole.", "Choose the adapter 'full'.", "ADAPTER_UNSUITABLE"
        )
    if spec.adapter != job.adapter and not card.classical_alone:
        reporter.warn(f"{card.title} cannot be tuned by '{job.adapter}': '{spec.adapter}' is used.")
    return Prepared(infos, bands, labels, card, spec, radiometry, units, chronicle_of(spec, infos, bands, reporter))


def _adapter(card: BackboneCard, asked: str) -> str:
    """The adapter asked for; where the default does not fit, which nobody has asked for, one that does. Another one
    that does not is refused where the model is built."""
    if card.classical_alone or (asked == "lora" and "lora" not in card.adapters):
        return card.adapters[0]
    return asked


def labels_of(
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


def whole_bands(info: RasterInfo, reporter: Reporter) -> tuple[Band, ...]:
    """All data bands but those that alone lack data on many pixels: a pixel is used where all bands have data."""
    bands = info.bands
    indexes = [band.index for band in bands]
    statistics = band_statistics(info, indexes)
    kept = with_data(statistics)
    if len(kept) < len(bands):
        sentence = lacking_band(info, indexes, statistics)
        reporter.warn(f"{sentence} It is left out, so that those pixels can be mapped; name it with --bands to use it.")
    return tuple(bands[at] for at in kept)


def pooled_units(
    infos: Sequence[RasterInfo], bands: Sequence[Sequence[Band]], assumed: AssumedRadiometry, reporter: Reporter
) -> tuple[BandStatistics, Radiometry, tuple[tuple[np.ndarray, np.ndarray], ...]]:
    """Statistics of all rasters in the first one's units, what these are, and each raster's way there."""
    parts: list[BandStatistics] = []
    units: list[tuple[np.ndarray, np.ndarray]] = []
    found: list[Radiometry] = []
    for info, own in zip(infos, bands, strict=True):
        statistics = band_statistics(info, [band.index for band in own])
        radiometry = assume_radiometry(info, own, statistics, assumed)
        found.append(radiometry)
        scale, offset = np.ones(len(own)), np.zeros(len(own))
        for position, band in enumerate(own):
            if radiometry.is_about(band):
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
