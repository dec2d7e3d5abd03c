"""The baseline that needs no network: a random forest on bands and texture, as a package that `evaluate` can score."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geopeft import __version__, package
from geopeft.baselines import fit_forest
from geopeft.classical import Classical, classical_graph
from geopeft.data.chips import ChipReader, find_sites
from geopeft.events import Reporter
from geopeft.forest import fit_texture, gather_pixels
from geopeft.job import FitJob
from geopeft.models import SegmentationModel, build
from geopeft.prepare import Prepared, prepare
from geopeft.report.origin import environment
from geopeft.runtime import PROJECTION, fill_values


def fit_forest_package(job: FitJob, reporter: Reporter, begin: Callable[[], None]) -> int:
    """Writes a package whose classical part is scikit-learn's random forest with its own settings (Breiman 2001).

    It has learned from as many pixels of a class as a network's classical part would. The network in the package is
    random, and not for use.

    Args:
        job: with a backbone that takes all bands.
        begin: called where the work that counts begins.

    Returns:
        How many labelled places have taught.
    """
    prepared = prepare(job, reporter)
    spec, fill = prepared.spec, fill_values(prepared.spec.bands)
    torch.manual_seed(job.seed)
    model = build(spec, None, pretrained=False)
    begin()
    with ChipReader(prepared.infos, prepared.bands, prepared.labels, prepared.units) as reader:
        sites = find_sites(reader, seed=job.seed)
        texture = fit_texture(reader, sites, spec.bands, spec.gsd_m, fill, job.seed)
        pixels = gather_pixels(reader, sites, texture, model, fill, job.seed)
    forest = fit_forest(pixels, pixels.features.shape[1], job.seed)
    nothing = np.zeros((spec.num_classes, texture.count), np.float32)
    trees = [tree.tree_ for tree in forest.estimators_]
    graph = classical_graph(trees, forest.classes_, nothing, nothing[:, 0], 0.0)
    classical = Classical(texture, graph, spec.num_classes)
    weights: dict[str, Any] = {name: tensor.numpy() for name, tensor in model.trainable_state().items()}
    weights[PROJECTION] = texture.projection.flatten(1).numpy()
    package.write(Path(job.out), _manifest(job, prepared, model, classical), weights, classical.model)
    return len(sites)


def _manifest(job: FitJob, prepared: Prepared, model: SegmentationModel, classical: Classical) -> package.Manifest:
    classes = tuple(
        package.ClassInfo(value=index + 1, name=known.name, color=known.color, label=known.value)
        for index, known in enumerate(prepared.labels.classes)
    )
    return package.Manifest(
        engine_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=Path(job.out).stem,
        spec=prepared.spec,
        classes=classes,
        base_weights=package.BaseWeights(backbone=prepared.card.name, licence=model.base_weights.licence),
        radiometry=prepared.radiometry.kind,
        radiometry_rule=job.radiometry,
        dtype=prepared.infos[0].dtype,
        classical=classical.texture.spec,
        blend=package.Blend(network=0.0),
        seed=job.seed,
        environment=environment("cpu", torch.get_num_threads()),
    )
