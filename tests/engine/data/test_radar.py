"""Radar backscatter is told by its bands' names, and comes in decibels whether a file holds those or linear power."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from geopeft.data.bands import Band, match_bands, radar_role
from geopeft.data.decimated import decimate, open_decimated
from geopeft.data.normalize import Radiometry, assume_radiometry
from geopeft.data.radar import FLOOR_DB
from geopeft.data.raster import BandStatistics, RasterInfo, band_statistics, describe, open_raster
from geopeft.errors import PackageError
from geopeft.events import Reporter
from geopeft.mapper import Mapper
from geopeft.models.spec import InputBand
from geopeft.prepare import pooled_units
from rasterio.windows import Window

MakeRaster = Callable[..., Path]
WHOLE = Window(0, 0, 64, 64)


def backscatter() -> np.ndarray:
    """Decibels (2, 64, 64) of land with a lake: VV, VH."""
    scene = np.random.default_rng(5).normal(-10, 2, (2, 64, 64))
    scene[:, :20] -= 10
    scene[1] -= 7
    return scene.astype(np.float32)


def power(decibels: np.ndarray) -> np.ndarray:
    linear: np.ndarray = (10 ** (decibels / 10)).astype(np.float32)
    return linear


def described(make_raster: MakeRaster, values: np.ndarray, names: list[str], **options: object) -> RasterInfo:
    return describe(str(make_raster(values, names=names, **options)))


def judged(info: RasterInfo) -> tuple[Radiometry, BandStatistics]:
    stats = band_statistics(info, [band.index for band in info.bands])
    return assume_radiometry(info, info.bands, stats), stats


def read(info: RasterInfo) -> tuple[np.ndarray, np.ndarray]:
    with open_raster(info, [band.index for band in info.bands]) as reader:
        return reader.read_bands(WHOLE)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("VV", "vv"), ("vh_db", "vh"), ("VVdB", "vv"), ("Sigma0_VH", "vh"), ("Gamma0_HV_dB", "hv"), ("S1_GRD_VV", "vv"),
        ("HH 2024-06-12", "hh"), ("VV mean", "vv"), ("VV_coherence", ""), ("VV/VH", ""), ("ratio_VV", ""),
        ("Amplitude_VV", ""), ("VV std", ""), ("green", ""), ("B04", ""), ("wave", ""),
    ],
)  # fmt: skip
def test_a_name_says_the_polarisation(name: str, role: str) -> None:
    assert radar_role(name) == role


def test_bands_of_radar_are_matched_by_polarisation_whatever_they_are_called() -> None:
    bands = (Band(1, "Gamma0_VH", None, "vh"), Band(2, "sigma0_vv_db", None, "vv"), Band(3, "B04", None, "red"))
    wanted = (Band(1, "VV", 55_465.0, "vv"), Band(2, "VH", 55_465.0, "vh"))
    assert {name: band.index for name, band in match_bands(bands, wanted).items()} == {"VV": 2, "VH": 1}


@pytest.mark.parametrize("names", [["VV", "VH"], ["Sigma0_VV", "Sigma0_VH"]])
def test_linear_power_is_read_as_decibels_and_the_message_says_so(make_raster: MakeRaster, names: list[str]) -> None:
    info = described(make_raster, power(backscatter()), names)
    assert info.power == (1, 2)
    values, valid = read(info)
    np.testing.assert_allclose(values, backscatter(), atol=1e-4)
    assert valid.all()
    radiometry, stats = judged(info)
    np.testing.assert_allclose(stats.mean, backscatter().mean(axis=(1, 2)), atol=1e-3)
    assert radiometry.decibels == (1, 2) and radiometry.kind == "unknown"
    assert f"{names[0]}, {names[1]}" in radiometry.sentence and "linear power" in radiometry.sentence
    assert all(radiometry.for_band(band) == (1.0, 0.0) for band in info.bands)


def test_decibels_are_used_as_they_are(make_raster: MakeRaster) -> None:
    info = described(make_raster, backscatter(), ["VV_dB", "VH_dB"])
    assert info.power == ()
    np.testing.assert_array_equal(read(info)[0], backscatter())
    radiometry, _ = judged(info)
    assert radiometry.decibels == (1, 2)
    assert "are decibels" in radiometry.sentence and "None of the bands is spectral" not in radiometry.sentence


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_uncalibrated_amplitudes_are_neither_and_stay(make_raster: MakeRaster, dtype: str) -> None:
    digital = np.sqrt(power(backscatter())) * 600
    info = described(make_raster, digital.astype(dtype), ["VV", "VH"])
    radiometry, _ = judged(info)
    assert info.power == () and radiometry.decibels == ()
    assert "neither decibels nor linear power" in radiometry.sentence
    np.testing.assert_array_equal(read(info)[0], digital.astype(dtype))


def test_a_float_band_that_is_no_radar_is_never_converted(make_raster: MakeRaster) -> None:
    info = described(make_raster, power(backscatter()), ["red", "VV_coherence"])
    assert info.power == ()
    np.testing.assert_allclose(read(info)[0], power(backscatter()))


def test_nodata_stays_nodata_and_no_power_at_all_is_at_the_floor(make_raster: MakeRaster) -> None:
    linear = power(backscatter())
    linear[:, 0] = -9999
    linear[0, 30, 30:34] = [0, -1e-4, np.nan, np.inf]
    info = described(make_raster, linear, ["VV", "VH"], nodata=-9999)
    values, valid = read(info)
    assert info.power == (1, 2)
    assert not valid[:, 0].any() and (values[:, 0] == 0).all()
    assert valid[0, 30, 30:34].tolist() == [True, True, False, False]
    np.testing.assert_allclose(values[0, 30, 30:34], [FLOOR_DB, FLOOR_DB, 0, 0])


def test_a_wide_empty_border_does_not_hide_the_power(make_raster: MakeRaster) -> None:
    scene = np.zeros((1, 700, 700), np.float32)
    scene[:, 400:460, 400:460] = power(backscatter())[:1, :60, :60]
    assert described(make_raster, scene, ["VV"]).power == (1,)


def test_decimated_pixels_are_means_of_power(make_raster: MakeRaster) -> None:
    info = described(make_raster, power(backscatter()), ["VV", "VH"])
    with open_decimated(info, 2, [1]) as reader:
        far, _ = reader.read_bands(Window(0, 0, 32, 32))
    assert decimate(info, 2).power == (1, 2)
    mean = power(backscatter())[0].reshape(32, 2, 32, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(far[0], 10 * np.log10(mean), atol=1e-3)


def test_optical_and_radar_bands_of_one_raster_keep_their_own_units(make_raster: MakeRaster) -> None:
    optical = np.random.default_rng(1).uniform(0.02, 0.4, (3, 64, 64)).astype(np.float32)
    info = described(make_raster, np.concatenate([optical, power(backscatter())]), ["B02", "B03", "B04", "VV", "VH"])
    radiometry, _ = judged(info)
    assert radiometry.kind == "reflectance" and radiometry.decibels == (4, 5)
    assert "reflectances" in radiometry.sentence and "VV, VH" in radiometry.sentence
    assert [radiometry.is_about(band) for band in info.bands] == [True] * 3 + [False] * 2


def test_a_second_raster_of_other_reflectance_units_leaves_radar_alone(make_raster: MakeRaster) -> None:
    optical = np.random.default_rng(1).uniform(0.02, 0.4, (3, 64, 64)).astype(np.float32)
    names = ["B02", "B03", "B04", "VV", "VH"]
    stacks = [np.concatenate([optical * scale, backscatter()]) for scale in (1e4, 1)]
    infos = [described(make_raster, stack, names, name=f"{at}.tif") for at, stack in enumerate(stacks)]
    _, _, units = pooled_units(infos, [info.bands for info in infos], "auto", Reporter())
    np.testing.assert_allclose(units[1][0], [1e4, 1e4, 1e4, 1, 1])


def test_a_model_that_was_not_made_for_decibels_refuses_linear_power(make_raster: MakeRaster) -> None:
    info = described(make_raster, power(backscatter()), ["VV", "VH"])

    def bands_of(unit: Literal["", "decibel"]) -> tuple[Band, ...]:
        bands = tuple(InputBand(name=name, common=name.lower(), unit=unit) for name in ("VH", "VV"))
        model: Any = SimpleNamespace(manifest=SimpleNamespace(spec=SimpleNamespace(bands=bands)))
        return Mapper.bands_of(model, info, ())

    assert [band.index for band in bands_of("decibel")] == [2, 1]
    with pytest.raises(PackageError, match="radar power") as error:
        bands_of("")
    assert error.value.code == "RADIOMETRY_DIFFERS"


def test_real_decibels_of_sentinel_1_are_recognised(shared: Path) -> None:
    info = describe(str(shared / "data" / "sen1floods11_spain" / "train_west" / "s1.tif"))
    assert [band.common for band in info.bands] == ["vv", "vh"]
    assert info.power == () and judged(info)[0].decibels == (1, 2)
