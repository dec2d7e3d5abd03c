"""Which backbone is taken for which raster, and the constants that bring its bands there."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from geopeft.data.bands import Band
from geopeft.data.normalize import Radiometry
from geopeft.data.raster import BandStatistics
from geopeft.errors import BandError, JobError, RasterError
from geopeft.events import Reporter
from geopeft.models.backbones import BACKBONES
from geopeft.models.choose import choose_backbone, input_bands, match_or_refuse, resample_factor
from geopeft.models.registry import WeightsSource

ROLES = ("blue", "green", "red", "nir", "swir16", "swir22")
SIX = tuple(Band(n, role, None, role) for n, role in enumerate(ROLES, 1))
RGB = tuple(Band(n, role, None, role) for n, role in enumerate(("red", "green", "blue"), 1))
UNKNOWN = tuple(Band(n, f"Band {n}") for n in (1, 2, 3))


def choose(bands: tuple[Band, ...], gsd_m: float, weights_dir: Path, name: str = "auto") -> tuple[str, str]:
    card, sentence = choose_backbone(name, bands, gsd_m, str(weights_dir), Reporter())
    return card.name, sentence


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that this user has downloaded must not decide."""
    monkeypatch.setenv("GEOPEFT_HOME", str(tmp_path / "home"))


def test_a_multispectral_satellite_gets_galileo_where_its_weights_are(shared: Path) -> None:
    name, sentence = choose(SIX, 10, shared / "weights")
    assert name == "galileo_nano"
    assert "6 optical bands at 10 m" in sentence


def test_without_weights_and_network_auto_takes_the_model_in_the_box_and_says_so(tmp_path: Path) -> None:
    name, sentence = choose(SIX, 10, tmp_path)
    assert name == "geopeft_small"
    assert "galileo_nano" in sentence and "6 optical bands at 10 m" in sentence


def test_two_known_bands_are_enough_for_the_model_in_the_box(tmp_path: Path) -> None:
    assert choose((*UNKNOWN, Band(4, "0.9 um", 0.9), Band(5, "red", None, "red")), 30, tmp_path)[0] == "geopeft_small"


def test_where_no_band_is_known_nothing_pretrained_fits(shared: Path) -> None:
    name, sentence = choose(UNKNOWN, 10, shared / "weights")
    assert name == "scratch_unet" and "0 optical bands" in sentence


def test_a_vision_transformer_is_taken_for_pictures_if_its_weights_are_in_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "vit_small_patch14_dinov2.lvd142m.safetensors").touch()
    assert choose(RGB, 0.1, tmp_path)[0] == "vit_small_patch14_dinov2.lvd142m"
    assert choose(SIX, 10, tmp_path)[0] == "geopeft_small"


@pytest.mark.parametrize(("bands", "gsd_m"), [(RGB, 0.1), (RGB, 30), (SIX, 0.6)])
def test_pictures_and_fine_pixels_get_a_network_for_pictures(
    shared: Path, bands: tuple[Band, ...], gsd_m: float
) -> None:
    assert choose(bands, gsd_m, shared / "weights")[0] == "tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("bands", "gsd_m", "wanted"),
    [
        (SIX, 30, "prithvi_eo_v2_300"),
        (SIX, 10, "galileo_nano"),
        (SIX[:5], 30, "galileo_nano"),
        (RGB, 30, "tf_efficientnet_lite0"),
    ],
)
def test_prithvi_comes_first_for_its_six_bands_at_pixels_of_landsat_and_hls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bands: tuple[Band, ...], gsd_m: float, wanted: str
) -> None:
    """Galileo counts as at hand too, whatever is in its file."""
    card = dataclasses.replace(BACKBONES["galileo_nano"], weights=WeightsSource(file="galileo_nano.pt"))
    monkeypatch.setitem(BACKBONES._rows, "galileo_nano", card)
    for name in ("galileo_nano", "prithvi_eo_v2_300", "prithvi_eo_v1_100"):
        (tmp_path / f"{name}.pt").touch()
    assert choose(bands, gsd_m, tmp_path)[0] == wanted


def test_prithvi_is_taken_for_sentinel_2_where_galileo_is_not_at_hand(tmp_path: Path) -> None:
    (tmp_path / "prithvi_eo_v1_100.pt").touch()
    name, sentence = choose(SIX, 10, tmp_path)
    assert name == "prithvi_eo_v1_100" and "galileo_nano" in sentence


def test_prithvi_is_not_missed_where_nobody_put_it(tmp_path: Path) -> None:
    name, sentence = choose(SIX, 30, tmp_path)
    assert name == "geopeft_small" and "prithvi" not in sentence


def test_bands_that_nobody_knows_get_the_network_without_pretraining(tmp_path: Path) -> None:
    assert choose(UNKNOWN, 10, tmp_path)[0] == "scratch_unet"


def test_an_unknown_backbone_answers_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="galileo_nanoo") as caught:
        choose(SIX, 10, tmp_path, "galileo_nanoo")
    assert "'galileo_nano'" in caught.value.hint


def test_bands_that_cannot_be_told_are_asked_for() -> None:
    card = BACKBONES["tf_efficientnet_lite0"]
    with pytest.raises(BandError, match="Band 1") as caught:
        match_or_refuse(card, UNKNOWN, ordered=False)
    assert "--bands" in caught.value.hint
    found = match_or_refuse(card, UNKNOWN[::-1], ordered=True)
    assert {name: band.index for name, band in found.items()} == {"red": 3, "green": 2, "blue": 1}


@pytest.mark.parametrize(("gsd_m", "factor"), [(10, 1), (30, 1), (2.5, 0.5), (80, 2)])
def test_pixels_outside_the_range_are_resampled_to_its_nearer_end(gsd_m: float, factor: float) -> None:
    assert resample_factor(BACKBONES["galileo_nano"], gsd_m)[0] == pytest.approx(factor)


@pytest.mark.parametrize("gsd_m", [0.1, 1.2, 200])
def test_pixels_far_outside_the_range_are_refused_with_advice(gsd_m: float) -> None:
    with pytest.raises(RasterError) as caught:
        resample_factor(BACKBONES["galileo_nano"], gsd_m)
    assert caught.value.code == "RASTER_PIXEL_SIZE"
    assert "tf_efficientnet_lite0" in caught.value.hint


def statistics(mean: float, std: float, count: int) -> BandStatistics:
    full = np.full(count, 1.0)
    return BandStatistics(full * mean, full * std, full * 0, full * mean * 2, full, full * 0)


@pytest.mark.parametrize("name", ["galileo_nano", "tf_efficientnet_lite0"])
def test_the_cards_mean_reaches_the_backbone_as_its_normalised_mean(name: str) -> None:
    """Whatever the raster's units, a pixel at the card's mean must come out where the card's mean does."""
    card = BACKBONES[name]
    matched = match_or_refuse(card, RGB, ordered=False)
    unit = "reflectance" if card.unit == "reflectance10000" else "display"
    stored = Radiometry(unit, 0.5, -0.1, "")  # type: ignore[arg-type]
    bands, sentence = input_bands(card, matched, RGB, statistics(1, 1, 3), stored)
    assert sentence == ""
    for band in bands:
        own = next(b for b in card.bands if b.name == band.backbone_band)
        scale, offset = card.normalization(own.name)
        factor = 10_000 if unit == "reflectance" else 1
        raster_value = (own.mean / factor - band.offset) / band.scale
        canonical = raster_value * band.scale + band.offset
        assert canonical * band.backbone_scale + band.backbone_offset == pytest.approx(
            own.mean * scale + offset, abs=1e-5
        )


def test_values_of_another_kind_are_matched_by_the_rasters_own_statistics() -> None:
    card = BACKBONES["galileo_nano"]
    matched = match_or_refuse(card, SIX, ordered=False)
    bands, sentence = input_bands(card, matched, SIX, statistics(90, 20, 6), Radiometry("display", 1 / 255, 0, ""))
    assert "expects reflectances" in sentence
    for value, expected in ((90, 0.5), (130, 1.0), (50, 0.0)):
        canonical = value * bands[0].scale + bands[0].offset
        assert canonical * bands[0].backbone_scale + bands[0].backbone_offset == pytest.approx(expected)


RADAR = (Band(1, "VV", None, "vv"), Band(2, "VH", None, "vh"))
BOTH = (*RADAR, *(replace(band, index=band.index + 2) for band in SIX))


def test_radar_in_decibels_reaches_the_backbone_by_the_cards_statistics_and_other_units_by_the_rasters_own() -> None:
    card = BACKBONES["terramind_v1_tiny"]
    matched = match_or_refuse(card, BOTH, ordered=False)
    decibels = Radiometry("reflectance", 1.0, 0.0, "", decibels=(1,))
    bands, sentence = input_bands(card, matched, BOTH, statistics(5, 2, 8), decibels)
    assert [(band.backbone_band, band.unit) for band in bands[:3]] == [("VV", "decibel"), ("VH", ""), ("B02", "")]
    assert sentence.startswith("The backbone expects decibels;")
    vv, vh, blue = bands[:3]
    assert -12.599 * vv.backbone_scale + vv.backbone_offset == pytest.approx(0, abs=1e-6)
    assert vv.backbone_scale == pytest.approx(1 / 5.195)
    assert 5 * vh.backbone_scale + vh.backbone_offset == pytest.approx(0, abs=1e-6)
    assert blue.backbone_scale == pytest.approx(10_000 / 2141.107)


def test_radar_alone_is_enough_for_a_backbone_that_takes_it_only() -> None:
    assert set(match_or_refuse(BACKBONES["terramind_v1_tiny"], RADAR[:1], ordered=False)) == {"VV"}
    with pytest.raises(BandError):
        match_or_refuse(BACKBONES["galileo_nano"], RADAR, ordered=False)


def test_radar_gets_terramind_where_the_users_folder_has_it(tmp_path: Path) -> None:
    assert choose(RADAR, 10, tmp_path)[0] == "scratch_unet"
    (tmp_path / "TerraMind_v1_small.pt").touch()
    name, sentence = choose(RADAR, 10, tmp_path)
    assert name == "terramind_v1_small" and "0 optical bands and 2 of radar" in sentence
    assert choose(BOTH, 10, tmp_path)[0] == "terramind_v1_small"
    assert choose(SIX, 10, tmp_path)[0] == "geopeft_small"


def test_polarisations_do_not_count_as_known_optical_bands(shared: Path) -> None:
    assert choose((*RGB, Band(4, "VV", None, "vv")), 10, shared / "weights")[0] == "tf_efficientnet_lite0"
