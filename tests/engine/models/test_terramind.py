"""TerraMind gives the features of the reference implementation: both kinds of MLP, one modality or several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from geopeft.errors import BandError, WeightsError
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.terramind import MODALITIES, TerraMindBackbone, build
from reference import TOLERANCE, cases, config, expected, inputs, largest_difference, weights
from torch import Tensor

Record = Callable[[str, object], None]
S2, S1 = MODALITIES["s2"][1], MODALITIES["s1"][1]
NAMES = {"S2L2A": ("s2", S2), "S1GRD": ("s1", S1)}
BASE_CASES = ("s2l2a_96_interp", "s2l2a_s1grd_mean_96")
TINY_CASES = (
    *BASE_CASES,
    "s1grd_only_96",
    "s2l2a_224",
    "s2l2a_bands_b_g_r_nir_96",
    "s2l2a_rect_64x160_interp",
    "s2l2a_s1grd_dict_96",
)


def network(bands: tuple[str, ...], gated: bool = False, dim: int = 64, depth: int = 4) -> TerraMindBackbone:
    torch.manual_seed(0)
    return build(BACKBONES["terramind_v1_tiny"], bands, dim=dim, depth=depth, heads=4, gated=gated).eval()


def like(folder: Path, bands: tuple[str, ...]) -> TerraMindBackbone:
    """The reference's network with its weights."""
    made = network(bands, config(folder)["kwargs"]["gated_mlp"])
    made.load_weights(weights(folder))
    return made


def given(folder: Path, case: str) -> tuple[tuple[str, ...], Tensor, list[str]]:
    """Names of the bands, all channels (1, C, H, W), and the modalities, as the reference calls them."""
    arrays = inputs(folder, case)
    modalities = [name for name in arrays if name in NAMES]
    bands: tuple[str, ...] = ()
    for name in modalities:
        every = NAMES[name][1]
        bands += tuple(every[i] for i in arrays["band_index"].tolist()) if "band_index" in arrays else every
    return bands, torch.cat([arrays[name] for name in modalities], dim=1), modalities


def outputs(backbone: TerraMindBackbone, x: Tensor, modalities: list[str]) -> dict[str, Tensor]:
    """What the reference tells of a case, under its names."""
    with torch.no_grad():
        maps = [m.flatten(2).transpose(1, 2) for m in backbone(x)]
        found = {f"block{i}": m for i, m in enumerate(maps[:-1], 1)} | {"final_normed": maps[-1]}
        tokens = backbone.embed(x, 10.0, None)
        for i in range(len(backbone.blocks)):
            tokens = backbone.run_block(i, tokens)
        by_modality = backbone.finish(tokens).unflatten(1, (-1, len(modalities)))
        for name in modalities:
            own = NAMES[name][0]
            embedded = backbone.embeddings[own].project(*backbone.seen(own, x))  # type: ignore[operator]
            found[f"patch_embed_{name}"] = embedded.flatten(2).transpose(1, 2)
            found[f"final_normed_{name}"] = by_modality[:, :, backbone.modalities.index(own)]
    return found


@pytest.mark.parametrize("case", TINY_CASES)
def test_every_output_of_the_plain_network_is_reproduced(case: str, shared: Path, record_property: Record) -> None:
    compare(shared / "fixtures" / "terramind_v1_tiny_like", case, record_property)


@pytest.mark.parametrize("case", BASE_CASES)
def test_every_output_of_the_gated_network_is_reproduced(case: str, shared: Path, record_property: Record) -> None:
    compare(shared / "fixtures" / "terramind_v1_base_like", case, record_property)


def compare(folder: Path, case: str, record_property: Record) -> None:
    bands, x, modalities = given(folder, case)
    difference = largest_difference(outputs(like(folder, bands), x, modalities), expected(folder, case))
    record_property("difference", difference)
    assert difference <= TOLERANCE


def test_the_cases_are_all_of_the_fixtures(shared: Path) -> None:
    assert cases(shared / "fixtures" / "terramind_v1_tiny_like") == sorted(TINY_CASES)
    assert cases(shared / "fixtures" / "terramind_v1_base_like") == sorted(BASE_CASES)


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_a_published_file_with_decoder_and_other_modalities_loads_and_half_of_one_is_refused(
    name: str, shared: Path
) -> None:
    folder = shared / "fixtures" / f"terramind_v1_{name}_like"
    published = weights(folder)
    others = {
        "encoder_embeddings.untok_dem@224.proj.weight": torch.zeros(64, 256),
        "encoder_embeddings.tok_lulc@224.token_emb.weight": torch.zeros(8, 64),
        "decoder_embeddings.tok_dem@224.mod_emb": torch.zeros(1, 1, 64),
        "decoder.0.self_attn.qkv.weight": torch.zeros(192, 64),
        "decoder_norm.weight": torch.zeros(64),
        "decoder_proj_context.weight": torch.zeros(64, 64),
        "mask_token": torch.zeros(1, 1, 64),
    }
    backbone = network(S2, gated=name == "base")
    backbone.load_weights(published | others)
    row = published["encoder.1.attn.qkv.weight"][64:128]
    torch.testing.assert_close(backbone.state_dict()["encoder.1.attn.k.weight"], row)
    for wrong in (
        {key: value for key, value in published.items() if not key.startswith("encoder.3.")},
        {key: value for key, value in published.items() if "sen1grd" not in key},
        published | {"encoder.4.norm1.weight": torch.ones(64)},
    ):
        with pytest.raises(WeightsError, match="TerraMind") as error:
            backbone.load_weights(wrong)
        assert error.value.code == "WEIGHTS_KEYS"


def test_the_weights_of_one_kind_are_refused_by_the_other(shared: Path) -> None:
    with pytest.raises(WeightsError, match="TerraMind"):
        network(S2, gated=True).load_weights(weights(shared / "fixtures" / "terramind_v1_tiny_like"))


def test_the_order_of_the_bands_does_not_matter() -> None:
    backbone, swapped = network(S2 + S1), network((S2 + S1)[::-1])
    x = torch.rand(1, 14, 32, 48)
    for a, b in zip(backbone(x), swapped(x.flip(1)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_modality_takes_part_where_one_of_its_bands_is_there() -> None:
    assert network(("B04", "B08")).modalities == ("s2",)
    assert network(("VH",)).modalities == ("s1",)
    assert network(("VH", "B04")).modalities == ("s2", "s1")
    assert any(name.startswith("embeddings.s1.") for name in network(S2).never_trained)
    assert not network(S2 + S1).never_trained


def test_a_missing_band_is_as_one_at_its_mean() -> None:
    x = torch.rand(1, 12, 32, 32)
    x[:, 5] = 0
    without = network(tuple(band for band in S2 if band != "B06"))
    torch.testing.assert_close(network(S2)(x)[-1], without(x[:, [i for i in range(12) if i != 5]])[-1])


def test_no_known_band_is_refused() -> None:
    with pytest.raises(BandError, match="none of the bands") as error:
        network(("thermal",))
    assert error.value.code == "BANDS_MISSING"


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_the_cards_say_how_many_parameters_there_are(size: str) -> None:
    card = BACKBONES[f"terramind_v1_{size}"]
    with torch.device("meta"):
        backbone = build(card, S2 + S1, **card.options)
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(card.parameters_m, abs=0.05)
