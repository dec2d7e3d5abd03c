"""A model at work: device, one call from raster values to probabilities, and windows blended over a whole raster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window

from geopeft import package
from geopeft.classical import Classical
from geopeft.data.bands import Band, resolve_bands
from geopeft.data.normalize import assume_radiometry
from geopeft.data.raster import RasterInfo, band_statistics, open_raster
from geopeft.errors import DeviceError, PackageError, RasterError
from geopeft.events import Reporter
from geopeft.models import SegmentationModel, build
from geopeft.models.spec import InputBand
from geopeft.models.texture import Texture

BATCH = 4
# The one tensor of a package that belongs to its classical part.
PROJECTION = "classical.projection"


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
    return np.where(valid[..., None, :, :], values, fill[:, None, None]).astype(np.float32)


def fill_values(bands: Sequence[InputBand]) -> np.ndarray:
    """Per band the raster value that the network sees as average."""
    return np.array([(band.mean - band.offset) / band.scale for band in bands], np.float32)


@dataclass(frozen=True)
class Strip:
    """Finished rows of a map.

    Args:
        row: first row in the raster.
        probabilities: (K, h, W) float32, 0 where nothing was mapped.
        mapped: (h, W) bool, False at nodata and outside the wanted windows.
    """

    row: int
    probabilities: np.ndarray
    mapped: np.ndarray


class Runtime:
    """A model package, opened for prediction: adapters merged, evaluation mode.

    Args:
        classical: the classical part, where the package has one.
        part: "network" or "classical" for one part alone, "" for the blend of the package.
    """

    def __init__(
        self,
        manifest: package.Manifest,
        model: SegmentationModel,
        device: torch.device,
        classical: Classical | None = None,
        part: str = "",
    ) -> None:
        self.manifest = manifest
        self.model = model.eval().to(device)
        self.device = device
        self.classical = classical
        if classical is not None:
            classical.texture.to(device)
        self.network_share = {"": manifest.blend.network, "network": 1.0, "classical": 0.0}[part]
        if self.network_share < 1 and classical is None:
            raise PackageError("This model package has no classical part.", "Use the network.", "PACKAGE_NO_CLASSICAL")
        self._fill = fill_values(manifest.spec.bands)

    @classmethod
    def open(cls, path: Path, device: str, weights_dir: str, reporter: Reporter, part: str = "") -> Runtime:
        """Reads and builds a package; PackageError or WeightsError where that is not possible."""
        opened = package.read(path)
        state = {name: torch.from_numpy(array) for name, array in opened.weights.items()}
        classical = _open_classical(opened, state.pop(PROJECTION, None))
        model = build(
            opened.manifest.spec,
            state,
            weights_dir=weights_dir,
            reporter=reporter,
            merged=True,
            weights_sha256=opened.manifest.base_weights.sha256,
        )
        return cls(opened.manifest, model, choose_device(device), classical, part)

    @property
    def window_px(self) -> int:
        """Side of the windows a raster is mapped in: half as wide again as the chips the model was fitted on."""
        return self.manifest.spec.chip_size_px * 3 // 2

    @property
    def overlap_px(self) -> int:
        """Pixels shared by neighbouring windows; their outer quarter is further than a texture reaches."""
        reach = self.classical.texture.radius_px if self.classical is not None else 0
        return min(max(self.window_px // 4, 4 * reach), self.window_px // 2)

    def probabilities(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """(B, K, h, w) float32 from raster values (B, C, h, w) and their valid masks (B, h, w)."""
        raw = torch.from_numpy(fill_invalid(values, valid, self._fill)).to(self.device)
        share, result = self.network_share, np.zeros(0)
        if share > 0:
            with torch.inference_mode():
                logits = self.model(raw).float()
                result = (logits / self.manifest.blend.temperature).softmax(1).cpu().numpy()
        if share < 1 and self.classical is not None:
            other = self.classical.probabilities(raw)
            result = share * result + (1 - share) * other if share > 0 else other
        if not np.isfinite(result).all():
            raise PackageError(
                "This model gives values that are no probabilities.",
                "Copy the package again from where it came, or train it again.",
                "PACKAGE_VALUES",
            )
        return result

    def bands_of(self, info: RasterInfo, override: Sequence[str]) -> tuple[Band, ...]:
        """The raster's bands in the model's order; PackageError names what is missing."""
        bands: tuple[Band, ...] = resolve_bands(info, self.manifest.spec.bands, override)
        return bands

    def to_model_units(
        self, info: RasterInfo, bands: Sequence[Band], reporter: Reporter
    ) -> tuple[np.ndarray, np.ndarray]:
        """(scale, offset), each (C,), that turn this raster's values into the units the model was fitted on.

        Rasters may differ in data type (float reflectance for a model fitted on integers) or by an offset. Values of
        another kind in another data type are refused with PackageError.
        """
        scale, offset = np.ones(len(bands), np.float32), np.zeros(len(bands), np.float32)
        try:
            statistics = band_statistics(info, [band.index for band in bands])
        except RasterError as error:
            if error.code == "RASTER_EMPTY":
                return scale, offset
            raise
        now = assume_radiometry(info, bands, statistics, self.manifest.radiometry_rule)
        if now.kind != self.manifest.radiometry and info.dtype != self.manifest.dtype:
            raise PackageError(
                f"The model was trained on {self.manifest.radiometry} values ({self.manifest.dtype}); "
                f"{info.path} holds {now.kind} values ({info.dtype}).",
                "Choose a raster of the same kind, or train a model on this one.",
                "RADIOMETRY_DIFFERS",
            )
        if now.kind == self.manifest.radiometry != "unknown":
            for position, (band, trained) in enumerate(zip(bands, self.manifest.spec.bands, strict=True)):
                own_scale, own_offset = now.for_band(band)
                scale[position] = own_scale / trained.scale
                offset[position] = (own_offset - trained.offset) / trained.scale
        if info.dtype == self.manifest.dtype and (scale != 1).any():
            # One data type and two scales: one of them was guessed from the values. The likelier is the nearer.
            if self._distances(statistics.mean).mean() < self._distances(statistics.mean * scale + offset).mean():
                scale, offset = np.ones_like(scale), np.zeros_like(offset)
        if (scale != 1).any() or (offset != 0).any():
            reporter.message(f"{now.sentence} Brought to the units the model was trained on.")
        self._warn_of_range(info, bands, statistics.mean * scale + offset, reporter)
        return scale, offset

    def _distances(self, mean: np.ndarray) -> np.ndarray:
        """How far bands' means (C,) lie from those of the training rasters, in their standard deviations."""
        trained = self.manifest.spec.bands
        return np.array([abs(m * b.scale + b.offset - b.mean) / b.std for m, b in zip(mean, trained, strict=True)])

    def _warn_of_range(self, info: RasterInfo, bands: Sequence[Band], mean: np.ndarray, reporter: Reporter) -> None:
        for band, distance in zip(bands, self._distances(mean), strict=True):
            if distance > 4:
                reporter.warn(
                    f"Band {band.name} of {Path(info.path).name} lies far from what the model was trained on "
                    f"({distance:.0f} standard deviations): do not trust the map before you have checked it."
                )
                return


def _open_classical(opened: package.Package, projection: torch.Tensor | None) -> Classical | None:
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


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """First pixels of the windows that cover `length`; the last one ends at the end."""
    if length <= window:
        return [0]
    step = window - overlap
    starts = list(range(0, length - window, step))
    return [*starts, length - window]


def blend_weights(window: int, overlap: int, at_start: bool, at_end: bool) -> np.ndarray:
    """(window,) weights of one axis: a raised cosine over the overlap, zero in its outer quarter; flat at raster edges.

    The outer quarter of an overlap belongs to the neighbour alone, since a network sees least context there.
    """
    distance = np.arange(window, dtype=np.float64) + 0.5
    dead = overlap / 4
    ramp = np.clip((distance - dead) / max(overlap - 2 * dead, 1e-9), 0, 1) if overlap else np.ones(window)
    ramp = 0.5 - 0.5 * np.cos(np.pi * ramp)
    start = np.ones(window) if at_start else ramp
    end = np.ones(window) if at_end else ramp[::-1]
    return (start * end).astype(np.float32)


def map_raster(
    runtime: Runtime,
    info: RasterInfo,
    override: Sequence[str],
    reporter: Reporter,
    wanted: Callable[[Window], bool] | None = None,
    stage: str = "predict",
) -> Iterator[Strip]:
    """Maps a raster in overlapping windows; rows come out as soon as no window touches them any more.

    Memory is that of one row of windows: (K, window, raster width), whatever the raster's height.

    Args:
        wanted: windows to map; None maps all.
        stage: name in the progress events.
    """
    bands = runtime.bands_of(info, override)
    affine = runtime.to_model_units(info, bands, reporter)
    height, width = info.geobox.shape
    size = (min(runtime.window_px, height), min(runtime.window_px, width))
    tops, lefts = (window_starts(n, s, runtime.overlap_px) for n, s in zip((height, width), size, strict=True))
    classes = runtime.manifest.spec.num_classes
    total = np.zeros((classes, size[0], width), np.float32)
    weight = np.zeros((size[0], width), np.float32)
    valid = np.zeros((size[0], width), bool)
    with open_raster(info, [band.index for band in bands]) as reader:
        for index, top in enumerate(tops):
            rows = blend_weights(size[0], runtime.overlap_px, index == 0, index == len(tops) - 1)
            windows = [Window(left, top, size[1], size[0]) for left in lefts]
            for start in range(0, len(windows), BATCH):
                batch = [w for w in windows[start : start + BATCH] if wanted is None or wanted(w)]
                for window, values, mask in _mapped(runtime, reader.read, batch, affine):
                    left = int(window.col_off)
                    columns = blend_weights(size[1], runtime.overlap_px, left == 0, left == lefts[-1])
                    blend = rows[:, None] * columns
                    place = slice(left, left + size[1])
                    total[:, :, place] += values * blend
                    weight[:, place] += blend
                    valid[:, place] |= mask
                reporter.progress(stage, index * len(lefts) + min(start + BATCH, len(lefts)), len(tops) * len(lefts))
            done = (tops[index + 1] if index + 1 < len(tops) else height) - top
            mapped = valid[:done] & (weight[:done] > 0)
            yield Strip(top, total[:, :done] / np.where(mapped, weight[:done], 1), mapped)
            for array in (total.swapaxes(0, 1), weight, valid):
                array[: size[0] - done] = array[done:].copy()
                array[size[0] - done :] = 0


def _mapped(
    runtime: Runtime,
    read: Callable[[Window], tuple[np.ndarray, np.ndarray]],
    windows: Sequence[Window],
    affine: tuple[np.ndarray, np.ndarray],
) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
    """(window, probabilities (K, h, w), valid (h, w)) of the windows that hold any data."""
    chips = [(window, *read(window)) for window in windows]
    chips = [(window, values, valid) for window, values, valid in chips if valid.any()]
    if not chips:
        return
    scale, offset = affine
    values = np.stack([chip[1] for chip in chips]) * scale[:, None, None] + offset[:, None, None]
    result = runtime.probabilities(values, np.stack([chip[2] for chip in chips]))
    for (window, _, valid), probabilities in zip(chips, result, strict=True):
        yield window, probabilities, valid
