"""What maps a raster, whatever it is made of: its bands, their units, and chips to probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from geopeft.applicability import Applicability
from geopeft.data.acquisition import Chronicle, Whereabouts
from geopeft.data.bands import Band, resolve_bands
from geopeft.data.normalize import assume_radiometry
from geopeft.data.raster import RasterInfo, band_statistics
from geopeft.errors import PackageError, RasterError
from geopeft.events import Reporter
from geopeft.package import Manifest

# A graphics card wants several windows at once.
BATCH = 4


class Mapper(ABC):
    """A model at work.

    Args:
        manifest: what the model says of itself.
        seen: what the model has seen, where it tells.
    """

    def __init__(self, manifest: Manifest, seen: Applicability | None = None) -> None:
        self.manifest = manifest
        self.seen = seen

    @property
    @abstractmethod
    def window_px(self) -> int:
        """Side of the windows a raster is mapped in, at most."""

    @property
    def grain_px(self) -> int:
        """Windows may be smaller by multiples of this; of their own size: they may not."""
        return self.window_px

    @property
    def batch(self) -> int:
        """How many windows are looked at in one go."""
        return BATCH

    @contextmanager
    def abreast(self) -> Iterator[int]:
        """While this lasts, so many threads may look at windows beside each other."""
        yield 1

    @property
    @abstractmethod
    def overlap_px(self) -> int:
        """Pixels shared by neighbouring windows."""

    @abstractmethod
    def look(
        self,
        values: np.ndarray,
        valid: np.ndarray,
        asked: Sequence[tuple[slice, slice]],
        taken: Whereabouts | None = None,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """As `probabilities`, and the dissimilarity of some pixels, which hardly costs anything beside it.

        Args:
            asked: rows and columns of each chip; empty: nothing is asked. Only for a model with `seen`.
            taken: when and where, for a model that is told; None: not known.

        Returns:
            The probabilities, and (rows, columns) float32 of each chip.
        """

    def probabilities(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """(B, K, h, w) float32 from raster values (B, C, h, w) and their valid masks (B, h, w)."""
        return self.look(values, valid, ())[0]

    def chronicle_of(self, info: RasterInfo, bands: Sequence[Band], reporter: Reporter) -> Chronicle | None:
        """When and where the raster was taken, where the model is told; `bands` are in the model's order."""
        return None

    def bands_of(self, info: RasterInfo, override: Sequence[str]) -> tuple[Band, ...]:
        """The raster's bands in the model's order; PackageError names what is missing."""
        bands: tuple[Band, ...] = resolve_bands(info, self.manifest.spec.bands, override)
        for band, trained in zip(bands, self.manifest.spec.bands, strict=True):
            if band.index in info.power and trained.unit != "decibel":
                raise PackageError(
                    f"Band {band.name} of {info.path} is radar power, which is read in decibels; the model was not "
                    "made for decibels.",
                    "Train a model on this raster; or give the band a name that does not say VV, VH, HH or HV: its "
                    "values are then read as they are.",
                    "RADIOMETRY_DIFFERS",
                )
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
