"""Visual prompts: what the reference gives with them, which backbones take them, and when they drop out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from geopeft.errors import JobError, PackageError
from geopeft.models import SegmentationModel, build
from geopeft.models.adapters.vpt import PromptedBlock, Vpt
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Scene
from geopeft.models.backbones.clay import ClayBackbone
from geopeft.models.backbones.prithvi import build as build_prithvi
from geopeft.models.backbones.transformer import VitBackbone, run_prompted
from geopeft.models.segmentation import build_backbone
from geopeft.models.spec import InputBand, ModelSpec
from reference import TOLERANCE, config, expected, inputs, largest_difference, weights
from torch import Tensor, nn

RGB = ("red", "green", "blue")
VIT = "vit_tiny_patch16_224"


def spec_of(backbone: str, prompt_tokens: int = 5) -> ModelSpec:
    bands = tuple(InputBand(name=n, backbone_band=n) for n in (band.name for band in BACKBONES[backbone].bands))
    fields: dict[str, Any] = {"decoder": "linear", "num_classes": 3, "gsd_m": 10, "chip_size_px": 32}
    return ModelSpec(backbone=backbone, adapter="vpt", bands=bands, prompt_tokens=prompt_tokens, **fields)


def model_of(backbone: str, prompt_tokens: int = 5) -> SegmentationModel:
    torch.manual_seed(0)
    return build(spec_of(backbone, prompt_tokens), pretrained=False)


def outputs(backbone: VitBackbone, x: Tensor, gsd_m: float = 10.0, scene: Scene | None = None) -> dict[str, Tensor]:
    """Tokens after each block, and the last ones normalised."""
    tokens = backbone.embed(x, gsd_m, scene)
    found = {}
    for i in range(len(backbone.blocks)):
        tokens = backbone.run_block(i, tokens)
        found[f"block{i + 1}"] = tokens
    return found | {"final_normed": backbone.finish(tokens)}


def with_prompts(backbone: VitBackbone, state: dict[str, Tensor], key: str, spec: ModelSpec) -> VitBackbone:
    """The backbone as a package with the reference's prompts opens it."""
    depth = len(backbone.blocks)
    prompts = torch.cat([state.pop(f"{key}.{i}") for i in range(depth)])
    backbone.load_weights(state)
    Vpt().merge(backbone, {"prompts": prompts}, spec)
    return backbone.eval()


@pytest.mark.parametrize("case", ["T1_64", "T1_96_interp"])
def test_prithvi_with_prompts_gives_what_the_reference_gives(
    shared: Path, case: str, record_property: Callable[[str, object], None]
) -> None:
    folder = shared / "fixtures/peft_vpt_prithvi"
    numbers = config(folder)["encoder_kwargs"]
    card = BACKBONES["prithvi_eo_v1_100"]
    names = tuple(band.name for band in card.bands)
    made = build_prithvi(
        card, names, dim=numbers["embed_dim"], depth=numbers["depth"], heads=numbers["num_heads"],
        image_px=numbers["img_size"],
    )  # fmt: skip
    spec = spec_of(card.name, prompt_tokens=config(folder)["vpt"]["vpt_n_tokens"])
    backbone = with_prompts(made, weights(folder), "vpt_prompt_embeddings", spec)
    with torch.no_grad():
        found = outputs(backbone, inputs(folder, case)["image"])
    difference = largest_difference(found, expected(folder, case))
    record_property("difference", difference)
    assert difference < TOLERANCE


def test_clay_with_prompts_gives_what_the_reference_gives(
    shared: Path, record_property: Callable[[str, object], None]
) -> None:
    folder, case = shared / "fixtures/peft_vpt_clay_v1", "s2_10band_full_meta_64"
    numbers = config(folder)["encoder_kwargs"]
    made = ClayBackbone(
        "clay", numbers["patch_size"], numbers["dim"], numbers["depth"], numbers["heads"], numbers["dim_head"]
    )
    spec = spec_of("clay_v1", prompt_tokens=config(folder)["vpt"]["vpt_n_tokens"])
    backbone = with_prompts(made, weights(folder), "transformer.vpt_prompt_embeddings", spec)
    given = inputs(folder, case)
    backbone.set_wavelengths(given["waves"].tolist())
    # What the fixture's encodings of time and place stand for.
    scene = Scene(torch.tensor([[[2024.0, 185.0, 10.9]]]), torch.tensor([[47.37, 8.54]]))
    with torch.no_grad():
        found = outputs(backbone, given["pixels"], float(given["gsd"]), scene)
    difference = largest_difference(found, expected(folder, case))
    record_property("difference", difference)
    assert difference < TOLERANCE


@pytest.mark.parametrize(("backbone", "patch_px", "dim", "depth"), [("galileo_nano", 4, 128, 4), (VIT, 16, 192, 12)])
def test_prompts_are_drawn_evenly_within_the_bounds_of_the_paper(
    backbone: str, patch_px: int, dim: int, depth: int
) -> None:
    made = model_of(backbone, prompt_tokens=7)
    values = torch.cat([value.flatten() for value in Vpt().state(made.backbone).values()])
    bound = math.sqrt(6 / (3 * patch_px**2 + dim))
    assert len(values) == depth * 7 * dim
    assert 0.99 * bound < values.abs().max() <= bound
    assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_prompts_drop_out_in_training_only_and_for_each_chip_by_itself() -> None:
    model, x = model_of("galileo_nano", prompt_tokens=100), torch.rand(1, 10, 16, 16).expand(2, -1, -1, -1)
    first, second = (model.eval()(x) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(first[0], first[1])
    model.train()
    assert not model.backbone.training
    dropped = model.encode(x)[0][-1]
    assert not torch.allclose(dropped[0], dropped[1], atol=1e-4)
    model.eval()
    assert torch.equal(model(x), first)


def test_where_prompts_stand_means_nothing_but_what_is_dropped_does() -> None:
    torch.manual_seed(0)
    backbone: Any = build_backbone(BACKBONES[VIT], RGB, ()).eval()
    block, prompts, tokens = backbone.net.blocks[0], torch.randn(4, 192), torch.randn(2, 10, 192)
    seen = run_prompted(block, tokens, prompts, 1, nn.Identity())
    behind = block(torch.cat([tokens, prompts.expand(2, -1, -1)], dim=1))[:, :10]
    torch.testing.assert_close(seen, behind, atol=1e-5, rtol=0)
    assert not torch.allclose(seen, block(tokens), atol=1e-2)


@pytest.mark.parametrize("name", [VIT, "deit_tiny_distilled_patch16_224"])
def test_a_plain_transformer_of_timm_takes_prompts_behind_its_prefix(name: str) -> None:
    net: Any = model_of(name).backbone.net
    assert all(isinstance(block, PromptedBlock) and block.prefix == net.num_prefix_tokens for block in net.blocks)
    assert [block.prompts.shape for block in net.blocks] == [(5, 192)] * 12


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_small_patch16_dinov3"])
def test_other_networks_are_refused_with_the_adapters_that_fit(name: str) -> None:
    with pytest.raises(JobError, match="cannot be used with the adapter 'vpt'") as caught:
        model_of(name)
    assert caught.value.code == "ADAPTER_UNSUITABLE"
    assert "lora" in caught.value.hint and "vpt" not in caught.value.hint
    with pytest.raises(JobError, match="need a plain transformer") as caught:
        Vpt().apply(build_backbone(BACKBONES[name], RGB, ()), spec_of(name))
    assert caught.value.code == "ADAPTER_UNSUITABLE"


def test_another_number_of_prompts_is_refused() -> None:
    state = model_of("galileo_nano", prompt_tokens=6).trainable_state()
    with pytest.raises(PackageError, match="another shape"):
        build(spec_of("galileo_nano", prompt_tokens=5), state, pretrained=False, merged=True)


def test_a_make_of_before_prompts_can_still_be_read() -> None:
    plain = spec_of("galileo_nano").model_dump()
    del plain["prompt_tokens"]
    assert ModelSpec.model_validate(plain).prompt_tokens == 100


def test_the_number_of_prompts_is_told() -> None:
    assert spec_of("galileo_nano", prompt_tokens=7).tuning == "vpt with 7 prompts"
