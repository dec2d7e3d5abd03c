"""The `report` job: how good a map is, what it was made from and how, as one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geopeft import __version__, package
from geopeft.data.labels import Labels, read_labels
from geopeft.data.raster import RasterInfo, describe
from geopeft.errors import Canceled, GeopeftError, JobError
from geopeft.events import Reporter
from geopeft.job import ClassStyle, EvaluateJob, FitJob, ReportJob
from geopeft.report import card, maps, sections
from geopeft.report.origin import file_name, without_folders
from geopeft.report.page import document, tag
from geopeft.report.scores import Scores
from geopeft.runtime import Runtime
from geopeft.writing import check_target, write_bytes

# Each raster adds three pictures of up to some hundred kB.
MOST_RASTERS = 4
_LARGEST_FIGURES = 16 << 20

NO_RASTER = "No raster was given to draw the map of."
GLOSSARY = (
    "IoU: the part that map and labels of a class share, of all that either of them holds. mIoU: the mean of the "
    "classes. Precision: of what is mapped as the class, the part that is labelled so. Recall: of what is labelled as "
    "the class, the part that is mapped so. F1: their harmonic mean."
)


def run(job: ReportJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a report job; the outputs name the file."""
    return {"report": _write(job, _figures(job.figures) if job.figures else None, reporter)}


def write_beside(
    job: FitJob | EvaluateJob, model: Path, reporter: Reporter, figures: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The report at the end of another job, where it asks for one; where it cannot be written, what is done stays."""
    if not job.report:
        return {}
    asked = ReportJob(
        model=str(model),
        rasters=job.rasters,
        labels=job.labels,
        class_field=job.class_field,
        bands=job.bands,
        line_width_px=job.line_width_px,
        device=job.device,
        weights_dir=job.weights_dir,
        out=job.report,
    )
    try:
        return {"report": _write(asked, figures, reporter)}
    except Canceled:
        raise
    except GeopeftError as error:
        reporter.warn(f"The report could not be written: {error.message} {error.hint}".rstrip())
        return {}


def _write(job: ReportJob, figures: Mapping[str, Any] | None, reporter: Reporter) -> str:
    out = page_path(job.out)
    manifest = package.read_manifest(Path(job.model))
    pictures, notes = _pictures(job, manifest, reporter) if job.rasters else ([], [NO_RASTER])
    page = compose(manifest, Path(job.model).name, pictures, notes, figures)
    write_bytes(out, page.encode())
    return str(out)


def compose(
    manifest: package.Manifest,
    package_name: str,
    pictures: Sequence[maps.RasterMaps] = (),
    notes: Sequence[str] = (),
    figures: Mapping[str, Any] | None = None,
) -> str:
    """The page.

    Args:
        pictures: of rasters that the model maps.
        notes: why there are no pictures, or fewer.
        figures: of labels that the model was not trained with; None: those in its package.
    """
    own = Scores.read(manifest.metrics)
    scores = own if figures is None else Scores.read(figures)
    found = manifest.job.get("baselines")
    asked = [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
    title = f"Accuracy report: {manifest.name}"
    return document(
        title,
        tag("header", tag("h1", title), card.summary(manifest, package_name)),
        sections.warnings(scores, manifest.warnings),
        sections.headline(scores, elsewhere=figures is not None),
        sections.maps(pictures, manifest, notes),
        sections.class_table(scores, manifest),
        sections.confusion(scores),
        sections.confidence(scores),
        sections.baselines(scores, asked if figures is None else ()),
        sections.training(own, manifest),
        card.assumptions(manifest),
        card.model_card(manifest),
        card.repeat(manifest, own),
        tag("footer", tag("p", GLOSSARY), tag("p", f"Written by GeoPEFT {__version__}.")),
    )


def _pictures(
    job: ReportJob, manifest: package.Manifest, reporter: Reporter
) -> tuple[list[maps.RasterMaps], list[str]]:
    """Pictures of the first rasters, and what must be said of the others."""
    runtime = Runtime.open(Path(job.model), job.device, job.weights_dir, reporter)
    infos = [describe(path) for path in job.rasters]
    notes: list[str] = []
    labels = _labels(job, manifest, infos, notes, reporter)
    drawn: list[maps.RasterMaps] = []
    for index, info in enumerate(infos):
        if len(drawn) == MOST_RASTERS:
            notes.append(f"{len(infos) - index} more rasters are not shown.")
            break
        try:
            drawn.append(maps.draw(runtime, info, job.bands, labels, index, reporter))
        except GeopeftError as error:
            if len(infos) == 1:
                raise
            notes.append(f"{file_name(info.path)} is not shown: {without_folders(error.message, job.model_dump())}")
    return drawn, notes


def _labels(
    job: ReportJob, manifest: package.Manifest, infos: Sequence[RasterInfo], notes: list[str], reporter: Reporter
) -> Labels | None:
    """The labels whose outlines are drawn; a report does not fail for them."""
    if not job.labels:
        return None
    styles = [ClassStyle(value=known.label, name=known.name, color=known.color) for known in manifest.classes]
    try:
        return read_labels(
            job.labels,
            job.class_field,
            infos,
            classes=styles,
            line_width_px=job.line_width_px,
            minimum_classes=1,
            counted=False,
            reporter=reporter,
        )
    except GeopeftError as error:
        notes.append(f"The labels are not drawn: {without_folders(error.message, job.model_dump())}")
        return None


def _figures(path: str) -> dict[str, Any]:
    """Figures that `evaluate` wrote; JobError where the file holds none."""
    try:
        if Path(path).stat().st_size > _LARGEST_FIGURES:
            raise ValueError("it is too large")
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"The figures {path} cannot be read: {error}.", "Give a file of evaluate --json.") from error
    if not isinstance(found, dict) or "miou" not in found:
        raise JobError(f"{path} holds no accuracy figures.", "Give a file of evaluate --json.")
    return found


def page_path(out: str) -> Path:
    """Where the page goes; OutputError where it could not be written there."""
    path = Path(out)
    path = path if path.suffix.lower() in (".html", ".htm") else path.with_name(path.name + ".html")
    check_target(path)
    return path
