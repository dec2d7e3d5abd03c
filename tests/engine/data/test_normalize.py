from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geopeft.data.bands import Band
from geopeft.data.normalize import Radiometry, assume_radiometry
from geopeft.data.raster import band_statistics, describe

MakeRaster = Callable[..., Path]
NAMES = ["B02", "B03", "B04", "B8A"]
RNG = np.random.default_rng(3)


def reflectances(bands: int = 4, floor: float = 0.02) -> np.ndarray:
    """A scene with dark water and bright land in every band."""
    scene = RNG.uniform(0.15, 0.45, (bands, 80, 80))
    scene[:, :20] = RNG.uniform(0, 0.02, (bands, 20, 80))
    return scene + floor


def assumed(make_raster: MakeRaster, values: np.ndarray, override: Any = "auto", **options: Any) -> Radiometry:
    options.setdefault("names", NAMES[: len(values)])
    info = describe(str(make_raster(values, **options)))
    stats = band_statistics(info, [band.index for band in info.bands])
    return assume_radiometry(info, info.bands, stats, override)


def constants(radiometry: Radiometry) -> tuple[str, float, float]:
    return radiometry.kind, round(radiometry.scale, 8), round(radiometry.offset, 6)


S2_INTEGER = (reflectances() * 1e4).astype("uint16")
DISPLAY = RNG.integers(0, 256, (3, 80, 80))
DESERT = ((reflectances() + np.array([0.08, 0.10, 0.12, 0.15])[:, None, None]) * 1e4).astype("uint16")
L1_DN = ((reflectances() + 0.1) / 2e-5).astype("uint16")
C2_DN = ((reflectances() + 0.2) / 2.75e-5).astype("uint16")


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        pytest.param(S2_INTEGER, {}, ("reflectance", 1e-4, 0), id="integers"),
        pytest.param(S2_INTEGER.astype("float32"), {}, ("reflectance", 1e-4, 0), id="integers as floats"),
        pytest.param(reflectances().astype("float32"), {}, ("reflectance", 1, 0), id="floats"),
        pytest.param(DISPLAY.astype("uint8"), {"names": ()}, ("display", 1 / 255, 0), id="8 bit"),
        pytest.param(DISPLAY.astype("float32"), {}, ("display", 1 / 255, 0), id="8 bit as floats"),
        pytest.param(DISPLAY.astype("uint16"), {}, ("display", 1 / 255, 0), id="8 bit as 16 bit"),
        pytest.param(S2_INTEGER, {"tags": {"boa_add_offset": "-1000 (guessed)", "scale": "0.0001"}},
                     ("reflectance", 1e-4, -0.1), id="boa_add_offset"),
        pytest.param(S2_INTEGER, {"tags": {"scale": "0.0001 (ndvi: 1)"}}, ("reflectance", 1e-4, 0), id="scale tag"),
        pytest.param(S2_INTEGER, {"tags": {"QUANTIFICATION_VALUE": "10000"}}, ("reflectance", 1e-4, 0), id="divisor"),
        pytest.param(S2_INTEGER, {"tags": {"scale": "7"}}, ("reflectance", 1e-4, 0), id="impossible scale tag"),
        pytest.param(S2_INTEGER, {"scales": [2e-4] * 4, "offsets": [-0.1] * 4}, ("reflectance", 2e-4, -0.1), id="GDAL"),
        pytest.param(S2_INTEGER, {"scales": [1e-4, 2e-4, 1e-4, 1e-4]}, ("unknown", 1, 0), id="scales differ"),
        pytest.param(S2_INTEGER + 1000, {}, ("reflectance", 1e-4, -0.1), id="offset still in"),
        pytest.param(S2_INTEGER + 1000, {"tags": {"scale": "0.0001", "offset": "0"}}, ("reflectance", 1e-4, -0.1),
                     id="offset still in, tag says 0"),
        pytest.param(S2_INTEGER + 1000, {"tags": {"scale": "0.0001", "boa_add_offset": "0"}}, ("reflectance", 1e-4, 0),
                     id="offset in doubt, but the tag speaks of it"),
        pytest.param((reflectances() + 0.1).astype("float32"), {"tags": {"sensor": "Sentinel-2"}},
                     ("reflectance", 1, -0.1), id="float offset still in"),
        pytest.param((reflectances() + 0.1).astype("float32"), {"tags": {"sensor": "Landsat-8"}},
                     ("reflectance", 1, 0), id="only Sentinel-2 has that offset"),
        pytest.param(S2_INTEGER + 1000, {"tags": {"sensor": "Sentinel-2 L1C"}}, ("reflectance", 1e-4, 0), id="haze"),
        pytest.param((reflectances(floor=0.3) * 1e4).astype("uint16"), {}, ("reflectance", 1e-4, 0), id="bright scene"),
        pytest.param(DESERT, {}, ("reflectance", 1e-4, 0), id="desert, brighter towards the red"),
        pytest.param(L1_DN, {"name": "LC08_L1TP_224078.tif"}, ("reflectance", 2e-5, -0.1), id="Landsat level 1"),
        pytest.param(C2_DN, {"names": ["SR_B2", "SR_B3", "SR_B4", "SR_B5"]}, ("reflectance", 2.75e-5, -0.2), id="C2"),
        pytest.param(L1_DN, {"name": "x.tif"}, ("unknown", 1, 0), id="unknown coding"),
        pytest.param(reflectances(2).astype("float32") * -30, {"names": ["VV", "VH"]}, ("unknown", 1, 0), id="radar"),
        pytest.param(S2_INTEGER[:1], {"names": ["elevation"]}, ("unknown", 1, 0), id="heights"),
        pytest.param(S2_INTEGER, {"names": ()}, ("reflectance", 1e-4, 0), id="bands without names"),
    ],
)  # fmt: skip
def test_what_values_are_is_found_and_said(
    make_raster: MakeRaster, values: np.ndarray, options: dict[str, Any], expected: tuple[str, float, float]
) -> None:
    radiometry = assumed(make_raster, values, **options)
    kind, scale, offset = constants(radiometry)
    assert (kind, scale, offset) == (expected[0], round(expected[1], 8), expected[2])
    assert radiometry.sentence.endswith(".") and len(radiometry.sentence) > 20


def test_an_index_is_not_judged_with_the_spectral_bands(make_raster: MakeRaster) -> None:
    values = np.concatenate([S2_INTEGER, RNG.uniform(-1, 1, (1, 80, 80))]).astype("float32")
    radiometry = assumed(make_raster, values, names=[*NAMES, "ndvi"])
    assert constants(radiometry) == ("reflectance", 1e-4, 0)
    assert radiometry.for_band(Band(1, "B02", None, "blue")) == (1e-4, 0)
    assert radiometry.for_band(Band(5, "ndvi")) == (1, 0)


@pytest.mark.parametrize(
    ("override", "expected"),
    [("reflectance", ("reflectance", 1, 0)), ("reflectance10000", ("reflectance", 1e-4, -0.1)),
     ("display8", ("display", round(1 / 255, 8), 0)), ("unknown", ("unknown", 1, 0))],
)  # fmt: skip
def test_what_the_user_says_ends_all_guessing(
    make_raster: MakeRaster, override: Any, expected: tuple[str, float, float]
) -> None:
    radiometry = assumed(make_raster, S2_INTEGER, override, tags={"boa_add_offset": "-1000"})
    assert constants(radiometry) == expected


@pytest.mark.fault("R27")
def test_scaled_and_unscaled_twins_mean_the_same(make_raster: MakeRaster) -> None:
    scene = reflectances()
    integers = assumed(
        make_raster, ((scene + 0.2) / 2.75e-5).astype("uint16"), scales=[2.75e-5] * 4, offsets=[-0.2] * 4
    )
    floats = assumed(make_raster, scene.astype("float32"))
    same = ((scene + 0.2) / 2.75e-5).astype("uint16") * integers.scale + integers.offset
    assert same == pytest.approx(scene * floats.scale + floats.offset, abs=1e-4)


def test_a_folder_named_after_a_sensor_decides_nothing(make_raster: MakeRaster) -> None:
    info = describe(str(make_raster((reflectances() + 0.1).astype("float32"), names=["blue", "green", "red", "nir"])))
    stats = band_statistics(info, [1, 2, 3, 4])
    moved = replace(info, path="/data/sentinel-2/scene.tif")
    assert assume_radiometry(moved, info.bands, stats).offset == 0
