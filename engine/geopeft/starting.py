"""What a training takes over from the model package of an earlier one.

A package keeps the network as it was before the last steps, which learn from all labels, and where on the ground it had
learned until then. So a training that starts from it holds out places that it does not know, and the accuracy stays an
honest one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geopeft import evidence, package
from geopeft.classical import Classical
from geopeft.data.chips import Site
from geopeft.data.labels import LabelClass
from geopeft.data.memory import Memory
from geopeft.data.raster import RasterInfo
from geopeft.evidence import Evidence
from geopeft.models import SegmentationModel
from geopeft.models.decoders import DECODERS
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.models.texture import Texture, describe_texture
from geopeft.runtime import BESIDE_NETWORK, PROJECTION
from geopeft.training.trainer import Pace

# A network whose trained part is larger is kept in its final state only.
MOST_BYTES = 32 << 20
STEPS, RATE, ALONE_FOR_NEW = 0.5, 0.5, 0.15
_PER_CLASS = ("head.", "probe.")
# What is kept beside the weights to go on from.
_BESIDE = ("memory.", evidence.PREFIX)


@dataclass(frozen=True)
class Start:
    """An earlier model.

    Args:
        path: its package.
        sha256: of that file.
        manifest: what it says of itself.
        state: its tensors, float32, as they were before the last steps.
        memory: where they had learned; None where the package does not say.
        projection: (components, bands) of its texture; None where it has none.
        forest: its classical part as ONNX; empty where it has none.
        evidence: what held-out labels have said of its blend; None where the package does not say.
    """

    path: Path
    sha256: str
    manifest: package.Manifest
    state: Mapping[str, Tensor]
    memory: Memory | None
    projection: np.ndarray | None = None
    forest: bytes = b""
    evidence: Evidence | None = None

    @classmethod
    def open(cls, path: Path) -> Start:
        """Reads a package; PackageError where that is not possible."""
        opened = package.read(path)
        kept = {name: array for name, array in opened.start.items() if not name.startswith(_BESIDE)}
        arrays = kept or {name: array for name, array in opened.weights.items() if name not in BESIDE_NETWORK}
        state = {name: torch.from_numpy(_full_precision(array)) for name, array in arrays.items()}
        sha256, memory = hashlib.sha256(path.read_bytes()).hexdigest(), Memory.from_arrays(opened.start)
        judged, projection = Evidence.from_arrays(opened.start), opened.weights.get(PROJECTION)
        return cls(path, sha256, opened.manifest, state, memory, projection, opened.forest, judged)

    def misfit(self, spec: ModelSpec, radiometry: str, classes: Sequence[LabelClass]) -> str:
        """Why a model of this make cannot start here; empty where it can."""
        own = self.manifest.spec
        if self.memory is None:
            return "it does not say where it has learned, so that no accuracy could be told"
        for what, mine, wanted in (
            ("backbone", own.backbone, spec.backbone),
            ("adapter", own.tuning, spec.tuning),
            ("decoder", f"{own.decoder} {own.decoder_size}", f"{spec.decoder} {spec.decoder_size}"),
            ("bands", _band_names(own.bands), _band_names(spec.bands)),
            ("metadata", "on" if own.metadata else "off", "on" if spec.metadata else "off"),
            ("values", self.manifest.radiometry, radiometry),
        ):
            if mine != wanted:
                return f"its {what}: {mine}, here: {wanted}"
        rows = self._rows(classes)
        if all(row is None for row in rows):
            return "none of its classes is among the labels"
        if DECODERS[own.decoder].by_class and rows != list(range(len(self.manifest.classes))):
            return f"its decoder '{own.decoder}' takes no other classes than its own"
        return "" if own.probe == spec.probe else "its network is built differently"

    def continued(self, spec: ModelSpec) -> ModelSpec:
        """The make with the constants of the earlier model's bands, which its weights know."""
        taken = ("mean", "std", "backbone_scale", "backbone_offset")
        bands = tuple(
            band.model_copy(update={name: getattr(earlier, name) for name in taken})
            for band, earlier in zip(spec.bands, self.manifest.spec.bands, strict=True)
        )
        return spec.model_copy(update={"bands": bands})

    def texture(self, spec: ModelSpec) -> Texture | None:
        """The features of its forest for a `continued` make, so that forests of several such trainings can be taken
        together; None where these would be others."""
        wanted = describe_texture(spec.bands, spec.gsd_m)
        if self.projection is None or self.projection.shape != (wanted.components, len(spec.bands)):
            return None
        return Texture(wanted, spec.bands, torch.from_numpy(self.projection))

    def classical(self, spec: ModelSpec, classes: Sequence[LabelClass]) -> tuple[Classical, list[int]] | None:
        """Its classical part for a `continued` make, and for each class the number that it has there; None where it has
        none, or other features or classes."""
        rows, texture = [row for row in self._rows(classes) if row is not None], self.texture(spec)
        if not self.forest or texture is None or not sorted(rows) == list(range(len(self.manifest.classes))):
            return None
        return (Classical(texture, self.forest, len(rows)), rows) if len(rows) == len(classes) else None

    def is_strange(self, infos: Sequence[RasterInfo], sites: Sequence[Site]) -> bool:
        """Whether it knows none of these places, neither those that taught it nor those held out then."""
        return self.memory is not None and not any(self.memory.roles(infos, sites))

    def new_classes(self, classes: Sequence[LabelClass]) -> list[str]:
        """Those that the earlier model does not know."""
        return [known.name for known, row in zip(classes, self._rows(classes), strict=True) if row is None]

    def unlike(self, model: SegmentationModel, classes: Sequence[LabelClass]) -> str:
        """Why the weights cannot go into a new model; empty where they can."""
        if self.manifest.base_weights.sha256 != model.base_weights.sha256:
            return "it stands on other weights of its backbone"
        shapes = {name: tensor.shape for name, tensor in self._taken(classes).items()}
        alike = shapes == {name: tensor.shape for name, tensor in model.trainable_state().items()}
        return "" if alike else "its network is built differently"

    def put_into(self, model: SegmentationModel, classes: Sequence[LabelClass]) -> None:
        """Puts the weights into a new model that is not `unlike`.

        What a class has of its own (rows of head and probe) is taken over by the class's name; a new class begins
        with the mean of the others.
        """
        model.load_trainable_state(self._taken(classes))

    def pace(self, classes: Sequence[LabelClass]) -> Pace:
        """Little is left to learn: fewer steps, gentler ones; the decoder goes ahead only where classes are new."""
        return Pace(steps=STEPS, alone=ALONE_FOR_NEW if self.new_classes(classes) else 0.0, rate=RATE)

    def sentence(self, classes: Sequence[LabelClass]) -> str:
        """For the user: what is taken over."""
        new = self.new_classes(classes)
        return f"Starts from the model {self.path.name}." + (f" New to it: {', '.join(new)}." if new else "")

    def teach_new_classes(
        self, model: SegmentationModel, classes: Sequence[LabelClass], weights: np.ndarray, offsets: np.ndarray
    ) -> None:
        """Puts rows of a fresh probe, (K, D) and (K,), into the model's where a class is new. Logits are known up to a
        common term: the new rows are moved by what the known classes' differ on average."""
        rows = self._rows(classes)
        new = np.array([row is None for row in rows])
        if model.probe is None or not new.any():
            return
        own_weights, own_offsets = (tensor.cpu().numpy() for tensor in model.probe.taken())
        own_weights[new] = weights[new] + (own_weights - weights)[~new].mean(0)
        own_offsets[new] = offsets[new] + (own_offsets - offsets)[~new].mean()
        model.probe.put(torch.from_numpy(own_weights), torch.from_numpy(own_offsets))

    def _taken(self, classes: Sequence[LabelClass]) -> dict[str, Tensor]:
        rows = self._rows(classes)
        return {name: _rows_of(v, rows) if name.startswith(_PER_CLASS) else v for name, v in self.state.items()}

    def _rows(self, classes: Sequence[LabelClass]) -> list[int | None]:
        """For each class the row of the earlier model's outputs that means the same: by name, else by label value."""
        by_name = {known.name: index for index, known in enumerate(self.manifest.classes)}
        by_value = {known.label: index for index, known in enumerate(self.manifest.classes)}
        return [by_name.get(known.name, by_value.get(known.value)) for known in classes]


def to_keep(model: SegmentationModel) -> dict[str, np.ndarray] | None:
    """The trained part as `kept_arrays` gives it."""
    return kept_arrays(model.trainable_state())


def kept_arrays(state: Mapping[str, Tensor]) -> dict[str, np.ndarray] | None:
    """Tensors at half precision, for `package.write`; None where they are too large to be kept twice."""
    if sum(2 * tensor.numel() for tensor in state.values()) > MOST_BYTES:
        return None
    return {name: _half_precision(tensor.numpy()) for name, tensor in state.items()}


def _half_precision(array: np.ndarray) -> np.ndarray:
    fits = array.dtype == np.float32 and np.abs(array).max(initial=0) < 60_000
    return array.astype(np.float16) if fits else array


def _full_precision(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _rows_of(tensor: Tensor, rows: Sequence[int | None]) -> Tensor:
    mean = tensor.mean(0)
    return torch.stack([mean if row is None else tensor[row] for row in rows])


def _band_names(bands: Sequence[InputBand]) -> str:
    return ", ".join(f"{b.common or b.name}{f' as {b.backbone_band}' if b.backbone_band else ''}" for b in bands)
