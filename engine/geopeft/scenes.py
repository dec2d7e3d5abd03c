"""Rasters that are looked at again and again: what is known of them before any label, kept for the next time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from geopeft.data.bands import Band, select_bands
from geopeft.data.normalize import assume_radiometry
from geopeft.data.raster import (
    BandStatistics,
    RasterInfo,
    RasterReader,
    band_statistics,
    describe,
    still_same,
    with_data,
)
from geopeft.data.raster_sources import is_remote
from geopeft.errors import RasterError
from geopeft.events import Reporter
from geopeft.job import Radiometry
from geopeft.models.backbones import BACKBONES
from geopeft.models.choose import input_bands
from geopeft.models.spec import InputBand
from geopeft.models.texture import describe_texture
from geopeft.texture_tiles import View, make_view
from geopeft.watched import watched

MOST_SCENES, MOST_VIEWS = 4, 8
# A server is not asked at every label whether its raster is still the same.
TRUST_REMOTE_S = 60.0


@dataclass(frozen=True, eq=False)
class Scene:
    """A raster, with the bands that are used and the constants that bring them to features."""

    key: str
    info: RasterInfo
    bands: tuple[InputBand, ...]
    indexes: tuple[int, ...]

    @property
    def most_bytes_per_pixel(self) -> int:
        """Memory that the features of a pixel take at most, at any factor."""
        spec = describe_texture(self.bands, self.info.gsd_m)
        return 2 * (len(self.bands) + len(spec.ratios) + 2 * len(spec.windows_px) * spec.components) + 1


class Scenes:
    """The rasters looked at last, and how they were looked at."""

    def __init__(self) -> None:
        self._scenes: OrderedDict[str, Scene] = OrderedDict()
        self._views: OrderedDict[str, View] = OrderedDict()
        self._asked: dict[str, float] = {}

    def get(self, path: str, bands: Sequence[str], radiometry: Radiometry, reporter: Reporter) -> Scene:
        """A raster; described anew where it is another file than before.

        Raises:
            RasterError, BandError: as `describe`, `select_bands` and `band_statistics`.
        """
        key = repr((path, tuple(bands), radiometry))
        scene = self._scenes.pop(key, None)
        if scene is None or not self._is_current(scene):
            scene, sentence = watched(lambda: _describe(path, bands, radiometry), reporter)
            reporter.message(sentence)
            self._asked[path] = time.monotonic()
        self._scenes[key] = scene
        if len(self._scenes) > MOST_SCENES:
            _, old = self._scenes.popitem(last=False)
            self._asked.pop(old.info.path, None)
        return scene

    def view(self, scene: Scene, factor: int, reader: RasterReader) -> View:
        """A raster at a factor; `reader` reads the scene's bands at it."""
        key = f"{scene.key} {factor}"
        view = self._views.pop(key, None)
        if view is None:
            view = make_view(key, scene.info, factor, scene.bands, scene.indexes, reader)
        self._views[key] = view
        if len(self._views) > MOST_VIEWS:
            self._views.popitem(last=False)
        return view

    def _is_current(self, scene: Scene) -> bool:
        path = scene.info.path
        if is_remote(path) and time.monotonic() - self._asked.get(path, 0.0) < TRUST_REMOTE_S:
            return True
        try:
            still_same(scene.info)
        except RasterError:
            return False
        self._asked[path] = time.monotonic()
        return True


def _describe(path: str, names: Sequence[str], radiometry: Radiometry) -> tuple[Scene, str]:
    """The scene, and what its values are taken for."""
    info = describe(path)
    chosen = select_bands(info, names) if names else info.bands
    statistics = band_statistics(info, [band.index for band in chosen])
    if not names:
        chosen, statistics = _without_lacking(chosen, statistics)
    values = assume_radiometry(info, chosen, statistics, radiometry)
    bands, _ = input_bands(BACKBONES["scratch_unet"], {}, chosen, statistics, values)
    indexes = tuple(band.index for band in chosen)
    return Scene(f"{path} {info.fingerprint} {indexes} {radiometry}", info, bands, indexes), values.sentence


def _without_lacking(bands: tuple[Band, ...], statistics: BandStatistics) -> tuple[tuple[Band, ...], BandStatistics]:
    """The bands that are mapped by where none are named, and what was found for them."""
    kept = with_data(statistics)
    figures = {field.name: getattr(statistics, field.name)[kept] for field in fields(statistics)}
    return tuple(bands[at] for at in kept), replace(statistics, **figures)
