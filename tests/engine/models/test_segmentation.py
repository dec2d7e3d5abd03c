"""The whole model: constants, bands, parts, and what a package stores of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from geopeft.errors import BandError, JobError, PackageError, WeightsError
from geopeft.events import Reporter
from geopeft.models import SegmentationModel, build, describe_parameters
from geopeft.models.backbones import BACKBONES
from geopeft.models.registry import BackboneCard
from geopeft.models.spec import InputBand, ModelSpec
from torch import nn


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def rgb_spec(adapter: str = "frozen", decoder: str = "unet", **changes: Any) -> ModelSpec:
    """8-bit red, green, blue into EfficientNet-Lite0 and a fourth band that it does not know."""
    card = BACKBONES["tf_efficientnet_lite0"]
    bands = [band_for(card, name, scale=1 / 255) for name in ("red", "green", "blue")]
    bands.append(InputBand(name="nir", scale=1 / 255, mean=0.3, std=0.2))
    values: dict[str, Any] = {"bands": tuple(bands), "num_classes": 3, "gsd_m": 0.5, "chip_size_px": 64}
    return ModelSpec(backbone=card.name, adapter=adapter, decoder=decoder, **{**values, **changes})


def band_for(card: BackboneCard, name: str, scale: float) -> InputBand:
    to_network, offset = card.normalization(name)
    return InputBand(
        name=name, scale=scale, mean=0.4, std=0.2, backbone_band=name, backbone_scale=to_network, backbone_offset=offset
    )


def raw_chip(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 4, *size)).float()


def test_the_backbone_sees_normalised_bands_in_its_own_order() -> None:
    spec = rgb_spec()
    swapped = rgb_spec(bands=(spec.bands[2], spec.bands[3], spec.bands[0], spec.bands[1]))
    x = raw_chip(32, 32)
    seen: list[torch.Tensor] = []
    for each, raw in ((spec, x), (swapped, x[:, [2, 3, 0, 1]])):
        model = build(each, pretrained=False)
        model.backbone.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
        model(raw)
    torch.testing.assert_close(seen[0], (x[:, :3] / 255 - 0.5) / 0.5)
    torch.testing.assert_close(seen[1], seen[0])


def test_the_skip_sees_every_band_standardised_and_clamped() -> None:
    model = build(rgb_spec(), pretrained=False)
    seen: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[1]))
    x = raw_chip(32, 32)
    x[0, 3, 0, 0] = 1e9
    model(x)
    expected = (x / 255 - model.mean) / model.std
    assert expected[0, 3, 0, 0] > 1e6 and seen[0][0, 3, 0, 0] == 10
    torch.testing.assert_close(seen[0][1], expected[1])


def test_a_band_that_the_backbone_does_not_know_reaches_the_map() -> None:
    model = build(rgb_spec(), pretrained=False)
    x = raw_chip(32, 32)
    changed = x.clone()
    changed[:, 3] += 50
    assert (model(x) - model(changed)).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(64, 64), (45, 70), (8, 9)])
@pytest.mark.parametrize("resample", [1.0, 0.5, 2.0, 0.3, 3.0])
@pytest.mark.parametrize("decoder", ["linear", "unet"])
def test_logits_have_the_size_of_the_chip(size: tuple[int, int], resample: float, decoder: str) -> None:
    model = build(rgb_spec(decoder=decoder, resample=resample), pretrained=False)
    with torch.no_grad():
        logits = model(raw_chip(*size))
    assert logits.shape == (2, 3, *size) and logits.dtype == torch.float32 and bool(torch.isfinite(logits).all())


def test_resampling_tells_the_backbone_its_pixel_size_and_the_decoder_the_stride() -> None:
    card = BACKBONES["galileo_nano"]
    bands = tuple(band_for(card, name, 1.0) for name in ("B02", "B03", "B04"))
    spec = rgb_spec(bands=bands, gsd_m=5.0, resample=0.5).model_copy(update={"backbone": card.name})
    model = build(spec, pretrained=False)
    seen: list[Any] = []
    model.backbone.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args[0].shape, kwargs)), with_kwargs=True
    )
    model(torch.rand(1, 3, 40, 40))
    assert model.strides == [8, 8, 8, 8]
    assert seen == [((1, 3, 20, 20), {"gsd_m": 10.0})]


def test_logits_start_small_so_that_no_class_is_favoured() -> None:
    for decoder in ("linear", "unet"):
        with torch.no_grad():
            logits = build(rgb_spec(decoder=decoder), pretrained=False)(raw_chip(64, 64))
        assert logits.abs().max() < 2


@pytest.mark.parametrize(("adapter", "moves"), [("frozen", False), ("lora", False), ("full", True)])
def test_batch_statistics_move_only_when_the_whole_backbone_is_trained(adapter: str, moves: bool) -> None:
    model = build(rgb_spec(adapter), pretrained=False).train()
    before = {k: v.clone() for k, v in model.backbone.named_buffers() if k.endswith("running_mean")}
    model(raw_chip(64, 64))
    after = {k: v for k, v in model.backbone.named_buffers() if k.endswith("running_mean")}
    assert any(not torch.equal(before[k], after[k]) for k in before) is moves


def test_decoders_have_no_statistics_over_space_or_batch() -> None:
    for decoder in ("linear", "unet"):
        model = build(rgb_spec(decoder=decoder), pretrained=False)
        kinds = {type(module).__name__ for module in model.decoder.modules()}
        assert not kinds & {"BatchNorm2d", "GroupNorm", "InstanceNorm2d"}


def test_a_far_pixel_does_not_reach_a_window_through_the_decoder() -> None:
    """The decoder sees at most some pixels around: windows of a raster blend without seams."""
    model = build(rgb_spec(), pretrained=False)
    features = [torch.rand(1, c, -(-256 // s), -(-256 // s)) for c, s in
                zip(model.backbone.out_channels, model.strides, strict=True)]  # fmt: skip
    raw = torch.rand(1, 4, 256, 256)
    with torch.no_grad():
        before = model.decoder(features, raw)
        changed = [f.clone() for f in features]
        changed[-1][..., -1, -1] += 5
        after = model.decoder(changed, raw)
    assert torch.equal(before[..., :32, :32], after[..., :32, :32])
    assert not torch.equal(before, after)


def test_a_blank_chip_gives_the_same_logits_at_every_pixel_away_from_the_edge() -> None:
    """Upsampling and skips keep their places for sizes that are no multiple of a stride."""
    model = build(rgb_spec(), pretrained=False)
    with torch.no_grad():
        whole = model(torch.full((1, 4, 256, 256), 100.0))[..., 100:140, 100:140]
    assert whole.std(dim=(2, 3)).max() < 1e-2


def test_a_window_gives_what_the_whole_gives_away_from_its_edges() -> None:
    """Cut at a multiple of the patch, a decoder on fixed maps agrees with itself on a window of another size."""
    model = build(rgb_spec(), pretrained=False)
    features = [torch.rand(1, c, -(-320 // s), -(-320 // s)) for c, s in
                zip(model.backbone.out_channels, model.strides, strict=True)]  # fmt: skip
    raw = torch.rand(1, 4, 320, 320)
    rows = 293  # no multiple of any stride
    cut = [f[..., : -(-rows // s), :] for f, s in zip(features, model.strides, strict=True)]
    with torch.no_grad():
        whole, window = model.decoder(features, raw), model.decoder(cut, raw[..., :rows, :])
    torch.testing.assert_close(whole[..., :160, :], window[..., :160, :])


def test_a_state_of_another_model_is_refused() -> None:
    spec = rgb_spec("lora")
    state = build(spec, pretrained=False).trainable_state()
    assert {key.split(".")[0] for key in state} == {"adapter", "decoder", "head"}
    damaged = {
        "missing": {k: v for k, v in state.items() if k != "head.bias"},
        "unknown": {**state, "adapter.more": torch.zeros(1)},
        "stranger": {**state, "optimizer.step": torch.zeros(1)},
        "shape": {**state, "head.bias": torch.zeros(9)},
    }
    for kind, broken in damaged.items():
        for merged in (False, True):
            with pytest.raises(PackageError) as error:
                build(spec, broken, pretrained=False, merged=merged)
            assert error.value.code == "PACKAGE_KEYS", kind


@pytest.mark.parametrize("key", ["head.bias", "adapter"])
def test_values_that_are_not_finite_are_refused(key: str) -> None:
    spec = rgb_spec("lora")
    state = build(spec, pretrained=False).trainable_state()
    name = next(k for k in state if k.startswith(key))
    state[name].view(-1)[0] = float("nan")
    for merged in (False, True):
        with pytest.raises(PackageError) as error:
            build(spec, state, pretrained=False, merged=merged)
        assert error.value.code == "PACKAGE_VALUES"


def test_a_package_is_refused_on_other_base_weights() -> None:
    spec = rgb_spec()
    state = build(spec, pretrained=False).trainable_state()
    right = BACKBONES[spec.backbone].weights.sha256
    assert build(spec, state, merged=True, weights_sha256=right).base_weights.sha256 == right
    with pytest.raises(WeightsError) as error:
        build(spec, state, merged=True, weights_sha256="0" * 64)
    assert error.value.code == "WEIGHTS_CHECKSUM"


def test_a_fully_tuned_package_needs_no_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = rgb_spec("full")
    model = build(spec, pretrained=False)
    monkeypatch.setattr("geopeft.models.segmentation.fetch", lambda *_: pytest.fail("weights were asked for"))
    again = build(spec, model.trainable_state(), merged=True)
    x = raw_chip(32, 32)
    torch.testing.assert_close(again(x), model(x))


def test_the_best_weights_can_be_put_back() -> None:
    model = build(rgb_spec("lora"), pretrained=False)
    best, x = model.trainable_state(), raw_chip(32, 32)
    wanted = model(x).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert not torch.allclose(model(x), wanted)
    model.load_trainable_state(best)
    torch.testing.assert_close(model(x), wanted)


def test_the_message_names_weights_licence_and_checksum() -> None:
    reporter = Reporter()
    model = build(rgb_spec(), reporter=reporter)
    sha256 = BACKBONES["tf_efficientnet_lite0"].weights.sha256
    assert len(reporter.messages) == 1
    for part in ("tf_efficientnet_lite0", "Apache-2.0", sha256[:12], "the package"):
        assert part in reporter.messages[0]
    assert model.base_weights.sha256 == sha256


def test_a_merged_model_trains_nothing() -> None:
    state = build(rgb_spec("lora"), pretrained=False).trainable_state()
    merged = build(rgb_spec("lora"), state, pretrained=False, merged=True)
    assert describe_parameters(merged)["backbone_trainable"] == 0
    with pytest.raises(JobError):
        merged.trainable_state()


def test_a_band_twice_or_of_another_backbone_is_refused() -> None:
    bands = rgb_spec().bands
    for wrong in ((bands[0], bands[0]), (InputBand(name="x", backbone_band="B8A"),)):
        with pytest.raises(BandError):
            build(rgb_spec(bands=wrong), pretrained=False)


def test_an_adapter_that_does_not_suit_is_refused() -> None:
    spec = rgb_spec("lora", bands=(InputBand(name="a"),)).model_copy(update={"backbone": "scratch_unet"})
    with pytest.raises(JobError) as error:
        build(spec, pretrained=False)
    assert error.value.code == "ADAPTER_UNSUITABLE"


@pytest.mark.parametrize(
    ("field", "wrong", "near"), [("backbone", "galileo_nanno", "galileo_nano"), ("adapter", "Lora", "lora"),
                                 ("decoder", "u-net", "unet"), ("backbone", "resnet5O", "resnet50")]
)  # fmt: skip
def test_an_unknown_name_answers_with_the_nearest(field: str, wrong: str, near: str) -> None:
    with pytest.raises(JobError) as error:
        build(rgb_spec().model_copy(update={field: wrong}), pretrained=False)
    assert error.value.code == "NAME_UNKNOWN" and near in error.value.hint


def test_two_hundred_bands_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    bands = (*rgb_spec().bands, *(InputBand(name=f"b{i}") for i in range(214)))
    model = build(rgb_spec(bands=bands), pretrained=False)
    assert model(torch.rand(1, 218, 32, 32)).shape == (1, 3, 32, 32)
    assert parameters(model.decoder) < 1_000_000


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_listing_imports_neither_torch_nor_peft() -> None:
    code = (
        "import sys; from geopeft.models.catalogue import run; from geopeft.job import ModelsJob;"
        "from geopeft.events import Reporter; rows = run(ModelsJob(), Reporter())['backbones'];"
        "assert len(rows) >= 6, rows; assert not {'torch', 'peft', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_models_move_to_another_device_whole() -> None:
    """Nothing that a forward pass needs is left behind: the meta device holds no values of its own."""
    for name in ("galileo_nano", "tf_efficientnet_lite0"):
        card = BACKBONES[name]
        bands = tuple(band_for(card, band.name, 1.0) for band in card.bands)
        spec = rgb_spec("lora", bands=bands, resample=0.5).model_copy(update={"backbone": name})
        model: SegmentationModel = build(spec, pretrained=False).to("meta")
        assert model(torch.rand(1, len(bands), 32, 32, device="meta")).device.type == "meta"
