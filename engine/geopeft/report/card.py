"""What a report says of the model: what it assumes of its rasters, what it is made of, and how to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from geopeft.models.spec import InputBand
from geopeft.package import Manifest
from geopeft.report.origin import file_name, without_folders
from geopeft.report.page import Markup, bullets, facts, percent, section, table, tag, thousands
from geopeft.report.scores import Scores

# A longer table is folded away at first.
MOST_BANDS_OPEN = 24
UNITS = {
    "reflectance": "reflectance: a value × scale + offset is the share of light that the ground sends back",
    "display": "brightness for display: 0 to 1 after the scale",
    "unknown": "of unknown meaning: used as they are, brought to mean 0 and deviation 1",
}


def summary(manifest: Manifest, package_name: str) -> Markup:
    """What was mapped."""
    rasters = [file_name(str(path)) for path in _list(manifest.job.get("rasters"))]
    names = [known.name for known in manifest.classes]
    shown = [*names[:12], *([f"{len(names) - 12} more"] if len(names) > 12 else [])]
    return facts(
        [
            ("Model package", package_name),
            (f"{len(names)} classes", ", ".join(shown)),
            ("Trained on", _some(rasters)),
            ("Labels", file_name(str(manifest.job.get("labels", ""))) if manifest.job.get("labels") else ""),
            ("Pixel size", f"{manifest.spec.gsd_m:.3g} m"),
            ("Bands", _some([band.name for band in manifest.spec.bands])),
            ("Trained", manifest.created.replace("T", " ").replace("+00:00", " UTC")),
            ("Taught by", _teacher(manifest)),
        ]
    )


def _teacher(manifest: Manifest) -> str:
    """The model that taught this one, and how far both agree; empty where labels did."""
    name, agreement = manifest.hyperparameters.get("teacher"), manifest.metrics.get("agreement")
    share = agreement.get("share") if isinstance(agreement, Mapping) else None
    if not isinstance(name, str) or not isinstance(share, int | float):
        return ""
    return f"{file_name(name)}; both map {100 * share:.1f} % of the pixels alike that taught nothing"


def assumptions(manifest: Manifest) -> Markup:
    """What was assumed of bands and radiometry."""
    said = [text for text in manifest.assumptions if text not in manifest.warnings]
    rows = [_band_row(band) for band in manifest.spec.bands]
    head = ("Band", "Role", "Wavelength", "Scale", "Offset", "Mean", "Deviation", "Feeds the backbone as")
    bands = table("Bands of the model; mean and deviation after scale and offset", head, rows, texts=(1, 7))
    kind = UNITS.get(manifest.radiometry, manifest.radiometry)
    rule = "found out from the rasters" if manifest.radiometry_rule == "auto" else "as the user said"
    return section(
        "What was assumed about bands and values",
        tag("p", f"Values are taken as {kind} ({rule}; data type {manifest.dtype})."),
        bands if len(rows) <= MOST_BANDS_OPEN else tag("details", tag("summary", f"All {len(rows)} bands"), bands),
        tag("h3", "What the engine said on the way"),
        bullets([without_folders(text, manifest.job) for text in said]),
    )


def _band_row(band: InputBand) -> Markup:
    wavelength = f"{band.wavelength_um:.3f} µm" if band.wavelength_um is not None else "not known"
    figures = (f"{band.scale:.6g}", f"{band.offset:.4g}", f"{band.mean:.4g}", f"{band.std:.4g}")
    return tag(
        "tr",
        tag("th", band.name, scope="row"),
        tag("td", band.common or "–", class_="text"),
        tag("td", wavelength),
        *(tag("td", figure) for figure in figures),
        tag("td", band.backbone_band or "not at all; only the skip of raw bands and the forest see it", class_="text"),
    )


def model_card(manifest: Manifest) -> Markup:
    """What the model is made of, and whose weights it builds on."""
    base, spec, settings = manifest.base_weights, manifest.spec, manifest.hyperparameters
    trained, total = settings.get("trainable"), settings.get("total")
    counts = ""
    if isinstance(trained, int) and isinstance(total, int) and total:
        counts = f"{thousands(trained)} of {thousands(total)} ({percent(trained / total)})"
    classical = ""
    if manifest.classical is not None:
        classical = f"forest and linear model on bands and texture; {percent(1 - manifest.blend.network)} of the blend"
    outside = ""
    if manifest.outside_beyond is not None:
        outside = f"dissimilarity index above {manifest.outside_beyond:.2g} (Meyer and Pebesma 2021)"
    adapter = spec.adapter if spec.adapter in ("frozen", "full") else spec.tuning.replace(" of rank", ", rank")
    link = tag("a", base.paper, href=base.paper) if base.paper.startswith("https://") else base.paper
    return section(
        "Model card",
        facts(
            [
                ("Backbone", base.backbone),
                ("Licence of its weights", base.licence),
                ("Revision", base.revision),
                ("sha256 of the weights", tag("code", base.sha256) if base.sha256 else ""),
                ("Paper", link),
                ("Adapter", adapter),
                ("Decoder", spec.decoder),
                ("Parameters trained", counts),
                (
                    "Network part",
                    f"{percent(manifest.blend.network)} of the blend, temperature {manifest.blend.temperature:g}",
                ),
                ("Classical part", classical),
                ("Sharpness", f"{manifest.blend.sharpness:g}: the probabilities of the blend to this power"),
                ("Outside what it has seen", outside),
                ("Chips", f"{spec.chip_size_px} × {spec.chip_size_px} px"),
            ]
        ),
        tag("p", "Whoever passes the model or its maps on keeps to the licence of the weights.", class_="soft"),
    )


def repeat(manifest: Manifest, scores: Scores) -> Markup:
    """The job, the seed and the versions."""
    around = manifest.environment
    rows = [(str(name), str(value)) for name, value in around.items()] or [("geopeft", manifest.engine_version)]
    taken = f"{scores.seconds:.0f} s" if scores.seconds else ""
    job = json.dumps(dict(manifest.job), indent=2, ensure_ascii=False) if manifest.job else ""
    parts = [
        tag("p", "Save the job as job.json, put paths to the files, and run it: ", tag("code", "geopeft run job.json")),
        tag("pre", job, tabindex=0),
    ]
    older = tag("p", "This package was made by an engine that did not keep the job.", class_="soft")
    return section(
        "How to repeat it",
        *(parts if job else [older]),
        facts(
            [
                ("Seed", str(manifest.seed)),
                *rows,
                ("Steps", str(manifest.hyperparameters.get("steps", ""))),
                ("Time taken", taken),
            ]
        ),  # fmt: skip
        tag("p", _determinism(manifest.job)),
    )


def _determinism(job: Mapping[str, Any]) -> str:
    text = (
        "The same job with the same files, seed, versions, device and number of threads trains the same model. Other "
        "versions, another device or number of threads change the last digits of sums, and with them a few pixels."
    )
    if job.get("max_minutes"):
        text += " This job has a time limit: on a slower or busier machine it trains fewer steps."
    return text


def _some(names: list[str]) -> str:
    return ", ".join([*names[:8], *([f"and {len(names) - 8} more"] if len(names) > 8 else [])])


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
