"""Published networks in timm's layout: DeCUR, SSL4EO-S12 and DINOv3 give the reference's features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from geopeft.errors import JobError, WeightsError
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.timm_backbone import TimmBackbone
from geopeft.models.segmentation import build_backbone
from reference import TOLERANCE, expected, inputs, largest_difference, weights
from torch import Tensor

S2 = tuple(band.name for band in BACKBONES["decur_resnet50"].bands)
Record = Callable[[str, object], None]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def reduced(name: str, bands: tuple[str, ...], **options: Any) -> TimmBackbone:
    """A row's network with the options of a fixture."""
    card = BACKBONES[name]
    made = build_backbone(dataclasses.replace(card, options={**card.options, **options}), bands, [])
    assert isinstance(made, TimmBackbone)
    return made.eval()


def decur(bands: tuple[str, ...] = S2) -> TimmBackbone:
    return reduced("decur_resnet50", bands, channels=(8, 16, 32, 64))


def normalised(image: Tensor, name: str = "decur_resnet50", bands: tuple[str, ...] = S2) -> Tensor:
    """Digital numbers as the card brings them to the network."""
    constants = [BACKBONES[name].normalization(band) for band in bands]
    return torch.cat([image[:, i : i + 1] * s + o for i, (s, o) in enumerate(constants)], dim=1)


@pytest.mark.parametrize("case", ["s2l1c_13band_64", "s2l1c_13band_rect_80x112"])
def test_decur_gives_the_references_maps(shared: Path, record_property: Record, case: str) -> None:
    folder = shared / "fixtures" / "decur_resnet50"
    backbone = decur()
    backbone.load_weights(weights(folder))
    image = normalised(inputs(folder, case)["image_dn"])
    with torch.no_grad():
        # The reference pads with zeros inside where a side is no multiple of 32; the backbone repeats the last pixels.
        maps = backbone.net.forward_intermediates(image, indices=backbone.taps, intermediates_only=True)
        whole = image.shape[-1] % 32 == 0 and image.shape[-2] % 32 == 0
        assert not whole or all(torch.equal(a, b) for a, b in zip(backbone(image), maps, strict=True))
    names = ("stem_s2", "layer1_s4", "layer2_s8", "layer3_s16", "layer4_s32")
    ours = {**dict(zip(names, maps, strict=True)), "pooled": maps[-1].mean((2, 3))}
    difference = largest_difference(ours, expected(folder, case))
    record_property("difference", difference)
    assert difference < TOLERANCE


@pytest.mark.parametrize("case", ["rgb_64", "rgb_224", "rgb_rect_96x160"])
def test_dinov3_gives_the_references_tokens(shared: Path, record_property: Record, case: str) -> None:
    folder = shared / "fixtures" / "dinov3_vit"
    # The reference computes the rotary periods in single precision, the published files hold them in half.
    sizes = {"architecture": "vit_small_patch16_dinov3", "dim": 64, "depth": 4, "heads": 4}
    backbone = reduced("vit_large_patch16_dinov3.sat493m", ("red", "green", "blue"), **sizes, published_periods=False)
    backbone.load_weights(weights(folder))
    seen: dict[str, Tensor] = {}
    for number, name in ((0, "block1"), (2, "block3"), (3, "block4_unnormed")):
        backbone.net.blocks[number].register_forward_hook(lambda _m, _x, y, name=name: seen.update({name: y}))
    image = inputs(folder, case)["image"]
    with torch.no_grad():
        maps = backbone(image)
        seen["final_normed"] = backbone.net.norm(seen["block4_unnormed"])
    difference = largest_difference(seen, expected(folder, case))
    record_property("difference", difference)
    assert difference < TOLERANCE
    rows, cols = image.shape[-2] // 16, image.shape[-1] // 16
    grid = seen["final_normed"][:, 5:].transpose(1, 2).unflatten(2, (rows, cols))
    torch.testing.assert_close(maps[-1], grid)


def test_the_rotary_periods_are_those_of_the_published_files() -> None:
    sizes = {"architecture": "vit_small_patch16_dinov3", "dim": 64, "depth": 2, "heads": 2}
    made = [
        reduced("vit_large_patch16_dinov3.sat493m", ("red", "green", "blue"), **sizes, published_periods=rounded)
        for rounded in (True, False)
    ]
    periods = [backbone.net.rope.periods for backbone in made]
    assert torch.equal(periods[0], periods[1].bfloat16().float()) and not torch.equal(*periods)


def test_a_band_that_is_missing_counts_as_no_light() -> None:
    """Products of surface reflectance have no B10."""
    whole = decur()
    state = dict(whole.net.state_dict()) | {"fc.weight": torch.zeros(3, 256), "fc.bias": torch.zeros(3)}
    whole.load_weights(state)
    image = torch.rand(1, 13, 64, 64) * 5000
    image[:, S2.index("B10")] = 0
    for bands in (tuple(band for band in S2 if band != "B10"), ("B11", "B02", "B04")):
        kept = [S2.index(band) for band in bands]
        others = torch.zeros(13, dtype=torch.bool)
        others[kept] = True
        part = decur(bands)
        part.load_weights(state)
        with torch.no_grad():
            ours = part(normalised(image[:, kept], bands=bands))
            wanted = whole(normalised(image * others[:, None, None]))
        for own, other in zip(ours, wanted, strict=True):
            torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_two_bands_of_thirteen_are_too_few() -> None:
    with pytest.raises(JobError) as error:
        decur(("B02", "B03"))
    assert error.value.code == "BANDS_MISSING"


@pytest.mark.parametrize("name", ["decur_resnet50", "ssl4eo_resnet18_moco", "ssl4eo_vits16_dino"])
def test_half_a_checkpoint_or_another_networks_is_refused(name: str) -> None:
    made: Any = reduced(name, S2, **({} if "vit" in name else {"channels": (8, 16, 32, 64)}))
    state = {key: value for key, value in made.net.state_dict().items() if ".attn.qkv" not in key}
    pictures = {
        key: value[:, :3] if value.ndim == 4 and value.shape[1] == 13 else value for key, value in state.items()
    }
    for wrong in (dict(list(state.items())[: len(state) // 2]), pictures):
        with pytest.raises(WeightsError) as error:
            made.load_weights(wrong)
        assert error.value.code == "WEIGHTS_KEYS"


def test_a_small_vision_transformer_reads_thirteen_bands_as_timms_own() -> None:
    import timm

    options: dict[str, Any] = {"in_chans": 13, "depth": 2, "dynamic_img_size": True}
    reference: Any = timm.create_model("vit_small_patch16_224", pretrained=False, **options).eval()
    backbone = reduced("ssl4eo_vits16_dino", S2, depth=2)
    backbone.load_weights({k: v for k, v in reference.state_dict().items() if not k.startswith("head.")})
    x = torch.rand(1, 13, 64, 96)
    with torch.no_grad():
        wanted = reference.forward_features(x)[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
        torch.testing.assert_close(backbone(x)[-1], wanted, atol=1e-5, rtol=1e-5)


def test_a_network_from_scratch_takes_any_bands() -> None:
    made = reduced("unet_resnet50", ("one", "two"), layers=(1, 1, 1, 1))
    with torch.no_grad():
        assert [tuple(m.shape[2:]) for m in made(torch.rand(1, 2, 64, 64))] == [
            (32, 32),
            (16, 16),
            (8, 8),
            (4, 4),
            (2, 2),
        ]


def test_values_that_are_no_reflectances_are_matched_to_the_data_set() -> None:
    """The networks see x / 10 000; that 0 is no mean of any scene is why the card knows the real ones."""
    card = BACKBONES["decur_resnet50"]
    for band in card.bands:
        scale, offset = card.normalization(band.name)
        assert (band.mean * scale + offset, band.std * scale) == pytest.approx((band.mean / 1e4, band.std / 1e4))
        assert band.mean > 20
