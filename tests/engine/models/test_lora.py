"""LoRA: which layers it updates, and that our arithmetic is peft's."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from geopeft.errors import JobError
from geopeft.models.adapters import ADAPTERS
from geopeft.models.adapters.adapter import Adapter
from geopeft.models.adapters.lora import Lora
from geopeft.models.adapters.reparametrized import AdaptedLayer
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Backbone, Scene
from geopeft.models.registry import load_builder
from geopeft.models.spec import InputBand, ModelSpec
from torch import Tensor, nn

SPEC = ModelSpec(
    backbone="any", adapter="lora", decoder="unet", bands=(InputBand(name="a"),), num_classes=2, gsd_m=1,
    chip_size_px=64, rank=4,
)  # fmt: skip


def make(name: str, **options: Any) -> Backbone:
    torch.manual_seed(0)
    card = BACKBONES[name]
    options = {**card.options, **options}
    backbone: Backbone = load_builder(card.builder)(card, tuple(band.name for band in card.bands), **options)
    return backbone.eval()


def trained(backbone: Backbone) -> Backbone:
    """An adapted backbone whose updates are not zero."""
    Lora().apply(backbone, SPEC)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return backbone


@pytest.mark.parametrize("name", ["galileo_nano", "tf_efficientnet_lite0"])
@pytest.mark.parametrize(
    ("adapter", "settings"), [("lora", {}), ("rslora", {"use_rslora": True}), ("dora", {"use_dora": True})]
)
def test_our_layers_are_those_of_peft(name: str, adapter: str, settings: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    theirs, ours = make(name), make(name)
    ours_adapter: Adapter = load_builder(ADAPTERS[adapter].builder)()
    ours_adapter.apply(ours, SPEC.model_copy(update={"adapter": adapter, "alpha": 8.0}))
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    exactly = "|".join(re.escape(n) for n, m in ours.named_modules() if isinstance(m, AdaptedLayer))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=exactly, **settings)
    peft.inject_adapter_in_model(config, theirs, "default")
    state = ours_adapter.state(ours)
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if ".lora_" in key:
                stored = key.replace(".lora_magnitude_vector.default.weight", ".magnitude").replace(".default.", ".")
                value.copy_(state[stored].view_as(value))
    x = torch.rand(1, len(BACKBONES[name].bands), 32, 32)
    with torch.no_grad():
        for a, b in zip(ours(x), theirs.eval()(x), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_galileo_is_adapted_at_q_v_fc1_fc2_only() -> None:
    names = {key.rpartition(".lora_")[0] for key in Lora().state(trained(make("galileo_nano")))}
    wanted = {f"encoder.blocks.{i}.{part}" for i in range(4) for part in ("attn.q", "attn.v", "mlp.fc1", "mlp.fc2")}
    assert names == wanted


def test_a_fused_qkv_is_adapted_at_q_and_v_only() -> None:
    names = {key.rpartition(".lora_")[0] for key in Lora().state(trained(make("vit_tiny_patch16_224")))}
    parts = ("attn.qkv.q", "attn.qkv.v", "mlp.fc1", "mlp.fc2")
    assert names == {f"net.blocks.{i}.{part}" for i in range(12) for part in parts}


def test_a_cnn_is_adapted_at_its_pointwise_convolutions() -> None:
    plain = make("tf_efficientnet_lite0")
    pointwise = {n for n, m in plain.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)}
    assert {key.rpartition(".lora_")[0] for key in Lora().state(trained(plain))} == pointwise


def test_a_new_adapter_changes_nothing() -> None:
    plain = make("galileo_nano")
    adapted = copy.deepcopy(plain)
    Lora().apply(adapted, SPEC)
    x = torch.rand(1, 10, 16, 16)
    for a, b in zip(plain(x), adapted(x), strict=True):
        torch.testing.assert_close(a, b)


def test_every_update_gets_a_gradient() -> None:
    """A network that uses a layer's weight past the layer would train nothing and say nothing."""
    for name in ("galileo_nano", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "eva02_tiny_patch14_224",
                 "swin_tiny_patch4_window7_224", "convnext_atto"):  # fmt: skip
        backbone = trained(make(name))
        maps = backbone(torch.rand(1, len(BACKBONES[name].bands), 56, 56))
        torch.stack([(m * torch.rand_like(m)).sum() for m in maps]).sum().backward()
        learning = {k: p.grad for k, p in backbone.named_parameters() if p.requires_grad}
        assert learning and all(g is not None and g.abs().sum() > 0 for g in learning.values()), name


def test_a_backbone_without_such_layers_is_refused() -> None:
    class Bare(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor, gsd_m: float = 10.0, scene: Scene | None = None) -> list[Tensor]:
            return [self.conv(x)]

    with pytest.raises(JobError) as error:
        Lora().apply(Bare(), SPEC)
    assert error.value.code == "ADAPTER_TRAINS_NOTHING"
