"""A model at work: device, and one call from raster values to probabilities."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from geopeft import package
from geopeft.applicability import MOST_POINTS, Applicability
from geopeft.classical import Classical
from geopeft.data.acquisition import Chronicle, Whereabouts
from geopeft.data.bands import Band
from geopeft.data.raster import RasterInfo
from geopeft.errors import DeviceError, PackageError
from geopeft.events import Reporter
from geopeft.mapper import Mapper
from geopeft.mapping.windows import sizes_for
from geopeft.models import SegmentationModel, build
from geopeft.models.metadata import chronicle_of, scene_of
from geopeft.models.spec import InputBand
from geopeft.models.texture import Texture

# The tensors of a package that are not the network's: the classical part's, and those that say what was seen.
PROJECTION, SEEN_SCALE, SEEN_POINTS = "classical.projection", "applicability.scale", "applicability.points"
BESIDE_NETWORK = (PROJECTION, SEEN_SCALE, SEEN_POINTS)
# Each window that is looked at takes memory.
MOST_ABREAST = 4


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; DeviceError where the named one is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if there["cuda"] else "mps" if there["mps"] else "cpu"
    if not there[name]:
        raise DeviceError(f"The device {name} is not available on this machine.", "Set the device to auto.")
    return torch.device(name)


def peak_memory_mb() -> float:
    """The largest resident memory of this process so far, in MiB; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def fill_invalid(values: np.ndarray, valid: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """Values (..., C, h, w) with every pixel that is not valid (..., h, w) set to the bands' typical value (C,)."""
    return np.where(valid[..., None, :, :], values, fill[:, None, None]).astype(np.float32, copy=False)


def fill_values(bands: Sequence[InputBand]) -> np.ndarray:
    """Per band the raster value that the network sees as average."""
    return np.array([(band.mean - band.offset) / band.scale for band in bands], np.float32)


class Runtime(Mapper):
    """A model package, opened for prediction: adapters merged, evaluation mode.

    Args:
        classical: the classical part, where the package has one.
        seen: what the model has seen, where the package tells.
        part: "network" or "classical" for one part alone, "" for the blend of the package.
    """

    def __init__(
        self,
        manifest: package.Manifest,
        model: SegmentationModel,
        device: torch.device,
        classical: Classical | None = None,
        part: str = "",
        seen: Applicability | None = None,
    ) -> None:
        super().__init__(manifest, seen)
        self.model = model.eval().to(device)
        self.device = device
        self.classical = classical
        if classical is not None:
            classical.texture.to(device)
        self.network_share = {"": manifest.blend.network, "network": 1.0, "classical": 0.0}[part]
        self._is_whole = not part
        if self.network_share < 1 and classical is None:
            raise PackageError("This model package has no classical part.", "Use the network.", "PACKAGE_NO_CLASSICAL")
        self._fill = fill_values(manifest.spec.bands)
        spec, card = manifest.spec, model.card
        reach = classical.texture.radius_px if classical is not None else 0
        patch = max(1, round(card.patch_size_px / spec.resample))
        self._sizes = sizes_for(spec.chip_size_px, patch, card.is_transformer, reach)

    @classmethod
    def open(cls, path: Path, device: str, weights_dir: str, reporter: Reporter, part: str = "") -> Runtime:
        """Reads and builds a package; PackageError or WeightsError where that is not possible."""
        return cls.of(package.read(path), device, weights_dir, reporter, part)

    @classmethod
    def of(cls, opened: package.Package, device: str, weights_dir: str, reporter: Reporter, part: str = "") -> Runtime:
        """Builds a package that has been read; PackageError or WeightsError where that is not possible."""
        state = {name: torch.from_numpy(array) for name, array in opened.weights.items()}
        beside = {name: state.pop(name) for name in BESIDE_NETWORK if name in state}
        classical = open_classical(opened, beside.get(PROJECTION))
        seen = open_applicability(opened, classical, beside)
        model = build(
            opened.manifest.spec,
            state,
            weights_dir=weights_dir,
            reporter=reporter,
            merged=True,
            weights_sha256=opened.manifest.base_weights.sha256,
        )
        return cls(opened.manifest, model, choose_device(device), classical, part, seen)

    @property
    def window_px(self) -> int:
        """See `Mapper`."""
        return self._sizes.window_px

    @property
    def grain_px(self) -> int:
        """See `Mapper`."""
        return self._sizes.grain_px

    @property
    def batch(self) -> int:
        """See `Mapper`. On a CPU the values of one window stay in the cache."""
        return 1 if self.device.type == "cpu" else super().batch

    @contextmanager
    def abreast(self) -> Iterator[int]:
        """See `Mapper`. A CPU's cores share windows, not the small steps within one, at the end of which all would wait
        for the slowest."""
        threads = torch.get_num_threads()
        count = min(threads, MOST_ABREAST) if self.device.type == "cpu" else 1
        if count < 2:
            yield 1
            return
        torch.set_num_threads(threads // count)
        try:
            yield count
        finally:
            torch.set_num_threads(threads)

    @property
    def overlap_px(self) -> int:
        """See `Mapper`."""
        return self._sizes.overlap_px

    def chronicle_of(self, info: RasterInfo, bands: Sequence[Band], reporter: Reporter) -> Chronicle | None:
        """See `Mapper`."""
        return chronicle_of(self.manifest.spec, [info], [bands], reporter)

    def look(
        self,
        values: np.ndarray,
        valid: np.ndarray,
        asked: Sequence[tuple[slice, slice]],
        taken: Whereabouts | None = None,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """See `Mapper`."""
        filled = values if valid.all() else fill_invalid(values, valid, self._fill)
        raw = torch.from_numpy(filled).to(self.device, torch.float32)
        share, found = self.network_share, None
        features = self.classical.features(raw) if self.classical is not None and share < 1 else None
        if share > 0:
            with torch.inference_mode():
                logits = self.model(raw, scene_of(taken, self.manifest.spec, self.device)).float()
                found = (logits / self.manifest.blend.temperature).softmax(1)
        # A graphics card goes on with the network meanwhile.
        other = self.classical.of_chips(features) if self.classical is not None and features is not None else None
        result = found.cpu().numpy() if found is not None else np.zeros(0)
        if other is not None:
            result = share * result + (1 - share) * other if share > 0 else other
        if self._is_whole:
            result = self.manifest.blend.sharpen(result)
        if not np.isfinite(result).all():
            raise PackageError(
                "This model gives values that are no probabilities.",
                "Copy the package again from where it came, or train it again.",
                "PACKAGE_VALUES",
            )
        return result, self._dissimilarities(raw, features, asked)

    def _dissimilarities(
        self, raw: torch.Tensor, features: np.ndarray | None, asked: Sequence[tuple[slice, slice]]
    ) -> list[np.ndarray]:
        if self.seen is None or self.classical is None or not asked:
            return []
        if features is not None:
            chosen = [chip[where] for chip, where in zip(features, asked, strict=True)]
        else:
            chosen = [self.classical.sparse_features(c, *where) for c, where in zip(raw, asked, strict=True)]
        return [self.seen.dissimilarity(c.reshape(-1, c.shape[-1])).reshape(c.shape[:2]) for c in chosen]


def open_classical(opened: package.Package, projection: torch.Tensor | None) -> Classical | None:
    """The classical part of a package; PackageError where its parts do not fit each other."""
    spec, model = opened.manifest.classical, opened.manifest.spec
    if spec is None:
        return None
    if projection is None or (
        projection.shape != (spec.components, len(model.bands))
        or any(position >= len(model.bands) for pair in spec.ratios for position in pair)
    ):
        raise PackageError(
            f"The features of the forest of {opened.path} do not fit its bands.",
            "Copy the package again from where it came, or train it again.",
            "PACKAGE_BROKEN",
        )
    return Classical(Texture(spec, model.bands, projection), opened.forest, model.num_classes)


def open_applicability(
    opened: package.Package, classical: Classical | None, tensors: Mapping[str, torch.Tensor]
) -> Applicability | None:
    """What a package says that its model has seen; PackageError where its parts do not fit each other."""
    threshold = opened.manifest.outside_beyond
    scale, points = (tensors.get(name) for name in (SEEN_SCALE, SEEN_POINTS))
    if scale is None and points is None and threshold is None:
        return None
    if (
        scale is None or points is None or threshold is None or classical is None
        or scale.shape != (classical.texture.count,) or points.ndim != 2 or points.shape[1] != len(scale)
        or not 1 <= len(points) <= MOST_POINTS or not scale.dtype == points.dtype == torch.float32
    ):  # fmt: skip
        raise PackageError(
            f"What {opened.path} says that its model has seen does not fit the model.",
            "Copy the package again from where it came, or train it again.",
            "PACKAGE_BROKEN",
        )
    return Applicability(scale.numpy(), points.numpy(), threshold)
