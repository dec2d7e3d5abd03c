"""The model in the box: any optical bands, in any order and number, at any pixel size."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from geopeft.data.bands import Band
from geopeft.data.normalize import Radiometry
from geopeft.data.raster import BandStatistics
from geopeft.errors import BandError, JobError
from geopeft.models import build
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.choose import input_bands, match_or_refuse
from geopeft.models.segmentation import build_backbone, load_pretrained
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.models.wavelengths import ANCHORS_UM, anchor_weights, optical_wavelength
from geopeft.models.weights import file_sha256, locate

CARD = BACKBONES["geopeft_small"]


def made(*wavelengths_um: float) -> Backbone:
    torch.manual_seed(0)
    network = build_backbone(CARD, tuple("b" * (n + 1) for n in range(len(wavelengths_um))), wavelengths_um).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "size_out" in name:
                parameter.normal_(std=0.1)
    return network


def maps_of(network: Backbone, x: torch.Tensor, gsd_m: float = 10.0) -> list[torch.Tensor]:
    with torch.no_grad():
        return network(x, gsd_m=gsd_m)


def test_it_starts_as_the_imagenet_network_on_red_green_and_blue() -> None:
    card = BACKBONES["tf_efficientnet_lite0"]
    imagenet = build_backbone(card, ("red", "green", "blue"), ()).eval()
    load_pretrained(imagenet, card, "", None)
    network = build_backbone(CARD, ("b", "r", "g"), (0.49, 0.665, 0.56)).eval()
    network.start_from(imagenet)
    x = torch.randn(2, 3, 96, 64)
    for own, other in zip(maps_of(network, x[:, [2, 0, 1]]), maps_of(imagenet, x * 0.5), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def test_it_starts_from_no_other_network() -> None:
    resnet = build_backbone(BACKBONES["resnet18"], ("red", "green", "blue"), ())
    with pytest.raises(JobError, match="cannot start"):
        made(0.5).start_from(resnet)


def test_the_order_of_the_bands_does_not_matter() -> None:
    x = torch.randn(1, 3, 64, 64)
    one, other = made(0.49, 0.842, 2.19), made(2.19, 0.49, 0.842)
    for a, b in zip(maps_of(one, x), maps_of(other, x[:, [2, 0, 1]]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_a_band_given_twice_is_seen_as_one() -> None:
    x = torch.randn(1, 1, 64, 64)
    for a, b in zip(maps_of(made(0.6), x), maps_of(made(0.6, 0.6), x.expand(-1, 2, -1, -1)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_the_wavelength_and_the_pixel_size_count() -> None:
    x = torch.randn(1, 1, 64, 64)
    at = maps_of(made(0.49), x)[-1]
    assert not torch.allclose(at, maps_of(made(0.842), x)[-1])
    assert not torch.allclose(at, maps_of(made(0.49), x, gsd_m=0.1)[-1])
    # Beyond the range every pixel size is the nearest that it knows.
    assert torch.equal(maps_of(made(0.49), x, gsd_m=128)[-1], maps_of(made(0.49), x, gsd_m=5000)[-1])


def test_bands_can_change_from_call_to_call() -> None:
    network, x = made(0.49, 0.56, 0.665), torch.randn(1, 2, 64, 64)
    network.set_wavelengths((0.842, 1.61))
    for a, b in zip(maps_of(network, x), maps_of(made(0.842, 1.61), x), strict=True):
        assert torch.equal(a, b)


def test_weights_of_anchors_are_smooth_and_sum_to_one() -> None:
    wavelengths = np.linspace(0.35, 2.6, 500)
    weights = anchor_weights(wavelengths.tolist())
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert (weights >= 0).all() and ((weights > 0).sum(1) <= 2).all()
    assert np.abs(np.diff(weights, axis=0)).max() < 0.35
    np.testing.assert_allclose(anchor_weights(ANCHORS_UM), np.eye(len(ANCHORS_UM)), atol=1e-6)


@pytest.mark.parametrize(
    ("band", "wavelength"),
    [
        (Band(1, "B4", 0.65, "red"), 0.65),
        (Band(1, "red", None, "red"), 0.665),
        (Band(1, "B10", None, "thermal"), None),
        (Band(1, "B10", 10.9, "thermal"), None),
        (Band(1, "ndvi"), None),
    ],
)
def test_a_known_role_stands_for_a_wavelength(band: Band, wavelength: float | None) -> None:
    assert optical_wavelength(band) == wavelength


def spec(bands: tuple[InputBand, ...]) -> ModelSpec:
    return ModelSpec(
        backbone=CARD.name, adapter="frozen", decoder="unet", bands=bands, num_classes=3, gsd_m=10, chip_size_px=64
    )


def test_bands_without_a_wavelength_go_through_the_skip_only() -> None:
    bands = (Band(1, "dem"), Band(2, "red", None, "red"), Band(3, "NDVI", 0.7), Band(4, "0.9 um", 0.9))
    matched = match_or_refuse(CARD, bands, ordered=False)
    assert {name: band.index for name, band in matched.items()} == {"0.665 um": 2, "0.9 um": 4}
    statistics = BandStatistics(*(np.ones(4) for _ in range(6)))
    inputs, sentence = input_bands(CARD, matched, bands, statistics, Radiometry("unknown", 1.0, 0.0, ""))
    assert [band.wavelength_um for band in inputs] == [None, 0.665, 0.7, 0.9] and sentence == ""
    model = build(spec(inputs), pretrained=False)
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.rand(1, 4, 64, 64)
    with torch.no_grad():
        one = model(x)
        x[:, [0, 2]] += 1
        other = model(x)
    assert seen[0].shape[1] == 2 and torch.equal(seen[0], seen[1])
    assert not torch.equal(one, other)


def test_without_any_optical_band_it_is_refused_with_advice() -> None:
    with pytest.raises(BandError, match="ndvi") as caught:
        match_or_refuse(CARD, (Band(1, "ndvi"), Band(2, "Band 2")), ordered=False)
    assert "scratch_unet" in caught.value.hint
    with pytest.raises(BandError):
        build(spec((InputBand(name="x"),)), pretrained=False)


def test_the_file_in_the_box_is_small_quick_and_the_one_that_the_card_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOPEFT_HOME", str(tmp_path))
    found = locate(CARD)
    assert found is not None and found.how == "the model in the box"
    assert found.path.stat().st_size <= 8 << 20
    assert file_sha256(found.path) == CARD.weights.sha256
    bands = tuple(InputBand(name=str(w), wavelength_um=w) for w in (0.49, 0.56, 0.665, 0.842))
    build(spec(bands), pretrained=False)
    start = time.process_time()
    model = build(spec(bands))
    assert time.process_time() - start < 1.0
    assert sum(p.numel() for p in model.backbone.parameters()) <= 4_000_000
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(1, 4, 64, 64))).all()
