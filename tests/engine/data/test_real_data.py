"""Every labelled set of real data is opened, its bands and values are understood and its labels counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyogrio
import pytest
from geopeft.data.labels import Labels, read_labels
from geopeft.data.normalize import assume_radiometry
from geopeft.data.raster import RasterInfo, band_statistics, describe, lacking_band
from geopeft.events import Reporter
from rasterio.windows import Window

S2 = "coastal blue green red rededge1 rededge2 rededge3 nir nir08 nir09 swir16 swir22".split()
RGB = ["red", "green", "blue"]
RASTERS = {
    "urban_trees_naip/train_chico/chico_2020_0.tif": ([*RGB, "nir"], "display", 1 / 255, 0.0, 0.6),
    "nc_landsat7/train_west/lsat7_2000.tif": (
        ["blue", "green", "red", "nir", "swir16", "swir22"], "display", 1 / 255, 0.0, 28.5),
    "terramind_s2_lulc/train_38D_378R/s2l2a.tif": (S2, "reflectance", 1e-4, 0.0, 10),
    "terramind_s2_lulc/unseen_282D_485L/s2l2a.tif": (S2, "reflectance", 1e-4, 0.0, 10),
    "terramind_s2_lulc/train_433D_629L/s2l2a.tif": (S2, "reflectance", 1e-4, -0.1, 10),
    "sen1floods11_spain/train_west/s2_l1c.tif": ([*S2[:10], "cirrus", *S2[10:]], "reflectance", 1e-4, 0.0, 8.86),
    "sen1floods11_spain/train_west/s1.tif": (["vv", "vh"], "unknown", 1.0, 0.0, 8.86),
    "kampala_oam_buildings/train_west/ortho_rgb.tif": (RGB, "display", 1 / 255, 0.0, 0.0746),
    "banepa_oam_buildings/train_west/ortho_rgb.tif": (RGB, "display", 1 / 255, 0.0, 0.132),
    "rstoolbox_sen2_amazon/train_west/sen2.tif": (S2, "reflectance", 1.0, -0.1, 9.96),
    "rstoolbox_lsat5_amazon/train_west/lsat5.tif": (
        ["blue", "green", "red", "nir", "swir16", "thermal", "swir22"], "display", 1 / 255, 0.0, 30),
    "leipzig_s2_points/all/leipzig_s2.tif": (
        ["blue", "green", "red", "rededge2", "rededge3", "nir", "swir16", ""], "reflectance", 1e-4, 0.0, 10),
}  # fmt: skip

# set / region: (raster, labels, background, features, pixels of each class by name)
LABELS: dict[str, tuple[str, str, str, int | None, int]] = {
    "nc_landsat7/train_west points": ("lsat7_2000.tif", "labels.gpkg:points", "", 315, 7),
    "nc_landsat7/train_west polygons": ("lsat7_2000.tif", "labels.gpkg:polygons", "", 15, 7),
    "nc_landsat7/train_west raster": ("lsat7_2000.tif", "labelled_pixels.tif", "", None, 7),
    "terramind_s2_lulc/train_433D_629L polygons": ("s2l2a.tif", "labels.gpkg", "", 150, 6),
    "terramind_s2_lulc/train_433D_629L raster": ("s2l2a.tif", "lulc.tif", "", None, 6),
    "sen1floods11_spain/train_west polygons": ("s2_l1c.tif", "labels.gpkg", "", 325, 2),
    "sen1floods11_spain/train_west raster": ("s2_l1c.tif", "label.tif", "", None, 2),
    "kampala_oam_buildings/train_west buildings": ("ortho_rgb.tif", "labels.gpkg", "rest", 24, 2),
    "banepa_oam_buildings/train_west buildings": ("ortho_rgb.tif", "labels.gpkg", "rest", 182, 2),
    "enmap_potsdam/train_west polygons": ("enmap_l2a.tif", "labels.gpkg:polygons", "", 485, 6),
    "enmap_potsdam/train_west points": ("enmap_l2a.tif", "labels.gpkg:points_20cm_aerial", "", 28, 5),
    "enmap_potsdam/train_west raster": ("enmap_l2a.tif", "label.tif", "", None, 6),
    "rstoolbox_sen2_amazon/train_west polygons": ("sen2.tif", "labels.gpkg", "", 18, 4),
    "rstoolbox_lsat5_amazon/train_west polygons": ("lsat5.tif", "labels.gpkg", "", 17, 4),
    "leipzig_s2_points/all points": ("leipzig_s2.tif", "labels.gpkg", "", 97, 4),
}


def open_info(path: Path) -> RasterInfo:
    if not path.is_file():
        pytest.skip(f"no real data at {path}")
    return describe(str(path))


def labels_of(path: Path, *infos: RasterInfo, background: str = "") -> Labels:
    return read_labels(str(path), "", infos, background=background, reporter=Reporter())


def by_name(labels: Labels) -> dict[str, int]:
    return dict(zip((c.name for c in labels.classes), labels.pixel_counts(), strict=True))


@pytest.mark.parametrize("path", RASTERS)
def test_bands_values_and_pixel_size_are_understood(shared: Path, path: str) -> None:
    roles, kind, scale, offset, gsd_m = RASTERS[path]
    info = open_info(shared / "data" / path)
    assert [band.common for band in info.bands] == roles
    assert info.gsd_m == pytest.approx(gsd_m, rel=0.01)
    stats = band_statistics(info, [band.index for band in info.bands])
    radiometry = assume_radiometry(info, info.bands, stats)
    assert radiometry.kind == kind
    assert radiometry.scale == scale and radiometry.offset == pytest.approx(offset)


def test_the_hyperspectral_bands_have_wavelengths_and_their_nearest_roles(shared: Path) -> None:
    info = open_info(shared / "data/enmap_potsdam/train_west/enmap_l2a.tif")
    lengths = [band.wavelength_um for band in info.bands if band.wavelength_um is not None]
    assert len(lengths) == len(info.bands) == 218
    assert (min(lengths), max(lengths)) == pytest.approx((0.418, 2.445), abs=1e-3)
    assert Counter(band.common for band in info.bands if band.common) == Counter(S2)
    stats = band_statistics(info, [band.index for band in info.bands])
    assert stats.valid_fraction.max() < 0.7, "the gap in the mosaic"


def test_the_band_that_lacks_data_is_named(shared: Path) -> None:
    info = open_info(shared / "data/nc_landsat7/train_west/lsat7_2000.tif")
    indexes = [band.index for band in info.bands]
    sentence = lacking_band(info, indexes, band_statistics(info, indexes))
    assert "'swir2' (28%)" in sentence and "nir" not in sentence


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_read_whole(shared: Path, name: str) -> None:
    raster, labels_file, background, features, classes = LABELS[name]
    folder = shared / "data" / name.split()[0]
    info = open_info(folder / raster)
    labels = labels_of(folder / labels_file, info, background=background)
    assert len(labels.classes) == classes and all(labels.pixel_counts())
    if features is not None:
        assert len(labels.shapes) == features
    whole, shapes = labels.burn(0, Window(0, 0, info.width, info.height))
    assert [int((whole == i).sum()) for i in range(classes)] == labels.pixel_counts()
    assert set(np.unique(shapes[shapes >= 0])) <= set(range(len(labels.shapes)))


@pytest.mark.parametrize(
    ("folder", "raster", "polygons", "label_raster"),
    [("sen1floods11_spain/train_west", "s2_l1c.tif", "labels.gpkg", "label.tif"),
     ("enmap_potsdam/train_west", "enmap_l2a.tif", "labels.gpkg:polygons", "label.tif")],
)  # fmt: skip
def test_polygons_and_label_raster_agree_to_the_pixel(
    shared: Path, folder: str, raster: str, polygons: str, label_raster: str
) -> None:
    data = shared / "data" / folder
    info = open_info(data / raster)
    one, other = labels_of(data / polygons, info), labels_of(data / label_raster, info)
    window = Window(0, 0, info.width, info.height)
    assert by_name(one) == by_name(other)
    assert (one.burn(0, window)[0] == other.burn(0, window)[0]).all()


def test_leipzig_has_the_points_that_its_source_says(shared: Path) -> None:
    folder = shared / "data/leipzig_s2_points/all"
    labels = labels_of(folder / "labels.gpkg", open_info(folder / "leipzig_s2.tif"))
    count = Counter(labels.classes[shape.class_index].name for shape in labels.shapes)
    assert count == {"urban": 36, "forest": 28, "pasture": 20, "water": 13}


@pytest.mark.parametrize("region", ["train_chico", "train_longbeach", "unseen_claremont", "unseen_palmsprings"])
def test_one_file_labels_many_small_rasters(shared: Path, region: str) -> None:
    folder = shared / "data/urban_trees_naip" / region
    paths = sorted(folder.glob("*.tif"))
    infos = [open_info(path) for path in paths]
    labels = labels_of(folder / "labels.gpkg:train_discs", *infos)
    _, _, _, (images,) = pyogrio.raw.read(folder / "labels.gpkg", layer="train_discs", columns=["image"])
    assert len(labels.shapes) >= len(images)
    per_raster = Counter(shape.raster_index for shape in labels.shapes)
    named = Counter(str(image) for image in images)
    for index, path in enumerate(paths):
        assert per_raster[index] >= next(count for image, count in named.items() if path.stem in image) > 0
    assert {c.name for c in labels.classes} == {"tree", "not_tree"}
    mean_px = sum(labels.pixel_counts()) / len(labels.shapes)
    assert mean_px == pytest.approx(np.pi * (1.8 / 0.6) ** 2 / 1, rel=0.1)
