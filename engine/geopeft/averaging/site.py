"""A model that takes part in an average, and whether it goes with another one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from geopeft import package
from geopeft.applicability import Applicability
from geopeft.classical import Classical
from geopeft.errors import JobError
from geopeft.models.spec import ModelSpec
from geopeft.runtime import BESIDE_NETWORK, PROJECTION, open_applicability, open_classical
from geopeft.starting import Start

# Rasters of one sensor are resampled to slightly different pixels.
ALIKE_GSD = 1.1
_PER_CLASS = ("head.", "probe.")

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Site:
    """One of the models.

    Args:
        path, sha256: its package, and that of the file.
        manifest: what it says of itself.
        start: what a training goes on from, float32.
        network, begun: tensors of the network as it maps, and as it was before the last steps. Rows that belong to
            classes are in the order of `order`.
        order: for each class of the average the model's own number of it.
        classical, seen: its classical part, and what its labels have shown; None where it has none.
        projection: (components, bands) of the texture; None where there is none.
    """

    path: Path
    sha256: str
    manifest: package.Manifest
    start: Start
    network: Arrays
    begun: Arrays
    order: np.ndarray
    classical: Classical | None
    seen: Applicability | None
    projection: np.ndarray | None

    @classmethod
    def open(cls, path: Path, names: Sequence[str] = ()) -> Site:
        """Reads a package; PackageError where that is not possible.

        Args:
            names: the classes in the order that is wanted; none, or other classes than the model's: its own order.
        """
        opened, start = package.read(path), Start.open(path)
        own = [known.name for known in opened.manifest.classes]
        fits = sorted(own) == sorted(names) and len(set(own)) == len(own)
        order = np.array([own.index(name) for name in names] if fits else range(len(own)))
        network = {name: array for name, array in opened.weights.items() if name not in BESIDE_NETWORK}
        beside = {name: torch.from_numpy(opened.weights[name]) for name in BESIDE_NETWORK if name in opened.weights}
        classical = open_classical(opened, beside.get(PROJECTION))
        return cls(
            path,
            hashlib.sha256(path.read_bytes()).hexdigest(),
            opened.manifest,
            start,
            _ordered(network, order),
            _ordered({name: tensor.numpy() for name, tensor in start.state.items()}, order),
            order,
            classical,
            open_applicability(opened, classical, beside),
            opened.weights.get(PROJECTION),
        )

    @property
    def places(self) -> int:
        """Labelled places that it has learned from; 0 where it does not say."""
        found = self.manifest.hyperparameters.get("places")
        return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0

    @property
    def begins_at(self) -> str:
        """sha256 of the package that its training started from; empty where there was none."""
        return str(self.manifest.hyperparameters.get("start_sha256") or "")

    def misfit(self, first: Site) -> str:
        """Why this model and the first one have no average; empty where they have."""
        mine, wanted = _make(self), _make(first)
        for what, own in mine.items():
            if own != wanted[what]:
                return f"its {what}: {own}, there: {wanted[what]}"
        gsds = sorted(site.manifest.spec.gsd_m for site in (self, first))
        if gsds[1] > ALIKE_GSD * gsds[0]:
            return f"its pixel size: {self.manifest.spec.gsd_m:.3g} m, there: {first.manifest.spec.gsd_m:.3g} m"
        if _constants(self.manifest.spec) != _constants(first.manifest.spec):
            return "the mean and deviation of its bands are not the ones there"
        if _projection(self) != _projection(first):
            return "the principal components of its bands are not the ones there"
        if _shapes(self.network) != _shapes(first.network) or _shapes(self.begun) != _shapes(first.begun):
            return "its network is built differently"
        return ""


def refuse_misfits(sites: Sequence[Site]) -> None:
    """JobError unless all models have one make and began at the same point."""
    for number, site in enumerate(sites[1:], 1):
        if site.sha256 in [other.sha256 for other in sites[:number]]:
            raise JobError(f"The model {site.path.name} is given twice.", "Name each model once.", "AVERAGE_MISFIT")
        why = site.misfit(sites[0])
        if why:
            raise JobError(
                f"The model {site.path.name} has no average with {sites[0].path.name}: {why}.",
                "Train all of them with the same settings and classes, each with --start from the same model.",
                "AVERAGE_MISFIT",
            )
    points = {site.begins_at or site.sha256 for site in sites}
    # The model that the others were started from may take part itself.
    common = len(points) == 1 or any(all(site.sha256 == at or site.begins_at == at for site in sites) for at in points)
    if not common:
        named = ", ".join(site.path.name for site in sites)
        raise JobError(
            f"The models {named} were not started from the same model: their weights mean different things, and the "
            "mean of them nothing.",
            "Train each with --start from one model that all have; any of these may be that one.",
            "AVERAGE_START",
        )


def _ordered(arrays: Mapping[str, np.ndarray], order: np.ndarray) -> Arrays:
    """What belongs to classes, in another order of the classes."""
    return {name: array[order] if name.startswith(_PER_CLASS) else array for name, array in arrays.items()}


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def _make(site: Site) -> dict[str, str]:
    """What must be the same, in words."""
    manifest, spec = site.manifest, site.manifest.spec
    texture = manifest.classical
    return {
        "backbone": spec.backbone,
        "weights of the backbone": manifest.base_weights.sha256[:12] or "none",
        "adapter": spec.tuning,
        "decoder": f"{spec.decoder} {spec.decoder_size}",
        "probe": "yes" if spec.probe else "no",
        "metadata": "on" if spec.metadata else "off",
        "bands": ", ".join(f"{b.name}{f' as {b.backbone_band}' if b.backbone_band else ''}" for b in spec.bands),
        "classes": ", ".join(sorted(known.name for known in manifest.classes)),
        "values": manifest.radiometry,
        "resampling": f"{spec.resample:.3g}",
        "chips": f"{spec.chip_size_px} px",
        "classical part": "none" if texture is None else str(texture.model_dump()),
    }


def _constants(spec: ModelSpec) -> list[float]:
    names = ("mean", "std", "backbone_scale", "backbone_offset")
    return [round(getattr(band, name), 9) for band in spec.bands for name in names]


def _projection(site: Site) -> list[float]:
    return [] if site.projection is None else site.projection.ravel().tolist()
