"""One contract for every row of every table: a new row is tested by being there."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from geopeft.data.bands import RADAR_ROLES
from geopeft.models import SegmentationModel, build, describe_parameters
from geopeft.models.adapters import ADAPTERS
from geopeft.models.adapters.reparametrized import plain_state
from geopeft.models.backbones import BACKBONES
from geopeft.models.decoders import DECODERS
from geopeft.models.registry import SAR_UM, BackboneCard, load_builder
from geopeft.models.segmentation import build_backbone
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.onnx.translations import translations

# A network of timm that is in no table: a row made on the fly keeps the same contract.
NAMES = [*BACKBONES.names(), "resnet18", "vit_tiny_patch16_224"]
# One row of every builder is tried with all its adapters, the others, which differ in size, with one.
FIRST = {"geopeft.models.backbones.timm_backbone:build": "tf_efficientnet_lite0"}
for card in BACKBONES:
    FIRST.setdefault(card.builder, card.name)
# Adapters that change weights as LoRA does: one transformer and one CNN are tried with all of them.
LIKE_LORA = ("rslora", "dora", "pissa", "ia3", "mode", "mpo", "ssl", "ssb")
PAIRS = [
    (name, adapter)
    for name in NAMES
    for adapter in BACKBONES[name].adapters
    if adapter in ("lora", BACKBONES[name].adapters[0])
    or name in ("galileo_nano", "tf_efficientnet_lite0")
    or (name in (*FIRST.values(), "resnet18", "vit_tiny_patch16_224") and adapter not in LIKE_LORA)
]
SIZE = (45, 70)
# Adapters that add modules or parameters to a backbone, and what is in the names of those.
ADDED = {"vpt": "prompts", "vit-adapter": "side"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for card in BACKBONES:
        monkeypatch.setitem(BACKBONES._rows, card.name, dataclasses.replace(card, options=reduced(card)))


def reduced(card: BackboneCard) -> dict[str, Any]:
    """The row's options with fewer and narrower blocks, so that large backbones are quick to test."""
    options = dict(card.options)
    if card.name.startswith("vit_"):
        options["depth"] = 2
    if "channels" in options:
        options |= {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48)}
    if "depth" in options:
        options["depth"] = min(options["depth"], 4)
    if options.get("dim", 0) > 192:
        options |= {"dim": 96, "heads": 4}
    return options


def spec_for(backbone: str, adapter: str, decoder: str = "unet", resample: float = 1.0) -> ModelSpec:
    """A model on the card's bands, last band first, and one band that no backbone knows."""
    card = BACKBONES[backbone]
    unit = 10_000 if card.unit == "reflectance10000" else 1
    bands = [input_band(card, band.name, unit) for band in card.bands[::-1]]
    known = (0.49, None, 1.61, 0.842) if card.any_optical else (None,) * 4
    bands += [
        InputBand(name=f"other{i}", mean=0.5, std=0.3, wavelength_um=known[i]) for i in range(1 if card.bands else 4)
    ]
    return ModelSpec(
        backbone=backbone,
        adapter=adapter,
        decoder=decoder,
        bands=tuple(bands),
        num_classes=5,
        gsd_m=10,
        resample=resample,
        rank=4,
        chip_size_px=64,
    )


def input_band(card: BackboneCard, name: str, unit: float) -> InputBand:
    scale, offset = card.normalization(name)
    return InputBand(
        name=name, mean=0.5, std=0.3, backbone_band=name, backbone_scale=scale * unit, backbone_offset=offset
    )


def chips(spec: ModelSpec, batch: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.rand(batch, len(spec.bands), *size)


def shaken(model: SegmentationModel) -> SegmentationModel:
    """As if trained: what is trained has moved, and logits are large enough to see a difference."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3 if name.startswith("head") else 0.03)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var") and model.spec.adapter in ("full", "vit-adapter"):
                buffer *= 1.1
    return model


@pytest.mark.parametrize("backbone", NAMES)
def test_a_backbone_gives_the_maps_it_announces(backbone: str) -> None:
    card = BACKBONES[backbone]
    names = tuple(band.name for band in card.bands) or ("a", "b")
    made = build_backbone(card, names, [band.wavelength_um for band in card.bands] or [0.49, 1.61]).eval()
    assert len(made.out_channels) == len(made.strides) >= 2
    assert list(made.strides) == sorted(made.strides)
    for size in ((64, 64), SIZE, (8, 9)):
        with torch.no_grad():
            maps = made(torch.rand(2, len(names), *size), gsd_m=10.0)
        shapes = [tuple(m.shape) for m in maps]
        assert shapes == [
            (2, d, -(-size[0] // s), -(-size[1] // s)) for d, s in zip(made.out_channels, made.strides, strict=True)
        ]


@pytest.mark.parametrize("backbone", NAMES)
def test_a_card_says_what_it_is(backbone: str) -> None:
    card = BACKBONES[backbone]
    assert card.title and card.licence and card.paper.startswith("https://")
    assert card.unit in ("reflectance10000", "display") and card.normalize in ("mean2std", "zscore", "reflectance")
    assert set(card.adapters) <= set(ADAPTERS.names())
    assert card.weights.sha256 == "" or len(card.weights.sha256) == 64
    assert card.weights.revision == "" or len(card.weights.revision) == 40
    for band in card.bands:
        scale, offset = card.normalization(band.name)
        assert band.unit in ("", "decibel") and (band.unit == "decibel") is (band.common in RADAR_ROLES)
        low, high = (SAR_UM / 2, SAR_UM * 2) if band.unit == "decibel" else (0.3, 15)
        assert band.std > 0 and low < band.wavelength_um < high
        at_mean = {"mean2std": 0.5, "zscore": 0.0, "reflectance": band.mean / 10_000}[card.normalize]
        assert band.mean * scale + offset == pytest.approx(at_mean, abs=1e-9)


@pytest.mark.parametrize(("backbone", "adapter"), PAIRS)
def test_gradients_go_only_where_the_adapter_says(backbone: str, adapter: str) -> None:
    spec = spec_for(backbone, adapter)
    model = shaken(build(spec, pretrained=False)).train()
    before = copy.deepcopy(model.backbone.state_dict())
    model(chips(spec)).square().mean().backward()
    counts = describe_parameters(model)
    for name, parameter in model.named_parameters():
        inside = name.removeprefix("backbone.")
        if inside == name:
            trains = True
        elif adapter in ("lora", *LIKE_LORA):
            trains = ".update." in name or inside.startswith("shared_update.")
        elif adapter == "bitfit":
            own = model.backbone.get_parameter(inside)
            trains = (
                own.ndim == 1 and inside.endswith(("bias", "weight")) and inside not in model.backbone.never_trained
            )
        elif adapter in ADDED:
            trains = ADDED[adapter] in inside.split(".")
        else:
            trains = adapter == "full" and inside not in model.backbone.never_trained
        assert parameter.requires_grad is trains, name
        assert (parameter.grad is not None) is trains, name
    assert (counts["backbone_trainable"] > 0) is (adapter != "frozen")
    if adapter != "full":
        after = model.backbone.state_dict()
        # The batch statistics of a side network are its own.
        assert all(torch.equal(before[key], after[key]) for key in before if not key.startswith("side."))


@pytest.mark.parametrize(("backbone", "adapter"), PAIRS)
def test_what_is_saved_gives_the_same_map(backbone: str, adapter: str) -> None:
    spec = spec_for(backbone, adapter)
    model = build(spec, pretrained=False)
    published = base_values(model)
    shaken(model).eval()
    state, x = model.trainable_state(), chips(spec)
    with torch.no_grad():
        wanted = model(x)
        assert wanted.std() > 1e-3
        assert {key.split(".")[0] for key in state} <= {"adapter", "decoder", "head"}
        for merged, tolerance in ((False, 0.0), (True, 1e-4)):
            again = reopened(spec, state, published, merged)
            torch.testing.assert_close(again(x), wanted, atol=tolerance, rtol=0)


def base_values(model: SegmentationModel) -> dict[str, torch.Tensor]:
    """What stands for the published weights, under the names of the plain backbone."""
    plain = {k: v for k, v in plain_state(model.backbone).items() if not {"prompts", "side"} & {*k.split(".")}}
    return copy.deepcopy(plain)


def reopened(
    spec: ModelSpec, state: dict[str, torch.Tensor], published: dict[str, torch.Tensor], merged: bool
) -> SegmentationModel:
    """A package opened on the same published weights: they are loaded before the adapter comes in."""
    made: list[Any] = []
    card = BACKBONES[spec.backbone]
    real = load_builder(card.builder)

    def with_published(*args: Any, **kwargs: Any) -> Any:
        backbone = real(*args, **kwargs)
        backbone.load_state_dict(published)
        made.append(backbone)
        return backbone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geopeft.models.segmentation.load_builder", lambda ref: with_published if ref == card.builder
                      else load_builder(ref))  # fmt: skip
        model = build(spec, state, pretrained=False, merged=merged)
    assert len(made) == 1
    return model


@pytest.mark.parametrize("size", ["light", "study"])
@pytest.mark.parametrize("decoder", DECODERS.names())
@pytest.mark.parametrize("strides", [(4, 4, 4, 4), (16,), (2, 4, 8, 16, 32), (1, 2, 4), (14, 14), (3, 5, 11), (32, 64)])
def test_a_decoder_gives_dense_features_of_any_size(decoder: str, strides: tuple[int, ...], size: str) -> None:
    channels = [8 * (i + 1) for i in range(len(strides))]
    made = load_builder(DECODERS[decoder].builder)(channels, strides, 3, num_classes=4, size=size)
    for rows, cols in ((64, 64), SIZE, (7, 9)) if size == "light" else ((9, 17),):
        maps = [torch.rand(2, d, -(-rows // s), -(-cols // s)) for d, s in zip(channels, strides, strict=True)]
        dense = made(maps, torch.rand(2, 3, rows, cols))
        assert dense.shape == (2, made.out_channels, rows, cols)
    dense.square().mean().backward()
    assert all(p.grad is not None for p in made.parameters())


QUICK = ("galileo_nano", "scratch_unet")
ONNX_ROWS = [
    *(
        pytest.param(
            name,
            "lora" if "lora" in BACKBONES[name].adapters else "full",
            "unet",
            1.0,
            marks=[] if name in QUICK else pytest.mark.slow,
        )
        for name in (*FIRST.values(), "vit_tiny_patch16_224")
    ),
    ("galileo_nano", "frozen", "linear", 0.37),
    ("galileo_nano", "vpt", "linear", 1.0),
    ("galileo_nano", "vit-adapter", "linear", 1.0),
    ("tf_efficientnet_lite0", "full", "linear", 2.0),
    *(
        pytest.param(name, "frozen", decoder, 1.0, marks=pytest.mark.slow)
        for name in ("galileo_nano", "tf_efficientnet_lite0")
        for decoder in ("fcn", "upernet", "rbf")
    ),
]


@pytest.mark.parametrize(("backbone", "adapter", "decoder", "resample"), ONNX_ROWS)
def test_the_exported_model_is_the_model(
    tmp_path: Path, backbone: str, adapter: str, decoder: str, resample: float
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    spec = spec_for(backbone, adapter, decoder, resample)
    model = build(spec, pretrained=False)
    published = base_values(model)
    for key, value in published.items():
        if key.endswith("pos_embed"):
            value.normal_()  # an initial position embedding is too small to tell whether it was resampled rightly
    model = reopened(spec, shaken(model).trainable_state(), published, merged=True)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (chips(spec),),
            dynamo=True,
            input_names=["raw"],
            output_names=["logits"],
            dynamic_shapes={"raw": {0: torch.export.Dim("batch", min=1, max=64)}},
            custom_translation_table=translations(),
            verbose=False,
        )
    assert program is not None
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = chips(spec, batch)
        with torch.no_grad():
            wanted = model(x).numpy()
        assert wanted.std() > 1e-2
        np.testing.assert_allclose(session.run(None, {"raw": x.numpy()})[0], wanted, atol=1e-4, rtol=1e-4)
