"""LoRA against the reference implementation on the same network: with updates, without, and merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from geopeft.models.adapters import ADAPTERS
from geopeft.models.adapters.adapter import Adapter
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.prithvi import PrithviBackbone, build
from geopeft.models.registry import load_builder
from geopeft.models.spec import InputBand, ModelSpec
from reference import TOLERANCE, cases, config, expected, inputs, largest_difference, weights
from torch import Tensor

CASES = ("T1_64", "T1_96_interp")
# The reference's names of layers, and ours.
LAYERS = {"attn.qkv.q_linear": "attn.q", "attn.qkv.k_linear": "attn.k", "attn.qkv.v_linear": "attn.v",
          "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "fixtures" / "peft_lora_prithvi"


@pytest.fixture(scope="module")
def spec(folder: Path) -> ModelSpec:
    numbers = config(folder)["peft"]["peft_config_kwargs"]
    return ModelSpec(
        backbone="prithvi_eo_v2_300", adapter="lora", decoder="linear", bands=(InputBand(name="a"),), num_classes=2,
        gsd_m=30, chip_size_px=64, rank=numbers["r"], alpha=numbers["lora_alpha"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def stored(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The base network's tensors under Prithvi's names, and the adapter's under ours."""
    base, adapter = {}, {}
    for key, value in weights(folder).items():
        name = key.removeprefix("base_model.model.").replace(".base_layer", "").replace(".default", "")
        for theirs, ours in LAYERS.items():
            name = name.replace(theirs, ours)
        if ".lora_" in name:
            adapter[name.replace("blocks.", "layers.")] = value
        else:
            base[name] = value
    return base, adapter


@pytest.fixture
def lora() -> Adapter:
    made: Adapter = load_builder(ADAPTERS["lora"].builder)()
    return made


@pytest.fixture
def plain(folder: Path, stored: tuple[dict[str, Tensor], dict[str, Tensor]]) -> PrithviBackbone:
    numbers, card = config(folder)["encoder_kwargs"], BACKBONES["prithvi_eo_v2_300"]
    made = build(
        card,
        tuple(band.name for band in card.bands),
        dim=numbers["embed_dim"],
        depth=numbers["depth"],
        heads=numbers["num_heads"],
        image_px=numbers["img_size"],
    )
    made.load_weights(stored[0])
    return made.eval()


def outputs(backbone: PrithviBackbone, x: Tensor, kind: str) -> dict[str, Tensor]:
    """What a network gives, under the fixture's names for this kind of run."""
    made = {}
    with torch.no_grad():
        tokens = backbone.embed(x, 30.0, None)
        for i in range(4):
            tokens = backbone.run_block(i, tokens)
            made[f"{kind}_block{i + 1}"] = tokens
        made[f"{kind}_final_normed"] = backbone.finish(tokens)
    return made


def differing(ours: Mapping[str, Tensor], folder: Path, case: str, kind: str) -> float:
    return largest_difference(ours, {k: v for k, v in expected(folder, case).items() if k.startswith(f"{kind}_")})


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_reference(
    folder: Path,
    case: str,
    spec: ModelSpec,
    lora: Adapter,
    plain: PrithviBackbone,
    stored: tuple[dict[str, Tensor], dict[str, Tensor]],
    record_property: Callable[[str, object], None],
) -> None:
    x = inputs(folder, case)["image"]
    disabled = outputs(plain, x, "adapter_disabled")
    lora.apply(plain, spec)
    fresh = outputs(plain, x, "adapter_disabled")
    lora.load(plain, stored[1])
    unmerged = outputs(plain, x, "unmerged")
    worst = max(
        differing(disabled, folder, case, "adapter_disabled"),
        differing(fresh, folder, case, "adapter_disabled"),
        differing(unmerged, folder, case, "unmerged"),
    )
    record_property("difference", worst)
    assert worst <= TOLERANCE
    assert (unmerged["unmerged_final_normed"] - disabled["adapter_disabled_final_normed"]).abs().max() > 1


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_and_outputs_are_those_of_the_reference(
    folder: Path,
    case: str,
    spec: ModelSpec,
    lora: Adapter,
    plain: PrithviBackbone,
    stored: tuple[dict[str, Tensor], dict[str, Tensor]],
    record_property: Callable[[str, object], None],
) -> None:
    lora.merge(plain, stored[1], spec)
    ours = outputs(plain, inputs(folder, case)["image"], "merged")
    for theirs, name in LAYERS.items():
        ours[f"merged_weight_blocks.0.{theirs}"] = plain.layers[0].get_submodule(name).get_parameter("weight")
    worst = differing(ours, folder, case, "merged")
    record_property("difference", worst)
    assert worst <= TOLERANCE


def test_the_adapter_is_at_q_v_fc1_fc2_as_in_the_reference(
    spec: ModelSpec, lora: Adapter, plain: PrithviBackbone, stored: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    lora.apply(plain, spec)
    assert lora.state(plain).keys() == stored[1].keys() and len(stored[1]) == 32


def test_the_cases_are_all_of_the_fixture(folder: Path) -> None:
    assert cases(folder) == sorted(CASES)
