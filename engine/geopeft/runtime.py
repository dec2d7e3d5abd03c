"""A model at work: device, one call from raster values to probabilities, and windows blended over a whole raster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window

from geopeft import package
from geopeft.applicability import MOST_POINTS, Applicability
from geopeft.classical import Classical
from geopeft.data.acquisition import Chronicle, Whereabouts
from geopeft.data.bands import Band
from geopeft.data.raster import RasterInfo, open_raster
from geopeft.errors import DeviceError, PackageError
from geopeft.events import Reporter
from geopeft.mapper import Mapper
from geopeft.models import SegmentationModel, build
from geopeft.models.metadata import chronicle_of, scene_of
from geopeft.models.spec import InputBand
from geopeft.models.texture import Texture

BATCH = 4
# The tensors of a package that are not the network's: the classical part's, and those that say what was seen.
PROJECTION, SEEN_SCALE, SEEN_POINTS = "classical.projection", "applicability.scale", "applicability.points"
BESIDE_NETWORK = (PROJECTION, SEEN_SCALE, SEEN_POINTS)


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
        dissimilarity: (h, W) float32, above 1 outside what the model has seen, NaN where that was not asked; None:
            nowhere.
    """

    row: int
    probabilities: np.ndarray
    mapped: np.ndarray
    dissimilarity: np.ndarray | None = None


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

    @classmethod
    def open(cls, path: Path, device: str, weights_dir: str, reporter: Reporter, part: str = "") -> Runtime:
        """Reads and builds a package; PackageError or WeightsError where that is not possible."""
        return cls.of(package.read(path), device, weights_dir, reporter, part)

    @classmethod
    def of(cls, opened: package.Package, device: str, weights_dir: str, reporter: Reporter, part: str = "") -> Runtime:
        """Builds a package that has been read; PackageError or WeightsError where that is not possible."""
        state = {name: torch.from_numpy(array) for name, array in opened.weights.items()}
        beside = {name: state.pop(name) for name in BESIDE_NETWORK if name in state}
        classical = _open_classical(opened, beside.get(PROJECTION))
        seen = _open_applicability(opened, classical, beside)
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
        """Side of the windows a raster is mapped in: half as wide again as the chips the model was fitted on."""
        return self.manifest.spec.chip_size_px * 3 // 2

    @property
    def overlap_px(self) -> int:
        """Pixels shared by neighbouring windows; their outer quarter is further than a texture reaches."""
        reach = self.classical.texture.radius_px if self.classical is not None else 0
        return min(max(self.window_px // 4, 4 * reach), self.window_px // 2)

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
        raw = torch.from_numpy(fill_invalid(values, valid, self._fill)).to(self.device)
        share, result = self.network_share, np.zeros(0)
        if share > 0:
            with torch.inference_mode():
                logits = self.model(raw, scene_of(taken, self.manifest.spec, self.device)).float()
                result = (logits / self.manifest.blend.temperature).softmax(1).cpu().numpy()
        features = self.classical.features(raw) if self.classical is not None and (share < 1 or asked) else None
        if share < 1 and self.classical is not None and features is not None:
            other = self.classical.of_chips(features)
            result = share * result + (1 - share) * other if share > 0 else other
        if self._is_whole:
            result = self.manifest.blend.sharpen(result)
        if not np.isfinite(result).all():
            raise PackageError(
                "This model gives values that are no probabilities.",
                "Copy the package again from where it came, or train it again.",
                "PACKAGE_VALUES",
            )
        return result, self._dissimilarities(features, asked)

    def _dissimilarities(self, features: np.ndarray | None, asked: Sequence[tuple[slice, slice]]) -> list[np.ndarray]:
        if self.seen is None or features is None:
            return []
        chosen = [chip[where] for chip, where in zip(features, asked, strict=False)]
        return [self.seen.dissimilarity(c.reshape(-1, c.shape[-1])).reshape(c.shape[:2]) for c in chosen]


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


def _open_applicability(
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
    runtime: Mapper,
    info: RasterInfo,
    override: Sequence[str],
    reporter: Reporter,
    wanted: Callable[[Window], bool] | None = None,
    stage: str = "predict",
    every_px: int = 0,
) -> Iterator[Strip]:
    """Maps a raster in overlapping windows; rows come out as soon as no window touches them any more.

    Memory is that of one row of windows: (K, window, raster width), whatever the raster's height.

    Args:
        wanted: windows to map; None maps all.
        stage: name in the progress events.
        every_px: the dissimilarity is found of the pixels of every so many-th row and column; 0: of none.
    """
    every_px = every_px if runtime.seen is not None else 0
    bands = runtime.bands_of(info, override)
    affine = runtime.to_model_units(info, bands, reporter)
    chronicle = runtime.chronicle_of(info, bands, reporter)
    height, width = info.geobox.shape
    size = (min(runtime.window_px, height), min(runtime.window_px, width))
    tops, lefts = (window_starts(n, s, runtime.overlap_px) for n, s in zip((height, width), size, strict=True))
    classes = runtime.manifest.spec.num_classes
    total = np.zeros((classes, size[0], width), np.float32)
    weight = np.zeros((size[0], width), np.float32)
    valid = np.zeros((size[0], width), bool)
    far = np.zeros((size[0], width), np.float32)
    with open_raster(info, [band.index for band in bands]) as reader:
        for index, top in enumerate(tops):
            rows = blend_weights(size[0], runtime.overlap_px, index == 0, index == len(tops) - 1)
            windows = [Window(left, top, size[1], size[0]) for left in lefts]
            for start in range(0, len(windows), BATCH):
                batch = [w for w in windows[start : start + BATCH] if wanted is None or wanted(w)]
                for window, values, mask, unlike in _mapped(runtime, reader.read, batch, affine, every_px, chronicle):
                    left = int(window.col_off)
                    columns = blend_weights(size[1], runtime.overlap_px, left == 0, left == lefts[-1])
                    blend = rows[:, None] * columns
                    place = slice(left, left + size[1])
                    total[:, :, place] += values * blend
                    weight[:, place] += blend
                    valid[:, place] |= mask
                    if unlike is not None:
                        rows_asked, cols_asked = _asked(window, every_px)
                        far[:, place][rows_asked, cols_asked] += unlike * blend[rows_asked, cols_asked]
                reporter.progress(stage, index * len(lefts) + min(start + BATCH, len(lefts)), len(tops) * len(lefts))
            done = (tops[index + 1] if index + 1 < len(tops) else height) - top
            mapped = valid[:done] & (weight[:done] > 0)
            divisor = np.where(mapped, weight[:done], 1)
            unlike_rows = None
            if every_px:
                unlike_rows = np.full(divisor.shape, np.nan, np.float32)
                where = _asked(Window(0, top, width, done), every_px)
                unlike_rows[where] = (far[:done] / divisor)[where]
            yield Strip(top, total[:, :done] / divisor, mapped, unlike_rows)
            for array in (total.swapaxes(0, 1), weight, valid, far):
                array[: size[0] - done] = array[done:].copy()
                array[size[0] - done :] = 0


def _asked(window: Window, every_px: int) -> tuple[slice, slice]:
    """Rows and columns of a window that every so many-th row and column of the raster runs through."""
    row, col = int(window.row_off), int(window.col_off)
    return slice(-row % every_px, None, every_px), slice(-col % every_px, None, every_px)


def _mapped(
    runtime: Mapper,
    read: Callable[[Window], tuple[np.ndarray, np.ndarray]],
    windows: Sequence[Window],
    affine: tuple[np.ndarray, np.ndarray],
    every_px: int,
    chronicle: Chronicle | None,
) -> Iterator[tuple[Window, np.ndarray, np.ndarray, np.ndarray | None]]:
    """(window, probabilities (K, h, w), valid (h, w), dissimilarity of what is asked) of the windows that hold data."""
    chips = [(window, *read(window)) for window in windows]
    chips = [(window, values, valid) for window, values, valid in chips if valid.any()]
    if not chips:
        return
    scale, offset = affine
    values = np.stack([chip[1] for chip in chips]) * scale[:, None, None] + offset[:, None, None]
    asked = [_asked(window, every_px) for window, _, _ in chips] if every_px else []
    taken = None
    if chronicle is not None:
        places = [(0, int(window.row_off), int(window.col_off)) for window, _, _ in chips]
        taken = chronicle.of(places, *values.shape[-2:])
    result, unlike = runtime.look(values, np.stack([chip[2] for chip in chips]), asked, taken)
    for number, (window, _, valid) in enumerate(chips):
        yield window, result[number], valid, unlike[number] if every_px else None
