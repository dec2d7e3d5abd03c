"""timm networks by name: maps of every size, weights by name or by order, exact splitting of qkv."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from geopeft.errors import JobError, WeightsError
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.timm_backbone import TimmBackbone, build
from geopeft.models.weights import fetch, load_state

RGB = ("red", "green", "blue")


def make(name: str) -> TimmBackbone:
    torch.manual_seed(0)
    made = build(BACKBONES[name], RGB, **BACKBONES[name].options)
    made.eval()
    return made


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet18", [2, 4, 8, 16, 32]),
        ("convnext_atto", [4, 8, 16, 32]),
        ("swin_tiny_patch4_window7_224", [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", [16] * 4),
        ("vit_small_patch14_dinov2.lvd142m", [14] * 4),
        ("vgg11", [2, 4, 8, 16, 32]),
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (45, 90), (9, 8)])
def test_maps_of_any_size_have_ceil_of_size_over_stride(name: str, strides: list[int], size: tuple[int, int]) -> None:
    backbone = make(name)
    assert list(backbone.strides) == strides
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, *size))
    for feature_map, channels, stride in zip(maps, backbone.out_channels, strides, strict=True):
        assert feature_map.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_the_card_of_a_name_carries_that_networks_own_normalisation() -> None:
    card = BACKBONES["resnet18"]
    assert [round(band.mean, 3) for band in card.bands] == [0.485, 0.456, 0.406]
    scale, offset = card.normalization("red")
    assert 0.485 * scale + offset == pytest.approx(0) and scale == pytest.approx(1 / 0.229)
    assert "resnet18" in BACKBONES and "no_such_network" not in BACKBONES


def test_published_weights_give_timms_own_features() -> None:
    flexible: dict[str, Any] = {"dynamic_img_size": True}
    for name, options in (("vit_tiny_patch16_224", flexible), ("resnet18", {})):
        torch.manual_seed(1)
        reference: Any = timm.create_model(name, pretrained=False, **options).eval()
        backbone = make(name)
        backbone.load_weights(reference.state_dict())
        x = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            ours = backbone(x)[-1]
            theirs = reference.forward_features(x)
        if theirs.ndim == 3:
            theirs = theirs[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_packaged_weights_are_those_of_timms_network_by_order() -> None:
    card = BACKBONES["tf_efficientnet_lite0"]
    state = load_state(fetch(card).path, card)
    backbone = make(card.name)
    backbone.load_weights(state)
    reference: Any = timm.create_model(card.name, pretrained=False).eval()
    reference.load_state_dict(dict(zip(reference.state_dict(), state.values(), strict=True)))
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[-1], reference.forward_intermediates(x, intermediates_only=True)[-1])


def test_the_packaged_weights_expect_values_from_minus_one_to_one() -> None:
    """The first batch statistics tell which normalisation a network was trained on: a photograph must agree."""
    images = pytest.importorskip("sklearn.datasets").load_sample_images().images
    card = BACKBONES["tf_efficientnet_lite0"]
    backbone = make(card.name)
    backbone.load_weights(load_state(fetch(card).path, card))
    net: Any = backbone.net
    stem, norm = net.conv_stem, net.bn1
    ratios = []
    for image in images:
        x = torch.from_numpy(image / 255).float().permute(2, 0, 1)[None]
        constants = [card.normalization(name) for name in RGB]
        x = torch.cat([x[:, i : i + 1] * s + o for i, (s, o) in enumerate(constants)], dim=1)
        with torch.no_grad():
            ratios.append((stem(x).var((0, 2, 3)) / norm.running_var).median().item())
    assert 0.4 < sum(ratios) / len(ratios) < 2


@pytest.mark.parametrize("damage", ["renamed", "missing", "shape", "more"])
def test_a_file_of_another_network_is_refused(damage: str) -> None:
    backbone = make("resnet18")
    state = dict(timm.create_model("resnet18", pretrained=False).state_dict())
    if damage in ("renamed", "missing"):
        value = state.pop("conv1.weight")
        state |= {"first.weight": value} if damage == "renamed" else {}
    elif damage == "shape":
        state["conv1.weight"] = torch.zeros(1)
    else:
        state["more.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError) as error:
        backbone.load_weights(state)
    assert error.value.code == "WEIGHTS_KEYS"


def test_weights_by_order_are_refused_when_an_order_differs() -> None:
    card = BACKBONES["tf_efficientnet_lite0"]
    state = load_state(fetch(card).path, card)
    names = list(state)
    names[6], names[7] = names[7], names[6]
    with pytest.raises(WeightsError):
        make(card.name).load_weights({name: state[name] for name in names})


def test_the_order_of_the_input_bands_does_not_matter() -> None:
    card = BACKBONES["resnet18"]
    backbone = make("resnet18")
    torch.manual_seed(0)
    swapped = build(card, ("blue", "red", "green")).eval()
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(backbone(x)[-1], swapped(x[:, [2, 0, 1]])[-1])


def test_bands_that_are_missing_are_named() -> None:
    with pytest.raises(JobError, match="red, green, blue"):
        build(BACKBONES["resnet18"], ("red", "green"))


def test_a_network_of_one_image_size_is_refused() -> None:
    with pytest.raises(JobError) as error:
        make("maxvit_tiny_tf_224")
    assert error.value.code == "BACKBONE_UNSUITABLE"
