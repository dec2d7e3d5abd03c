"""Clay v1 and v1.5: the authors' network, told wavelengths, pixel size, time and place; and any optical bands."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from geopeft.data.bands import Band
from geopeft.data.normalize import Radiometry
from geopeft.data.raster import BandStatistics
from geopeft.errors import BandError, WeightsError
from geopeft.models import build
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Scene
from geopeft.models.backbones.clay import ClayBackbone
from geopeft.models.backbones.days import days_since_1970, iso_week
from geopeft.models.choose import input_bands, match_or_refuse
from geopeft.models.segmentation import build_backbone
from geopeft.models.spec import InputBand, ModelSpec
from torch import Tensor

CARD = BACKBONES["clay_v1"]
# What the fixture's encodings stand for: the 27th week at ten, somewhere near Winterthur.
TIME, PLACE = (2024.0, 185.0, 10.9), (47.37, 8.54)
CASES = ("rgb_naip_like_gsd1_64", "s1_64", "s2_10band_full_meta_128", "s2_10band_full_meta_64",
         "s2_10band_gsd_only_64", "s2_10band_meta_off_64")  # fmt: skip
SENTINEL_2_UM = tuple(band.wavelength_um for band in CARD.bands)


def network(folder: Path, state: dict[str, Tensor] | None = None) -> ClayBackbone:
    torch.set_num_threads(1)
    options = reference.config(folder)["encoder_kwargs"]
    made = ClayBackbone("clay", options["patch_size"], options["dim"], options["depth"], options["heads"], 8).eval()
    made.load_weights(reference.weights(folder) if state is None else state)
    made.set_wavelengths(SENTINEL_2_UM)
    return made


def scene_of(batch: int, time: tuple[float, ...] | None = TIME, place: tuple[float, ...] | None = PLACE) -> Scene:
    times = None if time is None else torch.tensor(time).expand(batch, 1, 3)
    return Scene(times, None if place is None else torch.tensor(place).expand(batch, 2))


@pytest.mark.parametrize("name", ["clay_v1", "clay_v1_5"])
@pytest.mark.parametrize("case", CASES)
def test_it_gives_what_the_reference_gives(
    shared: Path, name: str, case: str, record_property: Callable[[str, object], None]
) -> None:
    folder = shared / "fixtures" / name
    assert reference.cases(folder) == list(CASES)
    made, given = network(folder), reference.inputs(folder, case)
    made.set_wavelengths(given["waves"].tolist())
    x = given["pixels"]
    scene = scene_of(len(x)) if given["time"].any() else None
    with torch.no_grad():
        tokens = made.embed(x, float(given["gsd"]), scene)
        ours = {"patch_embed": made.patches(x), "with_encodings": tokens[:, 1:]}
        for i in range(len(made.blocks)):
            tokens = ours[f"block{i + 1}"] = made.run_block(i, tokens)
        ours["final_normed"] = made.finish(tokens)
    difference = reference.largest_difference(ours, reference.expected(folder, case))
    record_property("difference", difference)
    assert difference < reference.TOLERANCE


def test_of_a_whole_checkpoint_only_the_encoder_is_taken(shared: Path) -> None:
    folder = shared / "fixtures" / "clay_v1"
    state = reference.weights(folder)
    others = ("decoder.mask_patch", "teacher.cls_token", "proj.weight", "proj.bias")
    beside = {f"model.{name}": torch.ones(1) for name in others}
    plain = {key.removeprefix("model.encoder."): value for key, value in state.items()}
    wrapped = {f"clay_encoder.{key}": value for key, value in plain.items()}
    wanted = network(folder).state_dict()
    for layout in (state | beside, plain, wrapped):
        own = network(folder, layout).state_dict()
        assert all(torch.equal(own[key], value) for key, value in wanted.items())


def test_half_a_checkpoint_and_another_networks_are_refused(shared: Path) -> None:
    state = reference.weights(shared / "fixtures" / "clay_v1")
    half = {key: value for key, value in state.items() if ".layers.3." not in key}
    more = state | {"model.encoder.transformer.layers.4.0.to_out.weight": torch.ones(32, 32)}
    other = reference.weights(shared / "fixtures" / "dofa_v1")
    for wrong in (half, more, other, {}):
        with pytest.raises(WeightsError) as caught:
            network(shared / "fixtures" / "clay_v1", wrong)
        assert caught.value.code == "WEIGHTS_KEYS"


def test_bands_in_another_order_are_the_same_image_and_fewer_bands_another(shared: Path) -> None:
    made = network(shared / "fixtures" / "clay_v1")
    x, order = torch.randn(1, 10, 40, 24), [3, 9, 0, 1, 8, 2, 7, 4, 6, 5]
    with torch.no_grad():
        wanted = made(x)
        made.set_wavelengths([SENTINEL_2_UM[i] for i in order])
        shuffled = made(x[:, order])
        made.set_wavelengths(SENTINEL_2_UM[:4])
        fewer = made(x[:, :4])
    for own, other, less in zip(shuffled, wanted, fewer, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
        assert less.shape == other.shape and (less - other).abs().max() > 0.1


def test_time_and_place_count_each_for_itself_and_what_is_unknown_is_zero(shared: Path) -> None:
    made, x = network(shared / "fixtures" / "clay_v1"), torch.randn(2, 10, 16, 16)
    nan = float("nan")

    def told(scene: Scene | None) -> Tensor:
        with torch.no_grad():
            return (made.embed(x, 10.0, scene) - made.embed(x, 10.0, None))[:, 1, -8:]

    both, nothing = told(scene_of(2)), told(scene_of(2, (nan, nan, nan), (nan, nan)))
    assert not nothing.any() and not told(None).any()
    torch.testing.assert_close(told(scene_of(2, TIME, None)), both * torch.tensor([1.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(told(scene_of(2, None, PLACE)), both * torch.tensor([0.0] * 4 + [1.0] * 4))
    mixed = Scene(torch.tensor([[TIME], [(nan, nan, nan)]]), torch.tensor([(nan, nan), PLACE]))
    torch.testing.assert_close(told(mixed)[0, :4], both[0, :4])
    torch.testing.assert_close(told(mixed)[1, 4:], both[1, 4:])
    assert not told(mixed)[0, 4:].any() and not told(mixed)[1, :4].any()


def test_the_pixel_size_counts(shared: Path) -> None:
    made, x = network(shared / "fixtures" / "clay_v1"), torch.randn(1, 10, 16, 16)
    with torch.no_grad():
        assert (made(x, gsd_m=10.0)[-1] - made(x, gsd_m=1.0)[-1]).abs().max() > 1e-2


def test_days_and_weeks_are_the_calendars() -> None:
    days = [datetime.date(1969, 12, 31) + datetime.timedelta(n) for n in range(0, 25_000, 13)]
    days += [datetime.date(year, month, day) for year in range(1995, 2030) for month, day in ((1, 1), (12, 31), (3, 1))]
    time = torch.tensor([(day.year, day.timetuple().tm_yday, 12.0) for day in days])
    assert days_since_1970(time).tolist() == [(day - datetime.date(1970, 1, 1)).days for day in days]
    assert iso_week(time).tolist() == [day.isocalendar().week for day in days]
    assert iso_week(torch.full((1, 3), torch.nan)).isnan().all()


def test_without_an_optical_band_it_is_refused() -> None:
    with pytest.raises(BandError) as caught:
        build_backbone(CARD, ("a",), [])
    assert caught.value.code == "BANDS_MISSING"
    with pytest.raises(BandError, match="optical band"):
        match_or_refuse(CARD, (Band(1, "ndvi"), Band(2, "Band 2")), ordered=False)


def statistics(count: int) -> BandStatistics:
    full = np.full(count, 1.0)
    return BandStatistics(full * 3000, full * 500, full * 0, full * 9000, full, full * 0)


BANDS = (Band(1, "ndvi"), Band(2, "0.91 um", 0.91), Band(3, "B4", 0.655, "red"), Band(4, "nir", None, "nir"))


def test_bands_with_published_statistics_are_fed_by_these_and_the_others_standardised() -> None:
    matched = match_or_refuse(CARD, BANDS, ordered=False)
    assert {name: band.index for name, band in matched.items()} == {"red": 3, "nir": 4, "0.91 um": 2}
    stored = Radiometry("reflectance", 1e-4, 0.0, "")
    inputs, sentence = input_bands(CARD, matched, BANDS, statistics(4), stored)
    assert sentence == ""
    ndvi, other, red, nir = inputs
    assert ndvi.backbone_band == "" and red.backbone_band == "red" and nir.backbone_band == "nir"
    # Where the raster says a wavelength, the network is told this one.
    assert (other.wavelength_um, red.wavelength_um, nir.wavelength_um) == (0.91, 0.655, 0.842)
    value = 0.42
    assert value * red.backbone_scale + red.backbone_offset == pytest.approx((4200 - 1552) / 1888)
    assert value * other.backbone_scale + other.backbone_offset == pytest.approx((0.42 - 0.3) / 0.05)


def test_values_that_are_no_reflectances_are_all_standardised() -> None:
    matched = match_or_refuse(CARD, BANDS, ordered=False)
    inputs, sentence = input_bands(CARD, matched, BANDS, statistics(4), Radiometry("unknown", 1.0, 0.0, ""))
    assert "expects reflectances" in sentence
    for band in inputs[1:]:
        assert 3500 * band.backbone_scale + band.backbone_offset == pytest.approx(1.0)


def test_bands_that_nobody_knows_can_be_named_in_its_order() -> None:
    bands = tuple(Band(n, f"Band {n}") for n in range(1, 11))
    with pytest.raises(BandError):
        match_or_refuse(CARD, bands, ordered=False)
    matched = match_or_refuse(CARD, bands, ordered=True)
    inputs, _ = input_bands(CARD, matched, bands, statistics(10), Radiometry("reflectance", 1e-4, 0.0, ""))
    assert [band.wavelength_um for band in inputs] == list(SENTINEL_2_UM)


def spec_of(bands: tuple[InputBand, ...]) -> ModelSpec:
    return ModelSpec(
        backbone="clay_v1", adapter="frozen", decoder="linear", bands=bands, num_classes=3, gsd_m=10, chip_size_px=32
    )


def test_a_model_feeds_known_and_other_bands_with_their_wavelengths(monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(CARD, options={"dim": 96, "depth": 2, "heads": 4})
    monkeypatch.setitem(BACKBONES._rows, "clay_v1", small)
    matched = match_or_refuse(CARD, BANDS, ordered=False)
    inputs, _ = input_bands(CARD, matched, BANDS, statistics(4), Radiometry("reflectance", 1e-4, 0.0, ""))
    model = build(spec_of(inputs), pretrained=False)
    assert isinstance(model.backbone, ClayBackbone)
    # The card's bands first, in its order.
    torch.testing.assert_close(model.backbone.waves, model.backbone.encode_wavelengths([0.655, 0.842, 0.91]))
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    model(torch.full((1, 4, 32, 32), 4200.0))
    wanted = [(4200 - 1552) / 1888, (4200 - 2743) / 1742, (0.42 - 0.3) / 0.05]
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def test_a_model_names_no_band_that_the_network_does_not_know() -> None:
    for wrong in (InputBand(name="x", backbone_band="lidar"), InputBand(name="vv", backbone_band="x", wavelength_um=9)):
        with pytest.raises(BandError) as caught:
            build(spec_of((wrong,)), pretrained=False)
        assert caught.value.code == "BANDS_UNKNOWN"
