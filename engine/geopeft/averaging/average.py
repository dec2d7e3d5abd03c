"""The `average` job: one model of several that were trained in different places from the same start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geopeft import __version__, package
from geopeft.applicability import Applicability
from geopeft.averaging.parts import joint_blend, mean_classical, union_memory, union_seen
from geopeft.averaging.site import Site, refuse_misfits
from geopeft.errors import JobError
from geopeft.events import Reporter
from geopeft.evidence import Evidence, joint
from geopeft.job import AverageJob
from geopeft.models.adapters.mean import Mean, mean_of
from geopeft.report.origin import environment, job_record
from geopeft.runtime import PROJECTION, SEEN_POINTS, SEEN_SCALE
from geopeft.starting import kept_arrays
from geopeft.writing import keep_inputs, write_bytes

# Adapters whose parts are multiplied with each other, but are no two factors of a product that could be decomposed.
NEARLY = ("dora", "ssb", "mode", "mpo")
# What a training says of itself that is the same of every model of one make.
COUNTS = ("total", "trainable", "backbone_total", "backbone_trainable", "decoder_trainable", "chip_size_px", "rank")
NOT_MEASURED = "Nobody has measured how good the average is: evaluate it on labels that have taught none of the models."


def run(job: AverageJob, reporter: Reporter) -> dict[str, Any]:
    """Runs an average job; the outputs name the package and what each model counts."""
    out = package.target(job.out)
    keep_inputs([out], job.models)
    sites = _open(job, reporter)
    refuse_misfits(sites)
    weights = _weights(job, sites, reporter)
    network = mean_of([site.network for site in sites], weights)
    reporter.check_canceled()
    tensors = dict(network.arrays)
    classical = b""
    if all(site.classical is not None for site in sites):
        parts = [site.classical for site in sites if site.classical is not None]
        classical = mean_classical(parts, [site.order for site in sites], weights)
    if sites[0].projection is not None:
        tensors[PROJECTION] = sites[0].projection
    seen = _seen(sites, weights, reporter)
    if seen is not None:
        tensors |= {SEEN_SCALE: seen.scale, SEEN_POINTS: seen.points}
    _say(sites, network, reporter)
    figures = _figures(sites, weights, network)
    manifest = _manifest(job, out, sites, weights, figures, seen, reporter)
    package.write(out, manifest, tensors, classical, _to_go_on(sites, weights, reporter))
    package.read(out)
    outputs: dict[str, Any] = {"model": str(out), "figures": figures}
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(figures, indent=1).encode())
        outputs["json"] = job.json_file
    return outputs


def _open(job: AverageJob, reporter: Reporter) -> list[Site]:
    """All models, with classes in the order of the first one."""
    first = Site.open(Path(job.models[0]))
    names = [known.name for known in first.manifest.classes]
    sites = [first]
    for number, path in enumerate(job.models[1:], 1):
        reporter.check_canceled()
        reporter.progress("average", number, len(job.models))
        sites.append(Site.open(Path(path), names))
    return sites


def _weights(job: AverageJob, sites: Sequence[Site], reporter: Reporter) -> list[float]:
    """What each counts, with the sum 1: as the job says, else by its labelled places."""
    if job.weights and len(job.weights) != len(sites):
        message = f"There are {len(job.weights)} weights for {len(sites)} models."
        raise JobError(message, "Give one weight for each model, in the same order, or none.")
    found: Sequence[float] = job.weights or [site.places for site in sites]
    if not all(found):
        silent = ", ".join(site.path.name for site in sites if not site.places)
        reporter.warn(f"How many labelled places taught {silent} is not known: all models count the same.")
        found = [1.0] * len(sites)
    shares = [value / sum(found) for value in found]
    named = ", ".join(f"{site.path.name} counts {share:.0%}" for site, share in zip(sites, shares, strict=True))
    reporter.message(f"The average of {len(sites)} models: {named}.")
    return shares


def _seen(sites: Sequence[Site], weights: Sequence[float], reporter: Reporter) -> Applicability | None:
    parts = [site.seen for site in sites if site.seen is not None]
    found = union_seen(parts, weights) if len(parts) == len(sites) else None
    if found is None and parts:
        reporter.message(
            "What lies outside of what the models have seen is not known of all of them, nor of the average."
        )
    return found


def _say(sites: Sequence[Site], network: Mean, reporter: Reporter) -> None:
    spec = sites[0].manifest.spec
    if network.lost is not None:
        reporter.message(
            f"Low-rank updates were averaged as the matrices that they stand for, and cut back to their rank: "
            f"{network.lost:.1%} of the update's squared norm was lost."
        )
    if spec.adapter in NEARLY:
        reporter.message(
            f"The parts of the adapter '{spec.adapter}' multiply each other: their mean is close to the mean of what "
            "they do only where the models have moved little from their common start."
        )
    reporter.message(
        "The blend is the one that the held-out labels of all models find likeliest together."
        if _judged(sites)
        else "Shares and temperatures of the blend are the means of the models'."
    )
    reporter.warn(NOT_MEASURED)


def _figures(sites: Sequence[Site], weights: Sequence[float], network: Mean) -> dict[str, Any]:
    """No figure of the average, only what each model has reached by itself, on its own labels."""
    own = [
        {
            "model": site.path.name,
            "weight": round(weight, 4),
            "places": site.places or None,
            **{name: site.manifest.metrics.get(name) for name in ("labels", "miou", "overall_accuracy", "f1_macro")},
        }
        for site, weight in zip(sites, weights, strict=True)
    ]
    lost = None if network.lost is None else round(network.lost, 5)
    return {"split": "the average was not measured; its models were, each on labels of its own", "models": own,
            "lost_by_cut": lost}  # fmt: skip


def _to_go_on(sites: Sequence[Site], weights: Sequence[float], reporter: Reporter) -> dict[str, np.ndarray] | None:
    """What a training needs that starts from the average."""
    memories = [site.start.memory for site in sites if site.start.memory is not None]
    if len(memories) < len(sites):
        reporter.warn("Not all models say where they have learned: no training can start from the average.")
        return None
    begun = mean_of([site.begun for site in sites], weights)
    arrays = kept_arrays({name: torch.from_numpy(array) for name, array in begun.arrays.items()})
    judged = _judged(sites)
    together = joint(judged, weights).arrays() if judged else {}
    return union_memory(memories).arrays() | together | (arrays or {})


def _judged(sites: Sequence[Site]) -> list[Evidence]:
    """What the labels of each have found of its blend; nothing where one does not say, or is no blend."""
    found = [site.start.evidence for site in sites if 0 < site.manifest.blend.network < 1]
    known = [one for one in found if one is not None]
    return known if len(known) == len(sites) else []


def _manifest(
    job: AverageJob,
    out: Path,
    sites: Sequence[Site],
    weights: Sequence[float],
    figures: dict[str, Any],
    seen: Applicability | None,
    reporter: Reporter,
) -> package.Manifest:
    """The first model's, but for what the average has of its own."""
    first = sites[0].manifest
    warnings = [f"{site.path.name}: {text}" for site in sites for text in site.manifest.warnings]
    places = sum(site.places for site in sites) if all(site.places for site in sites) else 0
    how: dict[str, Any] = {"models": len(sites), "average_of": [site.sha256 for site in sites]}
    how |= {"places": places} if places else {}
    how |= {name: first.hyperparameters[name] for name in COUNTS if name in first.hyperparameters}
    return first.model_copy(
        update={
            "schema_version": package.SCHEMA_VERSION,
            "engine_version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "name": out.stem,
            "blend": joint_blend([site.manifest.blend for site in sites], _judged(sites), weights),
            "outside_beyond": round(seen.threshold, 5) if seen is not None else None,
            "assumptions": tuple(reporter.messages),
            "warnings": (*reporter.warnings, *dict.fromkeys(warnings)),
            "metrics": figures,
            "hyperparameters": how,
            "job": job_record(job),
            "environment": environment("cpu", torch.get_num_threads()),
        }
    )
