"""What a result says of its origin: the model, its weights and their licence, its accuracy, in the layer's metadata.

QGIS shows it under Layer properties > Information; the custom properties `geopeft/...` are for programs.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple, Optional

from qgis.core import QgsMapLayer

from .language import tr
from .model_package import PackageError, Summary, read_manifest, summary

PREFIX = "geopeft/"
MODEL_PROPERTY = f"{PREFIX}model"
_KEPT = 16


class ModelFacts(NamedTuple):
    """A model package: where it is, its sha256, and what it says of itself."""

    path: str
    sha256: str
    summary: Summary


_facts: dict[tuple[str, int, int], ModelFacts] = {}


def model_facts(path: str) -> Optional[ModelFacts]:
    """Reads a package once; None where it is none. A large one takes a second: call it first in a task."""
    try:
        status = os.stat(path)
        key = (path, status.st_size, status.st_mtime_ns)
        if key not in _facts:
            facts = ModelFacts(path, _sha256(path), summary(read_manifest(path), status.st_size))
            while len(_facts) >= _KEPT:
                _facts.pop(next(iter(_facts)))
            _facts[key] = facts
        return _facts[key]
    except (OSError, PackageError):
        return None


def describe(layer: QgsMapLayer, kind: str, model: str, raster: str = "") -> None:
    """Writes into a layer's metadata which model made it, and of what.

    Args:
        kind: class_raster, confidence, entropy, outside or polygons.
        model: path of the model package; one that cannot be read any more is named all the same.
        raster: what was mapped.
    """
    if not model:
        return
    facts = model_facts(model)
    metadata = layer.metadata()
    metadata.setTitle(f"{Path(model).stem}: {layer.name()}")
    metadata.setType("dataset")
    metadata.setCrs(layer.crs())
    mapped = tr("Mapped by GeoPEFT with the model {model}").format(model=model)
    if facts is None:
        metadata.addHistoryItem(mapped)
        layer.setCustomProperty(MODEL_PROPERTY, model)
    else:
        metadata.setAbstract(_abstract(kind, facts.summary, raster))
        metadata.addHistoryItem(f"{mapped} (sha256 {facts.sha256})")
        trained = tr("The model was trained on {date} by GeoPEFT {version}")
        metadata.addHistoryItem(trained.format(date=facts.summary.created, version=facts.summary.engine_version))
        metadata.setLicenses([_licence(facts.summary)])
        metadata.setRights([_rights(facts.summary)])
        metadata.setKeywords({"GeoPEFT": [entry.name for entry in facts.summary.classes]})
        for name, value in _properties(facts, raster).items():
            layer.setCustomProperty(PREFIX + name, value)
    layer.setMetadata(metadata)


def accuracy_sentence(of: Summary) -> str:
    """How good the model is, and how that was measured."""
    if not of.accuracy.text:
        return tr("Its accuracy is not known: there were too few labels to hold any out.")
    text = tr("Its accuracy: {accuracy} at 95 % confidence, measured on {how}.")
    return text.format(accuracy=of.accuracy.text, how=of.accuracy.measured_on or tr("labels that did not teach it"))


def _abstract(kind: str, of: Summary, raster: str) -> str:
    start = {
        "confidence": tr("How sure the GeoPEFT model {name} is of its map of {raster}, in percent."),
        "entropy": tr("How undecided the GeoPEFT model {name} is between the classes of {raster}, in percent."),
        "outside": tr(
            "How unlike its labels the GeoPEFT model {name} finds {raster}, in percent: above 100 it lies outside what "
            "the model has seen."
        ),
        "polygons": tr("The map of {raster} by the GeoPEFT model {name}, as polygons."),
    }.get(kind, tr("A map of {raster} by the GeoPEFT model {name}."))
    raster = Path(raster).name if raster else tr("a raster")
    made = tr("The model is {backbone}, tuned by {adapter}, with the decoder {decoder}.")
    sentences = [
        start.format(name=of.name, raster=raster),
        tr("Classes: {names}.").format(names=", ".join(entry.name for entry in of.classes)),
        accuracy_sentence(of),
        made.format(backbone=of.backbone, adapter=of.adapter, decoder=of.decoder),
    ]
    return " ".join(sentences)


def _licence(of: Summary) -> str:
    revision = tr(", revision {revision}").format(revision=of.revision) if of.revision else ""
    licence = of.licence or tr("unknown")
    text = tr("Weights of {backbone}{revision}: {licence}")
    return text.format(backbone=of.backbone, revision=revision, licence=licence)


def _rights(of: Summary) -> str:
    paper = f" {of.paper}" if of.paper else ""
    text = tr("Made with a model that builds on the weights of {backbone}; their licence is {licence}.")
    return text.format(backbone=of.backbone, licence=of.licence or tr("unknown")) + paper


def _properties(facts: ModelFacts, raster: str) -> dict[str, object]:
    of = facts.summary
    values = {
        "model": facts.path,
        "model_sha256": facts.sha256,
        "backbone": of.backbone,
        "weights_revision": of.revision,
        "weights_licence": of.licence,
        "adapter": of.adapter,
        "miou": of.accuracy.value,
        "miou_low": of.accuracy.low,
        "miou_high": of.accuracy.high,
        "measured_on": of.accuracy.measured_on,
        "engine_version": of.engine_version,
        "trained": of.created,
        "raster": raster,
    }
    return {name: value for name, value in values.items() if value not in (None, "")}


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()
