"""What the engine's tests share: the folder of real data, and small rasters and label layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Before torch is loaded: other programs on the machine must not slow the tests down, and no test uses a network.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["GEOPEFT_OFFLINE"] = "1"

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.enums import ColorInterp

UTM33 = "EPSG:32633"
ORIGIN = Affine(10, 0, 300_000, 0, -10, 5_800_000)

MakeRaster = Callable[..., Path]
MakeLabels = Callable[..., Path]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real rasters, weights and reference outputs; skips where it is not there."""
    folder = Path(os.environ.get("GEOPEFT_SHARED") or Path(__file__).resolve().parents[3] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set GEOPEFT_SHARED")
    return folder


@pytest.fixture
def make_raster(tmp_path: Path) -> MakeRaster:
    """Writes values (C, h, w) as a raster in the test's folder."""

    def make(
        values: np.ndarray,
        name: str = "raster.tif",
        *,
        crs: str | None = UTM33,
        transform: Affine = ORIGIN,
        nodata: float | None = None,
        names: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        band_tags: Sequence[Mapping[str, str]] = (),
        colors: Sequence[str] = (),
        scales: Sequence[float] = (),
        offsets: Sequence[float] = (),
        mask: np.ndarray | None = None,
        **options: Any,
    ) -> Path:
        path = tmp_path / name
        profile = {"driver": "GTiff", "crs": crs, "transform": transform, "nodata": nodata, **options}
        count, height, width = values.shape
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", count=count, height=height, width=width, dtype=values.dtype, **profile) as out,
        ):
            if colors:
                out.colorinterp = [ColorInterp[color] for color in colors]
            out.write(values)
            out.update_tags(**(tags or {}))
            for index, text in enumerate(names, 1):
                out.set_band_description(index, text)
            for index, texts in enumerate(band_tags, 1):
                out.update_tags(index, **texts)
            if scales:
                out.scales, out.offsets = scales, offsets or [0.0] * count
            if mask is not None:
                out.write_mask(mask)
        return path

    return make


@pytest.fixture
def make_labels(tmp_path: Path) -> MakeLabels:
    """Writes geometries (in UTM 33 unless told otherwise) with their classes as a vector layer."""

    def make(
        geometries: Sequence[Any],
        classes: Sequence[Any] | np.ndarray | None = None,
        name: str = "labels.gpkg",
        *,
        layer: str = "labels",
        crs: str | None = UTM33,
        field: str = "class",
        columns: Mapping[str, Sequence[Any]] | None = None,
        geometry_type: str = "Unknown",
        append: bool = False,
    ) -> Path:
        path = tmp_path / name
        if classes is None:
            classes = [str(number % 2) for number in range(len(geometries))]
        fields: dict[str, Any] = {field: classes, **(columns or {})}
        pyogrio.raw.write(
            path,
            shapely.to_wkb(np.array(geometries, object)) if len(geometries) else np.array([], object),
            [data if isinstance(data, np.ndarray) else np.array(data, object) for data in fields.values()],
            list(fields),
            layer=layer,
            geometry_type=geometry_type,
            crs=crs,
            append=append,
        )
        return path

    return make


@pytest.fixture
def folder_unchanged(tmp_path: Path) -> Iterator[None]:
    """Fails where reading left something beside the user's files."""
    yield
    left = [
        path.name for path in tmp_path.rglob("*") if path.name.endswith((".aux.xml", ".ovr", ".msk", "-wal", "-shm"))
    ]
    assert not left
