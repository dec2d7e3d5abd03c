"""ONNX files at work: those that `export` wrote, and segmentation models from elsewhere with Deepness' keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto

from geopeft.data.acquisition import Whereabouts
from geopeft.data.bands import Band, select_bands
from geopeft.data.raster import RasterInfo, band_statistics
from geopeft.errors import BandError, RasterError
from geopeft.events import Reporter
from geopeft.mapper import Mapper
from geopeft.onnx.graph import broken, check_sizes, read_graph
from geopeft.onnx.keys import Keys, foreign_manifest, name_problem, read_keys
from geopeft.onnx.output import Output
from geopeft.onnx.providers import CPU, open_session
from geopeft.package import Manifest
from geopeft.runtime import MOST_ABREAST, Runtime, fill_invalid, fill_values

SUFFIX = ".onnx"
DEFAULT_SIDE_PX = 512
# How far pixels may be from those the model was made for before it is told.
MOST_RESOLUTION_FACTOR = 2.0
_TYPES: dict[int, type[np.floating]] = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def open_mapper(path: Path, device: str, weights_dir: str, reporter: Reporter) -> Mapper:
    """A model package or an ONNX file, by its name."""
    if path.suffix.lower() == SUFFIX:
        return OnnxModel.open(path, device, reporter)
    return Runtime.open(path, device, weights_dir, reporter)


class OnnxModel(Mapper):
    """An ONNX file, opened for prediction.

    Args:
        path: of the file, for messages.
        session: the file, checked, in ONNX Runtime.
        keys: what the file says of itself.
        manifest: the same as a package would say it.
        side_px: side of its input.
        batch: how many chips it takes at once; 0: any number.
        output: how its output becomes probabilities.
    """

    def __init__(
        self,
        path: Path,
        session: onnxruntime.InferenceSession,
        keys: Keys,
        manifest: Manifest,
        side_px: int,
        batch: int,
        dtype: type[np.floating],
        output: Output,
    ) -> None:
        super().__init__(manifest)
        self._path, self._session, self._keys = path, session, keys
        self._side_px, self._batch, self._dtype, self._output = side_px, batch, dtype, output
        self._fill = fill_values(manifest.spec.bands)

    @classmethod
    def open(cls, path: Path, device: str, reporter: Reporter) -> OnnxModel:
        """PackageError where the file is not safe, or gives no class for every pixel."""
        proto = read_graph(path)
        shape = _input_shape(path, proto)
        dtype = _TYPES[proto.graph.input[0].type.tensor_type.elem_type]
        channels = shape[1]
        keys = read_keys(path, {entry.key: entry.value for entry in proto.metadata_props}, channels)
        side = shape[2] or keys.tile_px or DEFAULT_SIDE_PX
        check_sizes(path, proto, side)
        producer = proto.producer_name
        # Some of them are settings of the runtime.
        del proto.metadata_props[:]
        noise = _noise(keys, (1, channels, side, side)).astype(dtype)
        session, values = open_session(
            path, proto.SerializeToString(), device, reporter, lambda opened: _try(path, opened, noise)
        )
        classes = max(values.shape[1], 2)
        output = _output_of(path, values, side, keys)
        manifest = keys.manifest or foreign_manifest(path, keys, producer, channels, classes, side)
        if (len(manifest.spec.bands), len(manifest.classes)) != (channels, classes):
            raise broken(path, f"it says {len(manifest.spec.bands)} bands and {len(manifest.classes)} classes")
        _tell(path, session, keys, classes, output, reporter)
        return cls(path, session, keys, manifest, side, shape[0], dtype, output)

    @property
    def window_px(self) -> int:
        """Side of the model's input."""
        return self._side_px

    @property
    def batch(self) -> int:
        """See `Mapper`. What the file takes at once, else one on a CPU, where its values stay in the cache."""
        return self._batch or (1 if self._is_on_cpu else super().batch)

    @contextmanager
    def abreast(self) -> Iterator[int]:
        """See `Mapper`. A session runs in several threads, and within one of them all cores wait for the slowest at the
        end of every operator."""
        yield min(torch.get_num_threads(), MOST_ABREAST) if self._is_on_cpu else 1

    @property
    def overlap_px(self) -> int:
        """What the file says, or a quarter for one of ours that does not; its outer quarter hides missing margins."""
        if self._keys.manifest:
            return min(self._keys.overlap_px or self._side_px // 4, self._side_px // 2)
        wanted = self._side_px * self._keys.overlap_percent // 100
        return min(max(wanted, 4 * self._output.margin_px), self._side_px * 3 // 4)

    def look(
        self,
        values: np.ndarray,
        valid: np.ndarray,
        asked: Sequence[tuple[slice, slice]],
        taken: Whereabouts | None = None,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """See `Mapper`; an ONNX file does not know what it has seen, and is told neither time nor place."""
        height, width = values.shape[-2:]
        short = [(0, 0), (0, 0), (0, self._side_px - height), (0, self._side_px - width)]
        raw = fill_invalid(values, valid, self._fill)
        chips = np.pad(self._standardised(raw), short, mode="edge").astype(self._dtype)
        step = self._batch or len(chips)
        found = np.concatenate([self._run(chips[start : start + step]) for start in range(0, len(chips), step)])
        result = self._output.probabilities(_first_output(found))
        margin = self._output.margin_px
        if margin:
            result = np.pad(result, [(0, 0), (0, 0), (margin, margin), (margin, margin)], mode="edge")
        if not np.isfinite(result).all():
            raise broken(self._path, "it gives values that are no numbers")
        return result[:, :, :height, :width], []

    def bands_of(self, info: RasterInfo, override: Sequence[str]) -> tuple[Band, ...]:
        """By their names for a model of ours, else the raster's first bands in their order."""
        if override or self._keys.manifest:
            return super().bands_of(info, override)
        count = len(self.manifest.spec.bands)
        if len(info.bands) < count:
            raise BandError(
                f"{info.path} has {len(info.bands)} bands, and {self._path.name} takes {count}.",
                "Choose another raster, or name bands with --bands: one may not be named twice.",
            )
        return select_bands(info, [str(band.index) for band in info.bands[:count]])

    def to_model_units(
        self, info: RasterInfo, bands: Sequence[Band], reporter: Reporter
    ) -> tuple[np.ndarray, np.ndarray]:
        """A file from elsewhere takes a raster's values as they are; what does not look like them is told."""
        if self._keys.manifest:
            return super().to_model_units(info, bands, reporter)
        wanted_m = self._keys.resolution_cm / 100
        factor = max(info.gsd_m / wanted_m, wanted_m / info.gsd_m) if wanted_m > 0 else 1.0
        if factor > MOST_RESOLUTION_FACTOR:
            reporter.warn(
                f"{self._path.name} was made for pixels of {wanted_m:g} m; those of {Path(info.path).name} have "
                f"{info.gsd_m:.3g} m: do not trust the map before you have checked it."
            )
        with suppress(RasterError):  # a raster without values makes an empty map
            mean = band_statistics(info, [band.index for band in bands]).mean
            self._warn_of_range(info, bands, mean, reporter)
        return np.ones(len(bands), np.float32), np.zeros(len(bands), np.float32)

    @property
    def _is_on_cpu(self) -> bool:
        return bool(self._session.get_providers()[0] == CPU)

    def _standardised(self, raw: np.ndarray) -> np.ndarray:
        """Raster values for a model of ours, which holds its constants itself, else what Deepness would feed."""
        if self._keys.manifest:
            return raw
        return standardise(raw, self._keys)

    def _run(self, chips: np.ndarray) -> np.ndarray:
        """A model that takes so many chips at once gets as many, the last ones made up."""
        made_up = self._batch - len(chips) if self._batch else 0
        if made_up:
            chips = np.concatenate([chips, np.repeat(chips[-1:], made_up, 0)])
        try:
            found: np.ndarray = self._session.run(None, {self._session.get_inputs()[0].name: chips})[0]
        except Exception as error:  # the library raises a dozen kinds of its own
            raise broken(self._path, f"ONNX Runtime says {str(error).splitlines()[0][:200]}") from error
        return found[: len(found) - made_up]


def standardise(raw: np.ndarray, keys: Keys) -> np.ndarray:
    """Deepness' way from raster values (B, C, h, w) to the input of a model."""
    values = raw / np.float32(255)
    if keys.mean:
        values = values - np.array(keys.mean, np.float32)[:, None, None]
    if keys.std:
        values = values / np.array(keys.std, np.float32)[:, None, None]
    return np.asarray(values, np.float32)


def _input_shape(path: Path, proto: onnx.ModelProto) -> tuple[int, int, int, int]:
    """(batch, channels, side, side) of the only input; 0 where batch or side are free."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if len(inputs) != 1 or not proto.graph.output:
        raise broken(path, f"it takes {len(inputs)} inputs, and a raster is one")
    kind = inputs[0].type.tensor_type
    shape = [max(dim.dim_value, 0) for dim in kind.shape.dim]
    if kind.elem_type not in _TYPES:
        raise broken(path, "its input is not of floating point numbers")
    if len(shape) != 4 or not 1 <= shape[1] <= 1024 or shape[2] != shape[3] or shape[2] > 1 << 14:
        raise broken(path, f"its input is {shape}, not a number of square chips by bands, rows and columns")
    if inputs[0].name != proto.graph.input[0].name:
        raise broken(path, "its first input is a constant")
    return shape[0], shape[1], shape[2], shape[3]


def _noise(keys: Keys, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Chips (B, C, side, side) float32 of the kind that a model takes."""
    rng = np.random.default_rng(0)
    if keys.manifest and len(keys.manifest.spec.bands) == shape[1]:
        bands = keys.manifest.spec.bands
        spread = np.array([band.std / band.scale for band in bands], np.float32)
        noise = rng.standard_normal(shape, np.float32)
        chips: np.ndarray = noise * spread[:, None, None] + fill_values(bands)[:, None, None]
        return chips
    return rng.standard_normal(shape, np.float32) if keys.std else rng.random(shape, np.float32)


def _try(path: Path, session: onnxruntime.InferenceSession, chip: np.ndarray) -> np.ndarray:
    """What the model gives for one chip (1, C, side, side), as (1, C, h, w)."""
    count = session.get_inputs()[0].shape[0]
    chips = np.repeat(chip, count if isinstance(count, int) and count > 0 else 1, 0)
    found = session.run(None, {session.get_inputs()[0].name: chips})[0]
    if not isinstance(found, np.ndarray) or found.ndim not in (3, 4) or not np.issubdtype(found.dtype, np.floating):
        raise broken(path, "its first output is no map of probabilities")
    return _first_output(found)[:1]


def _first_output(found: np.ndarray) -> np.ndarray:
    return found[:, None] if found.ndim == 3 else found


def _output_of(path: Path, values: np.ndarray, side: int, keys: Keys) -> Output:
    classes, height, width = values.shape[1:]
    if height != width or height > side or (side - height) % 2 or (side - height) * 2 > side * 3 // 4:
        raise broken(path, f"it gives {height} x {width} pixels for a chip of {side} x {side}")
    kind = "logits"
    if np.isfinite(values).all() and values.min() >= -1e-3 and values.max() <= 1 + 1e-3:
        is_whole = classes > 1 and np.abs(values.sum(1) - 1).max() < 0.02
        kind = "probabilities" if is_whole else "shares"
    threshold = keys.threshold if keys.threshold is not None and classes == 1 else 0.5
    return Output(kind, classes == 1, (side - height) // 2, threshold)


def _tell(
    path: Path, session: onnxruntime.InferenceSession, keys: Keys, classes: int, output: Output, reporter: Reporter
) -> None:
    """What somebody should know before believing the map of a file from elsewhere."""
    if keys.manifest:
        return
    name = path.name
    reporter.message(
        f"{name} does not come from GeoPEFT: the raster's bands are taken in their order, and its values as they are."
    )
    if problem := name_problem(keys, classes):
        reporter.warn(f"{name} cannot be trusted in its names: {problem}.")
    if keys.heads > 1 or len(session.get_outputs()) > 1:
        reporter.warn(f"{name} gives {max(keys.heads, len(session.get_outputs()))} maps; only the first is made.")
    if output.kind == "logits":
        reporter.message(f"{name} gives no probabilities: its values are taken as logits.")
    if keys.threshold is not None and not output.single:
        reporter.message(
            f"{name} asks for a probability of at least {keys.threshold:.0%}, which is not applied: the map can be "
            f"made with --unknown-below {100 * keys.threshold:.0f}."
        )
