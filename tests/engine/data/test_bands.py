from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from geopeft.data.bands import (
    ROLES,
    Band,
    BandFacts,
    dates_of,
    match_bands,
    name_bands,
    resolve_bands,
    select_bands,
)
from geopeft.data.raster import describe
from geopeft.errors import BandError
from hypothesis import given
from hypothesis import strategies as st

S2 = "coastal blue green red rededge1 rededge2 rededge3 nir nir08 nir09 cirrus swir16 swir22".split()
S2_NAMES = "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12".split()

MakeRaster = Callable[..., Path]


def roles(*names: str, dtype: str = "uint16", tags: dict[str, str] | None = None, file_name: str = "") -> list[str]:
    facts = [BandFacts(index, name, {}, "", dtype) for index, name in enumerate(names, 1)]
    return [band.common for band in name_bands(facts, tags or {}, file_name)]


class Info:
    def __init__(self, *bands: Band) -> None:
        self.path, self.bands = "scene.tif", bands


SENTINEL = [Band(index, name, None, role) for index, (name, role) in enumerate(zip(S2_NAMES, S2, strict=True), 1)]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("Blue", "blue"), ("RED", "red"), ("Band 1 - Blue", "blue"), ("band_3_green", "green"), ("B4 - Red", "red"),
        ("nir08", "nir08"), ("NIR", "nir"), ("Near Infrared", "nir"), ("near-infrared (NIR)", "nir"),
        ("Band 4 (Near infrared)", "nir"), ("SWIR1", "swir16"), ("swir 2", "swir22"), ("SWIR-1 (1610 nm)", "swir16"),
        ("swir22", "swir22"), ("Red Edge 1", "rededge1"), ("Vegetation Red Edge 2 (B6)", "rededge2"),
        ("rededge3", "rededge3"), ("RE1", "rededge1"), ("Coastal aerosol", "coastal"), ("water vapour", "nir09"),
        ("Red (665 nm)", "red"), ("red_median", "red"), ("sr_blue", "blue"), ("TIRS1", "thermal"),
        ("ndvi", ""), ("NDVI (red, nir)", ""), ("dem", ""), ("elevation_m", ""), ("VV", "vv"), ("VH_dB", "vh"),
        ("infrared mask", ""), ("class", ""), ("redness", ""), ("nir ratio", ""), ("Band 7", ""), ("", ""),
    ],
)  # fmt: skip
def test_a_word_in_the_name_gives_the_role(name: str, role: str) -> None:
    assert roles(name) == [role]


@pytest.mark.parametrize(
    ("names", "dtype", "expected"),
    [
        (S2_NAMES, "uint16", S2),
        (["B2", "B3", "B4", "B8"], "uint16", ["blue", "green", "red", "nir"]),
        (["b02", "b04", "b08", "b11", "ndvi"], "float32", ["blue", "red", "nir", "swir16", ""]),
        (["B8", "B8A"], "uint16", ["nir", "nir08"]),
        (["B04_median", "B08_median", "B12_median"], "uint16", ["red", "nir", "swir22"]),
        (["SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7", "ST_B10"], "uint16",
         ["blue", "green", "red", "nir", "swir16", "swir22", "thermal"]),
        (["SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7"], "uint16",
         ["blue", "green", "red", "nir", "swir16", "swir22"]),
        (["B1", "B2", "B3", "B4", "B5", "B6", "B7"], "uint8",
         ["blue", "green", "red", "nir", "swir16", "thermal", "swir22"]),
        (["B1", "B2", "B3", "B4", "B5", "B6", "B7"], "uint16",
         ["coastal", "blue", "green", "red", "nir", "swir16", "swir22"]),
        (["B2", "B3", "B4"], "uint16", ["blue", "green", "red"]),
        (["sur_refl_b01", "sur_refl_b02"], "int16", ["red", "nir"]),
        (["B1", "B2", "B3", "B4"], "uint16", ["", "", "", ""]),
        (["B5"], "uint16", [""]),
        (["R", "G", "B", "N"], "uint8", ["red", "green", "blue", "nir"]),
        (["R"], "uint8", [""]),
    ],
)  # fmt: skip
def test_what_a_number_means_follows_from_the_set_of_numbers(names: list[str], dtype: str, expected: list[str]) -> None:
    assert roles(*names, dtype=dtype) == expected


@pytest.mark.parametrize(
    ("tags", "file_name", "expected"),
    [
        ({"sensor": "Landsat-7 ETM+"}, "", ["nir", "swir16"]),
        ({"spacecraft_id": "LANDSAT_8"}, "", ["red", "nir"]),
        ({"sensor": "Sentinel-2 MSI"}, "", ["red", "rededge1"]),
        ({}, "LC08_L1TP_224078.tif", ["red", "nir"]),
        ({}, "LE07_L2SP_016035.tif", ["nir", "swir16"]),
        ({}, "S2A_MSIL2A_2020.tif", ["red", "rededge1"]),
        ({}, "scene.tif", ["", ""]),
    ],
)
def test_a_named_sensor_decides_what_a_number_means(tags: dict[str, str], file_name: str, expected: list[str]) -> None:
    assert roles("B4", "B5", tags=tags, file_name=file_name) == expected


def test_a_wavelength_overrules_a_number() -> None:
    facts = [BandFacts(1, "B5", {"wavelength": "0.865", "wavelength_units": "Micrometers"}, "", "uint16")]
    assert [band.common for band in name_bands(facts, {"sensor": "Sentinel-2"})] == ["nir"]


@pytest.mark.parametrize(
    "tags",
    [{"wavelength": "665", "wavelength_units": "Nanometers"}, {"wavelength": "0.665"}, {"wavelength_nm": "665"},
     {"central_wavelength_um": "0.665"}, {"wavelength": "665 nm"}, {"wavelength": "665", "wavelength_unit": "nm"}],
)  # fmt: skip
def test_wavelengths_of_band_tags_are_read_in_either_unit(tags: dict[str, str]) -> None:
    (band,) = name_bands([BandFacts(1, "x", tags)], {})
    assert band.wavelength_um == pytest.approx(0.665) and band.common == "red"


def test_wavelengths_listed_in_the_datasets_tags_are_read() -> None:
    facts = [BandFacts(index, f"Band {index}") for index in (1, 2, 3)]
    bands = name_bands(facts, {"wavelengths_um": "0.49, nan, 0.842"})
    assert [(band.wavelength_um, band.common) for band in bands] == [(0.49, "blue"), (None, ""), (0.842, "nir")]
    assert [band.wavelength_um for band in name_bands(facts, {"wavelengths_um": "0.49"})] == [None] * 3
    envi = name_bands(facts, {"wavelength": "{ 490, 560, 842 }", "wavelength_units": "Nanometers"})
    assert [band.common for band in envi] == ["blue", "green", "nir"]


def test_of_many_narrow_bands_the_nearest_to_the_centre_has_the_role() -> None:
    lengths = np.arange(0.42, 2.45, 0.006)
    bands = name_bands([BandFacts(i, f"{length:.5f} um") for i, length in enumerate(lengths, 1)], {})
    by_role = {band.common: band for band in bands if band.common}
    assert set(by_role) == set(ROLES) - {"thermal"}
    for role, band in by_role.items():
        assert band.wavelength_um is not None and abs(band.wavelength_um - ROLES[role][0]) <= 0.0061


def test_colours_name_bands_that_have_no_name_and_only_those(make_raster: MakeRaster) -> None:
    values = np.zeros((3, 4, 4), np.uint8)
    path = make_raster(values, photometric="RGB")
    assert [band.common for band in describe(str(path)).bands] == ["red", "green", "blue"]
    path = make_raster(values, photometric="RGB", names=["VV", "VH", "ndvi"])
    assert [band.common for band in describe(str(path)).bands] == ["vv", "vh", ""]


def test_wavelengths_written_by_gdal_drivers_are_found(make_raster: MakeRaster) -> None:
    tags = [{"WAVELENGTH": "490", "WAVELENGTH_UNIT": "nm"}, {"wavelength": "0.842"}]
    bands = describe(str(make_raster(np.zeros((2, 4, 4), np.uint16), band_tags=tags))).bands
    assert [band.common for band in bands] == ["blue", "nir"]


def test_bands_are_selected_by_name_number_and_role() -> None:
    info = Info(*SENTINEL)
    assert select_bands(info, ()) == info.bands
    assert [band.name for band in select_bands(info, ["b2", "nir", "13", " B8A "])] == ["B02", "B08", "B12", "B8A"]


@pytest.mark.parametrize(
    ("wanted", "code"),
    [(["", " "], "BANDS_EMPTY"), (["B99"], "BANDS_UNKNOWN"), (["0"], "BANDS_UNKNOWN"), (["14"], "BANDS_UNKNOWN"),
     (["B02", "blue"], "BANDS_TWICE"), (["purple"], "BANDS_UNKNOWN")],
)  # fmt: skip
def test_a_wrong_list_of_bands_is_refused_with_what_there_is(wanted: list[str], code: str) -> None:
    with pytest.raises(BandError) as caught:
        select_bands(Info(*SENTINEL), wanted)
    assert caught.value.code == code
    assert code == "BANDS_TWICE" or "B02" in caught.value.hint


def test_equal_names_of_other_meaning_do_not_match() -> None:
    landsat5 = [Band(1, "B3", None, "red"), Band(2, "B4", None, "nir")]
    wanted = [Band(1, "B4", 0.665, "red"), Band(2, "B8", 0.842, "nir")]
    assert {name: band.name for name, band in match_bands(landsat5, wanted).items()} == {"B4": "B3", "B8": "B4"}
    assert match_bands([Band(1, "B4")], wanted) == {}
    assert match_bands([Band(1, "B4")], [Band(7, "b04")])["b04"].index == 1


def test_the_nearest_wavelength_within_tolerance_matches_once() -> None:
    available = [Band(1, "x", 0.842), Band(2, "y", 0.70)]
    wanted = [Band(1, "nir", 0.842, "nir"), Band(2, "nir08", 0.865, "nir08"), Band(3, "re", 0.705, "rededge1")]
    found = match_bands(available, wanted)
    assert {name: band.index for name, band in found.items()} == {"nir": 1, "re": 2}
    assert match_bands(available, wanted[1:2])["nir08"].index == 1
    assert match_bands([Band(1, "ndvi", 0.665)], [Band(1, "red", 0.665, "red")]) == {}


@given(order=st.permutations(range(13)), keep=st.integers(1, 13))
def test_any_order_of_the_bands_is_matched_by_role(order: list[int], keep: int) -> None:
    available = [SENTINEL[at] for at in order[:keep]]
    wanted = [Band(index, f"card {role}", ROLES[role][0], role) for index, role in enumerate(S2)]
    found = match_bands(available, wanted)
    assert len({band.index for band in found.values()}) == len(found)
    exact = {band.common for band in available}
    assert all(found[want.name].common == want.common for want in wanted if want.common in exact)


@pytest.mark.fault("R08")
def test_missing_bands_are_named_with_what_is_there() -> None:
    with pytest.raises(BandError) as caught:
        resolve_bands(Info(*SENTINEL[:4]), [Band(1, "red", 0.665, "red"), Band(2, "swir", 1.61, "swir16")])
    assert "swir (swir16)" in caught.value.message and "B02 (blue)" in caught.value.message
    assert "--bands" in caught.value.hint and "red" in caught.value.hint


def test_named_bands_end_all_guessing() -> None:
    needed = [Band(1, "red", 0.665, "red"), Band(2, "nir", 0.842, "nir")]
    info = Info(*SENTINEL)
    assert [band.name for band in resolve_bands(info, needed)] == ["B04", "B08"]
    assert [band.name for band in resolve_bands(info, needed, ["B11", "B12"])] == ["B11", "B12"]
    with pytest.raises(BandError) as caught:
        resolve_bands(info, needed, ["B11"])
    assert caught.value.code == "BANDS_COUNT"


def dated(*names: str, sensor: str = "") -> tuple[Band, ...]:
    return name_bands([BandFacts(i, name) for i, name in enumerate(names, 1)], {"sensor": sensor} if sensor else {})


def test_a_date_behind_a_name_says_when_and_leaves_the_role_alone() -> None:
    bands = dated(
        "B04 2024-06-12", "B8A_2024-06-12", "Red 2024-07-02", "0.842 um 2024-07-02", "2024-07-02", "B4 2024-13-01"
    )
    assert [band.date for band in bands] == ["2024-06-12"] * 2 + ["2024-07-02"] * 2 + ["", ""]
    assert [band.common for band in bands[:4]] == ["red", "nir08", "red", "nir"]
    assert bands[0].name == "B04 2024-06-12", "names stay apart"
    assert dates_of(bands) == ("2024-06-12", "2024-07-02")


def test_each_date_has_its_own_roles_by_wavelength() -> None:
    facts = [
        BandFacts(i, f"x{i} {date}", {"wavelength": "665 nm"}) for i, date in enumerate(("2024-06-12", "2024-07-02"))
    ]
    assert [band.common for band in name_bands(facts, {})] == ["red", "red"]


def test_dates_are_matched_in_their_order_whatever_the_dates_and_the_order_of_the_bands() -> None:
    model = dated("B04 2024-06-12", "B08 2024-06-12", "B04 2024-07-02", "B08 2024-07-02", "dem")
    raster = dated("nir 2026-01-09", "dem", "red 2026-01-09", "B08 2025-03-01", "B04 2025-03-01")
    found = resolve_bands(Info(*raster), model)
    assert [band.index for band in found] == [5, 4, 3, 1, 2]


def test_a_single_date_does_not_stand_in_the_way_of_a_match() -> None:
    model = dated("x7", "B04 2024-06-12")
    found = resolve_bands(Info(*dated("B04", "x7 2020-01-01")), model)
    assert [band.index for band in found] == [2, 1]


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (("B04", "B08"), "bands of no dates, and 2 are needed"),
        (("B04 2020-01-01", "B04 2020-02-01", "B04 2020-03-01"), r"3 dates \(2020-01-01, 2020-02-01, 2020-03-01\)"),
    ],
)
def test_another_number_of_dates_than_is_needed_is_refused(there: tuple[str, ...], message: str) -> None:
    with pytest.raises(BandError, match=message) as caught:
        resolve_bands(Info(*dated(*there)), dated("B04 2024-06-12", "B04 2024-07-02"))
    assert caught.value.code == "BANDS_DATES"
